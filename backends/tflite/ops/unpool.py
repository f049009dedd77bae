"""Where maxima stood, and putting numbers back there: what segmentation networks unpool by.

TFLite's MAX_POOL_2D does not say where. Slices of the image, one for each element of a window, stacked along
a new last axis, do: their ARG_MAX is the element, the first of equal ones as in ONNX.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES
from backends.tflite.layout import NHWC, plain
from backends.tflite.network import Options
from backends.tflite.ops.window import Window, image_order, padded
from backends.tflite.optable import OpTable
from backends.tflite.terms import Term
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import constant

ops = OpTable()

_HUGE = 3e38


def indices_of_maxima(node: ir.Node, out: Emitter, found: Window) -> None:
    """The second result of a MaxPool: places in the flattened input.

    Left out where only unpoolings read it that look for the places themselves.
    """
    result = node.outputs[1]
    readers = [user for user, _ in result.uses()]
    if not result.is_graph_output() and readers and all(_undoes(user, node) for user in readers):
        return
    image = node.inputs[0]
    shape, laid = out.shape(image), image_order(len(out.shape(image)))
    if -1 in (*shape, *found.made) or len(found.kernel) != 2:
        raise Unsupported(f"indices of maxima in what has a free size, or in a volume: {FIX_SIZES}")
    batch, channels, (height, width) = shape[0], shape[1], found.sizes
    down = bool(node.attributes.get_int("storage_order", 0))
    step_down, step_right = (1, height) if down else (width, 1)
    element = _element_of_maximum(out, out.read(image, laid), found)
    rows, columns = (np.arange(size) * gap for size, gap in zip(found.kernel, found.dilations, strict=True))
    places = (rows[:, None] * step_down + columns * step_right).reshape(-1).astype(np.int32)
    inside = out.step(
        "GATHER",
        [out.numbers(places, f"{out.node}/places"), element],
        out.tensors[element].shape,
        ("GatherOptions", {"axis": 0}),
        dtype="int32",
    )
    corners = [
        np.arange(made) * stride - begin
        for made, stride, begin in zip(found.made, found.strides, found.begins, strict=True)
    ]
    base = corners[0][:, None, None] * step_down + corners[1][:, None] * step_right
    planes = (np.arange(batch)[:, None] * channels + np.arange(channels)) * height * width
    first = (base[None] + planes[:, None, None]).astype(np.int32)
    read = [inside, out.numbers(first, f"{out.node}/first")]
    index = out.step("ADD", read, first.shape, ("AddOptions", {}), dtype="int32")
    cast: Options = ("CastOptions", {"inDataType": "INT32", "outDataType": "INT64"})
    out.emit("CAST", [index], result, cast, order=laid)


@ops.lower("MaxUnpool")
def max_unpool(node: ir.Node, out: Emitter) -> None:
    """Each number where its maximum stood, zeros elsewhere."""
    places = node.inputs[1]
    assert places is not None
    pool = places.producer()
    known = constant(places)
    if known is not None:
        _to_known_places(node, out, known)
    elif pool is not None and pool.op_type == "MaxPool" and _undoes(node, pool):
        _to_the_element(pool, node, out)
    else:
        _scatter(pool, node, out)


def _undoes(unpool: ir.Node, pool: ir.Node) -> bool:
    """Whether the unpooling is that of a pooling whose windows lie side by side, and gives its size back."""
    kernel = tuple(pool.attributes.get_ints("kernel_shape", ()))
    image, result = pool.inputs[0], unpool.outputs[0]
    if unpool.op_type != "MaxUnpool" or image is None or image.shape is None or result.shape is None:
        return False
    sizes = [size if isinstance(size, int) else -1 for size in image.shape]
    same_sizes = len(sizes) == 4 and sizes[2:] == [s if isinstance(s, int) else -1 for s in result.shape][2:]
    return (
        same_sizes
        and all(
            tuple(n.attributes.get_ints("kernel_shape", ()))
            == kernel
            == tuple(n.attributes.get_ints("strides", ()))
            and not any(n.attributes.get_ints("pads", ()))
            for n in (pool, unpool)
        )
        and pool.attributes.get_string("auto_pad", "NOTSET") in ("", "NOTSET", "VALID")
        and all(size > 0 and size % k == 0 for size, k in zip(sizes[2:], kernel, strict=True))
        and len(set(kernel)) == 1
        and not pool.attributes.get_int("storage_order", 0)
    )


def _to_the_element(pool: ir.Node, node: ir.Node, out: Emitter) -> None:
    """A block of channels for each element of the window, zero where it is not the largest; then to space.

    In operators that XNNPACK takes, so without comparisons: what an element lacks to the maximum, times a
    huge number, is cut at -1. (Elements less than 3e-39 apart count as equal.)
    """
    value, result, image = node.inputs[0], node.outputs[0], pool.inputs[0]
    size = pool.attributes.get_ints("kernel_shape", ())[0]
    source, pixels = Term(out, out.read(value, NHWC)), Term(out, out.read(image, NHWC))
    batch, height, width, channels = source.shape
    if channels < 0:
        raise Unsupported(f"unpooling of free channels: {FIX_SIZES}")
    window: Options = (
        "Pool2DOptions",
        {"padding": "VALID", "strideH": size, "strideW": size, "filterHeight": size, "filterWidth": size},
    )
    largest = Term(out, out.step("MAX_POOL_2D", [pixels.index], source.shape, window, order=NHWC))
    deep, block = (batch, height, width, channels * size * size), {"blockSize": size}
    elements = out.step(
        "SPACE_TO_DEPTH", [pixels.index], deep, ("SpaceToDepthOptions", {**block}), order=NHWC
    )
    left: Term | None = None
    blocks = []
    for number in range(size * size):
        lacks = _channels(out, elements, number * channels, channels) - largest
        here = lacks.apply("MUL", _HUGE, activation="RELU_N1_TO_1") + 1.0
        blocks.append((source * (here if left is None else here * left)).index)
        left = 1.0 - here if left is None else left * (1.0 - here)
    joined = out.step("CONCATENATION", blocks, deep, ("ConcatenationOptions", {"axis": 3}), order=NHWC)
    out.emit("DEPTH_TO_SPACE", [joined], result, ("DepthToSpaceOptions", {**block}), order=NHWC)


def _channels(out: Emitter, index: int, first: int, count: int) -> Term:
    shape = (*out.tensors[index].shape[:3], count)
    bounds = ([0, 0, 0, first], [0, 0, 0, first + count], [1] * 4)
    read = [out.numbers(np.array(bound, np.int32), f"{out.node}/channels") for bound in bounds]
    options: Options = ("StridedSliceOptions", {"beginMask": 7, "endMask": 7})
    return Term(out, out.step("STRIDED_SLICE", [index, *read], shape, options, order=NHWC))


def _element_of_maximum(out: Emitter, source: int, found: Window) -> int:
    """int32 as stored: which element of its window is the largest, counted row by row."""
    found = found.by_pads()
    source = padded(out, source, found, lowest=True)
    tensor = out.tensors[source]
    made = (tensor.shape[0], *found.made, tensor.shape[3])
    if -1 in made[1:3]:
        raise Unsupported(f"the places of maxima in an image of free size: {FIX_SIZES}")
    slices = []
    for row in range(found.kernel[0]):
        for column in range(found.kernel[1]):
            begin = np.array([0, row * found.dilations[0], column * found.dilations[1], 0], np.int32)
            steps = np.array([1, *found.strides, 1], np.int32)
            end = begin + (np.array([1, *found.made, 1], np.int32) - 1) * steps + 1
            read = [out.numbers(array, f"{out.node}/slice") for array in (begin, end, steps)]
            options: Options = ("StridedSliceOptions", {"beginMask": 9, "endMask": 9})
            slices.append(out.step("STRIDED_SLICE", [source, *read], made, options))
    packing: Options = ("PackOptions", {"valuesCount": len(slices), "axis": 4})
    stack = out.step("PACK", slices, (*made, len(slices)), packing)
    axis = out.numbers(np.array(4, np.int32), f"{out.node}/axis")
    choice: Options = ("ArgMaxOptions", {"outputType": "INT32"})
    return out.step("ARG_MAX", [stack, axis], made, choice, dtype="int32", order=tensor.order)


def _to_known_places(node: ir.Node, out: Emitter, places: np.ndarray) -> None:
    """By a table that says for each place which number falls there, the last of several; a zero otherwise."""
    value, result = node.inputs[0], node.outputs[0]
    shape, sizes = _unpooled(node, out), out.shape(result)
    table = np.full(math.prod(shape), places.size, np.int32)
    table[places.reshape(-1)] = np.arange(places.size, dtype=np.int32)
    table = table.reshape(shape)
    ends = [(0, wide - size) for wide, size in zip(sizes, shape, strict=True)]
    table = np.pad(table, ends, constant_values=places.size)
    flat = _flat(out, value)
    zero = out.numbers(np.zeros(1, np.float32), f"{out.node}/zero")
    longer = out.step(
        "CONCATENATION", [flat, zero], (places.size + 1,), ("ConcatenationOptions", {"axis": 0})
    )
    read = [longer, out.numbers(table, f"{out.node}/table")]
    out.emit("GATHER", read, result, ("GatherOptions", {"axis": 0}), order=plain(len(sizes)))


def _scatter(pool: ir.Node | None, node: ir.Node, out: Emitter) -> None:
    """SCATTER_ND adds up what falls on one place, where ONNX keeps one: only windows that do not overlap."""
    value, places, result = node.inputs[0], node.inputs[1], node.outputs[0]
    kernel = node.attributes.get_ints("kernel_shape", ())
    strides = node.attributes.get_ints("strides", (1,) * len(kernel))
    apart = pool is not None and pool.op_type == "MaxPool"
    if not apart or any(size > step for size, step in zip(kernel, strides, strict=True)):
        raise Unsupported(
            "places that are not those of a MaxPool with windows side by side: SCATTER_ND would add up"
        )
    shape, sizes = _unpooled(node, out), out.shape(result)
    if shape != sizes:
        raise Unsupported("an output_shape other than that of what was pooled")
    total = math.prod(out.shape(value))
    cast: Options = ("CastOptions", {"inDataType": "INT64", "outDataType": "INT32"})
    index = out.step("CAST", [out.flat(places)], out.shape(places), cast, dtype="int32")
    column = out.numbers(np.array([total, 1], np.int32), f"{out.node}/column")
    index = out.step("RESHAPE", [index, column], (total, 1), dtype="int32")
    size = out.numbers(np.array([math.prod(shape)], np.int32), f"{out.node}/size")
    spread = out.step(
        "SCATTER_ND", [index, _flat(out, value), size], (math.prod(shape),), ("ScatterNdOptions", {})
    )
    out.emit(
        "RESHAPE", [spread, out.numbers(np.array(shape, np.int32), f"{out.node}/shape")], result, version=1
    )


def _unpooled(node: ir.Node, out: Emitter) -> tuple[int, ...]:
    """The shape that the indices count in. Raises Unsupported where it is free."""
    shape = out.shape(node.inputs[0])
    kernel = node.attributes.get_ints("kernel_shape", ())
    strides = node.attributes.get_ints("strides", (1,) * len(kernel))
    pads = node.attributes.get_ints("pads", (0,) * (2 * len(kernel)))
    if -1 in (*shape, *out.shape(node.outputs[0])):
        raise Unsupported(f"unpooling of what has a free size: {FIX_SIZES}")
    half = len(kernel)
    return shape[:2] + tuple(
        (shape[2 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[half + i] for i in range(half)
    )


def _flat(out: Emitter, value: ir.Value | None) -> int:
    total = math.prod(out.shape(value))
    sizes = out.numbers(np.array([total], np.int32), f"{out.node}/flat")
    return out.step("RESHAPE", [out.flat(value), sizes], (total,))
