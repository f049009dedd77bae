"""Sums, means and extremes over constant axes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.layout import plain
from backends.tflite.optable import Lowering, OpTable
from backends.tflite.reading import Unsupported
from deploy.graph.edit import constant

ops = OpTable()


def _reduction(code: str, integers: bool) -> Lowering:
    def lower(node: ir.Node, out: Emitter) -> None:
        value, result = node.inputs[0], node.outputs[0]
        rank = len(out.shape(value))
        given = node.inputs[1] if len(node.inputs) > 1 else None
        axes = constant(given)
        if given is not None and axes is None:
            raise Unsupported("its axes must be constants")
        if axes is None or not axes.size:
            if node.attributes.get_int("noop_with_empty_axes", 0):
                raise Unsupported("it reduces over no axis")
            axes = np.arange(rank)
        if rank == 0 or rank > 4:
            raise Unsupported("no axis, or more than 4")
        chosen = sorted({int(axis) % rank for axis in axes.reshape(-1)})
        keep = bool(node.attributes.get_int("keepdims", 1))
        params = out.integer(result, [value]) if integers else None
        source = out.read(value, integer=params is not None)
        order = out.tensors[source].order
        left = [axis for axis in order if axis not in chosen]
        if not keep and left != sorted(left):
            source = out.reordered(source, plain(rank))
            order = plain(rank)
        stored = np.array(sorted(order.index(axis) for axis in chosen), np.int32)
        given_axes = out.numbers(stored, f"{node.name}/axes")
        kept = order if keep else None
        out.emit(
            code,
            [source, given_axes],
            result,
            ("ReducerOptions", {"keepDims": keep}),
            order=kept,
            params=params,
        )

    return lower


for _name, _code in {
    "ReduceMax": "REDUCE_MAX", "ReduceMin": "REDUCE_MIN", "ReduceSum": "SUM", "ReduceProd": "REDUCE_PROD",
}.items():  # fmt: skip
    ops.lower(_name)(_reduction(_code, integers=False))
ops.lower("ReduceMean")(_reduction("MEAN", integers=True))
