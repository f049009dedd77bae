"""Reductions, and where the largest and smallest lie."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter
from backends.coreml.optable import FLOATS, NUMBERS, Lowering, OpTable

ops = OpTable()

_KINDS = {
    "ReduceMean": "reduce_mean", "ReduceSum": "reduce_sum", "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min", "ReduceProd": "reduce_prod", "ReduceL1": "reduce_l1_norm",
    "ReduceL2": "reduce_l2_norm", "ReduceSumSquare": "reduce_sum_square", "ReduceLogSum": "reduce_log_sum",
    "ReduceLogSumExp": "reduce_log_sum_exp",
}  # fmt: skip
_INTEGERS = {"ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceSumSquare"}


def _reduction(kind: str) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        rank = out.rank(node.inputs[0])
        given = out.operand(node, 1)
        axes = (
            out.integers(given, "axes") if given is not None else list(node.attributes.get_ints("axes", ()))
        )
        x = out.read(node.inputs[0])
        if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
            out.emit(node, "identity", x=x)
            return
        along = np.array(sorted(axis % rank for axis in axes) or range(rank), np.int32)
        keep = bool(node.attributes.get_int("keepdims", 1))
        if not len(along):
            out.emit(node, "identity", x=x)
            return
        out.emit(node, kind, x=x, axes=along, keep_dims=keep)

    return lower


for _name, _kind in _KINDS.items():
    ops.lower(_name, types=NUMBERS if _name in _INTEGERS else FLOATS)(_reduction(_kind))


@ops.lower("ArgMax", "ArgMin", types=NUMBERS)
def arg(node: ir.Node, out: Emitter) -> None:
    """The first of equal ones; the last is found from behind."""
    kind = "reduce_argmax" if node.op_type == "ArgMax" else "reduce_argmin"
    rank = out.rank(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % rank
    keep = bool(node.attributes.get_int("keepdims", 1))
    x = out.read(node.inputs[0])
    if not node.attributes.get_int("select_last_index", 0):
        out.emit(node, kind, x=x, axis=np.int32(axis), keep_dims=keep)
        return
    last = np.int32(out.fixed(node.inputs[0])[axis] - 1)
    behind = out.op(
        kind, x=out.op("reverse", x=x, axes=np.array([axis], np.int32)), axis=np.int32(axis), keep_dims=keep
    )
    out.emit(node, "sub", x=last, y=behind)
