"""The whole way on the handwritten digits: what is in the bundle, and what makes two bundles the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import deploy
from deploy.bundle.read import Bundle, load_bundle
from deploy.bundle.verify import read_selftest, verify_bundle
from deploy.errors import DataError, UsageError
from deploy.progress import Silent
from deploy.spec.plan import Plan
from deploy.spec.project import Budget, InputSection, MetricSection
from deploy.spec.tensors import Normalisation

FIRST_HALF = (
    "artifact/model.onnx",
    "graph.onnx",
    "plan.json",
    "manifest.json",
    "deploy.lock",
    "selftest.npz",
)
STAGES = ["read", "clean", "data", "hazards", "calibrate", "choose", "measure", "verify", "bundle"]
UNMEASURED = [name for name in STAGES if name != "measure"]

Build = Callable[..., Bundle]
Arrays = Mapping[str, np.ndarray]


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.cached: dict[str, bool] = {}

    def finish(self, stage: str, seconds: float, cached: bool, outcome: str) -> None:
        self.cached[stage] = cached

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def make(example: Path, tmp_path: Path, digits_cache: Path) -> Build:
    """Builds the example for x86-avx2, with a cache that all tests share, not measured unless told so."""

    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "measure": False, "cache": digits_cache, "out": tmp_path / "dist",
            "source": example / "digits.onnx",
        }  # fmt: skip
        return deploy.build(**{**given, **settings})  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def calibration(example: Path) -> dict[str, np.ndarray]:
    with np.load(example / "calib.npz") as data:
        return dict(data)


@pytest.fixture(scope="session")
def evaluation(example: Path) -> dict[str, np.ndarray]:
    with np.load(example / "eval.npz") as data:
        return dict(data)


def plan_of(bundle: Bundle) -> Plan:
    return Plan.model_validate_json((bundle.folder / "plan.json").read_text())


def accuracy(model: Path, data: Arrays) -> float:
    """By ONNX Runtime, node by node, and numpy alone."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return float((session.run(None, {"x": data["x"]})[0].argmax(1) == data["y"]).mean())


@pytest.mark.parametrize("target", ["x86-cpu", "x86-avx2", "rpi5", "jetson"])
def test_the_example_for_every_kind_of_target(
    make: Build, example: Path, calibration: Arrays, evaluation: Arrays, target: str
) -> None:
    bundle = make(target=target, data=example / "calib.npz", eval=example / "eval.npz")
    manifest = bundle.manifest
    assert manifest.verdict.status == "met"
    assert manifest.target == target
    found = manifest.evaluation
    assert found is not None
    assert (found.metric, found.role, found.samples, found.looks) == ("top1", "eval", 597, 1)
    assert found.baseline == pytest.approx(accuracy(example / "digits.onnx", evaluation))
    assert found.artifact == pytest.approx(
        accuracy(bundle.folder / "artifact" / "model.onnx", evaluation), abs=2e-3
    )
    assert found.drop == pytest.approx(found.baseline - found.artifact)
    assert found.interval[0] <= found.drop <= found.interval[1]
    assert found.drop <= 0.01
    assert len(found.per_class) == 10
    sizes = manifest.size_bytes
    assert sizes.baseline_weights / sizes.weights > 3.5
    assert sizes.baseline == (example / "digits.onnx").stat().st_size
    assert sizes.artifact == (bundle.folder / "artifact" / "model.onnx").stat().st_size
    assert manifest.deferred == (target == "jetson")
    assert "ONNX Runtime" in manifest.executed_by
    assert verify_bundle(bundle.folder).passed
    feeds, want = read_selftest(bundle.folder / "selftest.npz")
    np.testing.assert_array_equal(feeds["x"], calibration["x"][:8])
    with deploy.open_bundle(bundle.folder) as runner:
        got = runner.run(feeds)
    np.testing.assert_array_equal(got["logits"], want["logits"])


