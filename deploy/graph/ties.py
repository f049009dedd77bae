"""Which channels go together when some are removed, found while a graph is walked from its inputs on.

Beside the labels it keeps what they mean for the constants (`Slot`), for the work of a node (`Load`), which
labels must stay and why. What must stay is said at the end: a reason is worth reporting only where nothing
else, an output say, holds the same channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import COMPUTE, bodies, reads
from deploy.graph.edit import constant_tensor, is_constant
from deploy.graph.labels import FIXED, Found, Labels, compact, sizes_of, varying

Role = Literal["makes", "reads", "follows"]
"""A layer's weights along its outputs, along its inputs, and everything that goes along (biases, norms)."""

ENDS = "they are the model's inputs or outputs"
ALONE = "all of them are one unit: removing it would leave nothing"


@dataclass(frozen=True, eq=False)
class Slot:
    """A constant that has these labels: ``ids`` broadcasts to it, before the end along several axes.

    ``use`` is where it is read, which is in front of ``node`` where a Transpose lies between the two.
    """

    node: ir.Node
    index: int
    ids: np.ndarray
    role: Role
    use: tuple[ir.Node, int]

    @property
    def value(self) -> ir.Value:
        found = self.use[0].inputs[self.use[1]]
        assert found is not None
        return found


@dataclass(frozen=True, eq=False)
class Load:
    """A node of whose multiplications a ``share`` shrinks in proportion to each of ``parts``, labels."""

    node: ir.Node
    parts: tuple[np.ndarray, ...]
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Pin:
    """Labels that must stay because of a node ('' for the graph's ends)."""

    ids: np.ndarray
    node: str
    reason: str


