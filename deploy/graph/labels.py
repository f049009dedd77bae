"""Labels of channels: every number of a value gets one, and labels are joined by union-find.

A value's labels are an array that broadcasts to it: size 1 along axes on which they do not depend. So nothing
here grows with pictures or sequences, only with channels, and free sizes may stay free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

FIXED = 0
"""The label of what stays as it is."""
ANY = -1
"""No label: it goes along with whatever it meets. Padding with zeros is such, where only scale matters."""

Found = list[np.ndarray] | None
"""The labels of a node's outputs; None where nothing can be followed."""


@dataclass
class Labels:
    """Labels in the making. The same label, the same fate; `root` gives one label for all joined."""

    parent: list[int] = field(default_factory=lambda: [FIXED])
    known: dict[ir.Value, np.ndarray] = field(default_factory=dict)

    def root(self, one: int) -> int:
        while self.parent[one] != one:
            self.parent[one] = self.parent[self.parent[one]]
            one = self.parent[one]
        return one

    def roots(self, ids: np.ndarray) -> np.ndarray:
        """Element by element; what has no label stays without."""
        unique, inverse = np.unique(ids, return_inverse=True)
        found = np.array([i if i == ANY else self.root(int(i)) for i in unique], np.int64)
        return found[inverse].reshape(ids.shape)

    def join(self, one: int, other: int) -> None:
        a, b = self.root(one), self.root(other)
        self.parent[max(a, b)] = min(a, b)  # 0 stays the root of what is fixed

    def fresh(self, count: int) -> np.ndarray:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def padding(self, count: int) -> np.ndarray:
        """The labels of ``count`` zeros put beside others."""
        return np.full(count, ANY, np.int64)

    def ids(self, value: ir.Value | None) -> np.ndarray:
        if value is None or value not in self.known:
            return np.zeros((1,) * rank_of(value), np.int64)
        return self.known[value]

    def operand(self, node: ir.Node, index: int) -> np.ndarray:
        """The labels of an input that may be a constant, where data are moved."""
        return self.ids(node.inputs[index])

    def tie(self, ids: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """The same labels for all along ``axes``, of which one is kept."""
        for axis in axes:
            first = np.take(ids, [0], axis)
            if not (first == ANY).any():
                self.merge(first, ids)
            else:
                for i in range(1, ids.shape[axis]):
                    first = self.merge(first, np.take(ids, [i], axis))
            ids = first
        return ids

    def merge(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Element by element the same label; what has none takes the other's."""
        a, b = np.broadcast_arrays(one, other)
        both = (a != ANY) & (b != ANY) & (a != b)
        if both.any():
            for pair in np.unique(np.stack([a[both], b[both]]), axis=1).T.tolist():
                self.join(*pair)
        return np.asarray(np.where(a != ANY, a, b))


def compact(ids: np.ndarray) -> np.ndarray:
    """Size 1 along axes on which the labels do not depend."""
    for axis in range(ids.ndim):
        first = np.take(ids, [0], axis)
        if ids.shape[axis] > 1 and (ids == first).all():
            ids = first
    return ids


def varying(ids: np.ndarray) -> list[int]:
    """The axes along which labels differ, of a compact array."""
    return [axis for axis, size in enumerate(ids.shape) if size > 1]


def rank_of(value: ir.Value | None) -> int:
    """How many axes a value has; 0 where that is not known."""
    return 0 if value is None or value.shape is None else value.shape.rank()


def sizes_of(value: ir.Value | None) -> tuple[int, ...]:
    """Sizes; 1 for those that are free, on which no label depends."""
    shape = () if value is None or value.shape is None else tuple(value.shape)
    return tuple(d if isinstance(d, int) else 1 for d in shape)
