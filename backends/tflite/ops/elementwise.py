"""Arithmetic element by element. Operands keep the order that they have; they must only have the same one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import known
from backends.tflite.layout import Order, plain, same_memory
from backends.tflite.network import Options
from backends.tflite.optable import FLOATS, NUMBERS, Lowering, OpTable
from backends.tflite.reading import dtype_of, idle, stored_constant
from backends.tflite.terms import Term, options, version
from deploy.adapter.optable import Unsupported
from deploy.spec.plan import QuantParams

ops = OpTable()

_MANY: dict[str, tuple[str, Collection[str]]] = {
    "Max": ("MAXIMUM", NUMBERS),
    "Min": ("MINIMUM", NUMBERS),
    "Sum": ("ADD", FLOATS),
}
_LARGEST_RATIO = 2**8
"""Of scales, by XNNPACK's checks. Far beyond it LiteRT's own kernels abort the process."""
_UNARY = {
    "Ceil": "CEIL", "Cos": "COS", "Exp": "EXP", "Floor": "FLOOR", "Log": "LOG", "Round": "ROUND",
    "Sin": "SIN", "Sqrt": "SQRT",
}  # fmt: skip


# ----------------------------------------------------------------------------------------- how operands lie


def common_order(out: Emitter, values: Sequence[ir.Value | None], rank: int) -> Order:
    """The order in which operands are read together: the one for which the fewest elements move.

    Constants are stored in any order at no cost. Of orders that cost the same, channels last is taken.
    """
    lying = [(out.shape(value), out.order(value)) for value in values if value in out.carried]
    orders = [order for shape, order in lying if len(shape) == rank and order != plain(rank)]

    def cost(order: Order) -> int:
        return sum(_moved(shape, own, order) for shape, own in lying)

    return min((*orders, plain(rank)), key=cost)


@lru_cache(4096)
def _moved(shape: tuple[int, ...], own: Order, order: Order) -> int:
    """How many elements a value of perhaps fewer axes has to move; steps of a network ask the same."""
    more = len(order) - len(shape)
    wide = (*(1,) * more, *shape)
    lies = (*range(more), *(axis + more for axis in own))
    return 0 if same_memory(wide, lies, order) else int(np.prod(np.maximum(wide, 1)))


def operand(out: Emitter, value: ir.Value | None, order: Order, *, integer: bool = False) -> int:
    """An operand in ``order``; one of fewer axes gets them, unless TFLite lines them up as ONNX does."""
    assert value is not None
    rank = len(out.shape(value))
    if value not in out.carried or rank == len(order):
        return out.read(value, order, integer=integer)
    index = out.read(value, plain(rank), integer=integer)
    if order == plain(len(order)):
        return index
    tensor = out.tensors[index]
    if tensor.shape.count(-1) > 1:
        raise Unsupported("an operand of fewer axes with more than one free size")
    shape = (*(1,) * (len(order) - rank), *tensor.shape)
    sizes = out.numbers(np.array(shape, np.int32), f"{tensor.name}/shape")
    wide = out.step("RESHAPE", [index, sizes], shape, dtype=tensor.dtype, params=tensor.params)
    return out.reordered(wide, order)


def operands(
    out: Emitter, values: Sequence[ir.Value | None], result: ir.Value, *, integer: bool = False
) -> tuple[list[int], Order]:
    """Operands that are broadcast together, in the order in which the result will lie."""
    order = common_order(out, values, len(out.shape(result)))
    return [operand(out, value, order, integer=integer) for value in values], order


def terms(
    out: Emitter, values: Sequence[ir.Value | None], result: ir.Value, *, integer: bool = False
) -> tuple[list[Term], Order]:
    """As `operands`, to calculate with."""
    read, order = operands(out, values, result, integer=integer)
    return [Term(out, index) for index in read], order


def term(node: ir.Node, out: Emitter) -> Term:
    """A node's first operand as it lies, to calculate with."""
    return Term(out, out.read(node.inputs[0]))


