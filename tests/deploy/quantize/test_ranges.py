"""Histograms and observers against numpy on the raw samples, and as properties over any cutting and order."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.quantize import ranges
from deploy.quantize.ranges import BINS, Histogram, find_range, load_histograms, save_histograms

NUMBERS = st.floats(-1e6, 1e6, width=32).filter(lambda v: v == 0 or abs(v) > 1e-20)
SAMPLES = st.lists(NUMBERS, min_size=1, max_size=60)


def histogram(*parts) -> Histogram:
    result = Histogram()
    for part in parts:
        values = np.asarray(part, np.float32)
        if values.size:
            result.add(values, float(values.min()), float(values.max()))
    return result


def content(h: Histogram) -> tuple[object, ...]:
    return h.exponent, None if h.counts is None else h.counts.tolist(), h.zeros, h.low, h.high


def cut(values: list[float], at: list[int]) -> list[list[float]]:
    edges = [0, *sorted(a % (len(values) + 1) for a in at), len(values)]
    return [values[a:b] for a, b in pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(SAMPLES, st.lists(st.integers(0, 60), max_size=4), st.randoms())
def test_neither_order_nor_cutting_matters(values, at, random):
    shuffled = values.copy()
    random.shuffle(shuffled)
    assert content(histogram(*cut(shuffled, at))) == content(histogram(values))


@settings(max_examples=60, deadline=None)
@given(SAMPLES, SAMPLES)
def test_merging_is_counting_together(one, other):
    merged = histogram(one)
    merged.merge(histogram(other))
    assert content(merged) == content(histogram(one, other))
    into_empty = Histogram()
    into_empty.merge(histogram(one))
    into_empty.merge(Histogram())
    assert content(into_empty) == content(histogram(one))


@settings(max_examples=60, deadline=None)
@given(SAMPLES)
def test_counts_are_those_of_numpy(values):
    h = histogram(values)
    array = np.asarray(values, np.float32).astype(np.float64)
    expected = np.histogram(array[array != 0], h.edges())[0]
    assert h.counts is not None
    np.testing.assert_array_equal(h.counts, expected)
    assert h.zeros == np.count_nonzero(array == 0)
    assert h.total == len(values)
    assert (h.low, h.high) == (array.min(), array.max())
    assert len(h.edges()) == BINS + 1


def test_a_distant_value_collapses_all_others_into_the_two_bins_at_zero():
    h = histogram([1.0, 2.0, -3.0], [1e30])
    assert h.counts is not None
    assert h.counts[BINS // 2] == 2
    assert h.counts[BINS // 2 - 1] == 1
    assert h.total == 4


def test_extremes_may_lie_outside_of_what_was_counted():
    h = Histogram()
    h.add(np.float32([0.5, 1.0]), -7.0, 9.0)
    assert find_range(h, "minmax", symmetric=False) == (-7.0, 9.0)
    assert h.total == 2


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "kl"])
def test_only_zeros_counted_though_the_extremes_say_more(observer):
    h = Histogram()
    h.add(np.zeros(10, np.float32), 0.0, 5.0)
    low, high = find_range(h, observer, symmetric=False)
    assert low == 0.0
    assert 0.0 <= high <= 5.0


def test_memory_stays_flat():
    rng = np.random.default_rng(0)
    h = histogram(rng.standard_normal(10_000))
    tracemalloc.start()
    for scale in range(1, 200):
        batch = (rng.standard_normal(1000) * scale).astype(np.float32)
        h.add(batch, float(batch.min()), float(batch.max()))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 3 * 8 * BINS


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "kl"])
@pytest.mark.parametrize("symmetric", [False, True])
@settings(max_examples=25, deadline=None)
@given(values=SAMPLES)
def test_every_range_holds_zero_and_stays_within_what_was_seen(observer, symmetric, values):
    low, high = find_range(histogram(values), observer, symmetric=symmetric)
    seen = np.float32(values)
    assert low <= 0 <= high
    if symmetric:
        assert low == -high
        assert high <= np.abs(seen).max()
    else:
        assert low >= min(seen.min(), 0)
        assert high <= max(seen.max(), 0)
    if observer == "minmax" and not symmetric:
        assert (low, high) == (min(seen.min(), 0), max(seen.max(), 0))
    if observer == "minmax" and symmetric:
        assert high == np.abs(seen).max()


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse", "kl"])
def test_nothing_seen_is_the_empty_range(observer):
    assert find_range(Histogram(), observer, symmetric=False) == (0.0, 0.0)
    assert find_range(histogram([0.0, 0.0]), observer, symmetric=True) == (0.0, 0.0)


@pytest.mark.parametrize("shape", ["normal", "relu", "skewed", "wide"])
def test_percentiles_are_those_of_the_samples(shape):
    rng = np.random.default_rng(1)
    samples = {
        "normal": rng.standard_normal(200_000),
        "relu": np.maximum(rng.standard_normal(200_000), 0),
        "skewed": rng.exponential(size=200_000) - 0.1,
        "wide": np.concatenate([rng.standard_normal(200_000), [500.0]]),
    }[shape].astype(np.float32)
    h = histogram(samples)
    low, high = find_range(h, "percentile", symmetric=False)
    bin_width = 2.0**h.exponent / (BINS / 2)
    assert abs(low - min(np.percentile(samples, 0.01), 0)) <= 2 * bin_width
    assert abs(high - np.percentile(samples, 99.99)) <= 2 * bin_width


def rounding_error(samples: np.ndarray, low: float, high: float) -> float:
    """Mean squared error of eight bits over ``[low, high]`` on the samples themselves."""
    step = (high - low) / 255
    zero = np.rint(-low / step)
    codes = np.clip(np.rint(samples.astype(np.float64) / step) + zero, 0, 255)
    return float(np.mean(((codes - zero) * step - samples) ** 2))


@pytest.mark.parametrize("shape", ["normal", "relu", "laplace", "outlier", "two outliers", "negative"])
def test_mse_is_as_good_as_the_best_of_a_fine_grid_on_the_samples(shape):
    rng = np.random.default_rng(2)
    samples = {
        "normal": rng.standard_normal(20_000),
        "relu": np.maximum(rng.standard_normal(20_000), 0),
        "laplace": rng.laplace(size=20_000),
        "outlier": np.append(rng.standard_normal(20_000), 60.0),
        "two outliers": np.append(rng.standard_normal(20_000), [-40.0, 25.0]),
        "negative": -rng.exponential(size=20_000),
    }[shape].astype(np.float32)
    low, high = find_range(histogram(samples), "mse", symmetric=False)
    bottom, top = min(float(samples.min()), 0.0), max(float(samples.max()), 0.0)
    factors = np.concatenate([np.geomspace(0.02, 1, 40)])
    best = min(
        rounding_error(samples, a, b)
        for a in ([0.0] if bottom == 0 else bottom * factors)
        for b in ([0.0] if top == 0 else top * factors)
    )
    assert rounding_error(samples, low, high) <= 1.1 * best
    assert rounding_error(samples, low, high) <= 1.001 * rounding_error(samples, bottom, top)


def test_symmetric_mse_is_as_good_as_the_best_symmetric_range():
    samples = np.append(np.random.default_rng(3).laplace(size=20_000), 40.0).astype(np.float32)
    _, high = find_range(histogram(samples), "mse", symmetric=True)
    tops = 40.0 * np.geomspace(0.02, 1, 200)
    best = min(rounding_error(samples, -t, t) for t in tops)
    assert rounding_error(samples, -high, high) <= 1.1 * best


def test_at_16_bits_there_is_nothing_to_gain_by_clipping():
    samples = np.append(np.random.default_rng(3).laplace(size=20_000), 40.0).astype(np.float32)
    _, narrow = find_range(histogram(samples), "mse", symmetric=True)
    _, wide = find_range(histogram(samples), "mse", symmetric=True, levels=65535)
    assert narrow < 0.95 * wide
    assert wide > 39


def test_kl_clips_a_heavy_tail_and_leaves_a_uniform_distribution_whole():
    rng = np.random.default_rng(4)
    tail = rng.standard_t(2, 200_000).astype(np.float32)
    _, high = find_range(histogram(tail), "kl", symmetric=True)
    assert np.percentile(np.abs(tail), 95) < high < 0.7 * np.abs(tail).max()
    flat = rng.uniform(-1.47, 1.47, 200_000).astype(np.float32)
    low, high = find_range(histogram(flat), "kl", symmetric=False)
    assert low == flat.min()
    assert high == flat.max()


@pytest.mark.parametrize("seed", range(4))
def test_kl_is_the_divergence_of_its_definition(seed):
    generator = np.random.default_rng(seed)
    values = np.abs(generator.standard_normal(3000) ** 3).astype(np.float32)
    seen = histogram(values)
    half = seen.counts[len(seen.counts) // 2 :].astype(float)
    used = np.flatnonzero(half)[-1] + 1
    limits = np.array([128, 129, *range(200, used, 97), used])

    def divergence(limit: int) -> float:
        p, q, code = half[:limit].copy(), np.zeros(limit), np.arange(limit) * 128 // limit
        p[-1] += half[limit:].sum()
        for level in range(128):
            here = (code == level) & (half[:limit] > 0)
            q[here] = half[:limit][here].mean() if here.any() else 0.0
        p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-9)
        return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    found = ranges._divergences(seen.counts[len(seen.counts) // 2 :], limits, 128) / len(values)
    np.testing.assert_allclose(found, [divergence(limit) for limit in limits], rtol=1e-9)


def test_kl_does_not_care_for_exact_zeros():
    values = np.random.default_rng(5).standard_t(3, 50_000).astype(np.float32)
    many = np.concatenate([values, np.zeros(500_000, np.float32)])
    assert find_range(histogram(many), "kl", symmetric=True) == find_range(
        histogram(values), "kl", symmetric=True
    )


def test_histograms_come_back_from_disk_exactly(tmp_path):
    given = {"a/b:0": histogram([1.5, -2, 0]), "empty": Histogram(), "é": histogram([1e-30, 1e30])}
    save_histograms(given, tmp_path / "h.npz")
    read = load_histograms(tmp_path / "h.npz")
    assert list(read) == list(given)
    for name in ("a/b:0", "é"):
        assert content(read[name]) == content(given[name])
    assert read["empty"].total == 0
    merged = histogram([3.0])
    merged.merge(read["empty"])
    assert content(merged) == content(histogram([3.0]))
    save_histograms({}, tmp_path / "none.npz")
    assert load_histograms(tmp_path / "none.npz") == {}
