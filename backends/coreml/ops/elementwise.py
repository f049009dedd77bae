"""Arithmetic, comparison and logic element by element. MIL broadcasts as ONNX does."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter
from backends.coreml.optable import ANY, FLOATS, NUMBERS, Lowering, OpTable
from deploy.adapter.optable import Unsupported

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Var

ops = OpTable()

_UNARY = {
    "Abs": "abs", "Ceil": "ceil", "Cos": "cos", "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor",
    "Round": "round", "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan",
    "Tanh": "tanh", "Acos": "acos", "Asin": "asin", "Atan": "atan", "Atanh": "atanh",
}  # fmt: skip
_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Max": "maximum", "Min": "minimum"}
_COMPARED = {
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
}
_LOGIC = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}
_CAST = {"float32": "fp32", "float16": "fp32", "int32": "int32", "int64": "int32", "bool": "bool"}


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is of floats."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _unary(kind: str) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        out.emit(node, kind, x=out.read(node.inputs[0]))

    return lower


def _folded(kind: str) -> Lowering:
    """Two operands or more, from the left to the right."""

    def lower(node: ir.Node, out: Emitter) -> None:
        *before, last = [out.read(value) for value in node.inputs]
        if not before:
            out.emit(node, "identity", x=last)
            return
        out.emit(node, kind, x=reduce(lambda x, y: out.op(kind, x=x, y=y), before), y=last)

    return lower


def _logical(kind: str) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        out.emit(node, kind, x=out.read(node.inputs[0]), y=out.read(node.inputs[1]))

    return lower


for _name, _kind in _UNARY.items():
    ops.lower(_name, types=NUMBERS if _name in ("Abs", "Sign") else FLOATS)(_unary(_kind))
for _name, _kind in _BINARY.items():
    ops.lower(_name, types=NUMBERS)(_folded(_kind))
for _name, _kind in _COMPARED.items():
    ops.lower(_name, types=ANY)(_logical(_kind))
for _name, _kind in _LOGIC.items():
    ops.lower(_name, types=ANY)(_logical(_kind))
ops.lower("Sum")(_folded("add"))


@ops.lower("Mean")
def mean(node: ir.Node, out: Emitter) -> None:
    """The sum over the number of operands."""
    total = reduce(lambda x, y: out.op("add", x=x, y=y), [out.read(value) for value in node.inputs])
    out.emit(node, "real_div", x=total, y=np.float32(len(node.inputs)))


@ops.lower("Neg", types=NUMBERS)
def neg(node: ir.Node, out: Emitter) -> None:
    """A product with -1."""
    minus = np.float32(-1) if is_float(node.inputs[0]) else np.int32(-1)
    out.emit(node, "mul", x=out.read(node.inputs[0]), y=minus)


@ops.lower("Log")
def log(node: ir.Node, out: Emitter) -> None:
    """MIL adds an epsilon, the smallest there is."""
    out.emit(node, "log", x=out.read(node.inputs[0]))


@ops.lower("Reciprocal")
def reciprocal(node: ir.Node, out: Emitter) -> None:
    """A quotient, since MIL's own inverse adds an epsilon."""
    out.emit(node, "real_div", x=np.float32(1), y=out.read(node.inputs[0]))


@ops.lower("Asinh", "Acosh")
def area(node: ir.Node, out: Emitter) -> None:
    """sign(x) log(|x| + sqrt(x^2 + 1)), and log(x + sqrt(x^2 - 1))."""
    x = out.read(node.inputs[0])
    inverse_sine = node.op_type == "Asinh"
    size = out.op("abs", x=x) if inverse_sine else x
    square = out.op("add", x=out.op("mul", x=x, y=x), y=np.float32(1 if inverse_sine else -1))
    found = out.op("log", x=out.op("add", x=size, y=out.op("sqrt", x=square)))
    if inverse_sine:
        out.emit(node, "mul", x=out.op("sign", x=x), y=found)
    else:
        out.emit(node, "identity", x=found)


@ops.lower("Div", types=NUMBERS)
def div(node: ir.Node, out: Emitter) -> None:
    """Of integers it is cut towards 0, where MIL rounds down."""
    x, y = out.read(node.inputs[0]), out.read(node.inputs[1])
    if is_float(node.inputs[0]):
        out.emit(node, "real_div", x=x, y=y)
        return
    down = out.op("floor_div", x=x, y=y)
    rest = out.op("sub", x=x, y=out.op("mul", x=down, y=y))
    apart = out.op("less", x=out.op("mul", x=out.op("sign", x=x), y=out.op("sign", x=y)), y=np.int32(0))
    off = out.op("logical_and", x=out.op("not_equal", x=rest, y=np.int32(0)), y=apart)
    out.emit(node, "add", x=down, y=out.op("cast", x=off, dtype="int32"))


