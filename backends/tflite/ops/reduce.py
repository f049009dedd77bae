"""Sums, means and extremes over constant axes, counted as they are stored: nothing is transposed for them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import integers
from backends.tflite.optable import FLOATS, NUMBERS, Lowering, OpTable
from backends.tflite.terms import Term, without

ops = OpTable()

_HUGE = float(np.finfo(np.float32).max)
_OF_BOOL = {"REDUCE_MAX": "REDUCE_ANY", "REDUCE_MIN": "REDUCE_ALL"}


def axes_of(node: ir.Node, out: Emitter) -> list[int]:
    """The axes that a node reduces, in ONNX's order; none where it is told to do nothing without any."""
    rank = len(out.shape(node.inputs[0]))
    axes = integers(out, node, 1, "axes")
    if not axes:
        return [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({axis % rank for axis in axes})


def _reduction(code: str, *, integer: bool) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        value, result = node.inputs[0], node.outputs[0]
        chosen = axes_of(node, out)
        if not chosen:
            out.carried[result] = out.read(value)
            return
        keep = bool(node.attributes.get_int("keepdims", 1))
        params = out.integer(result, [value]) if integer and out.listed(node) else None
        source = out.read(value, integer=params is not None)
        tensor = out.tensors[source]
        places = sorted(tensor.order.index(axis) for axis in chosen)
        given = out.numbers(np.array(places, np.int32), f"{node.name}/axes")
        out.emit(
            _OF_BOOL[code] if tensor.dtype == "bool" else code,
            [source, given],
            result,
            ("ReducerOptions", {"keepDims": keep}),
            order=tensor.order if keep else without(tensor.order, chosen),
            params=params,
        )

    return lower


_Composed = Callable[[Term, Collection[int], bool], Term]


def _composed(function: _Composed) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        chosen = axes_of(node, out)
        source = out.read(node.inputs[0])
        order = out.tensors[source].order
        keep = bool(node.attributes.get_int("keepdims", 1))
        places = [order.index(axis) for axis in chosen]
        function(Term(out, source), places, keep).becomes(node.outputs[0])

    return lower


def _l1(x: Term, places: Collection[int], keep: bool) -> Term:
    return x.abs().reduced("SUM", places, keep=keep)


def _l2(x: Term, places: Collection[int], keep: bool) -> Term:
    return _sum_square(x, places, keep).sqrt()


def _sum_square(x: Term, places: Collection[int], keep: bool) -> Term:
    return x.square().reduced("SUM", places, keep=keep)


def _log_sum(x: Term, places: Collection[int], keep: bool) -> Term:
    return x.reduced("SUM", places, keep=keep).log()


def _log_sum_exp(x: Term, places: Collection[int], keep: bool) -> Term:
    """Less the greatest, so that nothing overflows; infinite ones are no numbers to subtract."""
    greatest = _finite_max(x, places, True)
    rest = _log_sum((x - greatest).exp(), places, keep)
    return rest + (greatest if keep else _finite_max(x, places, keep))


def _finite_max(x: Term, places: Collection[int], keep: bool) -> Term:
    return x.reduced("REDUCE_MAX", places, keep=keep).at_least(-_HUGE).at_most(_HUGE)


for _name, _code in {
    "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN", "ReduceSum": "SUM", "ReduceProd": "REDUCE_PROD",
    "ReduceMean": "MEAN",
}.items():  # fmt: skip
    _own = (*NUMBERS, "bool") if _code in _OF_BOOL else NUMBERS
    ops.lower(_name, types=_own)(_reduction(_code, integer=_code == "MEAN"))
for _name, _function, _types in (
    ("ReduceL1", _l1, NUMBERS),
    ("ReduceSumSquare", _sum_square, NUMBERS),
    ("ReduceL2", _l2, FLOATS),
    ("ReduceLogSum", _log_sum, FLOATS),
    ("ReduceLogSumExp", _log_sum_exp, FLOATS),
):
    ops.lower(_name, types=_types)(_composed(_function))
