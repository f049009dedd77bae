"""Streaming histograms of activations, and the range that each observer reads out of one.

A histogram has a fixed number of bins over ``[-2**k, 2**k)``. When a value falls outside, neighbouring bins
are added in pairs and ``k`` grows by one. Bin edges are powers of two apart and nest, so the result depends
neither on the order of the batches nor on how they were cut, two histograms can be merged exactly, and
memory is flat whatever the number of samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.spec.profile import QuantRules
from deploy.spec.project import Observer
from deploy.spec.tensors import RANGES

Range = tuple[float, float]
"""The least and the greatest real number that codes stand for; 0 lies between them."""

BINS = 4096
_PERCENTILE = 99.99
_LEVELS = 255
_LARGEST_INT32 = 2**31 - 1
_CENTRES = (np.arange(BINS) - BINS // 2 + 0.5) / (BINS // 2)
"""Of the bins over [-1, 1): other ranges are powers of two times as wide, so that these are exact."""
_SHRINK = np.concatenate([np.linspace(1.0, 0.3, 71), np.geomspace(0.29, 2.0**-8, 60)])
"""Shares of a range to try: finely near the extremes, then on to where a lone outlier is cut off."""


@dataclass
class Histogram:
    """Counts over ``[-2**exponent, 2**exponent)``; exact zeros are counted apart: they quantize exactly."""

    exponent: int = -100
    counts: np.ndarray | None = None
    zeros: int = 0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: np.ndarray, low: float, high: float) -> None:
        """Count float32 ``values``, maybe a part of a tensor whose extremes are ``low`` and ``high``."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach(max(abs(low), abs(high)))
        assert self.counts is not None
        inverse_width = np.float32(BINS / 2 / 2.0**self.exponent)
        index = np.floor(values.ravel() * inverse_width).astype(np.int32)
        index += BINS // 2
        counts = np.bincount(index, minlength=BINS)
        zeros = int(values.size - np.count_nonzero(values))
        counts[BINS // 2] -= zeros
        self.counts += counts
        self.zeros += zeros

    def merge(self, other: Histogram) -> None:
        """Add the counts of ``other``."""
        if other.counts is None:
            return
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        top = max(self.exponent, other.exponent)
        self._grow_to(top)
        assert self.counts is not None
        self.counts += _coarsened(other.counts, top - other.exponent)
        self.zeros += other.zeros

    def _reach(self, magnitude: float) -> None:
        # frexp: magnitude = m * 2**e with m < 1, so magnitude < 2**e strictly.
        self._grow_to(max(self.exponent, math.frexp(magnitude)[1]) if magnitude else self.exponent)

    def _grow_to(self, exponent: int) -> None:
        if self.counts is None:
            self.counts = np.zeros(BINS, np.int64)
        elif exponent > self.exponent:
            self.counts = _coarsened(self.counts, exponent - self.exponent)
        self.exponent = max(self.exponent, exponent)

    @property
    def bounded(self) -> bool:
        """False once an infinite value was seen (an attention mask, say): no scale can cover it."""
        return self.low != -math.inf and self.high != math.inf

    @property
    def total(self) -> int:
        return self.zeros + (0 if self.counts is None else int(self.counts.sum()))

    def edges(self) -> np.ndarray:
        """The ``BINS + 1`` bin edges, float64."""
        return np.linspace(-(2.0**self.exponent), 2.0**self.exponent, BINS + 1)


def _coarsened(counts: np.ndarray, steps: int) -> np.ndarray:
    """The same counts over a range ``2**steps`` times as wide."""
    half = BINS // 2
    if steps >= half.bit_length():
        # Everything collapses into the two bins around zero.
        result = np.zeros_like(counts)
        result[half - 1], result[half] = counts[:half].sum(), counts[half:].sum()
        return result
    factor = 1 << steps
    kept = BINS >> steps
    result = np.zeros_like(counts)
    start = half - kept // 2
    result[start : start + kept] = counts.reshape(kept, factor).sum(axis=1)
    return result


def find_range(histogram: Histogram, observer: Observer, *, symmetric: bool, levels: int = _LEVELS) -> Range:
    """The real interval ``(low, high)``, containing 0, that the integer codes should cover.

    ``minmax`` takes everything seen. ``percentile`` cuts 0.01 % off each end. ``mse`` minimises the expected
    squared error of rounding and clipping together. ``kl`` minimises the Kullback-Leibler divergence between
    the distribution and its quantized form (Migacz, "8-bit Inference with TensorRT", GTC 2017). ``levels`` is
    how many steps the codes have.

    >>> histogram = Histogram()
    >>> values = np.array([-1.0, 0.0, 3.0], np.float32)
    >>> histogram.add(values, low=-1.0, high=3.0)
    >>> find_range(histogram, "minmax", symmetric=False)
    (-1.0, 3.0)
    >>> find_range(histogram, "minmax", symmetric=True)
    (-3.0, 3.0)
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if histogram.total == 0 or low == high:
        return low, high
    if observer == "percentile":
        low, high = _percentile(histogram, low, high)
    elif observer == "mse":
        low, high = _least_error(histogram, low, high, symmetric, levels)
    elif observer == "kl":
        limit = _least_divergence(histogram)
        low, high = max(low, -limit), min(high, limit)
    if symmetric:
        high = max(-low, high)
        low = -high
    return low, high


def range_by(rules: QuantRules, histogram: Histogram, observer: Observer) -> Range:
    """`find_range` for an activation that is quantized by ``rules``."""
    bottom, top = RANGES[rules.activation]
    return find_range(histogram, observer, symmetric=rules.symmetric_activation, levels=top - bottom)


def _percentile(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    assert histogram.counts is not None
    counts = histogram.counts.copy()
    counts[BINS // 2] += histogram.zeros
    share = np.cumsum(counts) / counts.sum()
    edges = histogram.edges()
    cut = 1 - _PERCENTILE / 100
    below = edges[int(np.searchsorted(share, cut, side="right"))]
    above = edges[int(np.searchsorted(share, 1 - cut, side="left")) + 1]
    return min(max(low, float(below)), 0.0), max(min(high, float(above)), 0.0)


def _least_error(
    histogram: Histogram, low: float, high: float, symmetric: bool, levels: int
) -> tuple[float, float]:
    """Search a grid of clipped ranges; rounding costs step**2 / 12 a value, clipping its squared distance."""
    assert histogram.counts is not None
    filled = np.flatnonzero(histogram.counts)
    used = slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 1)
    centres = _CENTRES[used] * 2.0**histogram.exponent
    counts = histogram.counts[used].astype(np.float64)
    moments = [np.concatenate([[0.0], np.cumsum(c)]) for c in (counts, counts * centres, counts * centres**2)]
    total = moments[0][-1]

    def clipped(limit: np.ndarray, above: bool) -> tuple[np.ndarray, np.ndarray]:
        """How many values lie beyond each limit, and the sum of their squared distances to it."""
        at = np.searchsorted(centres, limit, side="right" if above else "left")
        n, s, q = ((m[-1] - m[at]) if above else m[at] for m in moments)
        return n, np.maximum(q - 2 * limit * s + limit**2 * n, 0.0)

    if symmetric:
        top = max(-low, high) * _SHRINK
        (n_high, e_high), (n_low, e_low) = clipped(top, True), clipped(-top, False)
        step = 2 * top / (levels - 1)
        best = int(np.argmin((total - n_high - n_low) * step**2 / 12 + e_high + e_low))
        return -float(top[best]), float(top[best])
    lows = low * _SHRINK if low < 0 else np.zeros(1)
    highs = high * _SHRINK if high > 0 else np.zeros(1)
    (n_low, e_low), (n_high, e_high) = clipped(lows, False), clipped(highs, True)
    if low == 0:
        n_low, e_low = np.zeros(1), np.zeros(1)
    if high == 0:
        n_high, e_high = np.zeros(1), np.zeros(1)
    error = highs[None, :] - lows[:, None]
    error /= levels
    error *= error
    error *= (total - n_low)[:, None] - n_high[None, :]
    error /= 12
    error += e_low[:, None]
    error += e_high[None, :]
    i, j = np.unravel_index(int(np.argmin(error)), error.shape)
    return float(lows[i]), float(highs[j])


def _least_divergence(histogram: Histogram, levels: int = 128) -> float:
    """The magnitude beyond which to clip. Candidates are bin edges from ``levels`` bins upwards."""
    assert histogram.counts is not None
    half = BINS // 2
    positive, negative = histogram.counts[half:], histogram.counts[:half][::-1]
    counts = positive + negative
    filled = np.flatnonzero(counts)
    if not filled.size:
        return 2.0**histogram.exponent
    used = int(filled[-1]) + 1
    limits = np.array([*range(min(levels, used), used, max(1, used // 256)), used])
    best = int(limits[np.argmin(_divergences(counts, limits, levels))])
    return best * 2.0**histogram.exponent / half


def _divergences(counts: np.ndarray, limits: np.ndarray, levels: int) -> np.ndarray:
    """For each limit the KL divergence between the bins below it, all further values in the last of them, and
    these bins spread evenly over ``levels`` codes; times the number of values.

    The bins of a code have one density, so it takes sums over codes and no pass over bins for each limit.
    """
    below = np.concatenate([[0], np.cumsum(counts)])
    filled = np.concatenate([[0], np.cumsum(counts > 0)])
    edges = -(-np.arange(levels + 1) * limits[:, None] // levels)  # where each code begins
    mass, bins = np.diff(below[edges]), np.diff(filled[edges])
    total, inside = float(below[-1]), below[limits].astype(np.float64)
    outside, last = total - inside, counts[limits - 1].astype(np.float64)
    density = np.maximum(mass / np.maximum(bins, 1) / np.maximum(inside, 1)[:, None], 1e-9)
    entropy = np.concatenate([[0.0], np.cumsum(_times_log(counts.astype(np.float64)))])[limits]
    found = entropy - inside * math.log(total) - np.sum(mass * np.log(density), axis=1)
    found += _times_log((last + outside) / total) * total - _times_log(last / total) * total
    # A bin that only clipping fills has no counterpart: a small mass keeps the logarithm finite.
    return np.asarray(found - outside * np.log(np.where(last > 0, density[:, -1], 1e-9)))


def _times_log(share: np.ndarray) -> np.ndarray:
    return np.asarray(share * np.log(np.where(share > 0, share, 1.0)))


def save_histograms(histograms: Mapping[str, Histogram], path: Path) -> None:
    """Store histograms as one npz; `load_histograms` reads it back exactly."""
    names = list(histograms)
    filled, counts = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for row, histogram in enumerate(histograms.values()):
        if histogram.counts is not None:
            places = np.flatnonzero(histogram.counts)  # a few of a hundred
            filled.append(_narrow(places + row * BINS))
            counts.append(_narrow(histogram.counts[places]))
    np.savez(
        path,
        allow_pickle=False,
        names=np.asarray(names, dtype=np.str_),
        exponents=np.asarray([histograms[n].exponent for n in names], np.int64),
        zeros=np.asarray([histograms[n].zeros for n in names], np.int64),
        extremes=np.asarray([(histograms[n].low, histograms[n].high) for n in names], np.float64),
        filled=np.concatenate(filled),
        counts=np.concatenate(counts),
    )


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """The same numbers in 32 bits, where these hold them."""
    return numbers.astype(np.int32) if int(numbers.max(initial=0)) <= _LARGEST_INT32 else numbers


def load_histograms(path: Path) -> dict[str, Histogram]:
    """What `save_histograms` stored."""
    with np.load(path, allow_pickle=False) as stored:
        names = stored["names"]
        counts = np.zeros((len(names), BINS), np.int64)
        counts.ravel()[stored["filled"]] = stored["counts"]
        exponents, zeros, extremes = stored["exponents"], stored["zeros"], stored["extremes"]
    return {
        str(name): Histogram(
            int(exponents[i]), counts[i], int(zeros[i]), float(extremes[i][0]), float(extremes[i][1])
        )
        for i, name in enumerate(names)
    }
