"""A device with two runtimes: which of them ships, with clocks and backends of our own.

The second runtime is ONNX Runtime under another name, so that nothing depends on what else is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from backends.ort import OnnxRuntime
from deploy.adapter.profiles import load_profile
from deploy.adapter.protocol import Arrays, Availability
from deploy.bundle.read import Bundle
from deploy.errors import BackendError, ToolchainError, UnsupportedError, UsageError
from deploy.measure.latency import Timing
from deploy.pipeline import dry_run
from deploy.progress import Progress
from deploy.spec.artifact import Artifact, Verdict
from deploy.spec.plan import Plan
from deploy.spec.profile import Profile, Runtime
from deploy.stages.baseline import Contender
from deploy.stages.job import SEARCH_S
from deploy.stages.request import Request

Build = Callable[..., Bundle]


@pytest.fixture(autouse=True)
def _nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No costs are known, of this machine or of those that come with the package: no mixtures take part."""
    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)


class Second(OnnxRuntime):
    """ONNX Runtime under the name ``second``; counts what it lowers, and fails in the ways it is told to."""

    name = "second"
    here = True
    refuses: str | None = None
    breaks = ""
    wrong = False

    def __init__(self) -> None:
        self.lowered = 0

    def available(self) -> Availability:
        return Availability("second", "1.0") if self.here else Availability("second", None, "pip install it")

    def check(self, graph: ir.Model, runtime: Runtime) -> list[Verdict]:
        return [
            Verdict(node=n.name or "", op=n.op_type, support="unsupported", reason="no such kernel")
            if n.op_type == self.refuses
            else Verdict(node=n.name or "", op=n.op_type, support="supported")
            for n in graph.graph
        ]

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        self.lowered += 1
        if self.breaks:
            raise BackendError(self.breaks, hint="none")
        artifact = super().lower(graph, plan, runtime, workdir, progress)
        if self.wrong:
            proto = onnx.load(artifact.main)
            for tensor in proto.graph.initializer:
                if tensor.name == "b3":
                    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(4, 9.0, np.float32), "b3"))
                if tensor.name.startswith("b3") and tensor.data_type == onnx.TensorProto.INT32:
                    off = onnx.numpy_helper.to_array(tensor) + 100_000
                    tensor.CopyFrom(onnx.numpy_helper.from_array(off.astype(np.int32), tensor.name))
            onnx.save(proto, artifact.main)
        return artifact

    def read_plan(self, artifact: Artifact) -> Plan:
        found = super().read_plan(artifact)
        if not self.wrong:
            return found
        spared = {n: t.model_copy(update={"digest": None}) for n, t in found.tensors.items()}
        return found.model_copy(update={"tensors": spared})


def two_runtimes(name: str) -> Profile:
    profile = load_profile(name)
    first = profile.runtime_named("ort")
    return profile.model_copy(update={"runtime": (first, first.model_copy(update={"name": "second"}))})


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Second:
    backend = Second()
    found: Mapping[str, OnnxRuntime] = {"ort": OnnxRuntime(), "second": backend}
    monkeypatch.setattr("deploy.stages.target.load_profile", two_runtimes)
    monkeypatch.setattr("deploy.stages.target.backend_names", lambda: ["ort", "second"])
    monkeypatch.setattr("deploy.stages.target.find_backend", lambda name: found[name])
    return backend


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, second: Second) -> dict[str, float]:
    """Milliseconds that each contender seems to take; every machine may be timed."""
    takes = {"as given": 2.0, "ort float": 2.0, "second float": 2.0, "ort int8": 1.0, "second int8": 0.5}

    def race(contenders: Mapping[str, Contender], feeds: Arrays) -> dict[str, Timing]:
        ms = {name: takes.get(name, takes[name.split(" in ")[0]]) for name in contenders}
        return {name: Timing(np.full(20, ms[name]), np.full(20, ms[name])) for name in contenders}

    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)
    monkeypatch.setattr("deploy.stages.contest.race", race)
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: True)
    monkeypatch.setattr(
        "deploy.stages.baseline.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
    )
    return takes


