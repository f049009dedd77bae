"""Numbers of channels that a graph reads from its own shapes, followed to where they say a size.

    Shape (x) -> Slice [:2] -> Concat (.., [24, 24]) -> Resize (y)      y has as many channels as x

Each element of an integer tensor may come from an axis of a value that has labels. Where it is moved it is
followed; where it becomes the size of an axis, that has the labels of the axis it was read from; where it is
computed with, those channels must stay, or the result would change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import bodies, reads
from deploy.graph.label_moves import MOVES
from deploy.graph.labels import FIXED, Labels, rank_of, sizes_of, varying
from deploy.graph.ties import Ties

TARGETS = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}
"""Where an operation takes sizes."""
_NONE = 0


@dataclass
class Sizes:
    """``origins`` are (value, axis) by number; ``read`` holds the numbers of integer tensors."""

    ties: Ties
    origins: list[tuple[ir.Value, int] | None] = field(default_factory=lambda: [None])
    read: Labels = field(default_factory=Labels)

    def shape_of(self, node: ir.Node) -> None:
        """A Shape node: its elements come from the axes of its input."""
        value = node.inputs[0]
        if value is None:
            return
        rank = rank_of(value)
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
        labelled = varying(self.ties.ids(value))
        numbers = [self._number(value, axis) if axis in labelled else _NONE for axis in range(rank)]
        if any(numbers[start:end]):
            self.read.known[node.outputs[0]] = np.array(numbers[start:end], np.int64)

    def _number(self, value: ir.Value, axis: int) -> int:
        self.origins.append((value, axis))
        return len(self.origins) - 1

    def pass_on(self, node: ir.Node) -> None:
        """After ``node`` was visited: follow what it moved, tie what it made a size of, pin the rest."""
        if node.op_type == "Shape":
            self.shape_of(node)
            return
        taken = [(i, v) for i, v in enumerate(node.inputs) if v is not None and v in self.read.known]
        if bodies(node):
            self.keep(f"a body of {node.op_type} reads their number", reads(node))
            return
        if not taken:
            return
        move = MOVES.get(node.op_type) if node.op_type not in TARGETS or taken[0][0] == 0 else None
        if node.op_type in ("Cast", "Identity"):
            self.read.known[node.outputs[0]] = self.read.known[taken[0][1]]
        elif move is not None and all(i == 0 or node.op_type == "Concat" for i, _ in taken):
            found = move(self.read, node)
            for value, numbers in zip(node.outputs, found or (), strict=False):
                self.read.known[value] = numbers
            if found is None:
                self._pin(node, taken)
        elif TARGETS.get(node.op_type) == taken[0][0] and len(taken) == 1:
            self._say(node, taken[0][1])
        else:
            self._pin(node, taken)

    def _pin(self, node: ir.Node, taken: list[tuple[int, ir.Value]]) -> None:
        self.keep(f"{node.op_type} computes with their number", [value for _, value in taken])

    def keep(self, reason: str, values: Iterable[ir.Value]) -> None:
        """Pin the channels whose numbers stand in ``values``."""
        for value in values:
            for number in np.unique(self.read.known.get(value, _NONE)):
                origin = self.origins[int(number)]
                if origin is not None:
                    self.ties.pin(self.ties.ids(origin[0]), reason)

    def _say(self, node: ir.Node, value: ir.Value) -> None:
        """The axes of the output whose sizes were read elsewhere have the labels of there."""
        output, ties = node.outputs[0], self.ties
        rank, sizes = rank_of(output), sizes_of(output)
        numbers = np.broadcast_to(self.read.known[value], sizes_of(value))
        if numbers.size != rank or (node.op_type == "Resize" and "axes" in node.attributes):
            self._pin(node, [(0, value)])
            return
        for axis, number in enumerate(numbers.tolist()):
            origin = self.origins[number]
            if origin is None:
                continue
            ids, here = ties.ids(origin[0]), ties.ids(output)
            vector = ties.tie(ids, [i for i in range(ids.ndim) if i != origin[1]]).reshape(-1)
            shape = [-1 if i == axis else 1 for i in range(rank)]
            made = node.op_type == "ConstantOfShape" or (
                node.op_type == "Expand" and ((1,) * rank + sizes_of(node.inputs[0]))[axis - rank] == 1
            )
            if vector.size == sizes[axis] and (axis in varying(here) or (made and not varying(here))):
                ties.known[output] = (
                    vector.reshape(shape) if made else ties.merge(here, vector.reshape(shape))
                )
            elif (vector != FIXED).any():
                ties.pin(vector, f"their number is a size of {output.name}, which does not lose them")
