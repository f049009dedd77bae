"""What makes numbers out of sizes: constants where those are known, computed ones where they are free."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES, as_int32, carry, known, sizes
from backends.tflite.layout import plain
from backends.tflite.network import Options
from backends.tflite.optable import ANY, NUMBERS, OpTable
from backends.tflite.reading import dtype_of
from deploy.adapter.optable import Unsupported

ops = OpTable()


@ops.lower("Shape", types=ANY)
def shape(node: ir.Node, out: Emitter) -> None:
    value, result = node.inputs[0], node.outputs[0]
    have = out.shape(value)
    rank = len(have)
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
    wanted = list(range(rank))[start:end]
    if not wanted:
        raise Unsupported("an empty shape, of which TFLite makes no tensor: remove what reads it")
    if all(have[axis] >= 0 for axis in wanted):
        carry(out, result, np.array([have[axis] for axis in wanted], np.int64))
        return
    source = out.read(value, integer=True)
    order = out.tensors[source].order
    options: Options = ("ShapeOptions", {"outType": "INT64"})
    if order == plain(rank) and len(wanted) == rank:
        out.emit("SHAPE", [source], result, options)
        return
    whole = out.step("SHAPE", [source], (rank,), options, dtype="int64")
    places = out.numbers(np.array([order.index(axis) for axis in wanted], np.int32), f"{node.name}/axes")
    out.emit("GATHER", [whole, places], result, ("GatherOptions", {"axis": 0}))


@ops.lower("Size", types=ANY)
def size(node: ir.Node, out: Emitter) -> None:
    value, result = node.inputs[0], node.outputs[0]
    have = out.shape(value)
    if -1 not in have:
        carry(out, result, np.array(np.prod(have, dtype=np.int64)))
        return
    source = out.read(value, integer=True)
    options: Options = ("ShapeOptions", {"outType": "INT64"})
    whole = out.step("SHAPE", [source], (len(have),), options, dtype="int64")
    axis = out.numbers(np.zeros(1, np.int32), f"{node.name}/axis")
    out.emit("REDUCE_PROD", [whole, axis], result, ("ReducerOptions", {"keepDims": False}))


@ops.lower("ConstantOfShape", types=ANY)
def constant_of_shape(node: ir.Node, out: Emitter) -> None:
    result = node.outputs[0]
    fill = node.attributes.get_tensor("value", None)
    number = np.zeros((), np.float32) if fill is None else fill.numpy().reshape(())
    have = out.shape(result)
    if -1 not in have:
        carry(out, result, np.full(have, number))
        return
    if any(size is None or any(map(_made_up, size.symbols)) for size in sizes(result)):
        raise Unsupported("the size of its result depends on numbers: let sizes come from shapes")
    dims = as_int32(out, node.inputs[0])
    out.emit(
        "FILL", [dims, out.numbers(number, f"{node.name}/value")], result, ("FillOptions", {}), version=1
    )


def _made_up(symbol: str) -> bool:
    """Whether shape inference gave the name to a size that it knows nothing of."""
    return symbol.startswith("unk__")


@ops.lower("Range", types=NUMBERS)
def range_(node: ir.Node, out: Emitter) -> None:
    result = node.outputs[0]
    found = [known(out, value) for value in node.inputs]
    arrays = [array.reshape(()) for array in found if array is not None]
    if len(arrays) == len(found):
        start, limit, delta = arrays
        count = max(int(np.ceil((limit - start) / delta)), 0)
        carry(out, result, (start + np.arange(count) * delta).astype(start.dtype))
        return
    read = [out.read(value, plain(len(out.shape(value)))) for value in node.inputs]
    version = 2 if dtype_of(result) == "int64" else 1
    out.emit("RANGE", read, result, ("RangeOptions", {}), version=version)


@ops.lower("EyeLike", types=ANY)
def eye_like(node: ir.Node, out: Emitter) -> None:
    value, result = node.inputs[0], node.outputs[0]
    have = out.shape(value)
    if -1 in have:
        raise Unsupported(f"a matrix of a free size: {FIX_SIZES}")
    made = np.eye(have[0], have[1], k=node.attributes.get_int("k", 0))
    carry(out, result, made.astype(dtype_of(result)))


@ops.lower("NonZero", "Unique", types=ANY)
def of_unknown_size(node: ir.Node, out: Emitter) -> None:
    """Only of numbers that are known."""
    array = known(out, node.inputs[0])
    if array is None or node.op_type != "NonZero":
        raise Unsupported("the size of its result depends on the numbers it reads: let a constant decide")
    carry(out, node.outputs[0], np.stack(np.nonzero(np.atleast_1d(array))).astype(np.int64))


@ops.lower("Loop", "Scan", types=ANY)
def loop(node: ir.Node, out: Emitter) -> None:
    del node, out
    raise Unsupported("loops are not written for TFLite: unroll it, or export the layer whose steps it makes")


@ops.lower("If", types=ANY)
def branch(node: ir.Node, out: Emitter) -> None:
    del node, out
    raise Unsupported("its condition is computed, and both ways are graphs: choose one before the export")
