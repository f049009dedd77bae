"""What goes in and comes out of a graph, as far as its first and last operations tell."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import onnx_ir as ir

from deploy.graph.edit import is_constant

Scores = Literal["probabilities", "log_probabilities", "each", "unknown"]
"""``each``: every class has a probability of its own, as sigmoid gives it."""

_KEEPS_IDS = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Expand")
_KEEPS_SCORES = (
    *("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"),
    *("QuantizeLinear", "DequantizeLinear"),
)
_KEEPS_KIND = (
    *_KEEPS_IDS,
    *("Slice", "Split", "Gather", "GatherElements", "GatherND"),
)
_DEEPEST = 32
_Parts = tuple[int, tuple[int, ...]] | None
_SCORES: dict[str, Scores] = {
    "Softmax": "probabilities",
    "LogSoftmax": "log_probabilities",
    "Sigmoid": "each",
    "HardSigmoid": "each",
}


def table_rows(value: ir.Value) -> int | None:
    """Rows of the smallest constant table that the integers of this input look up; None where none does."""
    if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    found: list[int] = []
    seen, waiting = {value}, [value]
    while waiting:
        for node, index in waiting.pop().uses():
            if node.op_type == "Gather" and index == 1 and is_constant(node.inputs[0]):
                shape = node.inputs[0].shape if node.inputs[0] is not None else None
                size = None if shape is None else shape[node.attributes.get_int("axis", 0)]
                found += [size] if isinstance(size, int) else []
            elif node.op_type in _KEEPS_IDS and index == 0 and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                waiting.append(node.outputs[0])
    return min(found, default=None)


def scores(output: ir.Value) -> Scores:
    """What the numbers of an output of class scores are, by the operation that makes them."""
    node = _maker(output, _KEEPS_SCORES)
    return "unknown" if node is None else _SCORES.get(node.op_type, "unknown")


def joined(model: ir.Model) -> dict[str, tuple[int, tuple[int, ...]]]:
    """The outputs that join numbers of several kinds, as detectors put boxes beside scores: by name the axis,
    and how many of each kind. Numbers are of one kind where the same operation makes them."""
    known: dict[ir.Value, _Parts] = {}
    found = {value.name or "": _joined(value, _DEEPEST, known) for value in model.graph.outputs}
    return {name: parts for name, parts in found.items() if parts is not None}


def _joined(value: ir.Value, depth: int, known: dict[ir.Value, _Parts]) -> _Parts:
    """Each value is looked at once: a chain of values that are each joined with themselves doubles."""
    if value not in known:
        known[value] = _found(value, depth, known)
    return known[value]


def _found(value: ir.Value, depth: int, known: dict[ir.Value, _Parts]) -> _Parts:
    node = value.producer()
    if node is None or not depth or value.shape is None or node.inputs[0] is None:
        return None
    if node.op_type == "Concat":
        return _concatenated(node, value.shape.rank(), depth - 1, known)
    if node.op_type not in _KEEPS_IDS:
        return None
    inner, before = _joined(node.inputs[0], depth - 1, known), node.inputs[0].shape
    if inner is None or before is None:
        return None
    axis, sizes = inner
    if node.op_type == "Transpose":
        order = list(node.attributes.get_ints("perm", tuple(reversed(range(before.rank())))))
        return order.index(axis), sizes
    if axis == before.rank() - 1 and value.shape[-1] == sum(sizes):
        return value.shape.rank() - 1, sizes
    same = value.shape.rank() > axis and before.dims[: axis + 1] == value.shape.dims[: axis + 1]
    return inner if same else None


def _concatenated(node: ir.Node, rank: int, depth: int, known: dict[ir.Value, _Parts]) -> _Parts:
    axis = node.attributes.get_int("axis", 0) % rank
    operands = [value for value in node.inputs if value is not None]
    sizes = [None if value.shape is None else value.shape[axis] for value in operands]
    numbers = [size for size in sizes if isinstance(size, int)]
    if axis and len(numbers) == len(operands) and len({_kind(value) for value in operands}) > 1:
        return axis, tuple(numbers)
    inner = {_joined(value, depth, known) for value in operands}
    parts = inner.pop() if len(inner) == 1 else None
    return parts if parts is not None and parts[0] != axis else None


def _kind(value: ir.Value) -> str:
    """The operation that makes what is only moved since."""
    node = _maker(value, _KEEPS_KIND)
    return "" if node is None else node.op_type


def _maker(value: ir.Value, passing: Collection[str]) -> ir.Node | None:
    """What makes a value, behind operations of these types; None for an input of the graph."""
    node = value.producer()
    while node is not None and node.op_type in passing and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node
