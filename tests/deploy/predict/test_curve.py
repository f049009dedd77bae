"""Curves against closed forms, a dense formula, refitting, and laws that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.predict.curve import Curve, Estimate, fit_roofline
from deploy.predict.kernels import Kernel
from deploy.spec.overlay import Cost

REACH = np.array([1.5, 1.5, 1.5, 2.0])


def point(macs: int, moved: int, ms: float, depth: int = 1, align: int = 1, spread: float = 0.0) -> Cost:
    return Cost(
        op="conv", precision="float", macs=macs, bytes=moved, depth=depth, align=align, ms=ms, spread=spread
    )


def kernel(macs: int, moved: int, depth: int = 1, align: int = 1) -> Kernel:
    return Kernel("conv", "float", (), macs, moved, depth, align)


def sizes(generator: np.random.Generator, count: int) -> list[tuple[int, int, int, int]]:
    """MACs, bytes, depth and alignment as networks have them."""
    macs = np.exp2(generator.uniform(14, 26, count))
    moved = np.exp2(generator.uniform(10, 20, count))
    depth = np.exp2(generator.uniform(0, 10, count))
    align = 2 ** generator.integers(0, 7, count)
    rows = zip(macs, moved, depth, align, strict=True)
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in rows]


def features(rows: list[tuple[int, int, int, int]]) -> np.ndarray:
    return np.asarray(np.log2(np.array(rows, float)))


def similarity(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    squares = [[np.sum(((a - b) / REACH) ** 2) for b in others] for a in some]
    return np.asarray(np.exp(-np.array(squares) / 2))


def noisy_points(generator: np.random.Generator, count: int) -> list[Cost]:
    rows = sizes(generator, count)
    spreads = generator.uniform(0, 0.2, count)
    strays = generator.normal(0, 0.3, count)
    return [
        point(m, b, (2e-8 * m + 1e-7 * b + 0.002) * math.exp(e), d, a, s)
        for (m, b, d, a), s, e in zip(rows, spreads, strays, strict=True)
    ]


# The roofline.


@settings(max_examples=50, deadline=None)
@given(
    law=st.tuples(*[st.just(0.0) | st.floats(-1, 1).map(lambda e: 10**e)] * 3).filter(any),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_an_exact_roofline_is_recovered(law: tuple[float, float, float], seed: int) -> None:
    """Whatever of it is zero; and then every kernel is predicted exactly, near and far."""
    per_mac, per_byte, constant = law[0] * 1e-8, law[1] * 1e-7, law[2] * 1e-2
    generator = np.random.default_rng(seed)
    points = [point(m, b, per_mac * m + per_byte * b + constant, d, a) for m, b, d, a in sizes(generator, 12)]
    found = fit_roofline(points)
    assert all(coefficient >= 0 for coefficient in found)
    curve = Curve(tuple(points))
    for m, b, d, a in sizes(generator, 5):
        expected = per_mac * m + per_byte * b + constant
        assert curve(kernel(m, b, d, a)).ms == pytest.approx(expected, rel=1e-5)
    assert np.abs(curve.residuals).max() < 1e-6


def test_no_coefficient_is_negative_where_plain_least_squares_has_one() -> None:
    points = [point(1000, 100, 1.0), point(2000, 10_000, 1.9), point(4000, 100, 4.1)]
    rows = np.array([[p.macs / p.ms, p.bytes / p.ms, 1 / p.ms] for p in points])
    assert (np.linalg.lstsq(rows, np.ones(3), rcond=None)[0] < 0).any()
    assert all(coefficient >= 0 for coefficient in fit_roofline(points))


def test_the_fit_is_that_of_scipy() -> None:
    """Non-negative least squares by another algorithm (Lawson and Hanson 1974)."""
    from scipy.optimize import nnls

    for seed in range(20):
        points = noisy_points(np.random.default_rng(seed), 9)
        rows = np.array([[p.macs / p.ms, p.bytes / p.ms, 1 / p.ms] for p in points])
        scale = np.linalg.norm(rows, axis=0)
        expected = nnls(rows / scale, np.ones(len(points)))[0] / scale
        np.testing.assert_allclose(fit_roofline(points), expected, rtol=1e-6, atol=1e-14)


# The deviation from it.


def dense(points: list[Cost], at: Kernel) -> tuple[float, float]:
    """Mean and standard deviation of log(ms) by equations 2.25 and 2.26 of Rasmussen and Williams, without
    the widening."""
    per_mac, per_byte, constant = fit_roofline(points)
    roofs = np.array([per_mac * p.macs + per_byte * p.bytes + constant for p in points])
    strayed = np.log([p.ms for p in points]) - np.log(roofs)
    variance = max(np.mean(strayed**2), 4 * 0.03**2)
    known = features([(p.macs, p.bytes, p.depth, p.align) for p in points])
    noise = np.diag([max(0.03, p.spread / 1.349) ** 2 for p in points])
    covariance = variance * similarity(known, known) + noise
    here = variance * similarity(features([(at.macs, at.bytes, at.depth, at.align)]), known)[0]
    mean = here @ np.linalg.solve(covariance, strayed)
    rest = variance - here @ np.linalg.solve(covariance, here)
    return math.log(per_mac * at.macs + per_byte * at.bytes + constant) + mean, math.sqrt(rest)


def brute_left_out(points: list[Cost]) -> list[tuple[float, float]]:
    """Each point predicted from the others with the same roofline, variance and reach: what was measured less
    that, and the standard deviation that a measurement has around it."""
    per_mac, per_byte, constant = fit_roofline(points)
    roofs = np.array([per_mac * p.macs + per_byte * p.bytes + constant for p in points])
    strayed = np.log([p.ms for p in points]) - np.log(roofs)
    variance = max(np.mean(strayed**2), 4 * 0.03**2)
    known = features([(p.macs, p.bytes, p.depth, p.align) for p in points])
    noise = np.array([max(0.03, p.spread / 1.349) ** 2 for p in points])
    found = []
    for i in range(len(points)):
        others = [j for j in range(len(points)) if j != i]
        covariance = variance * similarity(known[others], known[others]) + np.diag(noise[others])
        here = variance * similarity(known[[i]], known[others])[0]
        mean = here @ np.linalg.solve(covariance, strayed[others])
        rest = variance + noise[i] - here @ np.linalg.solve(covariance, here)
        found.append((float(strayed[i] - mean), math.sqrt(rest)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_interpolation_is_the_dense_formula(seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = noisy_points(generator, 15)
    curve = Curve(tuple(points))
    strayed, claimed = np.array(brute_left_out(points)).T
    widening = max(1.0, math.sqrt(np.mean((strayed / claimed) ** 2)))
    for m, b, d, a in [*sizes(generator, 20), *[(p.macs, p.bytes, p.depth, p.align) for p in points]]:
        mean, deviation = dense(points, kernel(m, b, d, a))
        found = curve(kernel(m, b, d, a))
        assert found.ms == pytest.approx(math.exp(mean), rel=1e-6)
        assert found.deviation == pytest.approx(widening * deviation, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_residuals_of_leaving_one_out_are_those_of_doing_so(seed: int) -> None:
    """Equation 5.12 of Rasmussen and Williams against as many refits as there are points."""
    points = noisy_points(np.random.default_rng(seed), 11)
    expected = [-strayed for strayed, _ in brute_left_out(points)]
    np.testing.assert_allclose(Curve(tuple(points)).residuals, expected, rtol=1e-6, atol=1e-9)


def law_of(m: int, b: int, d: int, a: int) -> float:
    """A roofline that real kernels stray from smoothly by up to a third."""
    bend = 0.2 * math.sin(math.log2(m) / 4) + 0.15 * math.cos(math.log2(d) / 3) - 0.03 * math.log2(a)
    return (1e-8 * m + 1e-7 * b + 0.001) * math.exp(bend)


def test_intervals_cover_what_they_claim() -> None:
    """Of a law that is known, measured with noise: nine of ten hold the truth, within what chance does."""
    inside = total = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        spread = generator.uniform(0.01, 0.15)
        points = [
            point(*row[:2], law_of(*row) * math.exp(generator.normal(0, spread / 1.349)), *row[2:], spread)
            for row in sizes(generator, 14)
        ]
        curve = Curve(tuple(points))
        for row in sizes(generator, 20):
            low, high = curve(kernel(*row)).interval()
            inside += low <= law_of(*row) <= high
            total += 1
    assert 0.80 <= inside / total <= 0.98


def test_measured_points_are_followed_and_far_away_the_roofline_rules() -> None:
    points = [
        point(1 << k, 1 << 12, 1e-8 * 2**k * (2.0 if k == 20 else 1.0), 64, 8) for k in range(14, 27, 2)
    ]
    curve = Curve(tuple(points))
    per_mac, per_byte, constant = fit_roofline(points)
    near = curve(kernel(1 << 20, 1 << 12, 64, 8))
    assert near.ms == pytest.approx(2e-8 * 2**20, rel=0.1) and near.nearest == 0
    far = curve(kernel(1 << 38, 1 << 12, 64, 8))
    assert far.ms == pytest.approx(per_mac * 2**38 + per_byte * 2**12 + constant, rel=1e-6)
    assert far.nearest == pytest.approx(12)
    assert far.deviation > near.deviation
    assert far.deviation == pytest.approx(curve(kernel(1 << 42, 1 << 12, 64, 8)).deviation, rel=1e-6)


def test_near_the_noise_of_a_point_says_how_far_it_is_believed() -> None:
    calm, rough = (
        [point(1 << k, 4096, 1e-8 * 2**k * (1.5 if k == 20 else 1), spread=s if k == 20 else 0.0)
         for k in range(14, 27, 4)] + [point(1 << 20, 4096, 1.5e-8 * 2**20, spread=s)]
        for s in (0.0, 2.0)
    )  # fmt: skip
    at = kernel(1 << 20, 4096)
    truth = 1.5e-8 * 2**20
    errors = [abs(math.log(Curve(tuple(points))(at).ms / truth)) for points in (calm, rough)]
    assert errors[0] < errors[1]


def test_one_point_alone_scales_with_its_size_and_is_unsure() -> None:
    curve = Curve((point(1 << 20, 1 << 10, 3.0),))
    same, twice = curve(kernel(1 << 20, 1 << 10)), curve(kernel(1 << 21, 1 << 10))
    assert same.ms == pytest.approx(3) and twice.ms == pytest.approx(6)
    assert twice.deviation > same.deviation
    far = curve(kernel(1 << 40, 1 << 10))
    low, high = far.interval()
    assert high / low > 2, "a single point says little about other sizes"
    assert curve.residuals.shape == (1,)


def test_without_multiply_accumulates_bytes_decide() -> None:
    points = [
        Cost(op="pool", precision="int8", macs=0, bytes=1 << k, ms=1e-7 * 2**k, spread=0)
        for k in (12, 16, 20)
    ]
    curve = Curve(tuple(points))
    found = curve(Kernel("pool", "int8", (), 0, 1 << 14))
    assert found.ms == pytest.approx(1e-7 * 2**14, rel=1e-6)
    nothing = curve(Kernel("pool", "int8", (), 0, 0))
    assert nothing.ms > 0 and math.isfinite(nothing.ms)


def test_a_size_that_was_measured_twice_is_no_trouble() -> None:
    points = [point(1 << 20, 1 << 10, ms) for ms in (1.0, 1.2)] + [point(1 << 24, 1 << 12, 16.0)]
    found = Curve(tuple(points))(kernel(1 << 20, 1 << 10))
    assert 1.0 < found.ms < 1.2 and math.isfinite(found.deviation)


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(
        st.builds(
            point,
            st.integers(0, 2**62), st.integers(0, 2**62), st.floats(1e-6, 1e7), st.integers(1, 2**62),
            st.sampled_from([1, 8, 64]), st.floats(0, 100),
        ),
        min_size=1, max_size=8,
    ),
    at=st.builds(
        kernel, st.integers(0, 2**62), st.integers(0, 2**62), st.integers(1, 2**62), st.sampled_from([1, 64])
    ),
)  # fmt: skip
def test_whatever_an_overlay_may_say_gives_numbers(points: list[Cost], at: Kernel) -> None:
    """Files come from elsewhere: nonsense in them makes nonsense, no NaN and no warning."""
    found = Curve(tuple(points))(at)
    assert math.isfinite(found.ms) and found.ms > 0
    assert math.isfinite(found.deviation) and found.deviation >= 0
    low, high = found.interval()
    assert 0 <= low <= found.ms * (1 + 1e-9) and high >= found.ms * (1 - 1e-9)


def test_the_interval_is_symmetric_in_factors() -> None:
    low, high = Estimate(2.0, 0.1, 0.0).interval()
    assert low * high == pytest.approx(4) and high / 2 == pytest.approx(math.exp(0.1645))