@dataclass
class Ties(Labels):
    """The walk itself. ``rules`` are looked up by operation."""

    rules: Mapping[str, Callable[[Ties, ir.Node], Found]] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    restricted: list[np.ndarray] = field(default_factory=list)
    """Labels whose statistics a normalisation takes: what is left is normalised by itself."""
    left: dict[str, str] = field(default_factory=dict)
    """Nodes that are left alone whatever becomes of their neighbours, with the reason."""
    at: str = ""
    """The node being visited."""
    because: str = ""
    """What a rule that gives up says of the reason."""
    written: set[ir.Node] = field(default_factory=set)
    """The nodes of normalisations that are written out."""

    def fresh(self, count: int) -> np.ndarray:
        """Labels of their own. A lone channel has none: nothing would be left without it."""
        return super().fresh(count) if count > 1 else np.zeros(count, np.int64)

    def padding(self, count: int) -> np.ndarray:
        """Channels of zeros can be removed as any other."""
        return Labels.fresh(self, count)

    def join(self, one: int, other: int) -> None:
        if FIXED in (one, other):
            self.pin(np.array([max(one, other)]), "they meet channels that must stay")
        else:
            super().join(one, other)

    def add(self, node: ir.Node, index: int, ids: np.ndarray, role: Role) -> None:
        """A constant, turned or not, that ``node`` reads and that has labels ``ids``."""
        between = turned(node.inputs[index])
        if between is None:
            self.slots.append(Slot(node, index, ids, role, (node, index)))
        else:
            back = np.argsort(between[1])
            self.slots.append(Slot(node, index, np.transpose(ids, back), role, (between[0], 0)))

    def pin(self, ids: np.ndarray, reason: str) -> None:
        """``ids`` must stay, because of the node being visited."""
        found = np.unique(ids[ids > FIXED])
        if found.size:
            self.pins.append(Pin(found, self.at, reason))

    def follow(self, node: ir.Node, index: int, ids: np.ndarray, role: Role = "follows") -> None:
        """A constant operand that broadcasts to a value with labels ``ids``: it loses what that loses."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return
        sizes = sizes_of(value)
        aligned = ids.reshape((1,) * (len(sizes) - ids.ndim) + ids.shape)
        aligned = aligned[(0,) * (aligned.ndim - len(sizes))]
        # Along axes of size 1 it serves all channels alike and stays whole.
        for axis, size in enumerate(sizes):
            if size == 1:
                aligned = np.take(aligned, [0], axis)
        if is_constant(value):
            self.add(node, index, aligned, role)
        elif aligned.size > 1:
            self.pin(aligned, "they are scaled by what is computed, not by a constant")

    def operand(self, node: ir.Node, index: int) -> np.ndarray:
        """A constant that is moved has labels of its own along the one axis where it has channels."""
        value = node.inputs[index]
        if not is_constant(value) or value in self.known:
            return self.ids(value)
        sizes = sizes_of(value)
        axes = [axis for axis, size in enumerate(sizes) if size > 1]
        if node.op_type == "Concat":
            others = [self.ids(v) for v in node.inputs if not is_constant(v)]
            crossing = {a for ids in others for a in varying(ids)}
            axes = [axis for axis in axes if axis in crossing] or axes
        tensor = constant_tensor(value)
        if len(axes) != 1 or tensor is None or not tensor.dtype.is_floating_point():
            return self.ids(value)
        ids = self.fresh(sizes[axes[0]]).reshape([-1 if a == axes[0] else 1 for a in range(len(sizes))])
        self.add(node, index, ids, "makes")
        return ids

    def along(self, value: ir.Value | None, axis: int, size: int) -> np.ndarray:
        """The labels as a vector along one axis of ``size``, tied along all others.

        Where channels lie along other axes alone they must stay: what reads mixes them.
        """
        ids = self.ids(value)
        axis %= max(ids.ndim, 1)
        if ids.shape[axis] == 1:
            self.pin(ids, "they lie along an axis that a layer mixes" if varying(ids) else ALONE)
            return np.zeros(size, np.int64)
        ids = self.tie(ids, [i for i in range(ids.ndim) if i != axis])
        return np.broadcast_to(ids.reshape(-1), (size,))

    def meet(
        self, one: np.ndarray, sizes: tuple[int, ...], other: np.ndarray, other_sizes: tuple[int, ...]
    ) -> np.ndarray:
        """Two operands of one rank, number by number: what has size 1 where labels differ serves them all."""
        if any(other_sizes[i] > 1 for i in varying(one)) or any(sizes[i] > 1 for i in varying(other)):
            return self.merge(one, other)
        if varying(one) and varying(other):
            self.pin(other, "they meet channels along another axis")
        return one if varying(one) else other

    def visit(self, node: ir.Node) -> None:
        self.at = node.name or ""
        known = node.domain in ("", "ai.onnx") and not bodies(node)
        rule = self.rules.get(node.op_type) if known else None
        if any(v is not None and v.name and v.shape is None for v in (*node.inputs, *node.outputs)):
            rule, self.because = None, "its sizes are not known"
        found = rule(self, node) if rule is not None else None
        if found is None:
            reason = self.because or f"channels cannot be followed through {node.op_type}"
            for value in reads(node):
                self.pin(self.ids(value), reason)
            if node.op_type in COMPUTE:
                self.left[self.at] = reason
            found, self.because = [], ""
        for value, ids in zip(node.outputs, found, strict=False):
            self.known[value] = compact(ids)
        for value in node.outputs[len(found) :]:
            self.known[value] = np.zeros((1,) * len(sizes_of(value)), np.int64)

    def settle(self) -> None:
        """Tie until every value and constant stays dense whatever is removed, along one axis each.

        Where labels differ along several axes (heads and their sizes, groups and what is in them) whole
        slices are removed, along the axis that leaves most units. Then pin what must stay.
        """
        while True:
            count = len(self.parent) - sum(self.root(i) != i for i in range(len(self.parent)))
            for value, ids in self.known.items():
                self.known[value] = self._dense(ids)
            self._settle_slots()
            if count == len(self.parent) - sum(self.root(i) != i for i in range(len(self.parent))):
                return

    def _dense(self, ids: np.ndarray) -> np.ndarray:
        ids = compact(self.roots(ids))
        axes = varying(ids)
        if len(axes) < 2:
            if ids.size and not axes:
                self.at = ""
                self.pin(ids, ALONE)
            return ids
        best = max(axes, key=lambda axis: _units(ids, axis))
        self.tie(ids, [axis for axis in axes if axis != best])
        return compact(self.roots(ids))

    def _settle_slots(self) -> None:
        """Readers of one constant agree on each of its axes; who does not follow one keeps it."""
        vectors: dict[tuple[ir.Value, int], list[np.ndarray]] = {}
        readers: dict[ir.Value, set[tuple[ir.Node, int]]] = {}
        claimed: dict[tuple[ir.Value, int], set[tuple[ir.Node, int]]] = {}
        for slot in self.slots:
            ids = compact(self.roots(slot.ids))
            axes = varying(ids)
            if len(axes) > 1:
                self._dense(ids)
                ids = compact(self.roots(ids))
                axes = varying(ids)
            if slot.value not in readers:
                readers[slot.value] = {(node, index) for node, index in slot.value.uses()}
            for axis in axes:
                vectors.setdefault((slot.value, axis), []).append(ids.reshape(-1))
                claimed.setdefault((slot.value, axis), set()).add(slot.use)
        for (value, axis), found in vectors.items():
            for other in found[1:]:
                self.merge(found[0], other)
            missing = readers[value] - claimed[value, axis]
            if missing or value.is_graph_output() or not value.is_initializer():
                self.at = next((node.name or "" for node, _ in missing), "")
                self.pin(found[0], f"{value.name} is read elsewhere as a whole")

    def fixed(self) -> dict[int, Pin]:
        """Pin everything that must stay; why, by the label it had. Fills in `left`."""
        reasons: dict[int, Pin] = {}
        for pin in sorted(self.pins, key=lambda p: p.reason != ENDS):
            new = {self.root(int(i)) for i in pin.ids} - {FIXED}
            for one in new:
                reasons[one] = pin
                Labels.join(self, FIXED, one)
            if new and pin.node and pin.reason != ENDS:
                self.left.setdefault(pin.node, pin.reason)
        return reasons


def turned(value: ir.Value | None) -> tuple[ir.Node, list[int]] | None:
    """The Transpose between a constant and its only reader, as of tied weights, and its order."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or not is_constant(node.inputs[0]):
        return None
    if len(node.outputs[0].uses()) != 1 or node.outputs[0].is_graph_output():
        return None
    order = node.attributes.get_ints("perm")
    return node, list(order) if order is not None else list(range(len(sizes_of(value))))[::-1]


def is_weight(value: ir.Value | None) -> bool:
    """A constant, or one that is turned for its reader."""
    return is_constant(value) or turned(value) is not None


def _units(ids: np.ndarray, axis: int) -> int:
    """How many units are left along ``axis`` when all others are tied."""
    rows = np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)
    parent: dict[int, int] = {}

    def root(one: int) -> int:
        while parent.setdefault(one, one) != one:
            one = parent[one]
        return one

    for row in rows:
        unique = np.unique(row).tolist()
        for other in unique[1:]:
            parent[root(other)] = root(unique[0])
    return len({root(int(row[0])) for row in rows})
