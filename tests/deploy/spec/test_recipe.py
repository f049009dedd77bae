"""A recipe that cannot work is refused while it is read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from deploy.errors import UsageError
from deploy.spec.compression import Cluster, LowRank, Prune, Shrink, Sparsify
from deploy.spec.finetune import Finetune
from deploy.spec.recipe import STEPS, Recipe


def test_steps_are_known_by_their_own_names() -> None:
    for name, kind in STEPS.items():
        assert kind.model_fields["step"].default == name


def test_a_preset_among_the_steps_is_told_where_it_belongs() -> None:
    with pytest.raises(ValidationError, match=r'name it under \[build\], recipe = "fast"'):
        Recipe.model_validate({"steps": [{"preset": "fast"}]})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "say what to take away"),
        ({"macs": 0.3, "size": 100}, "macs and size are two goals"),
        ({"macs": 1.0}, "less than 1"),
        ({"parameters": 1.5}, "less than 1"),
        ({"latency": 0.0}, "greater than 0"),
        ({"macs": 0.3, "isomorphic": True}, "scope = 'global'"),
    ],
)
def test_goals_of_pruning(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Prune.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sparsity": 0.5}, "half of all weights by itself"),
        ({"pattern": "unstructured"}, "how much is to become zero"),
        ({"rewind": True}, "belong to unstructured"),
        ({"pattern": "unstructured", "sparsity": 0.5, "rounds": 3}, "give finetune as well"),
    ],
)
def test_zeros(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Sparsify.model_validate(settings)


def test_widths_are_shares() -> None:
    with pytest.raises(UsageError, match=r"that of 'layer4\.\*' is not"):
        Shrink(width=0.5, widths={"layer4.*": 1.5})


def test_a_step_that_undoes_an_earlier_one_is_refused() -> None:
    with pytest.raises(UsageError, match=r"step 2 \(prune\) undoes step 1 \(cluster\).*put prune first"):
        Recipe(steps=(Cluster(), Prune(macs=0.3)))
    with pytest.raises(UsageError, match=r"step 3 \(lowrank\) undoes step 2 \(sparsify\)"):
        Recipe(steps=(Finetune(), Sparsify(), LowRank()))
    with pytest.raises(UsageError, match="leave one of them out"):
        Recipe(steps=(Cluster(), Cluster()))


def test_the_usual_order_stands() -> None:
    steps = (Shrink(width=0.5), Prune(macs=0.3), LowRank(), Sparsify(), Finetune(), Cluster())
    assert Recipe(steps=steps).steps == steps
