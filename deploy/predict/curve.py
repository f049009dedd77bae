"""What kernels of one class take at any size, from points measured at some.

    log(ms) = log(roofline) + deviation

The roofline, a line in MACs and bytes with a constant, is fitted to the points and rules where the table
ends. The deviation is interpolated between them as a Gaussian process over the logarithms of MACs, bytes,
depth and alignment (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 2): near a
point it follows that, far from all it fades to nothing, and it says how sure it is. Its variances are widened
until the residuals of leaving one point out at a time (their equations 5.10 to 5.12) fit them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from deploy.predict.kernels import Kernel
from deploy.spec.overlay import Cost

_REACH = np.array([1.5, 1.5, 1.5, 2.0])
"""How far a point speaks for others: in doublings of MACs, bytes, depth and alignment."""
_LEAST_NOISE = 0.03
"""Relative: no two runs agree better, whatever the spread within one."""
_USUAL_DEVIATION = 0.35
"""Relative: how far kernels stray from a roofline where too few points tell."""
_UTTER = 10.0
"""The largest deviation: factors of thousands either way, nothing is known."""
_FEW = 4
_QUARTILES = 1.349
"""Interquartile range of a normal distribution in standard deviations."""


@dataclass(frozen=True)
class Estimate:
    """Milliseconds and the standard deviation of their logarithm. ``nearest`` is how far the nearest measured
    point lies, in doublings: beyond a few this is a roofline, no interpolation."""

    ms: float
    deviation: float
    nearest: float

    def interval(self, quantile: float = 1.645) -> tuple[float, float]:
        """Where the truth lies nine times of ten, by default."""
        factor = math.exp(quantile * self.deviation)
        return self.ms / factor, self.ms * factor


@dataclass(frozen=True)
class Curve:
    """One kernel class in one precision; ``points`` are not empty."""

    points: tuple[Cost, ...]

    def __call__(self, kernel: Kernel | Cost) -> Estimate:
        """What a kernel takes. A class without MACs is looked up by its bytes."""
        key = kernel.macs, kernel.bytes, kernel.depth, kernel.align
        if key not in self._known:
            self._known[key] = self._estimate(kernel)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[int, int, int, int], Estimate]:
        """A network has the same kernel many times, and is asked about in many forms."""
        return {}

    def _estimate(self, kernel: Kernel | Cost) -> Estimate:
        at = _features(kernel)
        base = self._roofline(kernel.macs, kernel.bytes)
        near = _similarity(at[None], self._features)[0]
        correction = float(near @ self._weights)
        variance = self._variance * max(0.0, 1.0 - float(near @ self._inverse @ near) * self._variance)
        distance = float(np.sqrt(np.min(np.sum(np.square(at - self._features), axis=1))))
        deviation = min(_UTTER, self._widening * math.sqrt(variance))
        return Estimate(base * math.exp(correction), deviation, distance)

    @cached_property
    def residuals(self) -> np.ndarray:
        """log(predicted / measured) of each point, predicted from all the others."""
        return -self._left_out[0]

    @cached_property
    def _features(self) -> np.ndarray:
        return np.array([_features(point) for point in self.points])

    @cached_property
    def _coefficients(self) -> tuple[float, float, float]:
        return fit_roofline(self.points)

    def _roofline(self, macs: int, moved: int) -> float:
        per_mac, per_byte, constant = self._coefficients
        return max(per_mac * macs + per_byte * moved + constant, 1e-7)

    @cached_property
    def _deviations(self) -> np.ndarray:
        return np.array([math.log(p.ms / self._roofline(p.macs, p.bytes)) for p in self.points])

    @cached_property
    def _variance(self) -> float:
        """Of the deviation, where nothing near was measured."""
        seen = float(np.mean(np.square(self._deviations)))
        weight = min(1.0, len(self.points) / _FEW)
        return max(weight * seen + (1 - weight) * _USUAL_DEVIATION**2, 4 * _LEAST_NOISE**2)

    @cached_property
    def _inverse(self) -> np.ndarray:
        noise = [max(_LEAST_NOISE, p.spread / _QUARTILES) ** 2 for p in self.points]
        covariance = self._variance * _similarity(self._features, self._features) + np.diag(noise)
        return np.linalg.inv(covariance)

    @cached_property
    def _weights(self) -> np.ndarray:
        return np.asarray(self._variance * (self._inverse @ self._deviations))

    @cached_property
    def _left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """For each point measured minus predicted without it, and the standard deviation claimed for that."""
        precision = np.diag(self._inverse)
        return (self._inverse @ self._deviations) / precision, np.sqrt(1.0 / precision)

    @cached_property
    def _widening(self) -> float:
        if len(self.points) < _FEW:
            return 1.0
        strayed, claimed = self._left_out
        return max(1.0, float(np.sqrt(np.mean(np.square(strayed / claimed)))))


def fit_roofline(points: Sequence[Cost]) -> tuple[float, float, float]:
    """(ms per MAC, ms per byte, ms), none negative, that miss the points least in relative terms.

    Non-negative least squares by trying each set of coefficients that may be positive: there are seven.
    """
    rows = np.array([[p.macs, p.bytes, 1.0] for p in points]) / np.array([[p.ms] for p in points])
    target = np.ones(len(points))
    best, least = (0.0, 0.0, float(np.exp(np.mean(np.log([p.ms for p in points]))))), math.inf
    for count in (1, 2, 3):
        for chosen in combinations(range(3), count):
            columns = rows[:, chosen]
            if not np.any(columns, axis=0).all():
                continue
            scale = np.linalg.norm(columns, axis=0)
            found = np.linalg.lstsq(columns / scale, target, rcond=None)[0] / scale
            error = float(np.sum(np.square(columns @ found - target)))
            if (found >= 0).all() and error < least - 1e-12:
                full = np.zeros(3)
                full[list(chosen)] = found
                best, least = (float(full[0]), float(full[1]), float(full[2])), error
    return best


def _features(kernel: Kernel | Cost) -> np.ndarray:
    """In doublings."""
    return np.log2([max(1, kernel.macs), max(1, kernel.bytes), kernel.depth, kernel.align])


def _similarity(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """1 at the same size, fading with the distance."""
    apart = (some[:, None, :] - others[None, :, :]) / _REACH
    return np.asarray(np.exp(-0.5 * np.sum(np.square(apart), axis=-1)))
