"""What a step may cost, which steps are judged together, and how goals are halved."""

from __future__ import annotations

import pytest

from deploy.spec.compression import Cluster, LowRank, Prune, Shrink, Sparsify
from deploy.spec.finetune import Finetune
from deploy.spec.recipe import Step
from deploy.stages.guard import Stretch, allowed, softened, stretches, within

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
        (Sparsify(), {"tolerance": 0.05}, {"tolerance": 0.025}),
        (Sparsify(tolerance=0.2), {"tolerance": 0.1}, {"tolerance": 0.05}),
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
