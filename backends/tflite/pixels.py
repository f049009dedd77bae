"""Pixels that a graph takes as they are: the input itself becomes a quantized tensor, read without any float.

The graph says Cast, perhaps a scale and an offset, then QuantizeLinear. Where that maps each of the 256
pixels to itself (less 128 for uint8), the input bears the parameters and the steps go. Where it only is
affine with a whole zero point, a QUANTIZE from the one parameters to the others is left. What has a scale
for each channel, or a zero point between two codes, is no such tensor and stays float.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import scalar, sole_consumer
from deploy.spec.plan import QuantParams

if TYPE_CHECKING:
    from backends.tflite.emitter import Emitter

_STEPS = {"Mul": np.multiply, "Add": np.add, "Sub": np.subtract, "Div": np.divide}
_MOVES = ("Transpose", "Reshape")
_IN_PLACE = ("CAST", "MUL", "ADD", "SUB", "DIV", "RESHAPE")
_WHOLE = 1e-3
"""By how much of a code a zero point may be off."""


@dataclass(frozen=True)
class Pixels:
    """``params`` are the input's. ``same``: its codes are the quantized value's, less 128 for uint8."""

    value: ir.Value
    params: QuantParams
    same: bool


def quantized_input(out: Emitter, source: ir.Value, name: str, params: QuantParams) -> int | None:
    """The tensor of ``source`` quantized by ``params``, made of an input of pixels in integers alone.

    None where that cannot be: then it is quantized like any other value.
    """
    found = pixels_behind(source, params) if source in out.carried and params.type == "int8" else None
    if found is None:
        return None
    index, like = out.carried[found.value], out.tensors[out.carried[source]]
    if not _lies_the_same(out, out.carried[source], index):
        return None
    if out.tensors[index].params not in (None, found.params):
        return None
    out.tensors[index].params = found.params
    given = out.tensors[index]
    if not found.same or given.dtype != "int8":
        made = replace(given, name=name, dtype="int8", params=params)
        index = out.inner("QUANTIZE", [index], made, version=2)
    elif (given.shape, given.order) == (like.shape, like.order):
        return index
    if (given.shape, given.order) != (like.shape, like.order):
        if like.shape.count(-1) > 1:
            return None
        sizes = out.numbers(np.array(like.shape, np.int32), f"{name}/shape")
        made = replace(like, name=name, dtype="int8", params=params, data=None)
        index = out.inner("RESHAPE", [index, sizes], made)
    return index


def _lies_the_same(out: Emitter, index: int, given: int) -> bool:
    """Whether no operator between two tensors moves an element."""
    maker = {made: operator for operator in out.operators for made in operator.outputs}
    while index != given:
        operator = maker.get(index)
        if operator is None or operator.code not in _IN_PLACE:
            return False
        index = operator.inputs[0]
    return True


def pixels_behind(source: ir.Value, params: QuantParams) -> Pixels | None:
    """The input of the graph of which ``source``, to be quantized by ``params``, is made pixel by pixel."""
    value = source
    steps: list[tuple[np.ufunc, np.float32]] = []
    while not value.is_graph_input():
        node = value.producer()
        first = node.inputs[0] if node is not None and node.inputs else None
        if node is None or first is None or sole_consumer(first) is not node:
            return None
        if node.op_type in _STEPS:
            number = scalar(node.inputs[1])
            if number is None:
                return None
            steps.append((_STEPS[node.op_type], np.float32(number)))
        elif node.op_type != "Cast" and node.op_type not in _MOVES:
            return None
        value = first
    if value.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return None
    low = -128 if value.dtype == ir.DataType.INT8 else 0
    codes = np.arange(low, low + 256)
    numbers = codes.astype(np.float32)
    for step, operand in reversed(steps):
        numbers = step(numbers, operand)
    return _declared(value, codes, numbers, params)


def _declared(value: ir.Value, codes: np.ndarray, numbers: np.ndarray, params: QuantParams) -> Pixels | None:
    scale, zero = np.float32(params.scale[0]), params.zero_point[0]
    quantized = np.clip(np.rint(numbers / scale) + zero, -128, 127)
    more = 0 if codes[0] else 128
    kind = value.dtype.numpy().name if value.dtype is not None else ""
    if np.array_equal(quantized, codes - more):
        own = {"type": kind, "scale": params.scale, "zero_point": (zero + more,)}
        return Pixels(value, QuantParams.model_validate(own), same=True)
    step = (float(numbers[-1]) - float(numbers[0])) / 255
    point = float(codes[0]) - float(numbers[0]) / step if step > 0 else np.inf
    if not codes[0] - _WHOLE <= point <= codes[-1] + _WHOLE or abs(point - round(point)) > _WHOLE:
        return None
    own = {"type": kind, "scale": (float(np.float32(step)),), "zero_point": (round(point),)}
    return Pixels(value, QuantParams.model_validate(own), same=False)
