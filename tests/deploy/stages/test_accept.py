"""Mixtures in a race, and eval data that are shown the winner alone: costs, clocks and judges of our own."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from backends.ort import OnnxRuntime
from deploy.adapter.overlays import save
from deploy.adapter.profiles import load_profile
from deploy.adapter.protocol import Arrays, Runner
from deploy.bundle.read import Bundle
from deploy.data.interval import Drop
from deploy.measure.latency import Timing
from deploy.pipeline import build
from deploy.progress import Silent
from deploy.spec.overlay import Cost, KernelClass, Machine, Overlay, RuntimeCosts
from deploy.spec.plan import Plan
from deploy.spec.project import Budget
from deploy.spec.tensors import Precision
from deploy.stages import accept
from deploy.stages.baseline import Contender, Examiner
from deploy.stages.entrants import Entrant, Race
from deploy.stages.job import Job

Build = Callable[..., Bundle]
HERE = Machine(cpu="This CPU", arch="x86_64", features=("avx2",), cores=2)
OVER = 0.5


def costs(version: str) -> Overlay:
    """Convolutions of images lose in integers, all else wins; changes of form cost next to nothing."""
    taken: dict[tuple[KernelClass, Precision], float] = {
        ("stem", "float"): 1.0, ("stem", "int8"): 3.0, ("conv", "float"): 3.0, ("conv", "int8"): 1.0,
        ("gemm", "float"): 1.0, ("gemm", "int8"): 0.5, ("elementwise", "float"): 0.2,
        ("elementwise", "int8"): 0.1, ("convert", "int8"): 0.001,
    }  # fmt: skip
    points = tuple(
        Cost(op=op, precision=p, macs=10**5, bytes=10**4, ms=ms, spread=0.01) for (op, p), ms in taken.items()
    )
    options = dict(load_profile("x86-avx2").runtime_named("ort").options)
    return Overlay(
        profile="x86-avx2", machine=HERE, date=datetime.date(2026, 11, 21), command="deploy profile",
        seconds=1, noise=0.01,
        runtime=(RuntimeCosts(name="ort", version=version, threads=1, settings=options, cost=points),),
    )  # fmt: skip


class Told(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """Milliseconds that each contender seems to take, on a machine that was measured as `costs` says."""
    takes = {"as given": 2.0, "ort float": 2.0, "ort int8": 1.0, "ort mixed": 0.5}

    def race(contenders: Mapping[str, Contender], feeds: Arrays) -> dict[str, Timing]:
        ms = {name: takes.get(name, takes[name.split(" in ")[0]]) for name in contenders}
        return {name: Timing(np.full(20, ms[name]), np.full(20, ms[name])) for name in contenders}

    monkeypatch.setenv("DEPLOY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("deploy.stages.costs.this_machine", lambda: HERE)
    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)
    monkeypatch.setattr("deploy.stages.contest.race", race)
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: True)
    monkeypatch.setattr(
        "deploy.stages.baseline.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
    )
    save(costs(OnnxRuntime().available().version or ""))
    return takes


@pytest.fixture
def make(network: Path, images: dict[str, np.ndarray], tmp_path: Path) -> Build:
    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "runtime": "ort", "data": images, "out": tmp_path / "dist",
            "cache": tmp_path / "cache", "budget": Budget(max_drop=0.1),
            "eval": {"x": images["x"][:16]},
        }  # fmt: skip
        return build(network, **{**given, **settings})  # type: ignore[arg-type]

    return run


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What eval data say of each artifact that they are shown, the last for all that follow."""
    said = [0.0]
    original = Examiner.examine

    def examine(self: Examiner, runner: Runner) -> Drop:
        original(self, runner)
        drop = 0.0
        if len(self.dataset) == 16:
            drop = said[min(self.looks, len(said)) - 1]
        score = self._examined[-1][1]
        self._examined[-1] = (Drop(drop, drop, drop), score)
        return self._examined[-1][0]

    monkeypatch.setattr(Examiner, "examine", examine)
    return said


def precisions(bundle: Bundle) -> dict[str, str]:
    plan = Plan.model_validate_json((bundle.folder / "plan.json").read_text())
    return {block.nodes[0].split("/")[-1]: block.precision for block in plan.blocks}


def float_count(bundle: Bundle) -> int:
    return sum(p == "float" for p in precisions(bundle).values())


def looks(bundle: Bundle) -> int:
    assert bundle.manifest.evaluation is not None
    assert bundle.manifest.evaluation.role == "eval"
    return bundle.manifest.evaluation.looks


