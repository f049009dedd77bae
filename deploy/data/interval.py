"""How sure a drop is: the paired bootstrap (Efron and Tibshirani 1993, chapters 13 and 16).

Both models are judged on the same samples, so samples are redrawn in pairs; that is much sharper than two
intervals apart. Where samples belong together (one patient, one recording) whole groups are redrawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deploy.data.scores import Metric, PerSample

_ROUNDING = 1e-9
"""By how much the difference of two shares may be off."""

_BLOCK = 1 << 20
"""Indices drawn at a time, so that memory does not grow with the number of resamples."""


@dataclass(frozen=True)
class Drop:
    """How much worse the artifact is, in the metric's unit, with the ends of its 95 % interval."""

    drop: float
    low: float
    high: float

    def within(self, budget: float) -> bool:
        """Whether no more than ``budget`` is lost; 0.89 - 0.88 is 0.01, and NaN is never within."""
        return self.drop <= budget + _ROUNDING


def paired_drop(
    baseline: Metric,
    artifact: Metric,
    *,
    groups: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Drop:
    """The drop from ``baseline`` to ``artifact``, both updated with the same samples in the same order.

    Positive means that the artifact is worse, whichever direction is better. ``groups`` holds one entry per
    sample in that order; samples of equal entries are redrawn together. The interval is the percentile one;
    resamples on which the metric is not defined (one class only) are left out.
    """
    if baseline.samples != artifact.samples:
        raise ValueError(f"{baseline.samples} samples against {artifact.samples}: not the same data")
    sign = 1.0 if baseline.higher_is_better else -1.0
    drop = sign * (baseline.result().value - artifact.result().value) + 0.0  # never minus zero
    rng = np.random.default_rng(seed)
    if isinstance(baseline, PerSample) and isinstance(artifact, PerSample):
        if groups is None:
            groups = baseline.batches
        drops = _mean_drops(baseline.values - artifact.values, groups, resamples, rng)
    else:
        indices = _redrawn(baseline.samples, groups, resamples, rng)
        drops = np.array([baseline.resample(i) - artifact.resample(i) for i in indices])
    drops = drops[np.isfinite(drops)]
    if not len(drops):
        return Drop(drop, drop, drop)
    low, high = np.percentile(sign * drops, [2.5, 97.5])
    return Drop(drop, float(low), float(high))


def _mean_drops(
    differences: np.ndarray, groups: np.ndarray | None, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Means of the differences over redrawn samples, or groups: sums and sizes are all that is needed."""
    sums, sizes = differences, np.ones(len(differences))
    if groups is not None:
        members = np.unique(groups, return_inverse=True)[1].reshape(-1)
        sums, sizes = np.bincount(members, differences), np.bincount(members).astype(np.float64)
    means = np.empty(resamples)
    step = max(1, _BLOCK // len(sums))
    for start in range(0, resamples, step):
        index = rng.integers(len(sums), size=(min(step, resamples - start), len(sums)))
        means[start : start + step] = sums[index].sum(axis=1) / sizes[index].sum(axis=1)
    return means


def _redrawn(
    samples: int, groups: np.ndarray | None, resamples: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Positions of redrawn samples; of all members of redrawn groups where there are groups."""
    if groups is None:
        for _ in range(resamples):
            yield rng.integers(samples, size=samples)
        return
    numbers = np.unique(groups, return_inverse=True)[1].reshape(-1)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    for _ in range(resamples):
        yield np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
