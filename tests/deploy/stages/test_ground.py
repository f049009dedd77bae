"""What a target's profile says to the steps of a recipe."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date

import pytest

from deploy.spec.profile import Fact, Figure, Sparsity
from deploy.stages.ground import sparsity_pays
from deploy.stages.target import find_target


def gain(times: float) -> Figure:
    return Figure(value=times, unit="times", source="a measurement", date=date(2026, 11, 21))


@pytest.mark.parametrize(
    ("given", "pays", "told"),
    [
        (None, False, "no runtime of x86-cpu .* is faster"),
        ("unknown", True, "by how much is unknown"),
        (gain(1.4), True, "1.4 times"),
        (gain(1.0), False, "1.0 times"),
    ],
)
def test_sparsity_pays_where_a_runtime_gains(given: Fact | None, pays: bool, told: str) -> None:
    target = find_target("x86-cpu", "ort")
    sparsity = None if given is None else Sparsity(pattern="2:4", axis=1, gain=given)
    routes = tuple(
        replace(route, runtime=route.runtime.model_copy(update={"sparsity": sparsity}))
        for route in target.routes
    )
    found, why = sparsity_pays(replace(target, routes=routes))
    assert found is pays
    assert re.search(told, why)