def test_a_mixture_that_wins_ships_and_eval_data_are_looked_at_once(
    make: Build, clock: dict[str, float]
) -> None:
    bundle = make()
    plan = Plan.model_validate_json((bundle.folder / "plan.json").read_text())
    reasons = [b.reason for b in plan.blocks if b.precision == "float"]
    assert "faster as float, its borders counted" in reasons
    assert plan.quantized
    assert looks(bundle) == 1
    assert any("the fastest by the costs of kernels" in r for r in bundle.manifest.verdict.reasons)
    assert bundle.measurements.comparison is not None
    assert bundle.measurements.comparison.speedup == 4.0
    names = [a.name for a in bundle.measurements.attempts]
    assert names[:3] == ["as given", "float", "int8"]
    assert bundle.measurements.attempts[-1].outcome == "chosen"


def test_a_mixture_that_the_clock_refuses_does_not_ship(make: Build, clock: dict[str, float]) -> None:
    clock["ort mixed"] = 1.5
    bundle = make()
    assert looks(bundle) == 1
    assert bundle.measurements.comparison is not None
    assert bundle.measurements.comparison.speedup == 2.0
    assert not any("costs of kernels" in reason for reason in bundle.manifest.verdict.reasons)


def test_a_refused_mixture_leaves_the_race(
    make: Build, clock: dict[str, float], verdicts: list[float]
) -> None:
    verdicts[:] = [OVER, 0.0]
    told = Told()
    bundle = make(progress=told)
    assert "eval data: ort mixed drops +0.5000, over the budget of 0.1000" in told.notes
    assert looks(bundle) == 2
    assert bundle.manifest.verdict.status == "met"
    assert bundle.measurements.comparison is not None
    assert bundle.measurements.comparison.speedup == 2.0, "what accuracy alone had chosen"
    refused = [a for a in bundle.measurements.attempts if a.outcome.startswith("refused by eval data")]
    assert [(a.runtime, a.outcome) for a in refused] == [("ort", "refused by eval data: drop +0.5000")]
    assert refused[0].drop == 0.0, "on the data that choose, as all others"


def test_a_refused_choice_of_accuracy_comes_back_higher_up_the_ladder(
    make: Build, clock: dict[str, float], verdicts: list[float], tmp_path: Path
) -> None:
    """And then with more float blocks; a lock of it leads to the same plan."""
    clock["ort mixed"] = 1.5
    first = float_count(make())
    verdicts[:] = [OVER, 0.0]
    bundle = make(cache=tmp_path / "higher")
    assert float_count(bundle) == first and looks(bundle) == 2
    accuracy = next(reason for reason in bundle.manifest.verdict.reasons if reason.startswith("accuracy"))
    plan = (bundle.folder / "plan.json").read_text()
    again = make(lock=bundle.folder / "deploy.lock", out=tmp_path / "again")
    assert (again.folder / "plan.json").read_text() == plan
    assert (again.folder / "graph.onnx").read_bytes() == (bundle.folder / "graph.onnx").read_bytes()
    assert accuracy in again.manifest.verdict.reasons


def test_a_refused_choice_of_accuracy_comes_back_with_more_float_blocks(
    make: Build, clock: dict[str, float], verdicts: list[float], tmp_path: Path
) -> None:
    clock["ort mixed"] = 1.5
    first = float_count(make())
    verdicts[:] = [OVER, OVER, 0.0]
    bundle = make(cache=tmp_path / "other")
    assert float_count(bundle) == first + 1, "none, none higher up, one"
    assert looks(bundle) == 3
    assert bundle.manifest.verdict.status == "met"


def test_a_precision_that_was_asked_for_is_judged_and_not_overruled(
    make: Build, clock: dict[str, float], verdicts: list[float]
) -> None:
    verdicts[:] = [OVER]
    clock["ort int8"] = 9.0
    bundle = make(precision="int8")
    assert bundle.manifest.verdict.status == "missed"
    assert bundle.manifest.verdict.reasons[0].startswith("drop 0.5000 over the budget of 0.1000")
    assert looks(bundle) == 1
    assert "int8" in precisions(bundle).values()


def test_asked_for_mixed_stays_mixed_where_float_is_faster(make: Build, clock: dict[str, float]) -> None:
    clock.update({"ort mixed": 3.0, "ort int8": 4.0})
    bundle = make(precision="mixed")
    assert set(precisions(bundle).values()) == {"float", "int8"}
    assert any("the fastest by the costs of kernels" in r for r in bundle.manifest.verdict.reasons)


