"""Resize. TFLite's own operators where they make exactly what is asked, else whatever makes that.

Nearest: whole factors are copies side by side (CONCATENATION, DEPTH_TO_SPACE), which XNNPACK takes while it
leaves RESIZE_NEAREST_NEIGHBOR; any other choice of elements is a GATHER along each axis. Linear: of the modes
of RESIZE_BILINEAR the one with equal weights; anything else that is linear in its input (other coordinates,
cubic, antialias, crops) is a product with a matrix along each axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES, known
from backends.tflite.layout import Order, channels_last, own_axes, plain
from backends.tflite.network import Options
from backends.tflite.ops.blocks import carry, moved
from backends.tflite.ops.interpolation import (
    TFLITE_MODES,
    Along,
    Filter,
    repeats,
    tflite_matrix,
    tflite_nearest,
)
from backends.tflite.ops.shape import passed_on
from backends.tflite.ops.window import image_order
from backends.tflite.optable import ANY, OpTable
from deploy.adapter.optable import Unsupported

ops = OpTable()

_MOST_COPIES = 4
"""Operands of a CONCATENATION that XNNPACK takes."""
_LARGEST_MATRIX = 2**24


@ops.lower("Resize", types=ANY)
def resize(node: ir.Node, out: Emitter) -> None:
    value, result = node.inputs[0], node.outputs[0]
    assert value is not None
    read, alongs = _filter(node), _alongs(node, out)
    if not alongs:
        passed_on(out, value, result)
        return
    rank = len(out.shape(value))
    spatial = 3 <= rank <= 5 and all(along.axis >= 2 for along in alongs)
    images = spatial and rank < 5
    order = image_order(rank) if images else channels_last(rank) if spatial else plain(rank)
    beyond = any(read.outside(along).any() for along in alongs if along.before > 0)
    if any(read.undecided(along) for along in alongs if along.before > 0):
        raise Unsupported("places between two pixels, where the last bit decides: runtimes disagree")
    params = None if beyond else out.moved(result, [value])
    if read.mode == "nearest" and not beyond:
        source = out.read(value, order, integer=params is not None)
        index = _nearest(out, source, read, alongs, images)
    else:
        if value.dtype != ir.DataType.FLOAT:
            raise Unsupported(f"numbers between others, of {value.dtype}")
        if any(along.before < 0 for along in alongs):
            raise Unsupported(f"numbers between others along an axis of free size: {FIX_SIZES}")
        mode = _bilinear_mode(read, alongs) if images and read.mode == "linear" and not beyond else None
        if mode is None or (params is not None and not _exact_in_integers(alongs, mode)):
            params = None
        source = out.read(value, order, integer=params is not None)
        if mode is not None:
            index = _resized(out, "RESIZE_BILINEAR", "ResizeBilinearOptions", source, alongs, mode)
        else:
            index = _by_matrices(out, source, read, alongs)
    if beyond:
        index = _filled(out, index, read, alongs, node.attributes.get_float("extrapolation_value", 0.0))
    out.tensors[index].order = order
    carry(out, index, result)


def _filter(node: ir.Node) -> Filter:
    given = node.attributes
    return Filter(
        given.get_string("mode", "nearest"),
        given.get_string("coordinate_transformation_mode", "half_pixel"),
        given.get_string("nearest_mode", "round_prefer_floor"),
        bool(given.get_int("antialias", 0)),
        bool(given.get_int("exclude_outside", 0)),
        given.get_float("cubic_coeff_a", -0.75),
    )


def _alongs(node: ir.Node, out: Emitter) -> list[Along]:
    """The axes that change."""
    shape, made = out.shape(node.inputs[0]), out.shape(node.outputs[0])
    rank = len(shape)
    axes = [axis % rank for axis in node.attributes.get_ints("axes", tuple(range(rank)))]
    region, scales = (_given(node, out, index) for index in (1, 2))
    kept = [axis for axis in axes if _keeps(node, axis)]
    sizes = None if len(node.inputs) < 4 else _sizes(node, out, axes, kept)
    coordinates = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if scales is not None:
        factors = [float(scale) for scale in scales]
    elif sizes is None:
        raise Unsupported("neither scales nor sizes")
    else:
        if any(shape[axis] < 0 and axis not in kept for axis in axes):
            raise Unsupported(f"sizes for an axis of free size: {FIX_SIZES}")
        factors = [
            1.0 if shape[axis] < 0 else int(size) / shape[axis]
            for axis, size in zip(axes, sizes, strict=True)
        ]
        if policy != "stretch":
            factors = [(min if policy == "not_larger" else max)(factors)] * len(axes)
    alongs = []
    for place, (axis, factor) in enumerate(zip(axes, factors, strict=True)):
        part = (0.0, 1.0)
        if coordinates == "tf_crop_and_resize" and region is not None:
            part = (float(region[place]), float(region[len(axes) + place]))
        if factor == 1 and part == (0.0, 1.0) and (shape[axis] < 0 or made[axis] == shape[axis]):
            continue
        if factor == 1 and part != (0.0, 1.0):
            raise Unsupported("a crop along an axis that keeps its size: runtimes disagree")
        if node.attributes.get_int("antialias", 0) and shape[axis] == made[axis]:
            raise Unsupported("antialias along an axis that keeps its size: runtimes disagree")
        if coordinates == "align_corners" and shape[axis] > 0 and factor * shape[axis] != made[axis]:
            raise Unsupported("align_corners by scales that make no whole size: runtimes disagree")
        alongs.append(Along(axis, shape[axis], made[axis], factor, part))
    return alongs


def _keeps(node: ir.Node, axis: int) -> bool:
    """Whether the result is as large along an axis as the operand, whatever number that is."""
    value, result = node.inputs[0], node.outputs[0]
    assert value is not None and value.shape is not None and result.shape is not None
    size = value.shape[axis]
    named = isinstance(size, int) or size.value is not None
    return named and bool(size == result.shape[axis])


def _sizes(node: ir.Node, out: Emitter, axes: Sequence[int], kept: Sequence[int]) -> np.ndarray | None:
    """The sizes given; computed ones where the shapes tell them, as behind the pooling of a whole image."""
    made = out.shape(node.outputs[0])
    stretches = node.attributes.get_string("keep_aspect_ratio_policy", "stretch") == "stretch"
    computed = node.inputs[3] is not None and known(out, node.inputs[3]) is None
    if computed and stretches and all(made[axis] > 0 or axis in kept for axis in axes):
        return np.array([made[axis] for axis in axes])
    return _given(node, out, 3)


def _given(node: ir.Node, out: Emitter, index: int) -> np.ndarray | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    array = known(out, value)
    if value is not None and array is None:
        raise Unsupported(f"its region, scales or sizes are computed: {FIX_SIZES}")
    return array if array is not None and array.size else None


# --- nearest ------------------------------------------------------------------------------------------------


def _nearest(out: Emitter, index: int, read: Filter, alongs: Sequence[Along], images: bool) -> int:
    tensor = out.tensors[index]
    order, common = tensor.order, tensor.dtype in ("float32", "int8")
    factors = {along.axis: repeats(read, along) for along in alongs}
    sides = [factors.get(axis, 1) for axis in own_axes(order)[1:-1]]
    if images and common and len(sides) == 2 and set(sides) in ({2}, {4}):
        for _ in range(1 if sides[0] == 2 else 2):
            index = _doubled(out, index)
        return index
    free = any(along.before < 0 for along in alongs)
    if common and all(1 <= factor <= _MOST_COPIES for factor in factors.values()):
        return _copied(out, index, order, factors)
    if free:
        raise Unsupported(
            f"a factor that is no whole number up to 4, along an axis of free size: {FIX_SIZES}"
        )
    if images and common:
        for half, corners in TFLITE_MODES:
            if all(
                np.array_equal(tflite_nearest(a, half=half, corners=corners), read.nearest(a)) for a in alongs
            ):
                table = "ResizeNearestNeighborOptions"
                return _resized(out, "RESIZE_NEAREST_NEIGHBOR", table, index, alongs, (half, corners))
    for along in alongs:
        index = _gathered(out, index, order.index(along.axis), read.nearest(along))
        out.tensors[index].order = order
    return index


def _doubled(out: Emitter, index: int) -> int:
    """Four copies of each pixel as channels, which become a block of pixels."""
    tensor = out.tensors[index]
    batch, height, width, channels = tensor.shape
    if channels < 0:
        raise Unsupported(f"free channels: {FIX_SIZES}")
    version = 1 if tensor.params is None else 2
    copies = out.step(
        "CONCATENATION", [index] * 4, (batch, height, width, 4 * channels),
        ("ConcatenationOptions", {"axis": 3}), dtype=tensor.dtype, params=tensor.params, version=version,
    )  # fmt: skip
    shape = (batch, _times(height, 2), _times(width, 2), channels)
    return out.step(
        "DEPTH_TO_SPACE", [copies], shape, ("DepthToSpaceOptions", {"blockSize": 2}),
        dtype=tensor.dtype, order=tensor.order, params=tensor.params, version=version,
    )  # fmt: skip


def _copied(out: Emitter, index: int, order: Order, factors: dict[int, int]) -> int:
    """Rows of what lies behind an axis, each beside copies of itself."""
    for axis, factor in factors.items():
        if factor == 1:
            continue
        tensor = out.tensors[index]
        place, shape = order.index(axis), list(tensor.shape)
        rows, row = _product(shape[: place + 1]), _product(shape[place + 1 :])
        shape[place] = _times(shape[place], factor)
        if row < 0 or shape.count(-1) > 1:
            raise Unsupported(f"more than one free size: {FIX_SIZES}")
        index = moved(out, "RESHAPE", index, (rows, row))
        version = 1 if tensor.params is None else 2
        index = out.step(
            "CONCATENATION", [index] * factor, (rows, factor * row), ("ConcatenationOptions", {"axis": 1}),
            dtype=tensor.dtype, params=tensor.params, version=version,
        )  # fmt: skip
        index = moved(out, "RESHAPE", index, shape)
        out.tensors[index].order = order
    return index


def _gathered(out: Emitter, index: int, place: int, wanted: np.ndarray) -> int:
    tensor = out.tensors[index]
    shape = list(tensor.shape)
    shape[place] = wanted.size
    read = [index, out.numbers(wanted.astype(np.int32), f"{out.node}/wanted")]
    version = 2 if tensor.dtype == "int8" else 3 if tensor.dtype == "bool" else 1
    options: Options = ("GatherOptions", {"axis": place})
    return out.step("GATHER", read, shape, options, dtype=tensor.dtype, params=tensor.params, version=version)


# --- between others -----------------------------------------------------------------------------------------


def _bilinear_mode(read: Filter, alongs: Sequence[Along]) -> tuple[bool, bool] | None:
    wanted = {along: read.matrix(along) for along in alongs}
    for half, corners in TFLITE_MODES:
        made = ((tflite_matrix(a, half=half, corners=corners), wanted[a]) for a in alongs)
        if all(np.allclose(one, other, rtol=0, atol=1e-4) for one, other in made):
            return half, corners
    return None


def _exact_in_integers(alongs: Sequence[Along], mode: tuple[bool, bool]) -> bool:
    """Whether LiteRT's own INT8 kernel, which counts in 1024ths, finds the places (XNNPACK always does).

    Measured: up to 11 steps off from corners aligned, 2 from 7 to 20 pixels; half a step where this holds.
    """
    return not mode[1] and all(along.before * 1024 % along.after == 0 for along in alongs)


def _resized(
    out: Emitter, code: str, table: str, index: int, alongs: Sequence[Along], mode: tuple[bool, bool]
) -> int:
    """One of TFLite's own operators: sizes are those of height and width."""
    tensor = out.tensors[index]
    shape = list(tensor.shape)
    for along in alongs:
        shape[tensor.order.index(along.axis)] = along.after
    if min(shape[1:3]) < 0:
        raise Unsupported(f"an image of free size: {FIX_SIZES}")
    half, corners = mode
    version = (
        3 if half or (corners and code == "RESIZE_NEAREST_NEIGHBOR") else 1 if tensor.params is None else 2
    )
    read = [index, out.numbers(np.array(shape[1:3], np.int32), f"{out.node}/size")]
    options: Options = (table, {"halfPixelCenters": half, "alignCorners": corners})
    return out.step(code, read, shape, options, dtype=tensor.dtype, params=tensor.params, version=version)


