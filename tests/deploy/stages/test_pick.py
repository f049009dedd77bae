"""Who wins: races with clocks, sizes, scores and judges made up, no model built."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.data.interval import Drop
from deploy.measure.latency import Timing, speedup
from deploy.quantize.decide import BY_COSTS, SLOWER_SO, Decided
from deploy.spec.manifest import Choice, Lock
from deploy.spec.project import Budget, Objective
from deploy.stages.entrants import GIVEN, Entrant, Race
from deploy.stages.pick import BEST, NEAREST, PICKED, SLOWER, loses, pick, why_float

KB = 1000


@dataclass(frozen=True)
class Form:
    """What a made-up form of the model takes. ``scored``: its drop is known before somebody asks."""

    runtime: str
    precision: str
    ms: float
    size: int
    drop: float = 0.0
    memory: int | None = None
    joules: tuple[float, ...] | None = None
    scored: bool = True


@dataclass
class Arena:
    """A race between forms; ``judged`` are the float builds whose drop was asked for, ``spent`` is what a
    recipe lost before."""

    entrants: tuple[Form, ...]
    floats: tuple[Form, ...] = ()
    objective: Objective = "latency"
    budget: Budget = field(default_factory=Budget)
    given_ms: float = 10.0
    timed: bool = True
    spent: float = 0.0
    judged: list[str] = field(default_factory=list)

    @property
    def job(self) -> Any:
        return SimpleNamespace(
            request=SimpleNamespace(budget=self.budget, objective=self.objective),
            allowance=self.spent + self.budget.max_drop,
            target=SimpleNamespace(profile=SimpleNamespace(memory={}, title="a CPU")),
            foresight=SimpleNamespace(runtimes={}), predicted={}, floats={},
            why_not_measured="" if self.timed else "measuring was switched off",
            scores=lambda subject, examiner: None,
            judge=None, accept=None, lock=None, work=Path("work"),
        )  # fmt: skip

    @property
    def held(self) -> Race:
        everybody = (*self.entrants, *self.floats)
        times = {GIVEN: timing(self.given_ms)} | {name(f): timing(f.ms) for f in everybody}
        memory = {name(f): f.memory for f in everybody if f.memory is not None}
        entrants, floats = (tuple(map(self.entrant, part)) for part in (self.entrants, self.floats))
        energy = {name(f): np.asarray(f.joules) for f in everybody if f.joules is not None}
        return Race(entrants, floats, times if self.timed else None, memory=memory, energy=energy)

    def entrant(self, form: Form) -> Entrant:
        artifact = SimpleNamespace(size_bytes=lambda: form.size, memory_bytes={})
        integer = form.precision == "int8"
        subject = SimpleNamespace(
            runtime=SimpleNamespace(name=form.runtime), form=None, integer_precision="int8",
            float_precision="bf16" if form.precision == "bf16" else "float",
            made_of=form,
        )  # fmt: skip
        decided: Any = Decided(
            subject=subject,  # type: ignore[arg-type]
            candidate=SimpleNamespace(plan=SimpleNamespace(quantized=integer), artifact=artifact),  # type: ignore[arg-type]
            float_blocks=frozenset(),
            drop=Drop(form.drop, form.drop, form.drop) if form.scored else None,
            within_budget=not form.scored or form.drop <= self.budget.max_drop,
            choices=(),
        )
        return Entrant(decided)

    def winner(self) -> Entrant:
        return pick(self.job, self.held)

    @property
    def won(self) -> str:
        return self.winner().name

    def reason(self, what: str = "precision") -> str:
        return next((c.reason for c in self.winner().decided.choices if c.what == what), "")


def name(form: Form) -> str:
    return f"{form.runtime} {form.precision}"


def timing(ms: float) -> Timing:
    return Timing(np.full(20, ms), np.full(20, ms))


@pytest.fixture(autouse=True)
def _float_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A float build that is asked for has the drop of the form that it is made of."""

    def decide_float(subject: Any, judge: object, accept: object, max_drop: float, *_: object) -> Any:
        form = replace(subject.made_of, scored=True)
        return Arena((), budget=Budget(max_drop=max_drop)).entrant(form).decided

    monkeypatch.setattr("deploy.stages.pick.decide_float", decide_float)


