"""The few numbers that stand for many with the least squared error, in one dimension.

On a line every cluster is an interval, so values are sorted once and an iteration costs as many binary
searches as there are centres: prefix sums give each cluster's mean and error. Few different values are
clustered exactly, by dynamic programming (Wang and Song 2011). Many are put into bins for that, and Lloyd's
iterations go on from what is best for the bins, and from starts drawn far from each other (k-means++, Arthur
and Vassilvitskii 2007); the best result counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXACT = 512
"""Different values, or bins, that dynamic programming takes: its table has the square of them."""
_DRAWN = 16384
_STARTS = 2
_ITERATIONS = 100


@dataclass(frozen=True)
class Clusters:
    """``centres`` ascend; ``indices`` say which is nearest to each value, in the order given. ``error`` is
    the weighted sum of squared distances."""

    centres: np.ndarray
    indices: np.ndarray
    error: float


def kmeans(values: np.ndarray, count: int, weights: np.ndarray | None = None, seed: int = 0) -> Clusters:
    """At most ``count`` centres (float64) for ``values``, each as important as ``weights`` say.

    Exactly the best where there are no more than `EXACT` different values. Raises ValueError for no values,
    values that are not finite, weights that are negative or all zero.
    """
    flat = np.asarray(values, np.float64).reshape(-1)
    heavy = np.ones(flat.size) if weights is None else np.asarray(weights, np.float64).reshape(-1)
    if not flat.size or not np.isfinite(flat).all():
        raise ValueError("only finite values, at least one, have clusters")
    if not np.isfinite(heavy).all() or (heavy < 0).any() or not heavy.sum() > 0:
        raise ValueError("weights must be finite, none negative, some positive")
    different, first = np.unique(flat, return_inverse=True)
    mass = np.bincount(first, heavy)
    line = _Line(different, mass)
    if len(different) <= count:
        centres = different
    elif len(different) <= EXACT:
        centres = _exact(different, mass, count)
    else:
        draw = np.random.default_rng(seed)
        found = [line.settle(_binned(line, count))]
        found += [line.settle(_apart(line, count, draw)) for _ in range(_STARTS)]
        centres = min(found, key=line.error)
    nearest = np.searchsorted((centres[1:] + centres[:-1]) / 2, different)
    return Clusters(centres, nearest[first].reshape(np.shape(values)), line.error(centres))


class _Line:
    """Sorted values with their mass, and sums from the left."""

    def __init__(self, values: np.ndarray, mass: np.ndarray) -> None:
        self.values, self.mass = values, mass
        self.middle = float((values * mass).sum() / mass.sum())
        centred = values - self.middle
        self.sums = [np.concatenate([[0.0], np.cumsum(mass * centred**power)]) for power in range(3)]

    def cut(self, centres: np.ndarray) -> np.ndarray:
        """Where each centre's interval begins, and the end of the last."""
        inner = np.searchsorted(self.values, (centres[1:] + centres[:-1]) / 2)
        return np.concatenate([[0], inner, [len(self.values)]])

    def settle(self, centres: np.ndarray) -> np.ndarray:
        """Lloyd's iterations until no value changes sides. A centre without values stays where it is."""
        cut = self.cut(centres)
        for _ in range(_ITERATIONS):
            mass, first = (np.diff(s[cut]) for s in self.sums[:2])
            full = mass > 0
            centres = np.sort(np.where(full, self.middle + first / np.where(full, mass, 1.0), centres))
            new = self.cut(centres)
            if (new == cut).all():
                break
            cut = new
        return centres

    def error(self, centres: np.ndarray) -> float:
        cut, near = self.cut(centres), centres - self.middle
        mass, first, second = (np.diff(s[cut]) for s in self.sums)
        return float(np.maximum(second - 2 * near * first + near**2 * mass, 0.0).sum())


def _exact(values: np.ndarray, mass: np.ndarray, count: int) -> np.ndarray:
    """The best centres of all: the first j values in i clusters, from the best of fewer in i - 1."""
    line = _Line(values, mass)
    zeroth, first, second = line.sums
    size = len(values)
    span = zeroth[None, :] - zeroth[:, None]
    heavy = np.where(span > 0, span, 1.0)
    cost = second[None, :] - second[:, None] - (first[None, :] - first[:, None]) ** 2 / heavy
    # Interval [i, j) costs cost[i, j]; empty and backward ones are not to be had.
    place = np.arange(size + 1)
    cost = np.where(place[:, None] < place[None, :], np.maximum(cost, 0.0), np.inf)
    best = cost[0]
    starts = np.zeros((count, size + 1), np.int64)
    for cluster in range(1, count):
        through = best[:, None] + cost
        starts[cluster] = through.argmin(axis=0)
        best = through[starts[cluster], np.arange(size + 1)]
    end, cuts = size, [size]
    for cluster in range(count - 1, 0, -1):
        end = int(starts[cluster, end])
        cuts.append(end)
    edges = np.array([0, *reversed(cuts)])
    weight = np.diff(zeroth[edges])
    means = line.middle + np.diff(first[edges]) / np.where(weight > 0, weight, 1.0)
    return np.sort(np.where(weight > 0, means, values[np.minimum(edges[:-1], size - 1)]))


def _binned(line: _Line, count: int) -> np.ndarray:
    """What is best for the values put into bins, half of them equally wide, half equally full."""
    wide = np.linspace(line.values[0], line.values[-1], EXACT // 2)
    share = line.sums[0][1:] / line.sums[0][-1]
    full = np.interp(np.linspace(0, 1, EXACT // 2), share, line.values)
    edges = np.unique(np.concatenate([wide, full]))
    place = np.searchsorted(edges[1:-1], line.values, side="right")
    mass = np.bincount(place, line.mass)
    sums = np.bincount(place, line.mass * line.values)
    there = mass > 0
    means, order = sums[there] / mass[there], mass[there]
    return means if len(means) <= count else _exact(means, order, count)


def _apart(line: _Line, count: int, draw: np.random.Generator) -> np.ndarray:
    """Centres drawn one after the other, each the likelier the farther from those there."""
    values, mass = line.values, line.mass
    if len(values) > _DRAWN:
        chosen = np.sort(draw.choice(len(values), _DRAWN, replace=False))
        values, mass = values[chosen], mass[chosen]
    centres = [values[_drawn(mass, draw)]]
    distance = np.abs(values - centres[0])
    while len(centres) < count:
        likely = mass * distance**2
        if not likely.sum() > 0:
            break
        centres.append(values[_drawn(likely, draw)])
        np.minimum(distance, np.abs(values - centres[-1]), out=distance)
    return np.sort(np.array(centres))


def _drawn(likely: np.ndarray, draw: np.random.Generator) -> int:
    total = np.cumsum(likely)
    return min(int(np.searchsorted(total, draw.random() * total[-1], side="right")), len(likely) - 1)
