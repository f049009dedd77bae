"""What a step may cost, which steps are judged together, and how goals are halved."""

from __future__ import annotations

from fnmatch import fnmatch

import pytest

from deploy.spec.ablation import PlaceRecord
from deploy.spec.compression import Cluster, LowRank, Prune, Shrink, Sparsify
from deploy.spec.finetune import Finetune
from deploy.spec.recipe import Step
from deploy.stages.guard import Narrowing, Stretch, allowed, softened, stretches, within

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
    ("step", "once", "twice"),
    [
        (Prune(macs=0.4), {"macs": 0.2}, {"macs": 0.1}),
        (Prune(latency=0.4), {"latency": 0.2}, {"latency": 0.1}),
        (Prune(size=200), {"size": 600}, {"size": 800}),
        (Shrink(width=0.5, widths={"a": 0.2}), {"width": 0.75, "widths": {"a": 0.6}}, {"width": 0.875}),
        (Sparsify(pattern="unstructured", sparsity=0.8), {"sparsity": 0.4}, {"sparsity": 0.2}),
        (LowRank(lost=0.08), {"lost": 0.04}, {"lost": 0.02}),
        (Cluster(centres=16), {"centres": 32}, {"centres": 64}),
    ],
    ids=lambda value: getattr(value, "step", ""),
)
def test_goals_are_halved(step: Step, once: dict[str, object], twice: dict[str, object]) -> None:
    assert softened(step, 0, 1000) == step
    for times, wanted in ((1, once), (2, twice)):
        found = softened(step, times, 1000)
        assert found is not None
        for name, value in wanted.items():
            assert getattr(found, name) == pytest.approx(value)


def test_what_cannot_be_less_is_said() -> None:
    assert softened(Cluster(centres=200), 1, 1000) == Cluster(centres=256)
    assert softened(Cluster(centres=200), 2, 1000) is None
    assert softened(TRAIN, 1, 1000) is None
    assert softened(Sparsify(), 1, 1000) is None


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
