"""Values cut and padded, in the order in which they lie. Integers go through as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES, as_int32, carry, integers, joined, known, part_of
from backends.tflite.layout import NHWC, plain
from backends.tflite.network import Options, Tensor
from backends.tflite.optable import ANY, OpTable
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import scalar
from deploy.graph.qdq import quantize_array
from deploy.spec.plan import QuantParams

ops = OpTable()

_NOT_MIRRORED = ("bool", "int16")
"""What MIRROR_PAD does not take."""
_PAD_RANK = 5
_EDGE_BY_SLICES = 2
"""Elements at each end that are put there as slices; more are gathered."""
_LARGEST = np.iinfo(np.int32).max


@ops.lower("Slice", types=ANY)
def slice_(node: ir.Node, out: Emitter) -> None:
    """STRIDED_SLICE, whose negative steps and ends beyond the tensor mean what they mean in ONNX."""
    value, result = node.inputs[0], node.outputs[0]
    shape = out.shape(value)
    rank = len(shape)
    starts, ends = known(out, node.inputs[1]), known(out, node.inputs[2])
    count = out.shape(node.inputs[1])[0]
    axes = [axis % rank for axis in integers(out, node, 3, "axes") or range(count)]
    steps = integers(out, node, 4, "steps") or [1] * count
    array = known(out, value)
    if array is not None and starts is not None and ends is not None:
        cut = [slice(None)] * rank
        for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
            cut[axis] = _python_slice(int(start), int(stop), step, shape[axis])
        carry(out, result, np.ascontiguousarray(array[tuple(cut)]))
        return
    params = out.moved(result, [value])
    source = out.read(value, integer=params is not None)
    if starts is None or ends is None:
        _computed_slice(node, out, source, axes, steps, params)
        return
    order = out.tensors[source].order
    if (
        order == NHWC
        and set(axes) <= {2, 3}
        and _thinned(out, source, result, starts, ends, axes, steps, params)
    ):
        return
    if _picked(out, source, result, starts, ends, axes, steps, params):
        return
    begin, end, stride = [0] * rank, [max(size, 0) for size in shape], [1] * rank
    open_begin, open_end = ({axis for axis, size in enumerate(shape) if size < 0} for _ in range(2))
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        stride[axis] = step
        if shape[axis] >= 0:
            cut_axis = _python_slice(int(start), int(stop), step, shape[axis])
            begin[axis], end[axis], _ = cut_axis.indices(shape[axis])
            if end[axis] < 0:  # backwards, down to the first element
                open_end.add(axis)
            continue
        begin[axis], end[axis] = (int(np.clip(int(i), -_LARGEST, _LARGEST)) for i in (start, stop))
        open_begin.discard(axis)
        if abs(end[axis]) < _LARGEST:
            open_end.discard(axis)
    given = [
        out.numbers(np.array([numbers[axis] for axis in order], np.int32), f"{node.name}/{name}")
        for name, numbers in (("begin", begin), ("end", end), ("strides", stride))
    ]
    masks = [sum(1 << order.index(axis) for axis in free) for free in (open_begin, open_end)]
    options: Options = ("StridedSliceOptions", {"beginMask": masks[0], "endMask": masks[1]})
    out.emit("STRIDED_SLICE", [source, *given], result, options, order=order, params=params)


def _thinned(
    out: Emitter,
    source: int,
    result: ir.Value,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: Sequence[int],
    steps: Sequence[int],
    params: QuantParams | None,
) -> bool:
    """Every second or third row and column of an image, as a convolution by 1: of slices XNNPACK takes only
    those with steps of 1. False where it is no such slice."""
    tensor = out.tensors[source]
    taken = {2: 1, 3: 1}
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        size = tensor.shape[axis - 1]
        if size < 0 or step < 1 or range(size)[int(start) : int(stop) : step] != range(size)[::step]:
            return False
        taken[axis] = step
    channels = tensor.shape[3]
    if max(taken.values()) == 1 or channels < 0 or tensor.dtype not in ("float32", "int8"):
        return False
    one, scale, kind = None, None, "float32"
    if params is not None:
        one = QuantParams(type="int8", scale=(1.0,), zero_point=(0,))
        scale = QuantParams(type="int32", scale=params.scale, zero_point=(0,))
        kind = "int8"
    elif tensor.dtype != "float32":
        return False
    ones = np.ones((1, 1, 1, channels), kind)
    kernel = out.add(Tensor(f"{out.node}/one", ones.shape, kind, plain(4), one, ones))
    options: Options = (
        "DepthwiseConv2DOptions",
        {"padding": "VALID", "strideH": taken[2], "strideW": taken[3], "depthMultiplier": 1,
         "dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": "NONE"},
    )  # fmt: skip
    read = [source, kernel, out.bias(None, channels, scale)]
    version = 1 if params is None else 3
    out.emit("DEPTHWISE_CONV_2D", read, result, options, order=NHWC, params=params, version=version)
    return True


def _picked(
    out: Emitter,
    source: int,
    result: ir.Value,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: Sequence[int],
    steps: Sequence[int],
    params: QuantParams | None,
) -> bool:
    """Every second or third element along one axis, as a slice of that axis cut in two: of slices XNNPACK
    takes only those with steps of 1. False where it is no such slice."""
    tensor, (axis, *others) = out.tensors[source], axes
    place, step = tensor.order.index(axis), steps[0]
    size, rank = tensor.shape[place], len(tensor.shape)
    taken = range(max(size, 0))[int(starts[0]) : int(ends[0]) : step]
    whole = step > 1 and size > 0 and size % step == 0 and len(taken) == size // step
    common = tensor.dtype in ("float32", "int8") and rank < _PAD_RANK and tensor.shape.count(-1) < 2
    if others or not whole or not common:
        return False
    apart = (*tensor.shape[:place], size // step, step, *tensor.shape[place + 1 :])
    given = out.numbers(np.array(apart, np.int32), f"{out.node}/apart")
    like = Tensor(f"{out.node}/apart", apart, tensor.dtype, plain(rank + 1), params)
    index = out.inner("RESHAPE", [source, given], like)
    bounds = []
    for name, number in (("begin", taken[0]), ("end", taken[0] + 1), ("strides", 1)):
        numbers = np.full(rank + 1, int(name == "strides"), np.int32)
        numbers[place + 1] = number
        bounds.append(out.numbers(numbers, f"{out.node}/{name}"))
    mask = sum(1 << i for i in range(rank + 1) if i != place + 1)
    options: Options = ("StridedSliceOptions", {"beginMask": mask, "endMask": mask})
    shape = (*apart[: place + 1], 1, *apart[place + 2 :])
    like = Tensor(f"{out.node}/slice", shape, tensor.dtype, plain(rank + 1), params)
    index = out.inner("STRIDED_SLICE", [index, *bounds], like, options, 1 if params is None else 2)
    sizes = (*apart[: place + 1], *apart[place + 2 :])
    given = out.numbers(np.array(sizes, np.int32), f"{out.node}/together")
    out.emit("RESHAPE", [index, given], result, order=tensor.order, params=params, version=1)
    return True


def _python_slice(start: int, stop: int, step: int, size: int) -> slice:
    """ONNX clamps an end before the first element to it; so backwards it means: the first one, too."""
    if step < 0 and stop < -size:
        return slice(start, None, step)
    return slice(start, stop, step)


def _computed_slice(
    node: ir.Node,
    out: Emitter,
    source: int,
    axes: Sequence[int],
    steps: Sequence[int],
    params: QuantParams | None,
) -> None:
    """Bounds that are computed while the network runs, put in their places of vectors over all axes."""
    order = out.tensors[source].order
    rank = len(order)
    bounds = []
    for position in (1, 2):
        vector = as_int32(out, node.inputs[position])
        zero = out.numbers(np.zeros(1, np.int32), f"{node.name}/zero")
        single = len(axes) == 1
        parts = {
            order.index(axis): vector if single else part_of(out, vector, i, i + 1)
            for i, axis in enumerate(axes)
        }
        bounds.append(joined(out, [parts.get(place, zero) for place in range(rank)], rank))
    stride = [1] * rank
    for axis, step in zip(axes, steps, strict=True):
        stride[order.index(axis)] = step
    bounds.append(out.numbers(np.array(stride, np.int32), f"{node.name}/strides"))
    whole = sum(1 << place for place, axis in enumerate(order) if axis not in axes)
    options: Options = ("StridedSliceOptions", {"beginMask": whole, "endMask": whole})
    out.emit("STRIDED_SLICE", [source, *bounds], node.outputs[0], options, order=order, params=params)


@ops.lower("Pad", types=ANY)
def pad(node: ir.Node, out: Emitter) -> None:
    rank = len(out.shape(node.inputs[0]))
    widths = integers(out, node, 1, "widths")
    axes = integers(out, node, 3, "axes")
    if widths is None or rank == 0:
        raise Unsupported("a tensor without axes cannot be padded: remove it")
    table = np.zeros((rank, 2), np.int64)
    table[[axis % rank for axis in (range(rank) if axes is None else axes)]] = np.reshape(widths, (2, -1)).T
    _widened(node, out, table)


@ops.lower("CenterCropPad", types=ANY)
def center_crop_pad(node: ir.Node, out: Emitter) -> None:
    """What is odd is cut off or added behind."""
    shape = out.shape(node.inputs[0])
    wanted = integers(out, node, 1, "sizes") or []
    axes = [axis % len(shape) for axis in node.attributes.get_ints("axes", tuple(range(len(shape))))]
    table = np.zeros((len(shape), 2), np.int64)
    for axis, size in zip(axes, wanted, strict=True):
        if shape[axis] < 0:
            raise Unsupported(f"the middle of an axis of free size: {FIX_SIZES}")
        more = size - shape[axis]
        before = abs(more) // 2 * (1 if more > 0 else -1)
        table[axis] = before, more - before
    _widened(node, out, table)


def _widened(node: ir.Node, out: Emitter, table: np.ndarray) -> None:
    """With zeros PAD, which XNNPACK takes; with other numbers PADV2; negative widths cut first.

    ``table`` has a row for each axis in ONNX's order.
    """
    value, result = node.inputs[0], node.outputs[0]
    rank = len(table)
    params = out.moved(result, [value])
    source = out.read(value, integer=params is not None)
    order = out.tensors[source].order
    table = table[list(order)]
    if table.min() < 0:
        source = _cut(out, source, table)
        table = np.maximum(table, 0)
    if not table.any():
        out.view(source, result, order, params)
        return
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant":
        _mirrored(out, source, result, table, mode, params)
        return
    if rank > _PAD_RANK:
        raise Unsupported(f"more than {_PAD_RANK} axes: join some by a Reshape")
    given = out.numbers(table.astype(np.int32), f"{node.name}/pads")
    fill = _fill(node, out, params)
    if fill is None:
        out.emit("PAD", [source, given], result, ("PadOptions", {}), order=order, params=params)
    else:
        out.emit("PADV2", [source, given, fill], result, ("PadV2Options", {}), order=order, params=params)


def _fill(node: ir.Node, out: Emitter, params: QuantParams | None) -> int | None:
    """The tensor of what is padded with, None for zero; as a code of the result's where it is an integer."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = known(out, value)
    if value is None or (array is not None and not array.any()):
        return None
    if array is None or params is None:
        return out.reordered(out.read(value), plain(len(out.shape(value))))
    number = scalar(value)
    assert number is not None
    codes = quantize_array(np.array([number], np.float32), params)
    return out.add(Tensor(f"{node.name}/fill", (1,), params.type, plain(1), params, codes))