FAST = Form("a", "int8", ms=1.0, size=40 * KB, drop=0.004)
SMALL = Form("b", "int8", ms=3.0, size=30 * KB, drop=0.008)
PLAIN_A = Form("a", "float", ms=4.0, size=100 * KB, scored=False)
PLAIN_B = Form("b", "float", ms=2.0, size=101 * KB, scored=False)


def arena(*entrants: Form, **more: Any) -> Arena:
    return Arena(entrants or (FAST, SMALL), **{"floats": (PLAIN_A, PLAIN_B), **more})


def scored(form: Form, **more: Any) -> Form:
    return replace(form, scored=True, **more)


class TestLatency:
    def test_the_fastest_wins(self) -> None:
        assert arena().won == "a int8"
        assert arena().reason() == "not slower than float"
        assert arena().reason("runtime") == BEST["latency"]

    def test_of_equally_fast_ones_the_first(self) -> None:
        assert arena(SMALL, replace(FAST, ms=3.0), floats=()).won == "b int8"

    @pytest.mark.parametrize("disturbed", [0, 4, 8])
    def test_of_those_alike_by_medians_the_one_that_others_disturb_less(self, disturbed: int) -> None:
        """The first takes three times as long while neighbours are at work: in none, a fifth, two fifths."""
        race = arena(Form("ort", "int8", 1.0, KB), Form("tflite", "int8", 1.01, KB))
        rounds = np.full(20, 1.0)
        rounds[:disturbed] = 3.0
        held = race.held
        assert held.times is not None
        times = {**held.times, "ort int8": Timing(rounds, rounds)}
        assert pick(race.job, replace(held, times=times)).runtime == ("tflite" if disturbed == 8 else "ort")

    def test_float_wins_where_no_integers_pay(self) -> None:
        slow = arena(SMALL)
        assert loses(slow.job, slow.held)
        assert (slow.won, slow.reason()) == ("b float", SLOWER)

    @pytest.mark.parametrize(("ratio", "won"), [(1.005, "b int8"), (1.02, "b float")])
    def test_where_noise_hides_who_is_faster_integers_may_be_one_percent_behind(
        self, ratio: float, won: str
    ) -> None:
        race = arena(SMALL)
        noise = 2.0 * np.random.default_rng(0).normal(1, 0.1, 400)
        rounds = {"b float": noise, "b int8": ratio * noise[::-1], "a float": 2 * noise, GIVEN: 5 * noise}
        held = replace(race.held, times={who: Timing(times, times) for who, times in rounds.items()})
        least, most = speedup(held.times["b float"], held.times["b int8"])[1]
        assert least < 1.0 < most
        assert pick(race.job, held).name == won

    @pytest.mark.parametrize(("quietly", "won"), [(2.0, "b int8"), (2.05, "b int8"), (2.1, "b float")])
    def test_what_a_neighbour_slows_down_more_is_not_slower(self, quietly: float, won: str) -> None:
        """Floats take 2.0 ms, while neighbours have the machine 3.0, and integers then 2.7."""
        race = arena(SMALL)
        busy = np.arange(20) % 4 > 0
        rounds = {
            "b float": np.where(busy, 3.0, 2.0), "b int8": np.where(busy, 2.7, quietly),
            "a float": np.full(20, 9.0), GIVEN: np.full(20, 9.0),
        }  # fmt: skip
        held = replace(race.held, times={who: Timing(times, times) for who, times in rounds.items()})
        assert pick(race.job, held).name == won

    def test_a_float_build_over_the_budget_does_not(self) -> None:
        worse = replace(PLAIN_B, precision="bf16", drop=0.5)
        assert arena(SMALL, floats=(worse,)).won == "b int8"
        assert arena(SMALL, floats=(worse,)).reason() == "slower than float, which does not keep the limits"
        assert arena(replace(SMALL, ms=4.5), floats=(worse, PLAIN_A)).won == "a float", "the next one"

    def test_integers_stay_where_float_is_too_large(self) -> None:
        limited = arena(SMALL, budget=Budget(max_size_bytes=50 * KB))
        assert limited.won == "b int8"
        assert limited.reason() == "slower than float, which does not keep the limits"

    def test_a_limit_of_size_leaves_the_fastest_out(self) -> None:
        assert arena(budget=Budget(max_size_bytes=35 * KB), floats=()).won == "b int8"

    def test_a_limit_of_latency_that_only_float_keeps(self) -> None:
        limited = arena(SMALL, budget=Budget(max_latency_ms=2.5))
        assert (limited.won, limited.reason()) == ("b float", SLOWER)

    def test_over_the_accuracy_budget_the_most_accurate(self) -> None:
        missed = arena(budget=Budget(max_drop=0.001), floats=())
        assert (missed.won, missed.reason()) == ("a int8", NEAREST)

    def test_untimed_the_first(self) -> None:
        assert arena(SMALL, FAST, floats=(), timed=False).won == "b int8"


