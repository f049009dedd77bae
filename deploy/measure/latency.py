"""Latency of several runners, timed in turn within one run, so that a drifting clock hits all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2

import numpy as np

from deploy.adapter.protocol import Arrays, Runner
from deploy.spec.measurement import Latency


@dataclass(frozen=True)
class TimingPlan:
    """How long to measure. A round times every runner once, for about ``slice_s`` seconds each."""

    seconds: float = 1.0
    slice_s: float = 0.01
    rounds: int = 12
    most: int = 200


@dataclass(frozen=True)
class Timing:
    """Single runs in milliseconds, and what stands for each round: its median, mostly."""

    runs: np.ndarray
    rounds: np.ndarray

    def summary(self) -> Latency:
        p25, p50, p75, p95, p99 = np.percentile(self.runs, [25, 50, 75, 95, 99])
        return Latency(
            p50=float(p50),
            p95=float(p95),
            p99=float(p99),
            samples=len(self.runs),
            spread=float((p75 - p25) / p50),
        )


def measure(
    runners: Mapping[str, Runner], feeds: Arrays, plan: TimingPlan = TimingPlan()
) -> dict[str, Timing]:
    """Time every runner on the same feeds, interleaved. The order turns round by round."""
    repeats = {name: _warm_up(runner, feeds, plan.slice_s) for name, runner in runners.items()}
    runs: dict[str, list[float]] = {name: [] for name in runners}
    medians: dict[str, list[float]] = {name: [] for name in runners}
    order = list(runners)
    start = time.perf_counter()
    rounds = 0
    while rounds < plan.rounds or (rounds < plan.most and time.perf_counter() - start < plan.seconds):
        for name in order:
            times = _runs(runners[name], feeds, repeats[name])
            runs[name] += times
            medians[name].append(float(np.median(times)))
        order.reverse()
        rounds += 1
        if rounds >= 3 and time.perf_counter() - start > 10 * plan.seconds:
            break  # a model so slow that a dozen rounds would take minutes
    return {name: Timing(np.asarray(runs[name]), np.asarray(medians[name])) for name in runners}


def knock_out(
    runners: Mapping[str, Runner], feeds: Arrays, seconds: float, slice_s: float = 0.01
) -> dict[str, Timing]:
    """Time many runners for little: in each of a few equally long parts the slower half leaves.

    Successive halving (Karnin, Koren and Somekh 2013). The first runner is what the others are compared with:
    it stays to the end, and rounds of those that left are its first ones. Of each round the faster runs
    count, by their lower quartile: others only disturb. Takes about ``seconds``, though two rounds of all at
    least.
    """
    standard, *rivals = runners
    repeats = {name: _warm_up(runner, feeds, slice_s) for name, runner in runners.items()}
    runs: dict[str, list[float]] = {name: [] for name in runners}
    quartiles: dict[str, list[float]] = {name: [] for name in runners}
    parts = max(1, ceil(log2(len(rivals) + 1)))
    for part in range(parts):
        end = time.perf_counter() + seconds / parts
        order, rounds = [standard, *rivals], 0
        while rounds < 2 or time.perf_counter() < end:
            for name in order:
                times = _runs(runners[name], feeds, repeats[name])
                runs[name] += times
                quartiles[name].append(float(np.percentile(times, 25)))
            order.reverse()
            rounds += 1
        rivals.sort(key=lambda name: float(np.median(quartiles[name])))
        if part < parts - 1:
            rivals = rivals[: max(1, len(rivals) // 2)]
    return {name: Timing(np.asarray(runs[name]), np.asarray(quartiles[name])) for name in runners}


def _runs(runner: Runner, feeds: Arrays, count: int) -> list[float]:
    """Milliseconds of single runs."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        runner.run(feeds)
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def _warm_up(runner: Runner, feeds: Arrays, slice_s: float) -> int:
    """Run until caches and allocators have settled; returns how many runs fill a slice."""
    runner.run(feeds)
    best = float("inf")
    begin = time.perf_counter()
    for _ in range(20):
        start = time.perf_counter()
        runner.run(feeds)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begin > 0.2:
            break
    return max(1, min(200, round(slice_s / best)))


def speedup(baseline: Timing, other: Timing, *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Median ratio baseline / other over the rounds that both ran, with its 95 % bootstrap interval.

    >>> slow, fast = np.array([4.0, 4.4, 4.2]), np.array([2.0, 2.0, 2.0])
    >>> ratio, (low, high) = speedup(Timing(slow, slow), Timing(fast, fast))
    >>> ratio, low, high
    (2.1, 2.0, 2.2)
    """
    return ratio_by_round(baseline.rounds, other.rounds, seed=seed)


def steadier(baseline: Timing, other: Timing, *, seed: int = 0) -> bool:
    """Whether ``other`` takes less in the mean over the rounds that both ran, by more than noise.

    Where medians are alike this tells who suffers less while neighbours have the memory and the caches.

    >>> usual = np.array([2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    >>> steadier(Timing(usual, usual * [1, 2, 1, 2, 1, 2]), Timing(usual, usual))
    True
    """
    both = min(len(baseline.rounds), len(other.rounds))
    rounds = np.random.default_rng(seed).integers(both, size=(1000, both))
    means = baseline.rounds[rounds].mean(axis=1) / other.rounds[rounds].mean(axis=1)
    return float(np.percentile(means, 2.5)) > 1.0


def quiet_speedup(baseline: Timing, other: Timing) -> float:
    """The same over the quarter of rounds in which both together took least: then nobody else was at work.

    >>> slow, fast = np.array([2.0, 4.0, 2.0, 4.0, 2.0, 4.0]), np.array([1.0, 8.0, 1.0, 8.0, 1.0, 8.0])
    >>> quiet_speedup(Timing(slow, slow), Timing(fast, fast))
    2.0
    """
    both = min(len(baseline.rounds), len(other.rounds))
    ours, theirs = baseline.rounds[:both], other.rounds[:both]
    quiet = np.argsort(ours * theirs)[: max(3, both // 4)]  # their product is on nobody's side
    return float(np.median(ours[quiet] / theirs[quiet]))


def ratio_by_round(
    baseline: np.ndarray, other: np.ndarray, *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """The same of anything that was measured round by round, such as joules: two arrays of shape [rounds]."""
    both = min(len(baseline), len(other))
    ratios = baseline[:both] / other[:both]
    generator = np.random.default_rng(seed)
    resampled = np.median(generator.choice(ratios, (1000, len(ratios))), axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(np.median(ratios)), (float(low), float(high))