def _cut(out: Emitter, source: int, table: np.ndarray) -> int:
    """The tensor without what negative widths take off."""
    tensor = out.tensors[source]
    low, high = np.maximum(-table, 0).T
    if any(size < 0 and cut for size, cut in zip(tensor.shape, high, strict=True)):
        raise Unsupported(
            "negative widths at the end of a free axis: use a Slice, or fix the sizes (--shape)"
        )
    end = [0 if size < 0 else size - int(cut) for size, cut in zip(tensor.shape, high, strict=True)]
    shape = [
        -1 if size < 0 else stop - int(start)
        for size, start, stop in zip(tensor.shape, low, end, strict=True)
    ]
    given = [
        out.numbers(np.array(numbers, np.int32), f"{out.node}/{name}")
        for name, numbers in (("begin", low), ("end", end), ("strides", np.ones(len(end))))
    ]
    free = sum(1 << place for place, size in enumerate(tensor.shape) if size < 0)
    options: Options = ("StridedSliceOptions", {"endMask": free})
    return out.step(
        "STRIDED_SLICE", [source, *given], shape, options,
        dtype=tensor.dtype, order=tensor.order, params=tensor.params,
        version=1 if tensor.params is None else 2,
    )  # fmt: skip


def _mirrored(
    out: Emitter, source: int, result: ir.Value, table: np.ndarray, mode: str, params: QuantParams | None
) -> None:
    """MIRROR_PAD where the mirror lies in the tensor; else each axis gathers what stands beyond its ends."""
    tensor = out.tensors[source]
    widest = table.max(axis=1)
    inside = all(not wide or wide < size for size, wide in zip(tensor.shape, widest, strict=True))
    if mode == "reflect" and inside and tensor.dtype not in _NOT_MIRRORED:
        given = out.numbers(table.astype(np.int32), f"{out.node}/pads")
        options: Options = ("MirrorPadOptions", {"mode": 0})
        out.emit("MIRROR_PAD", [source, given], result, options, order=tensor.order, params=params)
        return
    if mode not in ("reflect", "edge", "wrap"):
        raise Unsupported(f"there is no padding of mode {mode}: use constant, reflect, edge or wrap")
    for place in np.flatnonzero(widest):
        low, high = (int(width) for width in table[place])
        if mode == "edge" and max(low, high) <= _EDGE_BY_SLICES:
            source = _edged(out, source, int(place), low, high)
        else:
            source = _gathered(out, source, int(place), low, high, mode)
    out.view(source, result, tensor.order, params)


