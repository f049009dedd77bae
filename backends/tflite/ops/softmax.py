"""Softmax over any axis: TFLite has it over the last one as stored."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.layout import Order
from backends.tflite.network import Options
from backends.tflite.optable import OpTable
from deploy.adapter.optable import Unsupported

ops = OpTable()

_FIXED = (1 / 256, -128)
"""Scale and zero point that SOFTMAX always writes as integers."""


def last(out: Emitter, value: ir.Value | None, axis: int) -> Order:
    """An order in which an axis is stored last: the one that the value has, if so, else with it moved there.

    Channels of an image come to be stored channels last.
    """
    rank = len(out.shape(value))
    if value in out.carried and out.order(value)[-1] == axis:
        return out.order(value)
    return (*(other for other in range(rank) if other != axis), axis)


@ops.lower("Softmax", "LogSoftmax")
def softmax(node: ir.Node, out: Emitter) -> None:
    value, result = node.inputs[0], node.outputs[0]
    rank = len(out.shape(value))
    if rank == 0:
        raise Unsupported("a number without axes")
    order = last(out, value, node.attributes.get_int("axis", -1) % rank)
    if node.op_type == "LogSoftmax":
        out.emit("LOG_SOFTMAX", [out.read(value, order)], result, ("LogSoftmaxOptions", {}), order=order)
        return
    params = out.integer(result, [value]) if out.listed(node) else None
    if params is not None and (params.scale[0], params.zero_point[0]) != _FIXED:
        params = None
    source = out.read(value, order, integer=params is not None)
    given: Options = ("SoftmaxOptions", {"beta": 1.0})
    out.emit("SOFTMAX", [source], result, given, order=order, params=params)


@ops.lower("Hardmax")
def hardmax(node: ir.Node, out: Emitter) -> None:
    """1 at the first of the greatest numbers, 0 elsewhere."""
    value, result = node.inputs[0], node.outputs[0]
    rank = len(out.shape(value))
    order = last(out, value, node.attributes.get_int("axis", -1) % rank)
    source = out.read(value, order)
    shape = out.tensors[source].shape
    if shape[-1] < 0:
        raise Unsupported("the size of its axis is free")
    place = number(out, rank - 1, "axis")
    options: Options = ("ArgMaxOptions", {"outputType": "INT32"})
    best = out.step("ARG_MAX", [source, place], shape[:-1], options, dtype="int32")
    given = [number(out, shape[-1], "depth"), number(out, 1.0, "on"), number(out, 0.0, "off")]
    out.emit("ONE_HOT", [best, *given], result, ("OneHotOptions", {"axis": -1}), order=order)


def number(out: Emitter, value: float, name: str) -> int:
    """A constant: int32 for a whole number, float32 otherwise."""
    dtype = np.int32 if isinstance(value, int) else np.float32
    return out.numbers(np.array(value, dtype), f"{out.node}/{name}")
