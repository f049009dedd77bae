"""Arithmetic element by element. Operands keep the order that they have; they must only have the same one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter, Options
from backends.tflite.layout import Order, plain
from backends.tflite.optable import Lowering, OpTable
from backends.tflite.reading import Unsupported

ops = OpTable()

_LARGEST_RANK = 4
_FUSING = {
    "Add": ("ADD", "AddOptions", True),
    "Sub": ("SUB", "SubOptions", True),
    "Mul": ("MUL", "MulOptions", True),
    "Div": ("DIV", "DivOptions", False),
}
"""ONNX name -> TFLite's, options, whether it has an INT8 kernel in XNNPACK."""
_PAIRS = {
    "Max": ("MAXIMUM", "MaximumMinimumOptions"),
    "Min": ("MINIMUM", "MaximumMinimumOptions"),
    "Pow": ("POW", "PowOptions"),
}
_UNARY = {
    "Abs": ("ABS", "AbsOptions"),
    "Ceil": ("CEIL", ""),
    "Cos": ("COS", "CosOptions"),
    "Exp": ("EXP", "ExpOptions"),
    "Floor": ("FLOOR", ""),
    "Log": ("LOG", ""),
    "Neg": ("NEG", "NegOptions"),
    "Round": ("ROUND", ""),
    "Sign": ("SIGN", ""),
    "Sin": ("SIN", ""),
    "Sqrt": ("SQRT", ""),
}


def common_order(out: Emitter, values: list[ir.Value | None], rank: int) -> Order:
    """The order in which operands are read together: channels last if one of full rank is stored so."""
    for value in values:
        if value in out.carried and len(out.shape(value)) == rank and out.order(value) != plain(rank):
            if any(v in out.carried and len(out.shape(v)) != rank for v in values):
                return plain(rank)  # ONNX lines axes up from the last one on
            return out.order(value)
    return plain(rank)


def operand(out: Emitter, value: ir.Value | None, order: Order, *, integer: bool) -> int:
    """An operand in ``order``; a lower rank is read as it is, for TFLite lines axes up as ONNX does."""
    assert value is not None
    if value.dtype not in (None, ir.DataType.FLOAT):
        raise Unsupported(f"an operand of {value.dtype}; so far it is written for float32 only")
    rank = len(out.shape(value))
    if value in out.carried and rank != len(order):
        return out.read(value, plain(rank), integer=integer)
    return out.read(value, order, integer=integer)


def _binary(code: str, table: str, *, fuses: bool, integers: bool) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        if len(node.inputs) != 2:
            raise Unsupported("only two operands are written")
        operands = list(node.inputs)
        rank = len(out.shape(node.outputs[0]))
        if rank > _LARGEST_RANK:
            raise Unsupported(f"more than {_LARGEST_RANK} axes")
        result, activation = out.activation(node) if fuses else (node.outputs[0], "NONE")
        params = out.integer(result, operands) if integers else None
        order = common_order(out, operands, rank)
        read = [operand(out, value, order, integer=params is not None) for value in operands]
        options: Options = (table, {"fusedActivationFunction": activation} if fuses else {})
        out.emit(code, read, result, options, order=order, params=params)

    return lower


def unary(code: str, table: str = "") -> Lowering:
    """An operation of one operand that is float and stays in its order."""

    def lower(node: ir.Node, out: Emitter) -> None:
        source = out.read(node.inputs[0])
        out.emit(code, [source], node.outputs[0], (table, {}), order=out.tensors[source].order)

    return lower


for _name, (_code, _table, _integers) in _FUSING.items():
    ops.lower(_name)(_binary(_code, _table, fuses=True, integers=_integers))
for _name, (_code, _table) in _PAIRS.items():
    ops.lower(_name)(_binary(_code, _table, fuses=False, integers=False))
for _name, (_code, _table) in _UNARY.items():
    ops.lower(_name)(unary(_code, _table))


@ops.lower("Reciprocal")
def reciprocal(node: ir.Node, out: Emitter) -> None:
    source = out.read(node.inputs[0])
    one = out.numbers(np.ones((), np.float32), f"{node.name}/one")
    out.emit("DIV", [one, source], node.outputs[0], ("DivOptions", {}), order=out.tensors[source].order)


@ops.lower("Cast")
def cast(node: ir.Node, out: Emitter) -> None:
    source = out.read(node.inputs[0])
    tensor = out.tensors[source]
    options: Options = ("CastOptions", {"inDataType": tensor.dtype.upper(), "outDataType": "FLOAT32"})
    out.emit("CAST", [source], node.outputs[0], options, order=tensor.order)