def test_what_a_bundle_holds(make: Build, example: Path) -> None:
    bundle = make(data=example / "calib.npz")
    names = {p.relative_to(bundle.folder).as_posix() for p in bundle.folder.rglob("*") if p.is_file()}
    assert names == {*FIRST_HALF, "measurements.json", "build.log", "report.html"}
    assert [stage.name for stage in bundle.measurements.stages] == UNMEASURED
    assert [line.split()[0] for line in (bundle.folder / "build.log").read_text().splitlines()] == UNMEASURED
    assert bundle == load_bundle(bundle.folder)
    assert bundle.manifest.calibration is not None
    assert bundle.manifest.calibration.samples == 256
    assert not bundle.manifest.calibration.random


def test_measuring_tells_speed_memory_and_where(make: Build, example: Path) -> None:
    bundle = make(target="x86-cpu", data=example / "calib.npz", measure=True)
    assert [stage.name for stage in bundle.measurements.stages] == STAGES
    comparison = bundle.measurements.comparison
    assert comparison is not None
    assert comparison.interval[0] <= comparison.speedup <= comparison.interval[1]
    assert comparison.baseline.conditions.runtime.startswith("onnxruntime")
    for side in (comparison.baseline, comparison.artifact):
        assert 0 < side.latency_ms.p50 <= side.latency_ms.p95 <= side.latency_ms.p99
        assert side.peak_memory_bytes is not None
        assert side.peak_memory_bytes > 100_000
        assert side.conditions.batch == 1


def test_without_data_it_is_float_with_a_notice(make: Build) -> None:
    told = Told()
    bundle = make(progress=told)
    assert len(told.warnings) == 1
    assert "no calibration data: a float build" in told.warnings[0]
    assert bundle.manifest.verdict.status == "float"
    assert bundle.manifest.verdict.reasons == ("no calibration data were given",)
    assert bundle.manifest.calibration is None
    assert bundle.manifest.evaluation is None
    assert not plan_of(bundle).tensors
    assert verify_bundle(bundle.folder).passed


def test_random_calibration_says_so_in_the_manifest(make: Build) -> None:
    told = Told()
    bundle = make(random_calibration=True, progress=told)
    assert any("noise" in warning for warning in told.warnings)
    manifest = bundle.manifest
    assert manifest.calibration is not None
    assert manifest.calibration.random
    assert manifest.evaluation is not None
    assert manifest.evaluation.role == "random"
    assert any("noise" in reason for reason in manifest.verdict.reasons)


def test_the_figures_are_those_of_the_artifact_that_was_chosen(make: Build, tmp_path: Path) -> None:
    """The search ends with a candidate that it refuses: its figures must not be told."""
    bundle = make(random_calibration=True, budget=Budget(max_drop=0.0))
    found = bundle.manifest.evaluation
    assert found is not None
    assert found.looks > 2
    assert bundle.manifest.verdict.status == "met"
    assert found.drop <= 0.0
    (tmp_path / "deploy.lock").write_bytes((bundle.folder / "deploy.lock").read_bytes())
    again = make(random_calibration=True, budget=Budget(max_drop=0.0), lock=tmp_path / "deploy.lock")
    assert again.digest == bundle.digest


def test_data_without_labels_are_judged_by_agreement(make: Build, calibration: Arrays) -> None:
    bundle = make(data={"x": calibration["x"]})
    found = bundle.manifest.evaluation
    assert found is not None
    assert (found.metric, found.role, found.baseline) == ("agreement", "calibration", 1.0)
    session = [
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": calibration["x"]})[0]
        for path in (bundle.folder / "graph.onnx", bundle.folder / "artifact" / "model.onnx")
    ]
    assert found.artifact == pytest.approx((session[0].argmax(1) == session[1].argmax(1)).mean(), abs=4e-3)


def test_validation_chooses_and_eval_accepts(make: Build, calibration: Arrays, evaluation: Arrays) -> None:
    some = {name: array[:100] for name, array in evaluation.items()}
    bundle = make(data={"x": calibration["x"]}, validation=calibration)
    assert bundle.manifest.evaluation is not None
    assert bundle.manifest.evaluation.role == "validation"
    assert bundle.manifest.evaluation.metric == "top1"
    bundle = make(data={"x": calibration["x"]}, validation=calibration, eval=some)
    assert bundle.manifest.evaluation is not None
    assert (bundle.manifest.evaluation.role, bundle.manifest.evaluation.samples) == ("eval", 100)