def chosen(bundle: Bundle) -> tuple[str, str]:
    """Runtime and precision of what ships; manifest, plan, lock and artifact must agree."""
    manifest = bundle.manifest
    plan = Plan.model_validate_json((bundle.folder / "plan.json").read_text())
    assert manifest.runtime == plan.runtime == manifest.artifact.backend
    assert f'"runtime": "{manifest.runtime}"' in (bundle.folder / "deploy.lock").read_text()
    return manifest.runtime, "int8" if plan.quantized else "float"


def test_the_faster_runtime_ships(make: Build, clock: dict[str, float]) -> None:
    bundle = make()
    assert chosen(bundle) == ("second", "int8")
    assert "runtime: second (the fastest within the budget)" in bundle.manifest.verdict.reasons
    assert bundle.measurements.comparison is not None
    assert bundle.measurements.comparison.speedup == 4.0


def test_what_was_tried_is_told_in_order(make: Build, clock: dict[str, float]) -> None:
    found = [(a.runtime, a.name, a.speed, a.outcome) for a in make().measurements.attempts]
    assert found == [
        ("ort", "as given", 1.0, "the baseline"),
        ("ort", "float", 1.0, ""),
        ("second", "float", 1.0, ""),
        ("ort", "int8", 2.0, "slower than second int8"),
        ("second", "int8", 4.0, "chosen"),
    ]


def test_of_equally_fast_runtimes_the_preferred_one_ships(make: Build, clock: dict[str, float]) -> None:
    clock["second int8"] = clock["ort int8"]
    assert chosen(make()) == ("ort", "int8")


def test_the_fastest_float_of_any_runtime_wins_where_no_int8_pays(
    make: Build, clock: dict[str, float]
) -> None:
    clock.update({"ort int8": 1.5, "second int8": 1.5, "second float": 1.0})
    bundle = make()
    assert chosen(bundle) == ("second", "float")
    assert bundle.measurements.attempts[2].outcome == "chosen"
    assert "precision: float (INT8 is slower here)" in bundle.manifest.verdict.reasons


