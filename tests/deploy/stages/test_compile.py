"""What is decided by the clock, the budget and the proof, with clocks and backends of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from backends.ort import OnnxRuntime
from deploy.adapter.protocol import Arrays
from deploy.bundle.read import Bundle
from deploy.errors import UnsupportedError, UsageError, VerificationError
from deploy.measure.latency import Timing
from deploy.pipeline import build
from deploy.progress import Progress
from deploy.spec.artifact import Artifact, Verdict
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime
from deploy.stages.baseline import Contender

Build = Callable[..., Bundle]


@pytest.fixture
def make(network: Path, images: dict[str, np.ndarray], tmp_path: Path) -> Build:
    """Builds the small network for ONNX Runtime, with data and without measuring unless told otherwise."""

    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "data": images, "measure": False, "out": tmp_path / "dist",
            "cache": tmp_path / "cache", "runtime": "ort",
        }  # fmt: skip
        return build(network, **{**given, **settings})  # type: ignore[arg-type]

    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Milliseconds that baseline, float build and artifact seem to take; every machine may be timed."""
    takes = {"as given": 2.0, "ort float": 2.0, "ort int8": 1.0}
    asked: list[str] = []

    def race(contenders: Mapping[str, Contender], feeds: Arrays) -> dict[str, Timing]:
        asked.extend(contenders)
        return {name: Timing(np.full(20, takes[name]), np.full(20, takes[name])) for name in contenders}

    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)
    monkeypatch.setattr("deploy.stages.contest.race", race)
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: True)
    monkeypatch.setattr(
        "deploy.stages.baseline.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
    )
    return takes


def speeds(bundle: Bundle) -> dict[str, float | None]:
    """How many times as fast as the file as given each attempt was."""
    return {attempt.name: attempt.speed for attempt in bundle.measurements.attempts}


def test_integers_that_are_faster_stay(make: Build, clock: dict[str, float]) -> None:
    bundle = make(measure=True)
    assert bundle.manifest.verdict.status == "met"
    assert bundle.manifest.precision["int8"] > 0
    comparison = bundle.measurements.comparison
    assert comparison is not None
    assert comparison.speedup == 2.0
    assert comparison.artifact.latency_ms.p50 == 1.0
    assert speeds(bundle) == {"as given": 1.0, "float": 1.0, "int8": 2.0}
    assert not any("2.0" in reason for reason in bundle.manifest.verdict.reasons), "times are of one run only"


@pytest.mark.parametrize("slower_than", ["as given", "ort float"])
def test_integers_that_do_not_pay_become_float(
    make: Build, clock: dict[str, float], slower_than: str
) -> None:
    """Against the faster of the two floats: the file as given, and our own float build of it."""
    clock["ort float"] = clock[slower_than] = 0.8
    bundle = make(measure=True)
    assert bundle.manifest.verdict.status == "float"
    assert set(bundle.manifest.precision) == {"float"}
    assert any("INT8 is slower" in reason for reason in bundle.manifest.verdict.reasons)
    assert "INT8 is slower here" in {block.reason for block in ir_plan(bundle).blocks}
    comparison = bundle.measurements.comparison
    assert comparison is not None
    assert speeds(bundle)["int8"] == clock["as given"] / clock["ort int8"]
    assert comparison.artifact.latency_ms.p50 == clock["ort float"]
    assert comparison.baseline.latency_ms.p50 == clock["as given"]


def test_integers_stay_where_float_would_be_slower_still(make: Build, clock: dict[str, float]) -> None:
    clock["as given"] = 0.8
    bundle = make(measure=True)
    assert bundle.manifest.precision["int8"] > 0
    assert any("faster than any float build" in reason for reason in bundle.manifest.verdict.reasons)


