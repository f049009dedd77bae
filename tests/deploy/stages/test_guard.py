"""What a step may cost, which steps are judged together, and how goals are softened."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from deploy.spec.ablation import PlaceRecord
from deploy.spec.compression import Cluster, LowRank, Prune, Shrink, Sparsify
from deploy.spec.finetune import Finetune
from deploy.spec.recipe import Step
from deploy.stages.guard import Halving, Narrowing, Stretch, allowed, softened, stretches, within

TRAIN = Finetune(epochs=1)
PRUNE, FACTORS = Prune(macs=0.4), LowRank()


def test_trainings_belong_to_the_step_in_front_of_them() -> None:
    found = list(stretches((TRAIN, PRUNE, TRAIN, TRAIN, FACTORS, Cluster())))
    assert [(one.number, one.head.step, len(one.trainings)) for one in found] == [
        (1, "finetune", 0), (2, "prune", 2), (5, "lowrank", 0), (6, "cluster", 0),
    ]  # fmt: skip
    assert [one.guarded for one in found] == [False, True, True, True]


def test_what_is_left_of_the_budget_is_shared_evenly() -> None:
    first, second = stretches((PRUNE, FACTORS))
    assert allowed(first, [second], lost=0.0, budget=0.03, quantizes=True) == pytest.approx(0.01)
    assert allowed(second, [], lost=0.01, budget=0.03, quantizes=True) == pytest.approx(0.01)
    assert allowed(second, [], lost=0.01, budget=0.03, quantizes=False) == pytest.approx(0.02)
    assert allowed(second, [], lost=0.04, budget=0.03, quantizes=False) == 0
    assert allowed(second, [], lost=-0.01, budget=0.03, quantizes=False) == pytest.approx(0.04)


def test_a_step_with_a_limit_of_its_own_takes_no_share() -> None:
    first, second = stretches((PRUNE.model_copy(update={"max_drop": 0.5}), FACTORS))
    assert allowed(first, [second], lost=0.0, budget=0.03, quantizes=True) == 0.5
    assert allowed(Stretch(1, FACTORS), [first], lost=0.0, budget=0.03, quantizes=False) == pytest.approx(
        0.03
    )


def test_a_student_is_judged_only_where_that_is_asked_for() -> None:
    assert not Stretch(1, Shrink(width=0.5)).guarded
    assert Stretch(1, Shrink(width=0.5, max_drop=0.1)).guarded


def test_rounding_is_no_loss() -> None:
    assert within(0.89 - 0.88, 0.01)
    assert not within(0.0101, 0.01)


@pytest.mark.parametrize(
    ("step", "half", "quarter"),
    [
        (Prune(macs=0.4), {"macs": 0.2}, {"macs": 0.1}),
        (Prune(latency=0.4), {"latency": 0.2}, {"latency": 0.1}),
        (Prune(size=200), {"size": 600}, {"size": 800}),
        (Shrink(width=0.5, widths={"a": 0.2}), {"width": 0.75, "widths": {"a": 0.6}}, {"width": 0.875}),
        (Sparsify(pattern="unstructured", sparsity=0.8), {"sparsity": 0.4}, {"sparsity": 0.2}),
        (LowRank(lost=0.08), {"lost": 0.04}, {"lost": 0.02}),
        (Cluster(centres=16), {"centres": 64}, {"centres": 128}),
        (Cluster(centres=200), {"centres": 256}, {"centres": 256}),
        (Sparsify(), {"pattern": "2:4"}, {"sparsity": None}),
        (TRAIN, {"epochs": 1}, {"epochs": 1}),
    ],
    ids=lambda value: getattr(value, "step", ""),
)
def test_goals_have_shares(step: Step, half: dict[str, object], quarter: dict[str, object]) -> None:
    assert softened(step, 1.0, 1000) == step
    for share, wanted in ((0.5, half), (0.25, quarter)):
        found = softened(step, share, 1000)
        for name, value in wanted.items():
            assert getattr(found, name) == pytest.approx(value)


@pytest.mark.parametrize("holds", [0.0, 0.05, 0.13, 0.4, 0.5, 0.77, 0.99])
def test_as_much_of_a_goal_is_kept_as_holds(holds: float) -> None:
    """Three tries tell it to an eighth of the goal."""
    search, best = Halving(Prune(macs=0.8), 1000), 0.0
    for _ in range(3):
        step = search.next()
        assert isinstance(step, Prune) and step.macs == pytest.approx(0.8 * search.share)
        search.judged(search.share <= holds)
        best = max(best, search.share if search.share <= holds else 0.0)
    assert holds - 0.125 < best <= holds


def test_what_cannot_be_less_is_not_tried_again() -> None:
    search = Halving(Cluster(centres=200), 1000)
    assert search.next() == Cluster(centres=256)
    search.judged(held=False)
    assert search.next() is None
    assert Halving(TRAIN, 1000).next() is None


RISES = {"a": 0.02, "b": 0.4, "c[0]": 0.01, "d": -0.3, "e": 0.04, "f": 0.08, "g": 0.005}


@pytest.mark.parametrize("holds", range(8))
def test_layers_that_add_least_stay_sparse_as_many_as_hold(holds: int) -> None:
    """Against a judge that allows so many layers; with all of them it was too much."""
    order = sorted(RISES, key=RISES.__getitem__)
    places = [PlaceRecord(place=name, what="2:4", rise=rise) for name, rise in RISES.items()]
    places.append(PlaceRecord(place="head", what="left dense", kept=False))
    places.append(PlaceRecord(place="stem", what="left dense: 60% of the error", kept=False, rise=0.9))
    found = Narrowing(Sparsify(protect=("head",), max_drop=0.5), places)
    best, tries = 0, 0
    while (step := found.next()) is not None:
        assert step.max_drop == 0.5 and step.protect[:2] == ("head", "stem")
        dense = [name for name in order if any(fnmatch(name, pattern) for pattern in step.protect)]
        sparse = len(order) - len(dense)
        assert dense == order[sparse:], "what adds most goes first"
        assert 0 < sparse < len(order)
        found.judged(sparse <= holds)
        best, tries = max(best, sparse if sparse <= holds else 0), tries + 1
    assert best == min(holds, len(order) - 1) and tries <= 6


def test_the_first_cut_is_made_by_error_not_by_number() -> None:
    places = [PlaceRecord(place=f"n{i}", what="2:4", rise=0.01) for i in range(20)]
    step = Narrowing(Sparsify(), [PlaceRecord(place="loud", what="2:4", rise=0.3), *places]).next()
    assert step is not None and step.protect == ("loud",)
