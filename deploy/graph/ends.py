"""What goes in and comes out of a graph, as far as its first and last operations tell."""

from __future__ import annotations

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
    node = output.producer()
    while node is not None and node.op_type in _KEEPS_SCORES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return "unknown" if node is None else _SCORES.get(node.op_type, "unknown")
