"""Single weights of small magnitude: how many go, which, and when."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from deploy.compress.magnitude import Schedule, magnitude_masks, prune_magnitude, sparsity_at
from deploy.graph.edit import constant
from deploy.graph.pattern import products


def test_the_schedule_is_cubic_and_never_turns_back() -> None:
    schedule = Schedule(0.9, 10, 110, 0.1)
    found = [sparsity_at(step, schedule) for step in range(200)]
    assert found[:11] == [pytest.approx(0.1)] * 11
    assert found[110:] == [pytest.approx(0.9)] * 90
    assert found[60] == pytest.approx(0.9 - 0.8 * 0.5**3)
    assert all(b >= a for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("given", [(1.0, 0, 1, 0.0), (0.5, 3, 3, 0.0), (0.2, 0, 9, 0.5), (0.5, -1, 9, 0.0)])
def test_schedules_that_make_no_sense_are_refused(given) -> None:
    with pytest.raises(ValueError):
        Schedule(*given)


def test_the_smallest_go_layer_by_layer_or_of_all_together() -> None:
    weights = {"large": np.arange(10.0, 20).reshape(2, 5), "small": -np.arange(1.0, 11)}
    each = magnitude_masks(weights, 0.35)
    assert [int((~m).sum()) for m in each.values()] == [3, 3]
    assert not each["large"][0, :3].any()
    assert each["large"][0, 3:].all()
    together = magnitude_masks(weights, 0.35, "global")
    assert together["large"].all()
    assert (together["small"] == (np.arange(10) >= 7)).all()
    with pytest.raises(ValueError):
        magnitude_masks(weights, 1.0)


def test_equal_magnitudes_go_by_number_not_all_at_once() -> None:
    assert int(magnitude_masks({"w": np.ones(9)}, 0.5)["w"].sum()) == 5


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_pruned_graph_has_so_many_zeros(residual, run, data, scope) -> None:
    found = prune_magnitude(residual, 0.5, scope)
    arrays = [constant(p.node.inputs[1]) for p in products(found.graph)]
    zeros = sum(int((a == 0).sum()) for a in arrays) / sum(a.size for a in arrays)
    assert zeros == pytest.approx(0.5, abs=0.01)
    assert all(0 <= step.after < 0.3 and "no faster" in step.what for step in found.steps)
    feeds = next(data(residual, 8).batches(8)).feeds
    assert np.isfinite(run(found.graph, feeds)).all()
    assert not (run(found.graph, feeds) == run(residual, feeds)).all()