@pytest.fixture(scope="session")
def noise() -> dict[str, np.ndarray]:
    """Pictures of nothing, on which every quantized artifact disagrees with the float model now and then."""
    return {"x": np.random.default_rng(0).standard_normal((200, 1, 16, 16)).astype(np.float32)}


def test_eval_data_that_refuse_are_looked_at_again(make: Build, calibration: Arrays, noise: Arrays) -> None:
    bundle = make(data=calibration, eval=noise, budget=Budget(max_drop=0.0))
    found = bundle.manifest.evaluation
    assert found is not None
    assert found.looks > 1
    assert found.drop <= 0.0
    assert any("eval data refused" in reason for reason in bundle.manifest.verdict.reasons)


@pytest.mark.parametrize("precision", ["float", "int8", "mixed"])
def test_precision_is_what_was_asked_for(make: Build, example: Path, precision: str) -> None:
    bundle = make(data=example / "calib.npz", precision=precision)
    blocks = plan_of(bundle).blocks
    if precision == "float":
        assert bundle.manifest.verdict.status == "float"
        assert {b.precision for b in blocks} == {"float"}
        assert "precision float was asked for" in bundle.manifest.verdict.reasons
        assert "QuantizeLinear" not in (bundle.folder / "artifact" / "model.onnx").read_bytes().decode(
            "latin-1"
        )
    else:
        assert bundle.manifest.verdict.status == "met"
        assert any(b.precision == "int8" for b in blocks)


def test_a_budget_that_integers_cannot_hold_is_missed_and_says_by_how_much(
    make: Build, calibration: Arrays, noise: Arrays
) -> None:
    bundle = make(data=calibration, eval=noise, precision="int8", budget=Budget(max_drop=0.0))
    found, verdict = bundle.manifest.evaluation, bundle.manifest.verdict
    assert found is not None
    assert found.drop > 0
    assert verdict.status == "missed"
    assert f"drop {found.drop:.4f} over the budget of 0.0000, worst block " in verdict.reasons[0]
    blocks = {block.id: block for block in plan_of(bundle).blocks}
    worst = blocks[verdict.reasons[0].split("worst block ")[1]]
    assert worst.sqnr_db == min(b.sqnr_db for b in blocks.values() if b.sqnr_db is not None)
    assert verify_bundle(bundle.folder).passed  # it is a bundle like any other


@pytest.mark.parametrize("batch", [1, 5])
def test_a_pinned_batch_runs_any_number_of_samples(
    make: Build, example: Path, evaluation: Arrays, batch: int
) -> None:
    bundle = make(data=example / "calib.npz", eval=example / "eval.npz", shapes={"x": (batch, 1, 16, 16)})
    (x,) = bundle.manifest.artifact.inputs
    assert x.shape == (batch, 1, 16, 16)
    free = make(data=example / "calib.npz", eval=example / "eval.npz").manifest.evaluation
    found = bundle.manifest.evaluation
    assert found is not None and free is not None
    assert found.samples == 597
    assert found.artifact == pytest.approx(free.artifact, abs=2e-3)
    assert verify_bundle(bundle.folder).passed


