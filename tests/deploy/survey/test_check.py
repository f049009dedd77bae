"""Predicted against measured: with an overlay made up, the prediction is a sum by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.adapter.profiles import profile_for
from deploy.errors import UsageError
from deploy.measure.host import host
from deploy.measure.latency import TimingPlan
from deploy.predict.latency import Costs, Prediction
from deploy.progress import SILENT
from deploy.spec.overlay import Cost, KernelClass
from deploy.spec.tensors import Precision
from deploy.stages.request import Request
from deploy.survey import check as module
from deploy.survey.check import Check, Row, check

EACH: dict[KernelClass, float] = {
    "stem": 1e-6, "conv": 2e-6, "gemm": 3e-6, "reduce": 4e-6, "elementwise": 5e-6, "convert": 6e-6,
    "entry": 7e-6,
}  # fmt: skip
"""Milliseconds of a multiply-accumulate, of a byte for the last four; INT8 takes half."""
OVERHEAD = 0.25
BY_BYTES = ("reduce", "elementwise", "convert", "entry")
MACS = {"stem": 8 * 64 * 27, "conv": 8 * 64 * 72, "gemm": 8 * 4}
"""Of the small residual network of the tests, by hand."""
ENDS = 4 * (3 * 64 + 4)


def points(*left_out: KernelClass) -> tuple[Cost, ...]:
    found = []
    precisions: tuple[Precision, ...] = ("float", "int8")
    for op, each in EACH.items():
        for precision in precisions if op not in left_out else ():
            for k in (5, 10, 15, 20):
                macs, moved = (0, 2**k) if op in BY_BYTES else (2**k, 4096)
                ms = each * 2**k * (0.5 if precision == "int8" and op != "convert" else 1)
                found.append(Cost(op=op, precision=precision, macs=macs, bytes=moved, ms=ms, spread=0))
    found += [Cost(op="overhead", precision=p, macs=0, bytes=64, ms=OVERHEAD, spread=0) for p in precisions]
    return tuple(found)


def costs(*left_out: KernelClass) -> dict[str, Costs]:
    return {"ort": Costs(points(*left_out))}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PLAN", TimingPlan(seconds=0.01, slice_s=0.001, rounds=2))


def request(source: Path, tmp_path: Path, **others: object) -> Request:
    given: dict[str, object] = {
        "source": source,
        "target": profile_for(host().arch, host().features).name,
        "runtime": "ort",
        "cache": tmp_path / "cache",
    }
    return Request(**(given | others))  # type: ignore[arg-type]


def test_predictions_are_sums_by_hand(network: Path, images: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = check(request(network, tmp_path, data=images), costs(), SILENT)
    assert found.model == "network" and found.skipped == ()
    plain, integer = found.rows
    assert [(row.runtime, row.precision) for row in found.rows] == [("ort", "float"), ("ort", "int8")]
    # Conv+Relu, Conv+Add+Relu, GlobalAveragePool over 8x8 of 8 channels, Gemm.
    fixed = OVERHEAD + 7e-6 * ENDS
    products = 1e-6 * MACS["stem"] + 2e-6 * MACS["conv"] + 3e-6 * MACS["gemm"]
    assert plain.prediction.ms == pytest.approx(fixed + products + 4e-6 * 4 * (512 + 8), rel=1e-4)
    assert {part.kernel.op for part in plain.prediction.parts} == {"stem", "conv", "gemm", "reduce"}
    # In integers the Add is a kernel of its own, of two operands and a result of 512 codes.
    by_class = integer.prediction.by_class()
    assert by_class["stem"] == pytest.approx(0.5e-6 * MACS["stem"], rel=1e-4)
    assert by_class["conv"] == pytest.approx(1e-6 * MACS["conv"], rel=1e-4)
    assert by_class["elementwise"] == pytest.approx(2.5e-6 * 3 * 512, rel=1e-4)
    assert integer.prediction.fixed == pytest.approx(OVERHEAD + 3.5e-6 * ENDS, rel=1e-4)


def test_each_row_holds_what_was_timed_and_every_block(
    network: Path, images: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = check(request(network, tmp_path, data=images), costs(), SILENT)
    for row in found.rows:
        assert row.measured > 0 and 0 < row.quartiles[0] <= row.quartiles[1] and row.spread >= 0
        assert row.error == pytest.approx(row.prediction.ms / row.measured - 1)
        assert sum(ms for _, ms, _ in row.blocks) == pytest.approx(row.prediction.ms - row.prediction.fixed)
        assert len(row.blocks) == 4 and all(ms is None or ms >= 0 for _, _, ms in row.blocks)


def test_without_data_noise_makes_the_integers(network: Path, tmp_path: Path) -> None:
    found = check(request(network, tmp_path, random_calibration=True), costs(), SILENT)
    assert [row.precision for row in found.rows] == ["float", "int8"]
    found = check(request(network, tmp_path), costs(), SILENT)
    assert [row.precision for row in found.rows] == ["float"], "without any there is the float build alone"


def test_a_runtime_that_was_not_measured_is_named(network: Path, tmp_path: Path) -> None:
    found = check(request(network, tmp_path), {}, SILENT)
    assert found.rows == () and math.isnan(found.median_error)
    assert found.skipped == ("ort was not measured on this machine",)


def test_a_class_without_points_stands_in_or_is_said(network: Path, tmp_path: Path) -> None:
    found = check(request(network, tmp_path), costs("stem"), SILENT)
    (stem, *rest) = found.rows[0].prediction.parts
    assert stem.stand_in and not any(part.stand_in for part in rest)
    assert stem.estimate.ms == pytest.approx(2e-6 * MACS["stem"], rel=1e-3), "as another convolution does"
    with pytest.raises(UsageError, match="ort: nothing like reduce in float was measured") as caught:
        check(request(network, tmp_path), costs("reduce", "elementwise"), SILENT)
    assert "deploy profile" in caught.value.hint


FREE = """g (float[n, 3, h, w] x) => (float[n, 8, h, w] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
    y = Relu (a)
}"""


@pytest.fixture
def free(save: Callable[..., Path], tmp_path: Path) -> Path:
    """A network whose image has any size."""
    return save(tmp_path / "free.onnx", FREE, {"w1": np.ones((8, 3, 3, 3), np.float32)})


def test_a_free_size_is_said_with_the_remedy(free: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a size is free at ") as caught:
        check(request(free, tmp_path), costs(), SILENT)
    assert "--shape NAME=SIZES" in caught.value.hint


def test_a_size_that_was_fixed_is_predicted(free: Path, tmp_path: Path) -> None:
    found = check(request(free, tmp_path, shapes={"x": (1, 3, 16, 12)}), costs(), SILENT)
    (part,) = found.rows[0].prediction.parts
    assert part.kernel.macs == 8 * 16 * 12 * 27
    assert part.estimate.ms == pytest.approx(1e-6 * part.kernel.macs, rel=1e-4)


def row(predicted: float, measured: float) -> Row:
    return Row("ort", "float", Prediction((), predicted), measured, (measured, measured), ())


@pytest.mark.parametrize(
    ("errors", "median"),
    [((0.1,), 0.1), ((-0.5, 0.1), 0.3), ((0.4, -0.1, 0.2), 0.2), ((-0.1, 0.1, 0.2, 0.9), 0.15)],
)
def test_the_median_is_of_absolute_errors(errors: tuple[float, ...], median: float) -> None:
    found = Check("m", tuple(row(1 + error, 1.0) for error in errors))
    assert found.median_error == pytest.approx(median)


def test_spread_is_that_of_the_quartiles() -> None:
    assert Row("ort", "float", Prediction((), 1.0), 1.0, (0.9, 1.1), ()).spread == pytest.approx(0.2)


Deploy = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("words", "code"), [((), 2), (("--shape", "x=1,3,16,12"), 0), (("--shape", "x=1"), 2)]
)
def test_the_command_says_it_and_takes_the_size(
    free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], code: int,
) -> None:  # fmt: skip
    import datetime

    from deploy.adapter.overlays import save as keep
    from deploy.cli import main
    from deploy.measure.host import this_machine
    from deploy.spec.overlay import Overlay, RuntimeCosts

    monkeypatch.setenv("DEPLOY_DATA", str(tmp_path / "data"))
    import onnxruntime

    profile = profile_for(host().arch, host().features)
    measured = RuntimeCosts(
        name="ort", version=onnxruntime.__version__, threads=1, cost=points(),
        settings=dict(profile.runtime_named("ort").options),
    )  # fmt: skip
    keep(
        Overlay(
            profile=profile.name, machine=this_machine(), date=datetime.date(2026, 11, 21), command="made up",
            seconds=1, noise=0.0, runtime=(measured,),
        )
    )  # fmt: skip
    arguments = ["profile", "--check", str(free), "--runtime", "ort", "--cache", str(tmp_path / "c"), *words]
    assert main(arguments) == code
    out, err = capsys.readouterr()
    if code:
        assert "error: " in err and "hint: " in err and "Traceback" not in err
        assert "--shape" in err or "dimensions" in err
    else:
        assert "ort float" in out and "median error" in out
