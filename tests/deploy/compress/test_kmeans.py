"""Centres on a line, against every way to cut it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.compress.kmeans import EXACT, kmeans


def best_of_all(values: np.ndarray, weights: np.ndarray, count: int) -> float:
    """Clusters of a line are intervals: all ways to cut it into so many are tried."""
    order = np.argsort(values)
    x, w = values[order], weights[order]
    least = np.inf
    for cuts in combinations(range(1, len(x)), count - 1):
        total = 0.0
        for start, end in zip((0, *cuts), (*cuts, len(x)), strict=True):
            mass = w[start:end].sum()
            mean = (w[start:end] * x[start:end]).sum() / mass if mass else 0.0
            total += (w[start:end] * (x[start:end] - mean) ** 2).sum()
        least = min(least, total)
    return least


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(4, 9))
def test_few_values_are_clustered_as_well_as_can_be(seed: int, count: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    values, weights = draw.standard_normal(size), draw.exponential(size=size)
    found = kmeans(values, count, weights)
    assert found.error == pytest.approx(best_of_all(values, weights, count), rel=1e-9, abs=1e-12)
    assert (np.diff(found.centres) >= 0).all()
    distance = np.abs(values[:, None] - found.centres)
    assert distance[np.arange(size), found.indices] == pytest.approx(distance.min(axis=1))
    assert (weights * distance.min(axis=1) ** 2).sum() == pytest.approx(found.error, abs=1e-12)


def test_many_values_come_close_to_what_is_best_for_a_normal_distribution() -> None:
    """Max (1960): 16 levels distort a normal variable by 0.009497, 4 by 0.1175, 2 by 0.3634."""
    values = np.random.default_rng(0).standard_normal(200_000)
    for count, distortion in ((2, 0.3634), (4, 0.1175), (16, 0.009497)):
        assert kmeans(values, count).error / len(values) == pytest.approx(distortion, rel=0.02)


def test_more_values_than_are_taken_exactly_lose_little() -> None:
    draw = np.random.default_rng(1)
    values = np.concatenate([draw.normal(c, 0.01, 300) for c in (-3, -1, 0, 0.5, 4)])
    assert len(values) > EXACT
    found = kmeans(values, 5)
    assert found.centres == pytest.approx([-3, -1, 0, 0.5, 4], abs=0.01)


def test_important_values_pull_a_centre() -> None:
    values, weights = np.array([0.0, 1.0, 10.0]), np.array([1.0, 99.0, 1.0])
    assert kmeans(values, 2, weights).centres == pytest.approx([0.99, 10.0])


def test_no_more_centres_than_values_and_shapes_stay() -> None:
    found = kmeans(np.array([[1.0, 2.0], [2.0, 1.0]]), 16)
    assert found.centres.tolist() == [1, 2]
    assert found.indices.tolist() == [[0, 1], [1, 0]]
    assert found.error == 0


def test_values_of_no_mass_change_nothing() -> None:
    values = np.arange(2000.0)
    weights = (values < 2).astype(float)
    found = kmeans(values, 4, weights)
    assert found.error == pytest.approx(0, abs=1e-6)
    assert np.isfinite(found.centres).all()


@pytest.mark.parametrize(
    ("values", "weights"), [([], None), ([np.nan], None), ([1.0], [0.0]), ([1.0, 2.0], [1.0, -1.0])]
)
def test_what_has_no_clusters_is_refused(values, weights) -> None:
    with pytest.raises(ValueError):
        kmeans(np.array(values), 2, None if weights is None else np.array(weights))