@ops.lower("Mod", types=NUMBERS)
def mod(node: ir.Node, out: Emitter) -> None:
    """With the sign of the divisor, as in MIL; with that of the dividend for ``fmod``."""
    x, y = out.read(node.inputs[0]), out.read(node.inputs[1])
    if not node.attributes.get_int("fmod", 0):
        out.emit(node, "mod", x=x, y=y)
        return
    rest = out.op("mod", x=out.op("abs", x=x), y=out.op("abs", x=y))
    out.emit(node, "mul", x=out.op("sign", x=x), y=rest)


@ops.lower("Pow", types=NUMBERS)
def power(node: ir.Node, out: Emitter) -> None:
    """In floats, also of integers."""
    base, exponent = node.inputs[0], node.inputs[1]
    x, y = (
        out.read(value) if is_float(value) else out.op("cast", x=out.read(value), dtype="fp32")
        for value in (base, exponent)
    )
    if is_float(base):
        out.emit(node, "pow", x=x, y=y)
        return
    out.emit(node, "cast", x=out.op("round", x=out.op("pow", x=x, y=y)), dtype="int32")


@ops.lower("Clip", types=NUMBERS)
def clip(node: ir.Node, out: Emitter) -> None:
    """One operation with two constant bounds, else the larger and the smaller of two."""
    x, low, high = node.inputs[0], out.operand(node, 1), out.operand(node, 2)
    bounds = [out.array(value) for value in (low, high)]
    if is_float(x) and all(bound is not None for bound in bounds):
        alpha, beta = (np.float32(np.asarray(bound).item()) for bound in bounds)
        if beta >= alpha:
            out.emit(node, "clip", x=out.read(x), alpha=alpha, beta=beta)
            return
    found = out.read(x)
    if low is not None:
        found = out.op("maximum", x=found, y=out.read(low))
    if high is not None:
        found = out.op("minimum", x=found, y=out.read(high))
    out.emit(node, "identity", x=found)


@ops.lower("Equal", types=ANY)
def equal(node: ir.Node, out: Emitter) -> None:
    """Truth values are compared as integers."""
    x, y = (_comparable(value, out) for value in node.inputs)
    out.emit(node, "equal", x=x, y=y)


def _comparable(value: ir.Value | None, out: Emitter) -> Var:
    found = out.read(value)
    of_truth = value is not None and value.dtype == ir.DataType.BOOL
    return out.op("cast", x=found, dtype="int32") if of_truth else found


@ops.lower("Not", types=ANY)
def negation(node: ir.Node, out: Emitter) -> None:
    """MIL's ``logical_not``."""
    out.emit(node, "logical_not", x=out.read(node.inputs[0]))


@ops.lower("Where", types=ANY)
def where(node: ir.Node, out: Emitter) -> None:
    """MIL's ``select``."""
    cond, a, b = (out.read(value) for value in node.inputs)
    out.emit(node, "select", cond=cond, a=a, b=b)


@ops.lower("IsNaN", types=(*NUMBERS, "bool"))
def is_nan(node: ir.Node, out: Emitter) -> None:
    """What is not equal to itself."""
    x = out.read(node.inputs[0])
    out.emit(node, "not_equal", x=x, y=x)


@ops.lower("Cast", types=ANY)
def cast(node: ir.Node, out: Emitter) -> None:
    """Between the types that MIL computes with; float to integer cuts towards 0."""
    dtype = node.outputs[0].dtype
    name = "" if dtype is None or dtype.is_string() else dtype.numpy().name
    if name not in _CAST:
        raise Unsupported(f"to {name or 'text'}; MIL computes with {', '.join(_CAST)}")
    x = out.read(node.inputs[0])
    source = node.inputs[0]
    if name == "bool" and source is not None and source.dtype != ir.DataType.BOOL:
        zero = np.float32(0) if is_float(source) else np.int32(0)
        out.emit(node, "not_equal", x=x, y=zero)
    else:
        out.emit(node, "cast", x=x, dtype=_CAST[name])