def test_normalisation_in_the_reader_and_folded_give_the_same_metric(
    make: Build, calibration: Arrays, evaluation: Arrays
) -> None:
    """The network wants 1 - x of the pictures that are given: -(x - 1) / 1."""
    raw, raw_eval = ({"x": 255 * (1 - d["x"]), "y": d["y"]} for d in (calibration, evaluation))
    scores = {}
    for folded in (False, True):
        section = InputSection(
            normalisation=Normalisation(scale=1 / 255, mean=(1.0,), std=(-1.0,), folded=folded), layout="NCHW"
        )
        bundle = make(data=raw, eval=raw_eval, inputs={"x": section})
        (x,) = bundle.manifest.artifact.inputs
        assert x.normalisation == section.normalisation
        assert x.layout == "NCHW"
        assert bundle.manifest.evaluation is not None
        scores[folded] = bundle.manifest.evaluation
        taken = raw_eval if folded else evaluation
        artifact = bundle.folder / "artifact" / "model.onnx"
        assert accuracy(artifact, taken) == pytest.approx(scores[folded].artifact, abs=2e-3)
    assert scores[False].baseline == pytest.approx(scores[True].baseline, abs=2e-3)
    assert scores[False].artifact == pytest.approx(scores[True].artifact, abs=4e-3)


def first_half(bundle: Bundle) -> dict[str, bytes]:
    return {name: (bundle.folder / name).read_bytes() for name in FIRST_HALF}


def test_a_second_build_comes_from_the_cache_and_is_the_same(
    make: Build, example: Path, tmp_path: Path
) -> None:
    settings = {"data": example / "calib.npz", "eval": example / "eval.npz", "cache": tmp_path / "cache"}
    first, again = Told(), Told()
    one = make(progress=first, **settings)
    before = first_half(one)
    two = make(progress=again, **settings)
    assert not any(first.cached.values())
    assert {name for name, cached in again.cached.items() if cached} >= {
        "clean",
        "calibrate",
        "choose",
        "verify",
    }
    assert list(again.cached) == UNMEASURED
    assert first_half(two) == before
    assert one.digest == two.digest


def test_two_builds_without_a_common_cache_are_equal_byte_by_byte(
    make: Build, example: Path, tmp_path: Path
) -> None:
    """As long as nothing is measured, nothing is left to chance."""
    built = [
        make(
            data=example / "calib.npz",
            eval=example / "eval.npz",
            cache=tmp_path / f"cache{n}",
            out=tmp_path / f"{n}",
        )
        for n in range(2)
    ]
    one, two = (first_half(bundle) for bundle in built)
    assert one == two
    assert built[0].digest == built[1].digest


def test_where_the_files_lie_does_not_matter(make: Build, example: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("digits.onnx", "calib.npz"):
        (other / name).write_bytes((example / name).read_bytes())
    one = make(data=example / "calib.npz")
    two = make(source=other / "digits.onnx", data=other / "calib.npz", cache=tmp_path / "cache")
    assert one.digest == two.digest


CHANGES: dict[str, dict[str, object]] = {
    "seed": {"seed": 1},
    "samples": {"samples": 10},
    "observer": {"observer": "minmax"},
    "precision": {"precision": "int8"},
    "budget": {"budget": Budget(max_drop=0.5)},
    "metric": {"metric": MetricSection(name="agreement")},
    "threads": {"threads": 2},
    "validation": {"validation": {"x": np.ones((4, 3, 8, 8), np.float32)}},
    "eval": {"eval": {"x": np.ones((4, 3, 8, 8), np.float32)}},
    "shapes": {"shapes": {"x": (2, 3, 8, 8)}},
    "folded": {"inputs": {"x": InputSection(normalisation=Normalisation(scale=2.0, folded=True))}},
    "read": {"inputs": {"x": InputSection(normalisation=Normalisation(scale=2.0))}},
    "target": {"target": "rpi5"},
}


@pytest.fixture(scope="module")
def looked_up(
    network: Path, images: Arrays, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, object]:
    """The settings of a build that lies in a cache."""
    folder = tmp_path_factory.mktemp("looked up")
    given = {
        "source": network, "target": "x86-avx2", "data": images, "measure": False, "cache": folder / "cache",
    }  # fmt: skip
    deploy.build(**given, out=folder / "dist")  # type: ignore[arg-type]
    return given


@pytest.mark.parametrize("changed", CHANGES)
def test_every_setting_is_part_of_what_is_looked_up(
    make: Build, looked_up: Mapping[str, object], changed: str
) -> None:
    """A setting that were forgotten in a key would bring another build's result."""
    told = Told()
    make(**{**looked_up, "progress": told, **CHANGES[changed]})
    assert not told.cached["choose"]
    make(**looked_up, progress=told)
    assert told.cached["choose"]


def test_targets_share_what_does_not_depend_on_them(make: Build, example: Path, tmp_path: Path) -> None:
    told = Told()
    make(data=example / "calib.npz", cache=tmp_path / "cache")
    make(data=example / "calib.npz", cache=tmp_path / "cache", target="rpi5", progress=told)
    assert told.cached["clean"]
    assert not told.cached["choose"]


def test_a_lock_of_another_model_is_refused(
    make: Build, network: Path, example: Path, tmp_path: Path
) -> None:
    lock = make(data=example / "calib.npz").folder / "deploy.lock"
    with pytest.raises(UsageError, match="written for another model"):
        make(source=network, lock=lock, out=tmp_path / "other")


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b"[1, 2]"])
def test_a_lock_that_is_none_is_refused(make: Build, tmp_path: Path, content: bytes | None) -> None:
    lock = tmp_path / "deploy.lock"
    if content is not None:
        lock.write_bytes(content)
    with pytest.raises(UsageError, match=r"deploy\.lock"):
        make(lock=lock)
    assert not (tmp_path / "dist").exists()