def test_one_unlucky_race_does_not_decide(
    make: Build, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    fair, unlucky = dict(clock), dict(clock, **{"ort int8": 3.0})
    races = iter([unlucky, fair])

    def race(contenders: Mapping[str, Contender], feeds: Arrays) -> dict[str, Timing]:
        takes = next(races)
        return {name: Timing(np.full(20, takes[name]), np.full(20, takes[name])) for name in contenders}

    monkeypatch.setattr("deploy.stages.contest.race", race)
    bundle = make(measure=True)
    assert bundle.manifest.verdict.status == "met"
    assert speeds(bundle)["int8"] == 2.0


def test_equal_choices_give_equal_digests_whatever_the_clock_says(
    make: Build, clock: dict[str, float], tmp_path: Path
) -> None:
    first = make(measure=True, cache=tmp_path / "one")
    clock["ort int8"] = 1.5
    assert make(measure=True, cache=tmp_path / "two").digest == first.digest


@pytest.mark.parametrize("precision", ["int8", "mixed"])
def test_who_asks_for_integers_gets_them_slow_or_not(
    make: Build, clock: dict[str, float], precision: str
) -> None:
    clock["ort int8"] = 9.0
    bundle = make(measure=True, precision=precision)
    assert bundle.manifest.verdict.status == "met"
    assert bundle.manifest.precision["int8"] > 0


def test_a_lock_is_replayed_against_the_clock(make: Build, clock: dict[str, float], tmp_path: Path) -> None:
    """A night on which the lab's machine was busy does not change what is shipped."""
    first = make(measure=True)
    (tmp_path / "deploy.lock").write_bytes((first.folder / "deploy.lock").read_bytes())
    clock["ort int8"] = 9.0
    again = make(measure=True, lock=tmp_path / "deploy.lock", out=tmp_path / "again")
    assert again.digest == first.digest
    comparison = again.measurements.comparison
    assert comparison is not None
    assert comparison.speedup < 1  # the truth is told all the same


def test_a_lock_made_with_other_data_warns(
    make: Build, images: dict[str, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lock = tmp_path / "deploy.lock"
    lock.write_bytes((make().folder / "deploy.lock").read_bytes())
    make(lock=lock)
    assert "other calibration data" not in caplog.text
    make(lock=lock, data={"x": images["x"] * 2})
    assert "the lock was written with other calibration data" in caplog.text


def test_what_was_slower_stays_float_when_replayed(
    make: Build, clock: dict[str, float], tmp_path: Path
) -> None:
    clock["ort int8"] = 9.0
    first = make(measure=True)
    assert first.manifest.verdict.status == "float"
    (tmp_path / "deploy.lock").write_bytes((first.folder / "deploy.lock").read_bytes())
    clock["ort int8"] = 1.0
    assert make(measure=True, lock=tmp_path / "deploy.lock", out=tmp_path / "again").digest == first.digest


def test_a_machine_that_is_not_the_device_is_not_timed(make: Build) -> None:
    bundle = make(target="rpi5", measure=True)
    assert bundle.measurements.comparison is None
    assert "cannot stand in for" in bundle.measurements.why_not
    assert "measure" not in {stage.name for stage in bundle.measurements.stages}
    assert make(measure=False).measurements.why_not == "measuring was switched off"


def test_an_excluded_node_stays_float_with_all_that_it_is_fused_with(make: Build) -> None:
    plain = make()
    blocks = [b for b in ir_plan(plain).blocks if b.precision == "int8"]
    excluded = blocks[0].nodes[-1]
    bundle = make(exclude=[excluded])
    (block,) = [b for b in ir_plan(bundle).blocks if excluded in b.nodes]
    assert block.precision == "float"
    assert block.reason == "excluded by the user"
    assert bundle.manifest.precision["int8"] == plain.manifest.precision["int8"] - 1


def ir_plan(bundle: Bundle) -> Plan:
    return Plan.model_validate_json((bundle.folder / "plan.json").read_text())


def test_an_unknown_excluded_node_is_named_with_the_nearest(make: Build, network: Path) -> None:
    name = ir_plan(make()).blocks[0].nodes[0]
    with pytest.raises(UsageError, match="no node is called") as caught:
        make(exclude=[name + "x"])
    assert name in caught.value.hint


class Wrong(OnnxRuntime):
    """Writes another number than it was given."""

    def __init__(self, change: Callable[[onnx.ModelProto], None]) -> None:
        self.change = change

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        artifact = super().lower(graph, plan, runtime, workdir, progress)
        proto = onnx.load(artifact.main)
        self.change(proto)
        onnx.save(proto, artifact.main)
        return artifact


def scale_up(kinds: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    """Multiply the first initializer of one of these numpy kinds and of enough numbers."""

    def change(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype.kind in kinds and array.dtype != np.int64 and array.size >= 8:
                new = (array * factor).astype(array.dtype)
                tensor.CopyFrom(onnx.numpy_helper.from_array(new, tensor.name))
                return

    return change


def with_backend(monkeypatch: pytest.MonkeyPatch, backend: OnnxRuntime) -> None:
    monkeypatch.setattr("deploy.stages.target.find_backend", lambda name: backend)


def test_an_artifact_that_computes_something_else_is_refused_by_the_operation(
    make: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_backend(monkeypatch, Wrong(scale_up("f", 1.5)))
    with pytest.raises(VerificationError, match="the ort artifact strays from its reference graph") as caught:
        make(precision="float")
    assert caught.value.hint.startswith("first diverging operation: Conv '")
    assert [path.name for path in (tmp_path / "dist").glob("*")] in ([], ["repro"]), "no bundle"


@pytest.mark.parametrize(
    ("kinds", "said"), [("i", "integer data differ"), ("f", "ulp apart")], ids=["weights", "scales"]
)
def test_an_artifact_that_carries_another_plan_is_refused_by_the_tensor(
    make: Build, monkeypatch: pytest.MonkeyPatch, kinds: str, said: str
) -> None:
    with_backend(monkeypatch, Wrong(scale_up(kinds, 2)))
    with pytest.raises(VerificationError, match="does not carry the plan") as caught:
        make()
    assert said in caught.value.message


class Refusing(OnnxRuntime):
    """Knows no convolution."""

    def check(self, graph: ir.Model, runtime: Runtime) -> list[Verdict]:
        def verdict(node: ir.Node) -> Verdict:
            bad = node.op_type == "Conv"
            return Verdict(
                node=node.name or "", op=node.op_type, support="unsupported" if bad else "supported",
                reason="no such kernel" if bad else "",
            )  # fmt: skip

        return [verdict(node) for node in graph.graph]


def test_every_node_that_a_target_cannot_run_is_listed(
    make: Build, monkeypatch: pytest.MonkeyPatch, network: Path
) -> None:
    with_backend(monkeypatch, Refusing())
    with pytest.raises(UnsupportedError, match="cannot run 2 of") as caught:
        make()
    convolutions = [n.name for n in onnx.load(network).graph.node if n.op_type == "Conv"]
    assert len(convolutions) == 2
    assert caught.value.message.count("no such kernel") == 2
