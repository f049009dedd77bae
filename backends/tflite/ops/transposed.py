"""Transposed convolution as a convolution that makes a block of pixels at each place.

Of a stride of s each output pixel sees every s-th element of the filter only: s times s small filters, whose
results lie side by side as blocks. Measured against TRANSPOSE_CONV (XNNPACK, x86, one thread): 1.0 to 4.2
times as fast in float and 1.4 to 2.1 in INT8 where the stride divides the filter, for any batch; and filters
of groups fit CONV_2D. TRANSPOSE_CONV stays for INT8 of a fixed size and other filters: as fast, no zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES
from backends.tflite.layout import LACKING, Blocks, plain
from backends.tflite.network import Options, Planned, Setting, Tensor
from backends.tflite.ops.blocks import carry, elements_first, spread
from backends.tflite.ops.conv import bias_scale, floats
from backends.tflite.ops.window import Window, image_order, padded
from backends.tflite.optable import OpTable
from backends.tflite.reading import stored_constant
from deploy.adapter.optable import Unsupported
from deploy.spec.plan import QuantParams

ops = OpTable()


@dataclass(frozen=True)
class _Axis:
    """Of all pixels that a transposed convolution makes along an axis, ``made`` from ``begin`` on.

    ``longer`` is what is made more than ``size`` times ``stride``, which is known where the size is free.
    """

    size: int
    kernel: int
    stride: int
    begin: int
    longer: int

    @property
    def made(self) -> int:
        return self.size if self.size < 0 else self.size * self.stride + self.longer

    @property
    def taps(self) -> int:
        return -(-self.kernel // self.stride)

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros before and behind that the small filters need."""
        before = self.taps - 1 - self.begin // self.stride
        if before < 0:
            raise Unsupported("pads wider than its filters")
        needed = -(-(self.begin % self.stride + self.longer) // self.stride)
        return before, max(needed + self.taps - 1 - before, 0)

    @property
    def rest(self) -> int:
        """Pixels that the blocks make behind the last wanted one."""
        more = sum(self.pads) - self.taps + 1
        return more * self.stride - self.begin % self.stride - self.longer


@ops.lower("ConvTranspose")
def conv_transpose(node: ir.Node, out: Emitter) -> None:
    """Weights are (I, O / groups, H, W)."""
    image, weights = node.inputs[:2]
    kernel = out.shape(weights)[2:]
    axes, dilations = _axes(node, out, kernel)
    result, activation = out.activation(node)
    params = out.product(result, image, weights)
    dense = node.attributes.get_int("group", 1) == 1 and max(dilations) == 1 and len(axes) == 2
    if params is None or not dense:
        _blocks(node, out, axes, dilations, result, activation)
    elif any(axis.kernel % axis.stride for axis in axes) and out.shape(image)[0] > 0 and axes[1].size > 0:
        _whole(node, out, axes, result, activation, params)
    else:
        _integer_blocks(node, out, axes, result, activation, params)


def _axes(node: ir.Node, out: Emitter, kernel: Sequence[int]) -> tuple[list[_Axis], list[int]]:
    """The axes as stored, and by how much each filter is spread."""
    image = out.shape(node.inputs[0])
    count = len(kernel)
    if len(image) != count + 2 or not 1 <= count <= 3:
        raise Unsupported("only signals, images and volumes (3 to 5 axes)")
    strides = _given(node, "strides", count, 1)
    dilations = _given(node, "dilations", count, 1)
    extra = _given(node, "output_padding", count, 0)
    pads = _given(node, "pads", 2 * count, 0)
    auto = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    asked = node.attributes.get_ints("output_shape", ())[-count:]
    axes = []
    for i, size in enumerate(image[2:]):
        reach = (kernel[i] - 1) * dilations[i] + 1
        whole = reach - strides[i] + extra[i]  # more than size times stride, before any pads
        begin, longer = pads[i], whole - pads[i] - pads[count + i]
        if asked or auto.startswith("SAME"):
            if asked and size < 0:
                raise Unsupported(f"output_shape for an image of free size: {FIX_SIZES}")
            longer = asked[i] - size * strides[i] if asked else 0
            total = whole - longer
            if total < 0 and not asked:
                raise Unsupported("auto_pad SAME with filters smaller than the stride")
            total = max(total, 0)
            begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
        elif auto == "VALID":
            begin, longer = 0, whole
        if begin < 0:
            raise Unsupported("negative pads")
        axes.append(_Axis(size, reach, strides[i], begin, longer))
    if count == 1:
        return [_Axis(1, 1, 1, 0, 0), *axes], [1, *dilations]
    return axes, list(dilations)


def _blocks(
    node: ir.Node, out: Emitter, axes: list[_Axis], dilations: list[int], result: ir.Value, activation: str
) -> None:
    image, weights = node.inputs[:2]
    groups, laid = node.attributes.get_int("group", 1), image_order(len(out.shape(image)))
    filters = _spread_filters(floats(out, weights), axes, dilations)
    if groups > 1 and len(axes) == 3:
        filters, groups = _all_channels(filters, groups), 1
    inputs, channels = filters.shape[0], filters.shape[1] * groups
    strides = [axis.stride for axis in axes]
    elements = math.prod(strides)
    bias = (
        floats(out, node.inputs[2])
        if len(node.inputs) > 2 and node.inputs[2] is not None
        else np.zeros(channels)
    )
    bias = np.tile(bias.reshape(-1), elements) if groups == 1 else np.repeat(bias.reshape(-1), elements)
    found = _window(axes)
    source = padded(out, out.read(image, laid), found)
    depthwise = groups > 1 and inputs == groups
    small = _small_filters(filters, axes, groups, depthwise=depthwise)
    read = [
        source,
        out.numbers(small, f"{out.node}/filters"),
        out.numbers(bias.astype(np.float32), f"{out.node}/bias"),
    ]
    options: Options = ("Conv2DOptions", found.settings(activation))
    code, version = "CONV_2D", 6 if groups > 1 else 1
    if depthwise:
        multiplier = channels // groups * elements
        options = ("DepthwiseConv2DOptions", {**found.settings(activation), "depthMultiplier": multiplier})
        code, version = "DEPTHWISE_CONV_2D", 1
    elif len(axes) == 3:
        settings: dict[str, Setting] = {"padding": found.padding, "fusedActivationFunction": activation}
        settings |= {f"stride{axis}": 1 for axis in "DHW"} | {f"dilation{axis}Factor": 1 for axis in "DHW"}
        options, code = ("Conv3DOptions", settings), "CONV_3D"
    shape = (out.tensors[source].shape[0], *found.made, channels * elements)
    index = out.step(code, read, shape, options, order=laid, version=version)
    index = spread(out, elements_first(out, index, elements) if groups > 1 else index, strides)
    begins = [axis.begin % axis.stride for axis in axes]
    index = _cropped(out, index, begins, [axis.rest for axis in axes])
    out.tensors[index].order = laid
    carry(out, index, result)


def _spread_filters(filters: np.ndarray, axes: list[_Axis], dilations: list[int]) -> np.ndarray:
    """(I, O / groups, ...) with zeros in the gaps of dilations, and behind up to a multiple of the stride."""
    if filters.ndim == 3:
        filters = filters[:, :, None]
    wide = np.zeros((*filters.shape[:2], *(axis.taps * axis.stride for axis in axes)), filters.dtype)
    places = tuple(slice(0, axis.kernel, gap) for axis, gap in zip(axes, dilations, strict=True))
    wide[(slice(None), slice(None), *places)] = filters
    return wide


def _all_channels(filters: np.ndarray, groups: int) -> np.ndarray:
    """Filters of groups as filters of all channels, zero outside their group."""
    inputs, outputs, *sizes = filters.shape
    dense = np.zeros((groups, inputs // groups, groups, outputs, *sizes), np.float32)
    for group in range(groups):
        dense[group, :, group] = filters.reshape(groups, inputs // groups, outputs, *sizes)[group]
    return dense.reshape(inputs, groups * outputs, *sizes)


def _small_filters(filters: np.ndarray, axes: list[_Axis], groups: int, *, depthwise: bool) -> np.ndarray:
    """One filter for each element of a block, as the convolution stores them.

    Channels come out as (elements, O), of groups as (O, elements).
    """
    inputs, outputs = filters.shape[0] // groups, filters.shape[1]
    parts = [number for axis in axes for number in (axis.taps, axis.stride)]
    cut = filters.reshape(groups, inputs, outputs, *parts)
    taps, elements = list(range(3, cut.ndim, 2)), list(range(4, cut.ndim, 2))
    cut = np.flip(cut, tuple(taps))
    sizes = [axis.taps for axis in axes]
    if depthwise:
        return np.ascontiguousarray(cut.transpose(1, *taps, 0, 2, *elements)).reshape(1, *sizes, -1)
    if groups > 1:
        return np.ascontiguousarray(cut.transpose(0, 2, *elements, *taps, 1)).reshape(-1, *sizes, inputs)
    if len(axes) == 3:
        return np.ascontiguousarray(cut.transpose(*taps, 1, *elements, 2, 0)).reshape(*sizes, inputs, -1)
    return np.ascontiguousarray(cut.transpose(*elements, 2, *taps, 1, 0)).reshape(-1, *sizes, inputs)


def _window(axes: list[_Axis]) -> Window:
    taps, ones = tuple(axis.taps for axis in axes), (1,) * len(axes)
    begins, ends = (tuple(axis.pads[end] for axis in axes) for end in (0, 1))
    halves = all(axis.pads == ((axis.taps - 1) // 2, axis.taps - 1 - (axis.taps - 1) // 2) for axis in axes)
    made = tuple(a.size if a.size < 0 else a.size + sum(a.pads) - a.taps + 1 for a in axes)
    same = halves and max(taps) > 1
    sizes = tuple(axis.size for axis in axes)
    return Window(taps, ones, ones, begins, ends, ends, sizes, made, same)


def _cropped(out: Emitter, index: int, begins: Sequence[int], rests: Sequence[int]) -> int:
    """Without the first and last pixels of each spatial axis."""
    if not any((*begins, *rests)):
        return index
    tensor, rank = out.tensors[index], len(begins) + 2
    read = [
        out.numbers(np.array([0, *places, 0], np.int32), f"{out.node}/crop")
        for places in (begins, [-rest for rest in rests])
    ]
    read.append(out.numbers(np.ones(rank, np.int32), f"{out.node}/steps"))
    first = sum(1 << i for i in range(rank) if i in (0, rank - 1) or not begins[i - 1])
    last = sum(1 << i for i in range(rank) if i in (0, rank - 1) or not rests[i - 1])
    shape = [
        size if size < 0 else size - gone
        for size, gone in zip(
            tensor.shape, [0, *(a + b for a, b in zip(begins, rests, strict=True)), 0], strict=True
        )
    ]
    options: Options = ("StridedSliceOptions", {"beginMask": first, "endMask": last})
    version = 1 if tensor.params is None else 2
    return out.step(
        "STRIDED_SLICE", [index, *read], shape, options,
        dtype=tensor.dtype, order=tensor.order, params=tensor.params, version=version,
    )  # fmt: skip


def _integer_blocks(
    node: ir.Node, out: Emitter, axes: list[_Axis], result: ir.Value, activation: str, params: QuantParams
) -> None:
    """As `_blocks`, with the planned integers cut up, which reading the plan back puts together again."""
    image, weights, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    laid = image_order(len(out.shape(image)))
    strides = tuple(axis.stride for axis in axes)
    cut = Blocks(tuple(axis.kernel for axis in axes), strides)
    codes, read = stored_constant(weights) if weights is not None else None, out.params(weights)
    if weights is None or codes is None or read is None:
        raise Unsupported("its weights must be constants")
    small = _small_filters(_spread_filters(codes, axes, [1, 1]), axes, 1, depthwise=False)
    kernel = _planned(out, weights, Tensor("", small.shape, "int8", plain(4), read, small, blocks=cut))
    scale = bias_scale(out, image, kernel)
    found = _window(axes)
    source = padded(out, out.read(image, laid, integer=True), found)
    if bias is None:
        added = out.bias(None, small.shape[0], scale)
    else:
        numbers, by = stored_constant(bias), out.params(bias)
        if numbers is None or by is None or numbers.dtype != np.int32:
            raise Unsupported("an integer operation needs its bias as an int32 constant")
        tiled = np.tile(numbers.reshape(-1), cut.count)
        like = Tensor("", tiled.shape, "int32", (0,), by, tiled, blocks=Blocks((), strides))
        added = _planned(out, bias, like)
    shape = (out.tensors[source].shape[0], *found.made, small.shape[0])
    options: Options = ("Conv2DOptions", found.settings(activation))
    index = out.step(
        "CONV_2D", [source, kernel, added], shape, options,
        dtype=params.type, order=laid, params=params, version=3,
    )  # fmt: skip
    index = spread(out, index, strides)
    begins = [axis.begin % axis.stride for axis in axes]
    index = _cropped(out, index, begins, [axis.rest for axis in axes])
    out.tensors[index].order = laid
    carry(out, index, result)


def _planned(out: Emitter, value: ir.Value, tensor: Tensor) -> int:
    """A constant that carries a planned value, its channels, and their scales, once for each element."""
    assert tensor.params is not None and tensor.blocks is not None
    by, count = tensor.params, tensor.blocks.count
    if by.axis is not None:
        by = by.model_copy(update={"axis": 0, "scale": by.scale * count, "zero_point": by.zero_point * count})
    index = out.add(replace(tensor, name=value.name or "constant", params=by))
    out.planned.append(Planned(value.name or "", index))
    return index


def _whole(
    node: ir.Node, out: Emitter, axes: list[_Axis], result: ir.Value, activation: str, params: QuantParams
) -> None:
    """TRANSPOSE_CONV makes everything, or by SAME what lies in the middle; the rest is cut off."""
    image, weights = node.inputs[:2]
    rank = len(out.shape(image))
    laid = image_order(rank)
    kernel = out.weight(weights, (1, LACKING, 2, 0) if rank == 3 else (1, 2, 3, 0), integer=True)
    channels = out.tensors[kernel].shape[0]
    bias = out.bias(
        node.inputs[2] if len(node.inputs) > 2 else None, channels, bias_scale(out, image, kernel)
    )
    source = out.read(image, laid, integer=True)
    batch = out.tensors[source].shape[0]
    same = all(_is_same(axis) for axis in axes)
    whole = [axis.made if same else max(_full(axis), axis.begin + axis.made) for axis in axes]
    if not same and any(size - _full(axis) >= axis.stride for size, axis in zip(whole, axes, strict=True)):
        raise Unsupported("output_padding of a stride or more")
    settings: dict[str, Setting] = {
        "padding": "SAME" if same else "VALID",
        "strideH": axes[0].stride,
        "strideW": axes[1].stride,
        "fusedActivationFunction": activation,
    }
    size = out.numbers(np.array((batch, *whole, channels), np.int32), f"{out.node}/size")
    read = [size, kernel, source, bias]
    options: Options = ("TransposeConvOptions", settings)
    version = 3 if activation == "NONE" else 4
    begins = [0 if same else axis.begin for axis in axes]
    rests = [0 if same else size - a.begin - a.made for size, a in zip(whole, axes, strict=True)]
    if not any((*begins, *rests)):
        out.emit("TRANSPOSE_CONV", read, result, options, order=laid, params=params, version=version)
        return
    shape = (batch, *whole, channels)
    kind = params.type
    index = out.step("TRANSPOSE_CONV", read, shape, options, dtype=kind, params=params, version=version)
    index = _cropped(out, index, begins, rests)
    out.tensors[index].order = laid
    carry(out, index, result)


def _full(axis: _Axis) -> int:
    return (axis.size - 1) * axis.stride + axis.kernel


def _is_same(axis: _Axis) -> bool:
    fits = axis.size == -(-axis.made // axis.stride)
    return fits and axis.begin == max(_full(axis) - axis.made, 0) // 2


def _given(node: ir.Node, name: str, count: int, otherwise: int) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints(name, ())) or (otherwise,) * count
