"""Numbers of channels in the making: labels (`graph/labels.py`) that say what may be scaled by one factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import bodies, reads
from deploy.graph.edit import is_constant
from deploy.graph.labels import ANY, FIXED, Found, Labels, rank_of

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


@dataclass
class Walk(Labels):
    """Numbers in the making. ``reached`` and what the rules do is said in `quantize/channels.py`."""

    reached: Mapping[str, np.ndarray] = field(default_factory=dict)
    rules: Mapping[str, Callable[[Walk, ir.Node], Found]] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)

    def pin(self, ids: np.ndarray) -> None:
        for one in np.unique(ids[ids >= 0]):
            self.join(int(one), FIXED)

    def fix(self, value: ir.Value) -> None:
        self.known[value] = np.zeros((1,) * rank_of(value), np.int64)

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
        roots = np.array([self.root(i) for i in range(len(self.parent))])
        numbers = np.unique(roots, return_inverse=True)[1]  # 0 comes first

        def renumbered(ids: np.ndarray) -> np.ndarray:
            return np.where(ids != ANY, numbers[np.maximum(ids, 0)], ANY)

        values = {v.name: renumbered(ids) for v, ids in self.known.items() if v.name}
        slots = tuple(Slot(s.node, s.index, renumbered(s.ids), s.power, s.role) for s in self.slots)
        return Channels(int(numbers.max()) + 1, values, slots)


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