def test_where_no_time_is_left_floats_race(
    make: Build, clock: dict[str, float], second: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock["second float"] = 1.0
    monkeypatch.setitem(SEARCH_S, "quick", -1.0)
    monkeypatch.setattr("deploy.stages.contest.ladder_for", lambda job, subject: None)
    bundle = make()
    assert chosen(bundle) == ("second", "float")
    assert bundle.manifest.verdict.status == "float"
    said = [text for text in bundle.measurements.doubts if text.startswith("the search had")]
    assert len(said) == 1
    assert "ended early for second, ort" in said[0] or "ended early for ort, second" in said[0]
    assert "--tune full" in said[0]
    assert second.lowered <= 2, "its floats, for choosing and for the race"


def test_a_faster_runtime_over_the_budget_does_not_ship(
    make: Build, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.data.interval import Drop
    from deploy.stages.baseline import Examiner

    original = Examiner.examine

    def examine(self: Examiner, runner: object) -> Drop:
        found = original(self, runner)  # type: ignore[arg-type]
        return Drop(0.5, 0.5, 0.5) if "second" in str(getattr(runner, "path", "")) else found

    monkeypatch.setattr(Examiner, "examine", examine)
    monkeypatch.setattr("deploy.execute.reference.Session.path", "", raising=False)
    opened = OnnxRuntime.open

    def open_named(self: OnnxRuntime, artifact: Artifact, options: object) -> object:
        runner = opened(self, artifact, options)  # type: ignore[arg-type]
        runner.path = self.name  # type: ignore[attr-defined]
        return runner

    monkeypatch.setattr(OnnxRuntime, "open", open_named)
    bundle = make(eval=None)
    assert chosen(bundle) == ("ort", "int8")
    outcomes = {(a.runtime, a.outcome) for a in bundle.measurements.attempts if a.name != "as given"}
    assert ("second", "over the budget") in outcomes


def test_a_runtime_that_fails_is_left_out(
    make: Build, clock: dict[str, float], second: Second, caplog: pytest.LogCaptureFixture
) -> None:
    second.breaks = "the converter crashed"
    assert chosen(make()) == ("ort", "int8")
    assert "second is left out: the converter crashed" in caplog.text


def test_an_artifact_that_computes_something_else_never_ships(
    make: Build, clock: dict[str, float], second: Second, caplog: pytest.LogCaptureFixture
) -> None:
    second.wrong = True
    clock["second float"] = 0.2
    clock["ort int8"] = 0.3
    assert chosen(make(precision="float")) == ("ort", "float")
    assert "second is left out: the second artifact strays from its reference graph" in caplog.text


def test_a_runtime_that_refuses_nodes_is_left_out(
    make: Build, clock: dict[str, float], second: Second
) -> None:
    second.refuses = "Conv"
    assert chosen(make()) == ("ort", "int8")
    assert second.lowered == 0


def test_a_named_runtime_is_the_only_one(
    make: Build, clock: dict[str, float], second: Second, tmp_path: Path
) -> None:
    assert chosen(make(runtime="ort")) == ("ort", "int8")
    assert second.lowered == 0
    with pytest.raises(UsageError, match="has no runtime 'third'") as caught:
        make(runtime="third")
    assert caught.value.hint == "one of ort, second, or leave --runtime out"


def test_the_preferred_runtime_is_taken_where_nothing_is_timed(make: Build, second: Second) -> None:
    assert chosen(make(measure=False)) == ("ort", "int8")
    assert second.lowered == 0


@pytest.mark.parametrize("fails", ["lower", "read back", "verify"])
def test_the_next_runtime_is_taken_where_the_preferred_one_fails_and_nothing_is_timed(
    fails: str, make: Build, second: Second, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def second_first(name: str) -> Profile:
        profile = two_runtimes(name)
        return profile.model_copy(update={"runtime": tuple(reversed(profile.runtime))})

    monkeypatch.setattr("deploy.stages.target.load_profile", second_first)
    second.breaks, second.wrong = ("it crashed", False) if fails == "lower" else ("", True)
    precision = "float" if fails == "verify" else "int8"
    assert chosen(make(measure=False, precision=precision)) == ("ort", precision)
    assert "second is left out" in caplog.text


def test_a_lock_replays_its_runtime(make: Build, clock: dict[str, float], tmp_path: Path) -> None:
    first = make()
    lock = tmp_path / "deploy.lock"
    lock.write_bytes((first.folder / "deploy.lock").read_bytes())
    clock["second int8"] = 9.0
    assert make(lock=lock, out=tmp_path / "again").digest == first.digest


def test_a_lock_of_a_runtime_that_is_not_here_is_told(
    make: Build, clock: dict[str, float], second: Second, tmp_path: Path
) -> None:
    lock = tmp_path / "deploy.lock"
    lock.write_bytes((make().folder / "deploy.lock").read_bytes())
    second.here = False
    said = r"it chose second, which is not installed; here there is x86-avx2 \(ort\)"
    with pytest.raises(UsageError, match=said) as caught:
        make(lock=lock)
    assert caught.value.hint == "pip install it; or build without --lock"


def test_a_lock_of_another_runtime_than_the_named_one_is_told(
    make: Build, clock: dict[str, float], tmp_path: Path
) -> None:
    lock = tmp_path / "deploy.lock"
    lock.write_bytes((make().folder / "deploy.lock").read_bytes())
    with pytest.raises(UsageError, match="it chose second, and --runtime ort is asked for") as caught:
        make(lock=lock, runtime="ort")
    assert caught.value.hint.startswith("leave --runtime out")


def test_what_is_not_installed_does_not_take_part(
    make: Build, clock: dict[str, float], second: Second
) -> None:
    second.here = False
    assert chosen(make()) == ("ort", "int8")
    with pytest.raises(ToolchainError, match="nothing by which x86-avx2 runs a model") as caught:
        make(runtime="second")
    assert caught.value.hint == "second: pip install it"


def test_the_nodes_of_the_preferred_runtime_are_listed_where_all_refuse(make: Build, second: Second) -> None:
    second.refuses = "Conv"
    with pytest.raises(UnsupportedError, match=r"x86-avx2 \(second\) cannot run 2 of"):
        make(runtime="second")


def test_a_preview_shows_every_runtime(network: Path, images: dict[str, np.ndarray], second: Second) -> None:
    second.refuses = "Conv"
    found = dry_run(Request(source=network, target="x86-avx2", data=images))
    assert [(route.runtime, route.able) for route in found.routes] == [("ort", True), ("second", False)]
    assert {v.op for v in found.routes[1].verdicts} == {"Conv"}
