"""Comparisons, logic, bits, and the choice between two operands."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.ops.elementwise import elementwise, operands, term, terms
from backends.tflite.optable import ANY, NUMBERS, Lowering, OpTable
from backends.tflite.reading import dtype_of
from backends.tflite.terms import Term
from deploy.adapter.optable import Unsupported

ops = OpTable()

_BOOL = ("bool",)
_NUMBERS = (*NUMBERS, "bool")
_COMPARISONS = {
    "Equal": ("EQUAL", _NUMBERS),
    "Less": ("LESS", _NUMBERS),
    "LessOrEqual": ("LESS_EQUAL", _NUMBERS),
    "Greater": ("GREATER", _NUMBERS),
    "GreaterOrEqual": ("GREATER_EQUAL", _NUMBERS),
    "And": ("LOGICAL_AND", _BOOL),
    "Or": ("LOGICAL_OR", _BOOL),
    "Xor": ("NOT_EQUAL", _BOOL),
}


def _compare(code: str) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        read, order = operands(out, node.inputs, node.outputs[0])
        elementwise(code, read, node.outputs[0], out, order)

    return lower


for _name, (_code, _types) in _COMPARISONS.items():
    ops.lower(_name, types=_types)(_compare(_code))


@ops.lower("Not", types=_BOOL)
def not_(node: ir.Node, out: Emitter) -> None:
    term(node, out).apply("LOGICAL_NOT").becomes(node.outputs[0])


@ops.lower("IsNaN", types=_NUMBERS)
def is_nan(node: ir.Node, out: Emitter) -> None:
    x = term(node, out)
    x.apply("NOT_EQUAL", x, dtype="bool").becomes(node.outputs[0])


@ops.lower("IsInf", types=_NUMBERS)
def is_inf(node: ir.Node, out: Emitter) -> None:
    x = term(node, out)
    above, below = (node.attributes.get_int(f"detect_{name}", 1) for name in ("positive", "negative"))
    if above and below:
        made = x.abs().apply("EQUAL", np.inf, dtype="bool")
    elif above or below:
        made = x.apply("EQUAL", np.inf if above else -np.inf, dtype="bool")
    else:
        made = x.apply("LESS", x, dtype="bool")
    made.becomes(node.outputs[0])


@ops.lower("Where", types=ANY)
def where(node: ir.Node, out: Emitter) -> None:
    """Integers go through as they are where the parameters on both sides are the same."""
    condition, one, other = node.inputs[:3]
    result = node.outputs[0]
    params = out.moved(result, [one, other])
    if params is None and dtype_of(result) in ("int8", "uint8"):
        raise Unsupported(f"of {dtype_of(result)} that stand for no real numbers")
    read, order = operands(out, [condition, one, other], result, integer=params is not None)
    out.emit("SELECT_V2", read, result, ("SelectV2Options", {}), order=order, params=params, version=1)


# ----------------------------------------------------------------------------------------------------- bits


@ops.lower("BitwiseXor", types=("int32",))
def bitwise_xor(node: ir.Node, out: Emitter) -> None:
    read, order = operands(out, node.inputs, node.outputs[0])
    elementwise("BITWISE_XOR", read, node.outputs[0], out, order)


@ops.lower("BitwiseNot", types=("int32", "int64"))
def bitwise_not(node: ir.Node, out: Emitter) -> None:
    (term(node, out).number(-1) - term(node, out)).becomes(node.outputs[0])


@ops.lower("BitwiseAnd", "BitwiseOr", types=("int32", "int64"))
def bitwise_and(node: ir.Node, out: Emitter) -> None:
    """a or b is a + b less what both have. STABLEHLO_AND came after LiteRT 2.14 and broadcasts nothing."""
    (x, y), order = terms(out, node.inputs, node.outputs[0])
    shape = tuple(out.shape(node.outputs[0])[axis] for axis in order)
    if -1 in shape and x.shape != y.shape:
        raise Unsupported("operands of free sizes that are not the same")
    one, other = (t if t.shape == shape else t + _zeros(t, shape) for t in (x, y))
    both = one.apply("STABLEHLO_AND", other)
    made = both if node.op_type == "BitwiseAnd" else one + other - both
    made.becomes(node.outputs[0])


def _zeros(like: Term, shape: tuple[int, ...]) -> Term:
    return Term(like.out, like.out.numbers(np.zeros(shape, like.dtype), f"{like.out.node}/zeros"))


@ops.lower("BitShift", types=("uint8",))
def bit_shift(node: ir.Node, out: Emitter) -> None:
    """ONNX shifts unsigned integers only, of which TFLite has bytes."""
    if node.attributes.get_string("direction", "") != "RIGHT":
        raise Unsupported("TFLite shifts to the right only")
    read, order = operands(out, node.inputs, node.outputs[0])
    out.emit("RIGHT_SHIFT", read, node.outputs[0], order=order)