class TestSize:
    def test_the_smallest_wins_though_slower(self) -> None:
        small = arena(objective="size")
        assert small.won == "b int8"
        assert small.reason() == f"{BEST['size']}, though slower than float"
        assert small.reason("runtime") == BEST["size"]
        assert not loses(small.job, small.held), "no second race is held for it"

    def test_nothing_is_said_where_it_is_not_slower(self) -> None:
        assert arena(FAST, replace(SMALL, ms=1.5), objective="size").reason() == BEST["size"]

    def test_sizes_that_hardly_differ_are_one_and_the_fastest_wins(self) -> None:
        assert arena(FAST, replace(SMALL, size=40 * KB - 100), objective="size").won == "a int8"

    def test_within_the_accuracy_budget(self) -> None:
        assert arena(objective="size", budget=Budget(max_drop=0.005)).won == "a int8"

    def test_within_the_limit_of_latency(self) -> None:
        assert arena(objective="size", budget=Budget(max_latency_ms=2.0)).won == "a int8"

    def test_nothing_is_said_where_there_was_no_choice(self) -> None:
        alone = arena(SMALL, objective="size", floats=())
        assert (alone.won, alone.reason(), alone.reason("runtime")) == ("b int8", "", "")


class TestMemory:
    def test_the_least_wins(self) -> None:
        forms = replace(FAST, memory=9 * KB), replace(SMALL, memory=5 * KB)
        assert arena(*forms, objective="memory").won == "b int8"
        assert arena(*forms, objective="memory").reason() == f"{BEST['memory']}, though slower than float"

    def test_peaks_that_hardly_differ_are_one(self) -> None:
        forms = replace(FAST, memory=5 * KB + 100), replace(SMALL, memory=5 * KB)
        assert arena(*forms, objective="memory").won == "a int8"

    def test_unmeasured_is_said(self) -> None:
        dark = arena(objective="memory", timed=False)
        assert dark.reason() == "memory was not measured: measuring was switched off"


class TestEnergy:
    STEADY = (0.5,) * 8
    MORE = (0.51,) * 8
    UNCLEAR = (0.45, 0.6) * 4

    def test_the_least_wins_though_slower(self) -> None:
        forms = replace(FAST, joules=self.MORE), replace(SMALL, joules=self.STEADY)
        assert arena(*forms, objective="energy").won == "b int8"
        assert arena(*forms, objective="energy").reason() == f"{BEST['energy']}, though slower than float"

    def test_of_those_whom_the_interval_does_not_tell_apart_the_faster(self) -> None:
        forms = replace(FAST, joules=self.UNCLEAR), replace(SMALL, joules=self.STEADY)
        assert arena(*forms, objective="energy").won == "a int8"

    def test_a_float_build_may_win(self) -> None:
        forms = replace(FAST, joules=self.MORE), replace(SMALL, joules=self.MORE)
        floats = (replace(PLAIN_A, joules=self.STEADY),)
        assert arena(*forms, objective="energy", floats=floats).won == "a float"

    def test_within_the_limits(self) -> None:
        forms = replace(FAST, joules=self.MORE), replace(SMALL, joules=self.STEADY)
        assert arena(*forms, objective="energy", budget=Budget(max_latency_ms=2.0)).won == "a int8"

    def test_unmeasured_is_said(self) -> None:
        dark = arena(objective="energy", timed=False)
        assert dark.reason() == "energy was not measured: measuring was switched off"


