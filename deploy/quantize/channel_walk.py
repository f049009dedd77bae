"""Numbers of channels in the making: joined by union-find while a graph is walked from its inputs on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import bodies, reads
from deploy.graph.edit import is_constant

FIXED = 0
ZERO = -1
"""Padding: it is zero under any factor."""

Role = Literal["layer", "norm", "shift"]


@dataclass(frozen=True)
class Slot:
    """A constant that channels scale: ``ids`` broadcasts to it, ``power`` is -1 where it makes them and +1
    where it reads them. ``role`` is that of its node: a layer with weights, a norm's affine, a lone sum."""

    node: ir.Node
    index: int
    ids: np.ndarray
    power: Literal[-1, 1]
    role: Role


@dataclass(frozen=True)
class Channels:
    """``count`` numbers, 0 among them; those of each value by name; the constants that scale them."""

    count: int
    values: Mapping[str, np.ndarray]
    slots: tuple[Slot, ...]


Found = list[np.ndarray] | None
"""The numbers of a node's outputs; None where nothing can be followed, and all is fixed."""


@dataclass
class Walk:
    """Numbers in the making, joined by union-find."""

    reached: Mapping[str, np.ndarray]
    rules: Mapping[str, Callable[[Walk, ir.Node], Found]]
    parent: list[int] = field(default_factory=lambda: [FIXED])
    known: dict[ir.Value, np.ndarray] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)

    def find(self, one: int) -> int:
        while self.parent[one] != one:
            self.parent[one] = self.parent[self.parent[one]]
            one = self.parent[one]
        return one

    def join(self, one: int, other: int) -> None:
        a, b = self.find(one), self.find(other)
        self.parent[max(a, b)] = min(a, b)  # 0 stays the root of what is fixed

    def fresh(self, count: int) -> np.ndarray:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def ids(self, value: ir.Value | None) -> np.ndarray:
        if value is None or value not in self.known:
            return np.zeros((1,) * rank_of(value), np.int64)
        return self.known[value]

    def pin(self, ids: np.ndarray) -> None:
        for one in np.unique(ids[ids >= 0]):
            self.join(int(one), FIXED)

    def fix(self, value: ir.Value) -> None:
        self.known[value] = np.zeros((1,) * rank_of(value), np.int64)

    def tie(self, ids: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        """The same numbers for all along ``axes``, of which one is kept."""
        for axis in axes:
            first = np.take(ids, [0], axis)
            for i in range(1, ids.shape[axis]):
                first = self.merge(first, np.take(ids, [i], axis))
            ids = first
        return ids

    def merge(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Element by element the same number; zeros take the other's."""
        a, b = np.broadcast_arrays(one, other)
        both = (a >= 0) & (b >= 0) & (a != b)
        for pair in set(zip(a[both].tolist(), b[both].tolist(), strict=True)):
            self.join(*pair)
        return np.asarray(np.where(a >= 0, a, b))

    def along(self, value: ir.Value | None, axis: int, size: int) -> np.ndarray | None:
        """The numbers as a vector along one axis of ``size``, tied along all others."""
        ids = self.ids(value)
        if not ids.ndim:
            return None
        axis %= ids.ndim
        ids = self.tie(ids, [i for i in range(ids.ndim) if i != axis])
        return np.broadcast_to(ids.reshape(-1), (size,)) if ids.size in (1, size) else None

    def visit(self, node: ir.Node) -> None:
        rule = self.rules.get(node.op_type) if node.domain in ("", "ai.onnx") and not bodies(node) else None
        found = rule(self, node) if rule is not None else None
        if found is None:
            for value in reads(node):
                self.pin(self.ids(value))
            for value in node.outputs:
                self.fix(value)
            return
        for value, ids in zip(node.outputs, found, strict=False):
            self.known[value] = ids
        for value in node.outputs[len(found) :]:
            self.fix(value)

    def result(self) -> Channels:
        roots = np.array([self.find(i) for i in range(len(self.parent))])
        numbers = np.unique(roots, return_inverse=True)[1]  # 0 comes first

        def renumbered(ids: np.ndarray) -> np.ndarray:
            return np.where(ids >= 0, numbers[np.maximum(ids, 0)], ZERO)

        values = {v.name: renumbered(ids) for v, ids in self.known.items() if v.name}
        slots = tuple(Slot(s.node, s.index, renumbered(s.ids), s.power, s.role) for s in self.slots)
        return Channels(int(numbers.max()) + 1, values, slots)


def compact(ids: np.ndarray) -> np.ndarray:
    """Size 1 along axes on which the numbers do not depend."""
    for axis in range(ids.ndim):
        first = np.take(ids, [0], axis)
        if ids.shape[axis] > 1 and (ids == first).all():
            ids = first
    return ids


def own(node: ir.Node, index: int) -> bool:
    """Whether an input is a float constant that nobody else reads."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return (
        value is not None
        and is_constant(value)
        and value.dtype == ir.DataType.FLOAT
        and len(value.uses()) == 1
        and not value.is_graph_output()
    )


def rank_of(value: ir.Value | None) -> int:
    """How many axes a value has; 0 where that is not known."""
    return 0 if value is None or value.shape is None else value.shape.rank()


def sizes_of(value: ir.Value | None) -> tuple[int, ...]:
    """Sizes; 1 for those that are free, on which no number depends."""
    shape = () if value is None or value.shape is None else tuple(value.shape)
    return tuple(d if isinstance(d, int) else 1 for d in shape)
