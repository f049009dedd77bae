"""What is gathered from fixed places, as slices: an accelerator that cannot look up may still copy.

Gather(x, 0)             one slice, and the axis goes
Gather(x, [2, 3, 4])     one slice
Gather(x, [4, 0, 1])     two slices joined, as long as there are few
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import (
    Attribute,
    add_initializer,
    constant,
    fresh_name,
    is_constant,
    names,
    replace_node,
)

MOST_SLICES = 8
"""More copies than that cost more than the look-up."""


def gather_as_slices(model: ir.Model) -> int:
    """Gathers of floats with constant indices > slices, joined where there are several."""
    taken = names(model)
    return sum(_slice(model, node, taken) for node in list(model.graph) if node.op_type == "Gather")


def _slice(model: ir.Model, node: ir.Node, taken: set[str]) -> bool:
    x, indices = node.inputs[0], constant(node.inputs[1])
    if node.domain != "" or x is None or x.shape is None or indices is None or indices.ndim > 1:
        return False
    axis = node.attributes.get_int("axis", 0) % max(1, x.shape.rank())
    size = x.shape[axis] if x.shape.rank() else None
    if is_constant(x) or not isinstance(size, int) or x.dtype is None or not x.dtype.is_floating_point():
        return False
    places = [int(place) % size for place in indices.reshape(-1)]
    runs = _runs(places)
    if not 1 <= len(runs) <= MOST_SLICES or any(not -size <= place < size for place in indices.reshape(-1)):
        return False
    steps = _Steps(model, node, taken)
    pieces = [
        steps.add(
            "Slice", [x, *map(steps.numbers, run_of(run, axis))], final=len(runs) == 1 and indices.ndim > 0
        )
        for run in runs
    ]
    if indices.ndim == 0:
        steps.add("Squeeze", [pieces[0], steps.numbers(axis)], final=True)
    elif len(pieces) > 1:
        steps.add("Concat", pieces, {"axis": axis}, final=True)
    return True


def run_of(run: tuple[int, int, int], axis: int) -> tuple[int, int, int, int]:
    """Starts, ends, axes and steps of a Slice that picks ``run``: first place, how many, how far apart."""
    first, count, step = run
    return first, first + (count - 1) * step + 1, axis, step


def _runs(places: list[int]) -> list[tuple[int, int, int]]:
    """The places as (first, how many, how far apart), each as long as may be, forwards only.

    >>> _runs([4, 0, 1, 2, 5, 7])
    [(4, 1, 1), (0, 3, 1), (5, 2, 2)]
    """
    found: list[tuple[int, int, int]] = []
    at = 0
    while at < len(places):
        step = places[at + 1] - places[at] if at + 1 < len(places) else 1
        end = at + 1
        while step > 0 and end < len(places) and places[end] - places[end - 1] == step:
            end += 1
        found.append((places[at], end - at, step if end - at > 1 else 1))
        at = end
    return found


class _Steps:
    """Nodes in the place of ``node``; the last of them takes its name and readers."""

    def __init__(self, model: ir.Model, node: ir.Node, taken: set[str]) -> None:
        self._model, self._node, self._taken = model, node, taken
        self._numbers: dict[int, ir.Value] = {}

    def numbers(self, number: int) -> ir.Value:
        if number not in self._numbers:
            name = f"{self._node.name}/{number}"
            array = np.array([number], np.int64)
            self._numbers[number] = add_initializer(self._model, name, array, self._taken)
        return self._numbers[number]

    def add(
        self,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, Attribute] | None = None,
        *,
        final: bool,
    ) -> ir.Value:
        if final:
            return replace_node(self._node, op_type, inputs, attributes).outputs[0]
        name = fresh_name(self._model, f"{self._node.name}/{op_type}", self._taken)
        made = ir.node(op_type, inputs, attributes=attributes, name=name, outputs=[ir.Value(name=name)])
        made.metadata_props.update(self._node.metadata_props)
        assert self._node.graph is not None
        self._node.graph.insert_before(self._node, made)
        return made.outputs[0]
