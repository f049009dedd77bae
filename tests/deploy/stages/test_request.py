"""What was asked for is checked before anything runs; data come in their roles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import DataError, UsageError
from deploy.progress import Silent
from deploy.spec.project import InputSection
from deploy.spec.tensors import Normalisation, TensorSpec
from deploy.stages.request import Request, Roles, open_roles

X = TensorSpec(name="x", dtype="float32", shape=("n", 4))
ARRAYS = {"x": np.arange(40, dtype=np.float32).reshape(10, 4), "y": np.arange(10) % 4}


class Told(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def request(**settings: object) -> Request:
    return Request(source="m.onnx", target="x86-cpu", **settings)  # type: ignore[arg-type]  # some are wrong


def roles(asked: Request, **named: bool) -> tuple[Roles, list[str]]:
    told = Told()
    return open_roles(asked, [X], told, **named), told.warnings


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("precision", "int4", "auto, float, fp16, bf16, int8, mixed"),
        ("observer", "max", "minmax, percentile, mse, kl"),
        ("threads", 0, "leave threads out"),
        ("threads", 10**9, "leave threads out"),
        ("samples", 0, "leave samples out"),
        ("samples", -1, "leave samples out"),
        ("seed", -1, "leave seed out"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(setting: str, value: object, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        request(**{setting: value})
    assert setting in caught.value.message
    assert named in caught.value.hint


def test_raw_pixels_for_a_float_input_are_warned_of(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 3, 8, 8), layout="NCHW")
    for scale, said in ((1.0, 1), (1 / 255, 0)):
        told = Told()
        inputs = {"x": InputSection(normalisation=Normalisation(scale=scale))}
        open_roles(request(data=tmp_path, inputs=inputs), [spec], told)
        assert sum("0 to 255" in warning for warning in told.warnings) == said


def test_relative_paths_start_at_the_root(tmp_path: Path) -> None:
    assert request().source_path == Path("m.onnx")
    assert request(root=tmp_path).source_path == tmp_path / "m.onnx"
    asked = Request(source=tmp_path / "m.onnx", target="x86-cpu", root=Path("/elsewhere"))
    assert asked.source_path == tmp_path / "m.onnx"


def test_calibration_data_judge_where_nothing_else_does() -> None:
    found, warnings = roles(request(data=ARRAYS))
    assert found.validation is found.calibration
    assert found.eval is None
    assert found.judged_on == "calibration"
    assert warnings == []


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ({"data": ARRAYS, "validation": ARRAYS}, "validation"),
        ({"data": ARRAYS, "eval": ARRAYS}, "eval"),
        ({"data": ARRAYS, "validation": ARRAYS, "eval": ARRAYS}, "eval"),
        ({"random_calibration": True}, "random"),
        ({"random_calibration": True, "validation": ARRAYS}, "validation"),
        ({"random_calibration": True, "eval": ARRAYS}, "eval"),
        ({"validation": ARRAYS}, "validation"),
    ],
)
def test_the_figures_are_said_to_be_of_the_data_that_judged(given: Mapping[str, object], role: str) -> None:
    assert roles(request(**given))[0].judged_on == role


def test_without_data_there_is_a_notice_that_says_what_to_do() -> None:
    found, warnings = roles(request())
    assert found == Roles(None, None, None)
    assert len(warnings) == 1
    assert "--data" in warnings[0]
    assert "--random-calibration" in warnings[0]


@pytest.mark.parametrize("precision", ["float", "fp16"])
def test_who_wants_no_integers_is_not_bothered(precision: str) -> None:
    assert roles(request(precision=precision))[1] == []


def test_a_model_that_is_quantized_already_needs_no_data() -> None:
    assert roles(request(), quantized=True)[1] == []


def test_noise_is_warned_of_seeded_and_shaped_like_the_input() -> None:
    found, warnings = roles(request(random_calibration=True))
    assert found.random
    assert "noise" in warnings[0]
    assert found.calibration is not None
    first, again, other = (
        roles(request(random_calibration=True, seed=seed))[0].calibration for seed in (0, 0, 1)
    )
    assert first is not None and again is not None and other is not None
    assert first.digest == again.digest != other.digest
    feeds = next(first.batches(1000)).feeds["x"]
    assert feeds.shape[1:] == (4,)
    assert 0.8 < feeds.std() < 1.2


def test_data_and_noise_together_are_refused() -> None:
    with pytest.raises(UsageError, match="both calibration data and --random-calibration"):
        roles(request(data=ARRAYS, random_calibration=True))


@pytest.mark.parametrize("data", [None, ARRAYS])
def test_settings_of_an_input_that_the_model_lacks_are_refused_with_or_without_data(
    data: Mapping[str, np.ndarray] | None,
) -> None:
    sections = {"image": InputSection(normalisation=Normalisation(scale=0.5))}
    with pytest.raises(UsageError, match=r"'image'.*not an input"):
        roles(request(data=data, inputs=sections))


def test_labels_and_groups_are_read_under_the_names_given() -> None:
    data = {"x": ARRAYS["x"], "class": ARRAYS["y"], "patient": np.arange(10) // 2}
    found, _ = roles(request(data=data, labels="class", groups="patient"))
    assert found.calibration is not None
    batch = next(found.calibration.batches(10))
    np.testing.assert_array_equal(batch.targets[""], ARRAYS["y"])
    assert batch.groups is not None
    np.testing.assert_array_equal(batch.groups, np.arange(10) // 2)


def test_normalisation_is_applied_once_by_the_reader_and_not_when_folded() -> None:
    def values(folded: bool) -> np.ndarray:
        section = InputSection(normalisation=Normalisation(scale=2.0, mean=(3.0,), std=(4.0,), folded=folded))
        found, _ = roles(request(data=ARRAYS, inputs={"x": section}))
        assert found.calibration is not None
        return next(found.calibration.batches(10)).feeds["x"]

    np.testing.assert_allclose(values(folded=False), (ARRAYS["x"] * 2 - 3) / 4)
    np.testing.assert_array_equal(values(folded=True), ARRAYS["x"])


def test_data_that_do_not_fit_are_a_data_error() -> None:
    with pytest.raises(DataError, match="'x'"):
        roles(request(data={"x": np.zeros((3, 5), np.float32)}))