def _by_matrices(out: Emitter, index: int, read: Filter, alongs: Sequence[Along]) -> int:
    """Axis after axis, those that shrink first: what lies behind the axis is multiplied from the left."""
    order = out.tensors[index].order
    for along in sorted(alongs, key=lambda a: a.after / a.before):
        if along.after * along.before > _LARGEST_MATRIX:
            raise Unsupported(f"a matrix of {along.after} times {along.before} numbers to resize by")
        matrix = read.matrix(along)
        place, shape = order.index(along.axis), list(out.tensors[index].shape)
        before, behind = _product(shape[:place]), _product(shape[place + 1 :])
        shape[place] = along.after
        if shape.count(-1) > 1 or behind < 0:
            raise Unsupported(f"more than one free size: {FIX_SIZES}")
        index = moved(out, "RESHAPE", index, (before, along.before, behind))
        weights = out.numbers(matrix[None], f"{out.node}/weights")
        made = (before, along.after, behind)
        index = out.step("BATCH_MATMUL", [weights, index], made, ("BatchMatMulOptions", {}))
        index = moved(out, "RESHAPE", index, shape)
        out.tensors[index].order = order
    return index


def _filled(out: Emitter, index: int, read: Filter, alongs: Sequence[Along], number: float) -> int:
    """What lies outside of the input becomes ``number``; it is zero so far."""
    tensor = out.tensors[index]
    outside = np.zeros([1] * len(tensor.shape), bool)
    for along in alongs:
        sides = [-1 if axis == along.axis else 1 for axis in tensor.order]
        outside = outside | read.outside(along).reshape(sides)
    added = out.numbers((outside * number).astype(np.float32), f"{out.node}/outside")
    return out.step("ADD", [index, added], tensor.shape, ("AddOptions", {}), order=tensor.order)


def _times(size: int, factor: int) -> int:
    return size if size < 0 else size * factor


def _product(sizes: Sequence[int]) -> int:
    return -1 if -1 in sizes else math.prod(sizes)