class TestAccuracy:
    def test_the_least_drop_wins(self) -> None:
        forms = arena(objective="accuracy", floats=(scored(PLAIN_A), scored(PLAIN_B)))
        assert (forms.won, forms.reason()) == ("b float", BEST["accuracy"]), (
            "the faster of two that lose nothing"
        )

    def test_within_the_limits(self) -> None:
        limited = arena(
            objective="accuracy", floats=(scored(PLAIN_A),), budget=Budget(max_size_bytes=50 * KB)
        )
        assert limited.won == "a int8"

    def test_a_gain_is_nothing_lost(self) -> None:
        lucky = replace(SMALL, drop=-0.02)
        forms = arena(FAST, lucky, objective="accuracy", floats=(scored(PLAIN_B, ms=1.0),))
        assert forms.won == "b float", "as accurate, and faster"

    def test_what_accuracy_alone_left_float_needs_no_reason(self) -> None:
        assert arena(scored(PLAIN_A), SMALL, objective="accuracy", floats=()).reason() == ""


class TestNobody:
    @pytest.mark.parametrize("objective", ["latency", "size", "accuracy"])
    def test_the_nearest_wins(self, objective: Objective) -> None:
        budget = Budget(max_latency_ms=0.5, max_size_bytes=20 * KB)
        forms = arena(objective=objective, budget=budget, floats=())
        assert forms.won == "a int8", "1.0 + 1.0 over against 5.0 + 0.5"
        assert forms.reason() == forms.reason("runtime") == NEAREST

    def test_accuracy_goes_first(self) -> None:
        forms = arena(budget=Budget(max_drop=0.005, max_size_bytes=35 * KB), floats=())
        assert forms.won == "a int8", "too large, where the other one loses too much"

    def test_a_drop_that_is_no_number_is_furthest(self) -> None:
        lost = replace(FAST, drop=float("nan"))
        assert arena(lost, replace(SMALL, drop=0.9), floats=()).won == "b int8"

    def test_what_a_recipe_lost_tells_forms_apart_no_more(self) -> None:
        slower = replace(SMALL, drop=0.899)
        forms = arena(slower, replace(FAST, drop=0.9), floats=(), spent=0.9)
        assert (forms.won, forms.reason("runtime")) == ("a int8", BEST["latency"])
        assert arena(slower, replace(FAST, drop=0.95), floats=(), spent=0.9).won == "b int8", "lost here"

    def test_int8_must_pay_there_too(self) -> None:
        slow = replace(FAST, ms=5.0, drop=0.9)
        assert arena(slow, floats=(replace(PLAIN_A, ms=1.0, drop=0.9),), spent=0.9).won == "a float"


def lock(*choices: Choice) -> Lock:
    return Lock(
        source_sha256="0", runtime="a", calibration_sha256=None, profile_sha256="0", seed=0, choices=choices,
        float_blocks=(),
    )  # fmt: skip


def test_a_replay_knows_why_blocks_are_float() -> None:
    def said(what: str, chosen: str, reason: str) -> str:
        return why_float(lock(Choice(what=what, chosen=chosen, reason=reason)))

    assert why_float(None) == why_float(lock()) == ""
    assert said("precision", "bf16", SLOWER) == SLOWER
    assert said("INT8 blocks", "3 of 4", BY_COSTS) == SLOWER_SO
    assert said("precision", "float", BEST["accuracy"]) == BEST["accuracy"]
    assert said("precision", "float", BEST["energy"]) == BEST["energy"]
    assert said("precision", "int8", BEST["accuracy"]) == "", "its float blocks are so for accuracy's sake"
    assert said("point", "1 of 3", PICKED) == PICKED