def test_a_lock_replays_a_mixture_without_any_measurements(
    make: Build, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = make()
    (tmp_path / "deploy.lock").write_bytes((first.folder / "deploy.lock").read_bytes())
    monkeypatch.setenv("DEPLOY_DATA", str(tmp_path / "empty"))
    clock.update({"ort int8": 9.0, "ort mixed": 9.0})
    again = make(lock=tmp_path / "deploy.lock", out=tmp_path / "again", cache=tmp_path / "other")
    assert again.manifest.plan_sha256 == first.manifest.plan_sha256
    assert again.digest == first.digest


def test_measurements_of_another_version_are_told_and_not_used(
    make: Build, clock: dict[str, float], tmp_path: Path
) -> None:
    for path in (tmp_path / "data" / "measured").glob("*.json"):
        path.unlink()
    save(costs("0.1"))
    told = Told()
    bundle = make(progress=told)
    assert any("ort is not used: measured with version 0.1" in note for note in told.notes)
    assert "mixed" not in json.dumps([a.name for a in bundle.measurements.attempts])


def test_nothing_is_said_of_costs_where_nothing_is_timed(
    make: Build, clock: dict[str, float], tmp_path: Path
) -> None:
    for path in (tmp_path / "data" / "measured").glob("*.json"):
        path.unlink()
    save(costs("0.1"))
    told = Told()
    make(progress=told, measure=False)
    assert told.notes == []


def test_narrow_floats_that_eval_data_refuse_leave_the_race_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def floats(name: str, kind: str, drop: float) -> SimpleNamespace:
        subject = SimpleNamespace(
            imported={}, refinement=SimpleNamespace(sparse=frozenset()), float_precision=kind
        )
        decided = SimpleNamespace(within_budget=False, drop=Drop(drop, drop, drop))
        return SimpleNamespace(
            name=name, subject=subject, decided=decided, integer=False, first=True, accepted=False
        )

    narrow, exact = floats("openvino bf16", "bf16", 0.1), floats("ort float", "float", 0.0)
    monkeypatch.setattr(accept, "weigh", lambda job, held: held)
    monkeypatch.setattr(accept, "pick", lambda job, held: held.entrants[0])
    monkeypatch.setattr(accept, "_judged", lambda job, winner: winner)
    job = SimpleNamespace(
        accept=True, lock=None, allowance=0.01, request=SimpleNamespace(precision="auto", budget=Budget()),
        progress=SimpleNamespace(note=str),
    )  # fmt: skip
    for held in (Race((narrow, exact)), Race((narrow,), (narrow, exact))):  # type: ignore[arg-type]
        winner, after = accept.settle(cast(Job, job), held)
        assert winner.name == "ort float" and [one.name for one in after.refused] == ["openvino bf16"]

    again = floats("openvino float", "float", 0.0)
    again.accepted = True
    monkeypatch.setattr(accept, "in_float32", lambda subject: subject)
    monkeypatch.setattr(accept, "reopened", lambda subject, variant: subject)
    monkeypatch.setattr(accept, "decided_for", lambda job, subject, ask: again)
    monkeypatch.setattr(accept, "hold_race", lambda job, entrants: Race(entrants))
    assert accept.settle(cast(Job, job), Race((narrow,)))[0].name == "openvino float"  # type: ignore[arg-type]
    monkeypatch.setattr(accept, "in_float32", lambda subject: None)
    assert accept.settle(cast(Job, job), Race((narrow,)))[0].name == "openvino bf16"  # type: ignore[arg-type]


def test_floats_with_zeros_that_eval_data_refuse_leave_the_race(monkeypatch: pytest.MonkeyPatch) -> None:
    def entrant(name: str, sparse: set[str], **said: bool) -> SimpleNamespace:
        subject = SimpleNamespace(
            imported={}, refinement=SimpleNamespace(sparse=frozenset(sparse)), float_precision="float"
        )
        decided = SimpleNamespace(within_budget=False, drop=Drop(0.1, 0.1, 0.1))
        return SimpleNamespace(
            name=name, subject=subject, decided=decided, integer=False, first=False, **said
        )

    thin, dense = entrant("thin", {"block"}, accepted=False), entrant("dense", set(), accepted=True)
    monkeypatch.setattr(accept, "weigh", lambda job, held: held)
    monkeypatch.setattr(accept, "pick", lambda job, held: held.entrants[0])
    monkeypatch.setattr(accept, "_judged", lambda job, winner: winner)
    job = SimpleNamespace(
        accept=True,
        lock=None,
        allowance=Budget().max_drop,
        request=SimpleNamespace(precision="auto", budget=Budget()),
        progress=SimpleNamespace(note=str),
    )
    winner, held = accept.settle(cast(Job, job), Race(cast(tuple[Entrant, ...], (thin, dense))))
    assert winner.name == "dense" and [one.name for one in held.refused] == ["thin"]