def numbers_of(out: Emitter, value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant as they are read, however they are stored; None for what is computed."""
    array = known(out, value)
    if array is not None or value is None:
        return array
    stored, params = stored_constant(value), out.params(value)
    if stored is None or params is None:
        return None if stored is None else stored.astype(np.float32)
    along = [1] * stored.ndim
    if params.axis is not None:
        along[params.axis] = -1
    scale, zero = (
        np.array(numbers, np.float64).reshape(along) for numbers in (params.scale, params.zero_point)
    )
    return ((stored - zero) * scale).astype(np.float32)


def elementwise(
    code: str, read: Sequence[int], result: ir.Value, out: Emitter, order: Order, activation: str = "NONE"
) -> None:
    """The operator that makes a node's result, of operands in the result's order."""
    shapes = [out.tensors[index].shape for index in read]
    out.emit(code, read, result, options(code, activation), order=order, version=version(code, shapes))


# ------------------------------------------------------------------------------------------ of two and more


def _pair(code: str, *, integers: bool) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        of_floats = node.outputs[0].dtype == ir.DataType.FLOAT
        result, activation = out.activation(node) if of_floats else (node.outputs[0], "NONE")
        params = out.integer(result, node.inputs) if integers else None
        read_by = [out.params(value) for value in node.inputs]
        if params is None or not _in_reach(code, read_by, params):
            read, order = operands(out, node.inputs, result)
            elementwise(code, read, result, out, order, activation)
            return
        read, order = operands(out, node.inputs, result, integer=True)
        activation = "NONE" if idle(activation, params) else activation
        out.emit(code, read, result, options(code, activation), order=order, params=params)

    return lower


def _in_reach(code: str, operands: Sequence[QuantParams | None], result: QuantParams) -> bool:
    """Whether kernels get from the operands' scales to the result's: one that is too fine overflows them."""
    if any(params is None or params.axis is not None for params in operands):
        return False
    scales = [params.scale[0] for params in operands if params is not None]
    largest = math.prod(scales) if code == "MUL" else max(scales)
    return largest / result.scale[0] < _LARGEST_RATIO


def _of_many(code: str) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        result = node.outputs[0]
        params = out.moved(result, node.inputs) if code != "ADD" else None
        if len(node.inputs) == 1:
            out.carried[result] = out.read(node.inputs[0], integer=params is not None)
            return
        read, order = terms(out, node.inputs, result, integer=params is not None)
        if params is not None:
            if len(read) > 2:
                raise Unsupported("more than two operands as integers")
            pair = [read[0].index, read[1].index]
            out.emit(code, pair, result, options(code), order=order, params=params)
            return
        first = read[0]
        for following in read[1:-1]:
            first = first.apply(code, following)
        elementwise(code, [first.index, read[-1].index], result, out, order)

    return lower


for _name in ("Add", "Sub", "Mul"):
    ops.lower(_name, types=NUMBERS)(_pair(_name.upper(), integers=True))
for _name, (_code, _types) in _MANY.items():
    ops.lower(_name, types=_types)(_of_many(_code))


@ops.lower("Mean")
def mean(node: ir.Node, out: Emitter) -> None:
    read, _ = terms(out, node.inputs, node.outputs[0])
    total = read[0]
    for following in read[1:]:
        total = total + following
    (total * (1 / len(read))).becomes(node.outputs[0])


@ops.lower("Mod", types=NUMBERS)
def mod(node: ir.Node, out: Emitter) -> None:
    """The sign of the divisor, as FLOOR_MOD has it, or with fmod that of the dividend."""
    (x, y), order = terms(out, node.inputs, node.outputs[0])
    if not node.attributes.get_int("fmod", 0):
        elementwise("FLOOR_MOD", [x.index, y.index], node.outputs[0], out, order)
        return
    rest = x.abs().apply("FLOOR_MOD", y.abs())
    (-rest).where(x.apply("LESS", 0, dtype="bool"), rest).becomes(node.outputs[0])


@ops.lower("Pow", types=NUMBERS)
def power(node: ir.Node, out: Emitter) -> None:
    """By small constants with operators that XNNPACK has, which lacks POW."""
    base, exponent = node.inputs[:2]
    result = node.outputs[0]
    dtype, number = dtype_of(result), numbers_of(out, exponent)
    if number is not None and number.size == 1 and number.ndim <= len(out.shape(base)):
        made = _small_power(float(number.reshape(())), term(node, out))
        if made is not None:
            made.becomes(result)
            return
    if dtype == "int64":
        raise Unsupported("POW knows float32 and int32 only")
    if dtype == "int32" and (
        number is None or not np.array_equal(number, np.round(number)) or (number < 0).any()
    ):
        raise Unsupported("POW of integers wants whole exponents from 0 on, which are constants")
    order = common_order(out, node.inputs[:2], len(out.shape(result)))
    x, y = (Term(out, operand(out, value, order)) for value in (base, exponent))
    elementwise("POW", [x.index, y.cast(dtype).index], result, out, order)


def _small_power(exponent: float, x: Term) -> Term | None:
    if exponent == 2:
        return x.square()
    if exponent == 3:
        return x.square() * x
    if x.dtype != "float32":
        return None
    # A negative zero, or an infinite one, has roots and powers that differ: nobody's network depends on it.
    if exponent == 0.5:
        return x.sqrt()
    if exponent == -0.5:
        return x.apply("RSQRT")
    return 1.0 / x if exponent == -1 else None


# ---------------------------------------------------------------------------------------------------- of one


def unary(code: str, table: str = "") -> Lowering:
    """An operation of one operand that is float and stays in its order."""

    def lower(node: ir.Node, out: Emitter) -> None:
        source = out.read(node.inputs[0])
        given: Options = (table, {}) if table else options(code)
        out.emit(code, [source], node.outputs[0], given, order=out.tensors[source].order)

    return lower


for _name, _code in _UNARY.items():
    ops.lower(_name)(unary(_code))
ops.lower("Neg", types=NUMBERS)(unary("NEG"))


def formula(function: Callable[[Term], Term]) -> Lowering:
    """An operation of one operand, spelled out."""

    def lower(node: ir.Node, out: Emitter) -> None:
        function(term(node, out)).becomes(node.outputs[0])

    return lower


ops.lower("Abs", types=NUMBERS)(formula(Term.abs))


@ops.lower("Sign", types=NUMBERS)
def sign(node: ir.Node, out: Emitter) -> None:
    """SIGN lacks int64."""
    x = term(node, out)
    if x.dtype != "int64":
        order = out.tensors[x.index].order
        out.emit("SIGN", [x.index], node.outputs[0], order=order, version=2 if x.dtype == "int32" else 1)
        return
    above, below = (x.apply(code, 0, dtype="bool").cast("int64") for code in ("GREATER", "LESS"))
    (above - below).becomes(node.outputs[0])


@ops.lower("Reciprocal")
def reciprocal(node: ir.Node, out: Emitter) -> None:
    """Of a root it is one operator."""
    made = _over_root(node.inputs[0], out) or 1.0 / term(node, out)
    made.becomes(node.outputs[0])


@ops.lower("Div", types=("float32", "int32"))
def divide(node: ir.Node, out: Emitter) -> None:
    """1 over a root is one operator."""
    above = numbers_of(out, node.inputs[0])
    rank = len(out.shape(node.inputs[1]))
    is_one = above is not None and above.ndim <= rank and above.size == 1 and float(above.reshape(())) == 1
    made = _over_root(node.inputs[1], out) if is_one else None
    if made is None:
        _pair("DIV", integers=False)(node, out)
    else:
        made.becomes(node.outputs[0])


def _over_root(value: ir.Value | None, out: Emitter) -> Term | None:
    root = None if value is None else value.producer()
    if root is None or root.op_type != "Sqrt" or root.domain != "":
        return None
    return Term(out, out.read(root.inputs[0])).apply("RSQRT")
