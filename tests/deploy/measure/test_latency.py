"""Timing against a clock of our own, on which every run takes as long as we say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deploy.measure import latency
from deploy.measure.latency import Timing, TimingPlan, measure, speedup
from deploy.spec.tensors import TensorSpec

FEEDS = {"x": np.zeros((1, 1), np.float32)}


class Clock:
    """Seconds since the start, moved by the runners; ``order`` says who ran when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now


class Runner:
    """Takes a given time a run, by the clock."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    executed_by = "a clock"

    def __init__(self, name: str, clock: Clock, takes: Callable[[float], float]) -> None:
        self.name, self.clock, self.takes = name, clock, takes

    def run(self, feeds: Mapping[str, np.ndarray], want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        self.clock.now += self.takes(self.clock.now)
        self.clock.order.append(self.name)
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)
    return clock


def rounds(clock: Clock, plan: TimingPlan, **takes: Callable[[float], float]) -> dict[str, Timing]:
    return measure({name: Runner(name, clock, t) for name, t in takes.items()}, FEEDS, plan)


def test_a_run_takes_what_it_takes(clock: Clock) -> None:
    timings = rounds(clock, TimingPlan(), one=lambda _: 0.002, two=lambda _: 0.0005)
    np.testing.assert_allclose(timings["one"].runs, 2.0)
    np.testing.assert_allclose(timings["two"].runs, 0.5)
    np.testing.assert_allclose(timings["one"].rounds / timings["two"].rounds, 4.0)
    latency_ms = timings["one"].summary()
    assert (latency_ms.p50, latency_ms.p95, latency_ms.p99) == pytest.approx((2.0, 2.0, 2.0))
    assert latency_ms.spread == pytest.approx(0.0, abs=1e-9)
    assert latency_ms.samples == len(timings["one"].runs)


def test_who_is_faster_runs_oftener_so_that_slices_are_alike(clock: Clock) -> None:
    plan = TimingPlan(slice_s=0.01)
    timings = rounds(clock, plan, one=lambda _: 0.005, two=lambda _: 0.001)
    assert len(timings["one"].runs) == 2 * len(timings["one"].rounds)
    assert len(timings["two"].runs) == 10 * len(timings["two"].rounds)


def test_the_order_turns_round_by_round(clock: Clock) -> None:
    plan = TimingPlan(slice_s=0.001, rounds=4, most=4)
    runners = {name: Runner(name, clock, lambda _: 0.001) for name in "abc"}
    measure(runners, FEEDS, plan)
    assert "".join(clock.order[-12:]) == "abccbaabccba"


def test_a_clock_that_slows_down_hits_all_alike(clock: Clock) -> None:
    """Throttled by a third within the run: the ratio stays; timed one after the other it would not."""

    def throttled(base: float) -> Callable[[float], float]:
        return lambda now: base * (1.0 if now < 0.7 else 1.5)

    timings = rounds(clock, TimingPlan(), baseline=throttled(0.004), artifact=throttled(0.002))
    ratio, (low, high) = speedup(timings["baseline"], timings["artifact"])
    assert ratio == pytest.approx(2.0, rel=0.02)
    assert low <= ratio <= high
    assert np.ptp(timings["baseline"].rounds) == pytest.approx(2.0, rel=0.01)


def test_it_takes_about_as_long_as_planned(clock: Clock) -> None:
    rounds(clock, TimingPlan(seconds=1.0), one=lambda _: 0.001, two=lambda _: 0.001)
    assert 1.0 <= clock.now <= 1.5


def test_at_least_a_dozen_rounds_and_at_most_so_many(clock: Clock) -> None:
    few = rounds(clock, TimingPlan(seconds=0.2, rounds=12), one=lambda _: 0.1)
    assert len(few["one"].rounds) == 12
    many = rounds(clock, TimingPlan(seconds=100.0, most=20), one=lambda _: 1e-5)
    assert len(many["one"].rounds) == 20


def test_a_model_of_minutes_gets_three_rounds(clock: Clock) -> None:
    timings = rounds(clock, TimingPlan(seconds=1.0), one=lambda _: 60.0)
    assert len(timings["one"].rounds) == 3
    assert len(clock.order) == 1 + 1 + 3  # warming up takes two runs


def test_slow_first_runs_do_not_count(clock: Clock) -> None:
    falling: Iterator[float] = itertools.chain([1.0, 0.02, 0.01], itertools.repeat(0.001))
    timings = rounds(clock, TimingPlan(), one=lambda _: next(falling))
    np.testing.assert_allclose(timings["one"].runs, 1.0)


def test_percentiles_are_those_of_the_single_runs() -> None:
    runs = np.random.default_rng(0).gamma(2.0, 1.0, 999)
    summary = Timing(runs, runs).summary()
    ordered = np.sort(runs)
    assert summary.p50 == ordered[499]
    assert summary.p95 == pytest.approx(np.quantile(runs, 0.95))
    assert summary.p99 == pytest.approx(np.quantile(runs, 0.99))
    assert summary.p50 <= summary.p95 <= summary.p99


POSITIVE = hnp.arrays(np.float64, 15, elements=st.floats(0.1, 10))


@given(POSITIVE, POSITIVE, st.floats(0.1, 10))
def test_speedup_is_the_median_ratio_and_scales_with_the_times(
    one: np.ndarray, two: np.ndarray, factor: float
) -> None:
    a, b, c = Timing(one, one), Timing(two, two), Timing(one * factor, one * factor)
    ratio, (low, high) = speedup(a, b)
    assert ratio == pytest.approx(np.median(one / two))
    assert (one / two).min() - 1e-12 <= low <= high <= (one / two).max() + 1e-12
    assert speedup(c, b)[0] == pytest.approx(ratio * factor)
    assert speedup(a, b) == (ratio, (low, high))  # the resampling is seeded


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        one = generator.lognormal(np.log(3.0), 0.1, 40)
        low, high = speedup(Timing(one, one), Timing(np.ones(40), np.ones(40)))[1]
        covered += low <= 3.0 <= high
    assert covered >= 50


def knocked_out(clock: Clock, seconds: float, *takes: float) -> dict[str, Timing]:
    runners = {str(place): Runner(str(place), clock, lambda _, t=t: t) for place, t in enumerate(takes)}
    return latency.knock_out(runners, FEEDS, seconds)


def test_the_slow_half_leaves_and_the_first_stays(clock: Clock) -> None:
    timings = knocked_out(clock, 6.0, 0.004, 0.009, 0.003, 0.008, 0.005, 0.002, 0.007)
    stays = {name: len(timing.rounds) for name, timing in timings.items()}
    assert stays["0"] == stays["5"] == max(stays.values())
    assert sorted(stays, key=lambda name: -stays[name])[2:4] == ["2", "4"]
    assert stays["1"] == stays["3"] == stays["6"] == min(stays.values())
    for name, takes in (("1", 0.009), ("5", 0.002), ("2", 0.003)):
        assert speedup(timings["0"], timings[name])[0] == pytest.approx(0.004 / takes)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_it_takes_about_as_long_as_was_said(clock: Clock, count: int) -> None:
    knocked_out(clock, 3.0, *(0.001 + 0.0001 * i for i in range(count)))
    warm_up, round_ = count * 22 * 0.002, count * 0.02
    assert 3.0 <= clock.now < 3.0 + warm_up + 4 * round_


def test_of_what_is_slow_two_rounds_are_run(clock: Clock) -> None:
    timings = knocked_out(clock, 1.0, 2.0, 3.0)
    assert [len(timing.rounds) for timing in timings.values()] == [2, 2]


def test_a_load_that_comes_and_goes_decides_nothing(clock: Clock) -> None:
    """While a neighbour works everybody takes three times as long."""
    runners = {
        name: Runner(name, clock, lambda now, t=t: t * (3 if int(now * 7) % 2 else 1))
        for name, t in (("standard", 0.0010), ("slower", 0.0011), ("faster", 0.0009))
    }
    timings = latency.knock_out(runners, FEEDS, 3.0)
    assert speedup(timings["standard"], timings["faster"])[1][0] > 1.05
    assert speedup(timings["standard"], timings["slower"])[1][1] < 0.95