def test_a_bundle_replaces_the_one_before_even_as_it_is_locked_to_it(make: Build, example: Path) -> None:
    first = make(data=example / "calib.npz")
    again = make(data=example / "calib.npz", lock=first.folder / "deploy.lock")
    assert again.digest == first.digest
    assert sorted(p.name for p in first.folder.parent.iterdir()) == ["x86-avx2"]


def test_several_targets_are_checked_before_the_first_is_built(example: Path, tmp_path: Path) -> None:
    from deploy.pipeline import build_all
    from deploy.stages.request import Request

    request = Request(
        source=example / "digits.onnx",
        target="",
        out=tmp_path / "dist",
        cache=tmp_path / "cache",
        measure=False,
    )
    with pytest.raises(UsageError, match="unknown target 'tosater'"):
        build_all(request, ["x86-avx2", "tosater"])
    assert not (tmp_path / "dist").exists()
    bundles = build_all(request, ["x86-avx2", "rpi5"])
    assert [b.manifest.target for b in bundles] == ["x86-avx2", "rpi5"]


def test_an_artifact_takes_what_its_manifest_says(make: Build, example: Path, calibration: Arrays) -> None:
    bundle = make(data=example / "calib.npz")
    (x,), (logits,) = bundle.manifest.artifact.inputs, bundle.manifest.artifact.outputs
    assert (x.name, x.dtype, x.shape, x.layout) == ("x", "float32", ("n", 1, 16, 16), "NCHW")
    assert (logits.name, logits.shape) == ("logits", ("n", 10))
    with deploy.open_bundle(bundle.folder) as runner:
        assert runner.run({"x": calibration["x"][:3]})["logits"].shape == (3, 10)
        with pytest.raises(DataError, match="input 'x' is missing"):
            runner.run({"image": calibration["x"][:3]})
        with pytest.raises(DataError, match="input 'x' is float64"):
            runner.run({"x": calibration["x"][:3].astype(np.float64)})


def test_the_manifest_is_canonical_json(make: Build, example: Path) -> None:
    text = (make(data=example / "calib.npz").folder / "manifest.json").read_text()
    assert next(iter(json.loads(text))) == "schema"
    assert text.endswith("}\n")


def test_a_batch_of_minus_one_is_as_free_the_second_time(
    network: Path, images: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Some exporters write free sizes as -1: naming them must not make the file look like another one."""
    proto = onnx.load(network)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "network.onnx")
    told = [Told(), Told()]
    for progress in told:
        deploy.build(
            tmp_path / "network.onnx", target="x86-avx2", data=images, measure=False,
            out=tmp_path / "dist", cache=tmp_path / "cache", progress=progress,
        )  # fmt: skip
    assert not told[0].cached["choose"]
    assert told[1].cached["choose"]
