"""Choices without a race: costs of our own for two runtimes, and a clock that must not be listened to.

The second runtime is ONNX Runtime under another name.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import onnx_ir as ir
import pytest

from backends.openvino import OpenVino
from backends.ort import OnnxRuntime
from deploy.adapter.overlays import save
from deploy.adapter.profiles import load_profile
from deploy.adapter.protocol import Arrays, Availability, Backend, Runner
from deploy.bundle.read import Bundle, load_lock
from deploy.data.interval import Drop
from deploy.errors import BackendError
from deploy.graph.pattern import product_zeros
from deploy.measure.latency import Timing
from deploy.pipeline import build
from deploy.progress import Progress, Silent
from deploy.quantize.candidate import Subject
from deploy.quantize.decide import decide_mixed
from deploy.spec.artifact import Artifact, Options
from deploy.spec.overlay import Cost, KernelClass, Machine, Overlay, RuntimeCosts
from deploy.spec.plan import BlockPlan, Plan
from deploy.spec.profile import Fact, Figure, Profile, Runtime, Sparsity
from deploy.spec.project import Budget
from deploy.spec.tensors import Precision
from deploy.stages import by_table
from deploy.stages.baseline import Contender, Examiner
from deploy.stages.job import Job
from deploy.stages.target import Target

Build = Callable[..., Bundle]
HERE = Machine(cpu="This CPU", arch="x86_64", features=("avx2",), cores=2)
FLOATS: Mapping[KernelClass, float] = {"stem": 1.0, "conv": 3.0, "gemm": 1.0, "elementwise": 0.2}
MIXED: Mapping[KernelClass, float] = {**FLOATS, "stem": 3.0, "conv": 1.0, "elementwise": 0.1}
"""In integers: the first convolution loses."""
SLOWER: Mapping[KernelClass, float] = {op: 2 * ms for op, ms in FLOATS.items()}
VERSION = OnnxRuntime().available().version or ""


class Second(OnnxRuntime):
    """ONNX Runtime under the name ``second``; counts what it lowers, and fails where it is told to."""

    name = "second"
    breaks = ""

    def __init__(self) -> None:
        self.lowered = 0

    def available(self) -> Availability:
        return Availability("second", VERSION)

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        self.lowered += 1
        if self.breaks:
            raise BackendError(self.breaks, hint="none")
        return super().lower(graph, plan, runtime, workdir, progress)


def measured(profile: str = "x86-avx2", **integers: Mapping[KernelClass, float]) -> Overlay:
    """Runtimes by name, each with what its integer kernels take; floats take what `FLOATS` says."""
    options = dict(load_profile("x86-avx2").runtime_named("ort").options)

    def points(codes: Mapping[KernelClass, float], factor: float) -> tuple[Cost, ...]:
        taken: dict[tuple[KernelClass, Precision], float] = {("convert", "int8"): 0.001}
        taken |= {(op, "float"): factor * ms for op, ms in FLOATS.items()}
        taken |= {(op, "int8"): factor * ms for op, ms in codes.items()}
        return tuple(
            Cost(op=op, precision=p, macs=10**5, bytes=10**4, ms=ms, spread=0.01)
            for (op, p), ms in taken.items()
        )

    return Overlay(
        profile=profile, machine=HERE, date=datetime.date(2026, 11, 21), command="deploy profile",
        seconds=1, noise=0.01,
        runtime=tuple(
            RuntimeCosts(
                name=name, version=VERSION, threads=1, settings=options,
                cost=points(codes, 0.5 if name == "second" else 1.0),
            )
            for name, codes in integers.items()
        ),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """Who is timed. The clock finds all integers slow; whoever listens to it takes float."""
    asked: list[tuple[str, ...]] = []

    def race(contenders: Mapping[str, Contender], feeds: Arrays, *_: object) -> dict[str, Timing]:
        asked.append(tuple(contenders))
        ms = {name: 1.0 if name == "as given" or "float" in name else 9.0 for name in contenders}
        return {name: Timing(np.full(20, ms[name]), np.full(20, ms[name])) for name in contenders}

    monkeypatch.setenv("DEPLOY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("deploy.stages.costs.this_machine", lambda: HERE)
    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)
    monkeypatch.setattr("deploy.stages.contest.race", race)
    monkeypatch.setattr("deploy.stages.by_table.race", race)
    monkeypatch.setattr(Target, "stands_here", lambda self: True)
    monkeypatch.setattr(
        "deploy.stages.baseline.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
    )
    return asked


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Second:
    """The device has both runtimes, and prefers ``ort``."""
    backend = Second()
    found: Mapping[str, OnnxRuntime] = {"ort": OnnxRuntime(), "second": backend}

    def two_runtimes(name: str) -> Profile:
        profile = load_profile(name)
        first = profile.runtime_named("ort")
        return profile.model_copy(update={"runtime": (first, first.model_copy(update={"name": "second"}))})

    for module in ("deploy.stages.target", "deploy.adapter.overlays"):
        monkeypatch.setattr(f"{module}.backend_names", lambda: ["ort", "second"])
        monkeypatch.setattr(f"{module}.find_backend", lambda name: found[name])
    monkeypatch.setattr("deploy.stages.target.load_profile", two_runtimes)
    return backend


@pytest.fixture
def make(network: Path, images: dict[str, np.ndarray], tmp_path: Path) -> Build:
    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "data": images, "out": tmp_path / "dist", "cache": tmp_path / "cache",
            "budget": Budget(max_drop=0.1), "eval": {"x": images["x"][:16]}, "tune": "off",
        }  # fmt: skip
        return build(network, **{**given, **settings})  # type: ignore[arg-type]

    return run


def harmed(monkeypatch: pytest.MonkeyPatch, backend: type[Backend], when: Callable[..., bool]) -> None:
    """Half of the accuracy is lost by what a backend opens so."""
    original, opened = Examiner.examine, backend.open

    def open_marked(self: Backend, artifact: Artifact, options: Options) -> Runner:
        runner = opened(self, artifact, options)
        runner.harm = 0.5 if when(self, artifact, options) else 0.0  # type: ignore[attr-defined]
        return runner

    def examine(self: Examiner, runner: Runner) -> Drop:
        original(self, runner)
        harm = getattr(runner, "harm", 0.0)
        self._examined[-1] = (Drop(harm, harm, harm), self._examined[-1][1])
        return self._examined[-1][0]

    monkeypatch.setattr(backend, "open", open_marked)
    monkeypatch.setattr(Examiner, "examine", examine)


def precisions(bundle: Bundle) -> list[str]:
    return [block.precision for block in blocks(bundle)]


def blocks(bundle: Bundle) -> tuple[BlockPlan, ...]:
    return Plan.model_validate_json((bundle.folder / "plan.json").read_text()).blocks


def looks(bundle: Bundle) -> int:
    assert bundle.manifest.evaluation is not None
    return bundle.manifest.evaluation.looks


def test_the_table_chooses_a_mixture_and_the_clock_only_tells(
    make: Build, timed: list[tuple[str, ...]]
) -> None:
    save(measured(ort=MIXED))
    bundle = make(runtime="ort")
    assert sorted(set(precisions(bundle))) == ["float", "int8"]
    assert timed == [("as given", "ort mixed")]
    assert bundle.measurements.comparison is not None
    assert bundle.measurements.comparison.speedup == pytest.approx(1 / 9)
    assert bundle.manifest.verdict.status == "met"
    assert looks(bundle) == 1
    assert any("the fastest by the costs of kernels" in r for r in bundle.manifest.verdict.reasons)
    assert {a.outcome for a in bundle.measurements.attempts} >= {"the baseline", "chosen"}


def test_the_same_without_any_clock(make: Build, timed: list[tuple[str, ...]]) -> None:
    save(measured(ort=MIXED))
    bundle = make(runtime="ort", tune="quick", measure=False)
    assert sorted(set(precisions(bundle))) == ["float", "int8"]
    assert timed == [] and bundle.measurements.comparison is None
    assert looks(bundle) == 1


def test_a_device_elsewhere_is_chosen_for_by_what_was_measured_of_its_kind(
    make: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "stands_here", lambda self: False)
    monkeypatch.setattr("deploy.stages.costs.measured_machines", lambda: [measured(ort=MIXED)])
    bundle = make(runtime="ort", tune="quick")
    assert sorted(set(precisions(bundle))) == ["float", "int8"]
    assert "cannot stand in" in bundle.measurements.why_not


def test_float_ships_where_the_table_has_it_faster(make: Build) -> None:
    save(measured(ort=SLOWER))
    bundle = make(runtime="ort")
    assert set(precisions(bundle)) == {"float"}
    assert bundle.manifest.verdict.status == "float"
    assert any(r.startswith("precision: float (the fastest by") for r in bundle.manifest.verdict.reasons)


def test_who_asks_for_a_mixture_is_not_given_float(make: Build) -> None:
    save(measured(ort=SLOWER))
    assert "int8" in precisions(make(runtime="ort", precision="mixed"))


def test_the_faster_runtime_is_the_only_one_decided(
    make: Build, second: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(measured(ort=MIXED, second=MIXED))
    asked: list[str] = []
    original = OnnxRuntime.lower

    def lower(self: OnnxRuntime, *rest: object) -> Artifact:
        asked.append(self.name)
        return original(self, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxRuntime, "lower", lower)
    bundle = make()
    assert bundle.manifest.runtime == "second"
    assert "runtime: second (the fastest by the costs of kernels)" in bundle.manifest.verdict.reasons
    assert set(asked) == {"second"}


def test_a_runtime_that_fails_gives_way_to_the_next(make: Build, second: Second) -> None:
    save(measured(ort=MIXED, second=MIXED))
    second.breaks = "no"
    bundle = make()
    assert bundle.manifest.runtime == "ort" and second.lowered > 0


def test_a_runtime_whose_accuracy_costs_its_speed_loses(
    make: Build, second: Second, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its fastest form is the fastest of all, but validation data allow only its floats."""
    save(
        measured(
            ort={op: ms / 10 for op, ms in FLOATS.items()}, second={op: ms / 20 for op, ms in FLOATS.items()}
        )
    )
    harmed(
        monkeypatch,
        OnnxRuntime,
        lambda self, artifact, _: self.name == "second" and b"QuantizeLinear" in artifact.main.read_bytes(),
    )
    bundle = make()
    assert bundle.manifest.runtime == "ort" and "int8" in precisions(bundle)