def _edged(out: Emitter, source: int, place: int, low: int, high: int) -> int:
    """An axis with its first and last elements repeated, as slices put together: XNNPACK takes both."""
    tensor = out.tensors[source]
    rank = len(tensor.shape)
    version = 1 if tensor.params is None else 2

    def end(begin: int) -> int:
        given = []
        for name, number in (("begin", begin), ("end", begin + 1), ("strides", 1)):
            numbers = np.zeros(rank, np.int32) if name != "strides" else np.ones(rank, np.int32)
            numbers[place] = number
            given.append(out.numbers(numbers, f"{out.node}/{name}"))
        others = sum(1 << i for i in range(rank) if i != place)
        last = (1 << place) if begin < 0 else 0
        shape = [1 if i == place else size for i, size in enumerate(tensor.shape)]
        options: Options = ("StridedSliceOptions", {"beginMask": others, "endMask": others | last})
        return out.step(
            "STRIDED_SLICE", [source, *given], shape, options,
            dtype=tensor.dtype, order=tensor.order, params=tensor.params, version=version,
        )  # fmt: skip

    parts = [*([end(0)] * low if low else []), source, *([end(-1)] * high if high else [])]
    size = tensor.shape[place]
    shape = list(tensor.shape)
    shape[place] = size if size < 0 else size + low + high
    options: Options = ("ConcatenationOptions", {"axis": place})
    return out.step(
        "CONCATENATION", parts, shape, options,
        dtype=tensor.dtype, order=tensor.order, params=tensor.params, version=version,
    )  # fmt: skip


def _gathered(out: Emitter, source: int, place: int, low: int, high: int, mode: str) -> int:
    tensor = out.tensors[source]
    size = tensor.shape[place]
    if size < 0:
        raise Unsupported(
            f"padding of mode {mode} along a free axis: fix the sizes of the model's inputs (--shape)"
        )
    taken = _taken(size, low, high, mode)
    shape = list(tensor.shape)
    shape[place] = len(taken)
    given = out.numbers(taken.astype(np.int32), f"{out.node}/taken")
    options: Options = ("GatherOptions", {"axis": place})
    return out.step(
        "GATHER", [source, given], shape, options,
        dtype=tensor.dtype, order=tensor.order, params=tensor.params,
        version=1 if tensor.params is None else 2,
    )  # fmt: skip


def _taken(size: int, low: int, high: int, mode: str) -> np.ndarray:
    """Where each element of a padded axis comes from."""
    place = np.arange(-low, size + high)
    if mode == "edge":
        return np.clip(place, 0, size - 1)
    if mode == "wrap":
        return place % size
    period = max(2 * (size - 1), 1)
    return size - 1 - np.abs(place % period - (size - 1)) if size > 1 else np.zeros_like(place)
