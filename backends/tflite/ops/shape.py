"""What moves elements. Integers go through as they are where the parameters on both sides are the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.layout import NHWC, Order, plain
from backends.tflite.ops.elementwise import common_order
from backends.tflite.optable import ANY, NUMBERS, OpTable
from backends.tflite.reading import Unsupported
from deploy.graph.edit import constant, scalar
from deploy.spec.plan import QuantParams

ops = OpTable()


@ops.lower("Reshape", "Flatten", "Squeeze", "Unsqueeze", types=ANY)
def reshape(node: ir.Node, out: Emitter) -> None:
    """To the shape that the result is known to have; one size may be free."""
    value, result = node.inputs[0], node.outputs[0]
    shape = out.shape(result)
    if shape.count(-1) > 1:
        raise Unsupported("more than one size of its result is free")
    params = out.moved(result, [value])
    source = out.flat(value, integer=params is not None)
    sizes = out.numbers(np.array(shape, np.int32), f"{node.name}/shape")
    out.emit("RESHAPE", [source, sizes], result, params=params, version=1)


@ops.lower("Identity", "Dropout", types=ANY)
def identity(node: ir.Node, out: Emitter) -> None:
    """Nothing: whoever reads its result reads its input."""
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise Unsupported("the mask of what was dropped")
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None and scalar(training) != 0:
        raise Unsupported("it drops numbers, as in training")
    out.carried[node.outputs[0]] = out.read(node.inputs[0], integer=True)


@ops.lower("Transpose", types=ANY)
def transpose(node: ir.Node, out: Emitter) -> None:
    """Nothing where the tensor already lies as one of the orders of the result; else an operator."""
    value, result = node.inputs[0], node.outputs[0]
    rank = len(out.shape(value))
    perm = tuple(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))
    params = out.moved(result, [value])
    source = out.read(value, integer=params is not None)
    tensor = out.tensors[source]
    lies = tuple(perm.index(axis) for axis in tensor.order)
    lies_plain, lies_last = lies == plain(rank), rank == 4 and lies == NHWC
    if not lies_plain and not lies_last:
        given = out.numbers(
            np.array([tensor.order.index(axis) for axis in perm], np.int32), f"{node.name}/perm"
        )
        out.emit("TRANSPOSE", [source, given], result, ("TransposeOptions", {}), params=params)
        return
    # A second tensor would copy: the operator that does nothing is a reshape to the same sizes.
    if tensor.shape.count(-1) > 1:
        raise Unsupported("more than one size of its result is free")
    sizes = out.numbers(np.array(tensor.shape, np.int32), f"{node.name}/shape")
    order = plain(rank) if lies_plain else NHWC
    out.emit("RESHAPE", [source, sizes], result, order=order, params=params, version=1)


@ops.lower("Concat", types=NUMBERS)
def concat(node: ir.Node, out: Emitter) -> None:
    result = node.outputs[0]
    rank = len(out.shape(result))
    if rank > 4:
        raise Unsupported("more than 4 axes")
    params = out.moved(result, node.inputs)
    order = common_order(out, list(node.inputs), rank)
    read = [out.read(value, order, integer=params is not None) for value in node.inputs]
    axis = order.index(node.attributes.get_int("axis", 0) % rank)
    out.emit(
        "CONCATENATION", read, result, ("ConcatenationOptions", {"axis": axis}), order=order, params=params
    )


@ops.lower("Pad")
def pad(node: ir.Node, out: Emitter) -> None:
    """With zeros: PADV2, which takes other numbers, would split the delegated graph."""
    value, result = node.inputs[0], node.outputs[0]
    if node.attributes.get_string("mode", "constant") != "constant":
        raise Unsupported("only padding with zeros is written")
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    if fill is not None and scalar(fill) != 0:
        raise Unsupported("only padding with zeros is written")
    rank = len(out.shape(value))
    widths = constant(node.inputs[1])
    axes = (
        constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else np.arange(rank)
    )
    if widths is None or axes is None or rank > 4 or rank == 0:
        raise Unsupported("widths and axes must be constants, of 1 to 4 axes")
    if widths.size and widths.min() < 0:
        raise Unsupported("negative widths")
    table = np.zeros((rank, 2), np.int32)
    table[[int(axis) % rank for axis in axes]] = widths.reshape(2, -1).T
    source, order, params = _moved(out, value, result)
    given = out.numbers(np.ascontiguousarray(table[list(order)]), f"{node.name}/pads")
    out.emit("PAD", [source, given], result, ("PadOptions", {}), order=order, params=params)


@ops.lower("Slice", types=NUMBERS)
def slice_(node: ir.Node, out: Emitter) -> None:
    value, result = node.inputs[0], node.outputs[0]
    shape = out.shape(value)
    rank = len(shape)
    starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
    if starts is None or ends is None or rank > 4:
        raise Unsupported("its bounds must be constants, of 1 to 4 axes")
    axes = _optional(node, 3, np.arange(starts.size))
    steps = _optional(node, 4, np.ones(starts.size, np.int64))
    begin, end, stride = [0] * rank, list(shape), [1] * rank
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        at, size = int(axis) % rank, shape[int(axis) % rank]
        if size < 0 or step <= 0:
            raise Unsupported("a slice of a free axis, or backwards")
        begin[at], end[at], stride[at] = slice(int(start), int(stop), int(step)).indices(size)
    source, order, params = _moved(out, value, result)
    whole = sum(1 << place for place, axis in enumerate(order) if shape[axis] < 0)
    given = [
        out.numbers(np.array([max(numbers[axis], 0) for axis in order], np.int32), f"{node.name}/{name}")
        for name, numbers in (("begin", begin), ("end", end), ("strides", stride))
    ]
    options = {"beginMask": whole, "endMask": whole}
    out.emit(
        "STRIDED_SLICE",
        [source, *given],
        result,
        ("StridedSliceOptions", {**options}),
        order=order,
        params=params,
    )


@ops.lower("DepthToSpace", "SpaceToDepth")
def depth_to_space(node: ir.Node, out: Emitter) -> None:
    """Blocks before channels, as TFLite has them: ONNX's mode DCR, and its SpaceToDepth."""
    value, result = node.inputs[0], node.outputs[0]
    if node.attributes.get_string("mode", "DCR") != "DCR":
        raise Unsupported("only mode DCR is written")
    size = node.attributes.get_int("blocksize", 0)
    params = out.moved(result, [value])
    source = out.read(value, NHWC, integer=params is not None)
    code, table = (
        ("DEPTH_TO_SPACE", "DepthToSpaceOptions")
        if node.op_type == "DepthToSpace"
        else ("SPACE_TO_DEPTH", "SpaceToDepthOptions")
    )
    out.emit(code, [source], result, (table, {"blockSize": size}), order=NHWC, params=params)


def _moved(out: Emitter, value: ir.Value | None, result: ir.Value) -> tuple[int, Order, QuantParams | None]:
    """The operand in the order that it has, that order, and the parameters if integers go through."""
    params = out.moved(result, [value])
    source = out.read(value, integer=params is not None)
    return source, out.tensors[source].order, params


def _optional(node: ir.Node, index: int, otherwise: np.ndarray) -> np.ndarray:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return otherwise
    array = constant(value)
    if array is None:
        raise Unsupported("its axes and steps must be constants")
    return array