def test_where_the_fastest_misses_the_budget_a_runtime_of_unknown_speed_is_tried(
    make: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(measured(ort=MIXED))
    harmed(monkeypatch, OnnxRuntime, lambda self, artifact, _: self.name == "ort")
    bundle = make()
    assert bundle.manifest.runtime in ("second", "openvino") and bundle.manifest.verdict.status == "met"


def test_mixtures_that_all_miss_the_budget_are_tried_once(
    make: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(measured(ort=MIXED))
    harmed(
        monkeypatch, OnnxRuntime, lambda self, artifact, _: b"QuantizeLinear" in artifact.main.read_bytes()
    )
    tried: list[Subject] = []

    def mixed(subject: Subject, *rest: object, **settings: object) -> object:
        tried.append(subject)
        return decide_mixed(subject, *rest, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("deploy.stages.contest.decide_mixed", mixed)
    monkeypatch.setattr("deploy.stages.contest.decide", None)  # nor does accuracy alone look for slower ones
    bundle = make(runtime="ort")
    assert set(precisions(bundle)) == {"float"} and len(tried) == 1
    assert bundle.manifest.verdict.status == "float"
    assert any(r.startswith("precision: float (the fastest by") for r in bundle.manifest.verdict.reasons)


def test_floats_are_float32_where_a_narrower_type_alone_misses_the_budget(
    make: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = make(target="x86-bf16", runtime="openvino")
    assert load_lock(bundle).options["inference_precision"] == "bf16"
    harmed(monkeypatch, OpenVino, lambda _, artifact, options: options.inference_precision == "bf16")
    bundle = make(target="x86-bf16", runtime="openvino", cache=tmp_path / "empty")
    assert load_lock(bundle).options["inference_precision"] == "f32"
    assert bundle.manifest.verdict.status == "met" and set(precisions(bundle)) <= {"float", "int8"}


@pytest.mark.parametrize("profile", ["x86-vnni", None])
def test_without_measurements_of_such_a_device_the_preferred_runtime_is_taken(
    make: Build, second: Second, monkeypatch: pytest.MonkeyPatch, profile: str | None
) -> None:
    """What another kind of device lends, or a data sheet says, chooses nothing."""
    lent = [] if profile is None else [measured(profile, ort=SLOWER, second=MIXED)]
    monkeypatch.setattr("deploy.stages.costs.measured_machines", lambda: lent)
    bundle = make()
    assert bundle.manifest.runtime == "ort" and second.lowered == 0
    assert not any("costs" in reason for reason in bundle.manifest.verdict.reasons)
    assert "int8" in precisions(bundle)


def test_eval_data_refuse_a_mixture_and_nothing_is_raced_after_that(
    make: Build, timed: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(measured(ort=MIXED))
    original = Examiner.examine
    said = iter([0.5])

    def examine(self: Examiner, runner: Runner) -> Drop:
        found = original(self, runner)
        drop = next(said, 0.0) if len(self.dataset) == 16 else found.drop
        self._examined[-1] = (Drop(drop, drop, drop), self._examined[-1][1])
        return self._examined[-1][0]

    monkeypatch.setattr(Examiner, "examine", examine)
    bundle = make(runtime="ort")
    assert looks(bundle) == 2
    assert timed == [("as given", "ort int8")]


def test_a_lock_says_the_same_again(make: Build, tmp_path: Path) -> None:
    save(measured(ort=MIXED))
    first = make(runtime="ort")
    (tmp_path / "deploy.lock").write_bytes((first.folder / "deploy.lock").read_bytes())
    again = make(lock=tmp_path / "deploy.lock", out=tmp_path / "again", runtime="ort")
    assert again.digest == first.digest


@pytest.fixture
def gains(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fact], None]:
    """Gives the target's runtimes something for 2:4 zeros."""

    def give(gain: Fact) -> None:
        def made(name: str) -> Profile:
            profile = load_profile(name)
            zeros = {"sparsity": Sparsity(pattern="2:4", axis=1, gain=gain)}
            thin = tuple(r.model_copy(update=zeros) for r in profile.runtime)
            return profile.model_copy(update={"runtime": thin})

        monkeypatch.setattr("deploy.stages.target.load_profile", made)

    return give


TWICE = Figure(value=2.0, unit="times", source="made up", date=datetime.date(2026, 11, 21))


@pytest.mark.parametrize("codes", [MIXED, SLOWER], ids=["integers", "floats"])
def test_zeros_are_chosen_with_precisions_where_the_runtime_gains_by_them(
    make: Build, gains: Callable[[Fact], None], tmp_path: Path, codes: Mapping[KernelClass, float]
) -> None:
    pytest.importorskip("torch")
    gains(TWICE)
    save(measured(ort=codes))
    bundle = make(runtime="ort", budget=Budget(max_drop=1.0))
    sparse = [block for block in blocks(bundle) if block.sparsity == "2:4"]
    assert len(sparse) == 2, "of three products the first has three channels"
    for file in (f"artifact/{bundle.manifest.artifact.files[0]}", "graph.onnx"):
        assert sorted(product_zeros(ir.load(bundle.folder / file)).values()) == [False, True, True]
    proof = bundle.manifest.verification.sparsity
    assert proof is not None and (proof.products, proof.proved) == (2, 2)
    reason = "2:4 sparse blocks: 2 of 2 (ort computes them 2 times as fast)"
    assert reason in bundle.manifest.verdict.reasons
    told = {block.id: block.reason for block in bundle.measurements.explained.blocks}
    assert all("2:4 zeros: " in told[block.id] and "times dense" in told[block.id] for block in sparse)
    assert set(load_lock(bundle).sparse_blocks) == {block.id for block in sparse}
    assert ("int8" in precisions(bundle)) == (codes is MIXED)
    (tmp_path / "deploy.lock").write_bytes((bundle.folder / "deploy.lock").read_bytes())
    again = make(runtime="ort", lock=tmp_path / "deploy.lock", out=tmp_path / "again")
    assert again.digest == bundle.digest


@pytest.mark.parametrize("gain", ["unknown", None], ids=["unknown", "none"])
def test_nothing_is_made_sparse_where_nobody_gains_by_it(
    make: Build, gains: Callable[[Fact], None], gain: Fact | None
) -> None:
    said: list[str] = []

    class Heard(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    if gain is not None:
        gains(gain)
    save(measured(ort=MIXED))
    bundle = make(runtime="ort", progress=Heard())
    assert not any(block.sparsity for block in blocks(bundle))
    told = "2:4 zeros are not chosen for ort: how much faster they are is unknown" in said
    assert told == (gain is not None)


def test_eval_data_refuse_zeros_and_the_dense_weights_come_back(
    make: Build, gains: Callable[[Fact], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    gains(TWICE)
    save(measured(ort=MIXED))
    original, said = Examiner.examine, iter([0.5])

    def examine(self: Examiner, runner: Runner) -> Drop:
        original(self, runner)
        drop = next(said, 0.0) if len(self.dataset) == 16 else 0.0
        self._examined[-1] = (Drop(drop, drop, drop), self._examined[-1][1])
        return self._examined[-1][0]

    monkeypatch.setattr(Examiner, "examine", examine)
    bundle = make(runtime="ort")
    assert looks(bundle) == 2 and not any(block.sparsity for block in blocks(bundle))


@pytest.mark.parametrize(
    ("predicted", "racing"),
    [
        ({"a": 1.0, "b": 1.4, "c": 2.0}, "ab"),
        ({"a": 4.0, "b": 1.0, "c": 2.0}, "bc"),  # two at least
        ({"a": 1.0, "b": 2.0, "c": None}, "ac"),  # who is not known takes part, and counts
        ({"a": None, "b": None, "c": 1.0}, "abc"),
        ({"a": 1.0, "b": 9.0}, "ab"),
    ],
)
def test_who_cannot_win_by_the_table_does_not_race(
    monkeypatch: pytest.MonkeyPatch, predicted: dict[str, float | None], racing: str
) -> None:
    subjects = [SimpleNamespace(runtime=SimpleNamespace(name=name)) for name in predicted]
    monkeypatch.setattr(by_table, "bound", lambda job, subject: predicted[subject.runtime.name])
    found = by_table.may_win(cast("Job", None), cast("list[Subject]", subjects))
    assert "".join(subject.runtime.name for subject in found) == racing
