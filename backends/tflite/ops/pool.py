"""Pooling over windows, and over everything.

TFLite slides windows over two axes. Over three the maximum (or mean) of rows is that of rows of planes: two
poolings. Windows with gaps are a maximum of slices, or a convolution of equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES
from backends.tflite.layout import Order, stored_sizes
from backends.tflite.network import NO_OPTIONS, Options, Setting
from backends.tflite.ops.unpool import indices_of_maxima
from backends.tflite.ops.window import Window, image_order, padded, window
from backends.tflite.optable import OpTable
from backends.tflite.reading import activation_of
from deploy.adapter.optable import Unsupported
from deploy.spec.plan import QuantParams

ops = OpTable()

Step = tuple[str, list[int], Options]
"""An operator that is still to be emitted: its code, operands and options."""
_NEVER_NEGATIVE = ("Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Softplus")


@ops.lower("MaxPool", types=("float32", "int8", "uint8", "int64"))
def max_pool(node: ir.Node, out: Emitter) -> None:
    """Zeros may stand for what lies outside where nothing is below zero: PADV2 leaves XNNPACK."""
    image, result = node.inputs[0], node.outputs[0]
    found = _window(node, out)
    laid = image_order(len(out.shape(image)))
    params = out.moved(result, [image])
    source = out.read(image, laid, integer=params is not None)
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        indices_of_maxima(node, out, found)
    if len(found.kernel) == 3 or max(found.dilations) > 1:
        found = found.by_pads()
    source = padded(out, source, found, lowest=not _never_negative(image))
    if max(found.dilations) > 1:
        last = _over_slices(out, "MAXIMUM", source, found)
    else:
        last = _slide(out, "MAX_POOL_2D", source, found)
    _finish(out, last, result, laid, params)


@ops.lower("AveragePool")
def average_pool(node: ir.Node, out: Emitter) -> None:
    """Windows that reach beyond the image count what ONNX counts by a factor for each place."""
    image, result = node.inputs[0], node.outputs[0]
    found = _window(node, out)
    with_pads = bool(node.attributes.get_int("count_include_pad", 0))
    if not found.same or with_pads or len(found.kernel) == 3 or max(found.dilations) > 1:
        found = found.by_pads()
    factor = None if found.same else _counted(found, with_pads=with_pads)
    laid = image_order(len(out.shape(image)))
    simple = factor is None and max(found.dilations) == 1 and len(found.kernel) == 2
    params = out.moved(result, [image]) if simple else None
    source = padded(out, out.read(image, laid, integer=params is not None), found)
    if max(found.dilations) > 1:
        last = _sums(out, source, found, 1 / math.prod(found.kernel))
    else:
        last = _slide(out, "AVERAGE_POOL_2D", source, found)
    if factor is not None:
        sums = _step(out, last, _stored_shape(out, result, laid), laid)
        last = ("MUL", [sums, out.numbers(factor, f"{out.node}/counted")], ("MulOptions", {}))
    _finish(out, last, result, laid, params)


@ops.lower("LpPool")
def lp_pool(node: ir.Node, out: Emitter) -> None:
    """The p-th root of the sum of p-th powers."""
    image, result = node.inputs[0], node.outputs[0]
    found = _window(node, out).by_pads()
    laid = image_order(len(out.shape(image)))
    p = node.attributes.get_int("p", 2)
    source = padded(out, _powers(out, out.read(image, laid), p), found)
    shape = _stored_shape(out, result, laid)
    sums = _sums(out, source, found, 1.0)
    _finish(out, _root(out, sums, p, shape, laid), result, laid, None)


@ops.lower("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: ir.Node, out: Emitter) -> None:
    image, result = node.inputs[0], node.outputs[0]
    laid = image_order(len(out.shape(image)))
    maximum = node.op_type == "GlobalMaxPool"
    params = (out.moved if maximum else out.integer)(result, [image])
    source = out.read(image, laid, integer=params is not None)
    last = _over_all(out, "REDUCE_MAX" if maximum else "MEAN", source)
    _finish(out, last, result, laid, params)


@ops.lower("GlobalLpPool")
def global_lp_pool(node: ir.Node, out: Emitter) -> None:
    image, result = node.inputs[0], node.outputs[0]
    laid = image_order(len(out.shape(image)))
    p = node.attributes.get_int("p", 2)
    sums = _over_all(out, "SUM", _powers(out, out.read(image, laid), p))
    _finish(out, _root(out, sums, p, _stored_shape(out, result, laid), laid), result, laid, None)


def _window(node: ir.Node, out: Emitter) -> Window:
    found = window(node, out, node.attributes.get_ints("kernel_shape", ()))
    if any(begin >= reach for begin, reach in zip(found.begins, found.reach, strict=True)):
        raise Unsupported("pads as wide as the window")
    gaps = zip(found.kernel, found.dilations, strict=True)
    found = replace(found, dilations=tuple(1 if size == 1 else gap for size, gap in gaps))
    if max(found.dilations) > 1 and node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME"):
        raise Unsupported("auto_pad SAME of windows with gaps, of which ONNX Runtime does not count the gaps")
    return found


def _slide(out: Emitter, code: str, source: int, found: Window) -> Step:
    """Windows over two axes, or over the last two of three and then the first."""
    if len(found.kernel) == 2:
        options: dict[str, Setting] = {
            "padding": found.padding,
            "strideH": found.strides[0],
            "strideW": found.strides[1],
            "filterHeight": found.kernel[0],
            "filterWidth": found.kernel[1],
        }
        return code, [source], ("Pool2DOptions", options)
    batch, depth, height, width, channels = out.tensors[source].shape
    made = found.made
    if min(depth, height, width, *made) < 0 or channels < 0:
        raise Unsupported(f"a volume of free size: {FIX_SIZES}")
    plane = replace(found, kernel=found.kernel[1:], strides=found.strides[1:])
    column = replace(found, kernel=(found.kernel[0], 1), strides=(found.strides[0], 1))
    planes = -1 if batch < 0 else batch * depth
    index = _step(
        out, _reshaped(out, source, [planes, height, width, channels]), [planes, height, width, channels]
    )
    index = _step(out, _slide(out, code, index, plane), [planes, *made[1:], channels])
    shape = [batch, depth, made[1] * made[2], channels]
    index = _step(out, _reshaped(out, index, shape), shape)
    index = _step(out, _slide(out, code, index, column), [batch, made[0], *shape[2:]])
    return _reshaped(out, index, [batch, *made, channels])


def _over_slices(out: Emitter, code: str, source: int, found: Window) -> Step:
    """MAXIMUM or ADD, axis after axis, of the slices that each element of the window walks over."""
    parts = [source]
    for place in sorted(range(len(found.kernel)), key=lambda axis: found.dilations[axis]):
        if found.kernel[place] > 1 or found.strides[place] > 1:
            source = parts[0] if len(parts) == 1 else _step_like(out, _joined(out, code, parts))
            parts = _walks(out, source, found, place)
    return _joined(out, code, parts)


def _joined(out: Emitter, code: str, parts: Sequence[int]) -> Step:
    options: Options = ("AddOptions" if code == "ADD" else "MaximumMinimumOptions", {})
    index = parts[0]
    for part in parts[1:-1]:
        index = _step_like(out, (code, [index, part], options))
    return code, [index, parts[-1]], options


def _walks(out: Emitter, source: int, found: Window, place: int) -> list[int]:
    axis, made, stride = place + 1, found.made[place], found.strides[place]
    shape = list(out.tensors[source].shape)
    if shape[axis] < 0 or made < 0:
        raise Unsupported(f"windows with gaps over an image of free size: {FIX_SIZES}")
    shape[axis] = made
    rank = len(shape)
    mask = sum(1 << other for other in range(rank) if other != axis)
    walks = []
    for number in range(found.kernel[place]):
        bounds = np.array([[0] * rank, [0] * rank, [1] * rank], np.int32)
        begin = number * found.dilations[place]
        bounds[:, axis] = begin, begin + (made - 1) * stride + 1, stride
        read = [out.numbers(bound, f"{out.node}/slice") for bound in bounds]
        options: Options = ("StridedSliceOptions", {"beginMask": mask, "endMask": mask})
        walks.append(_step(out, ("STRIDED_SLICE", [source, *read], options), shape))
    return walks


def _sums(out: Emitter, source: int, found: Window, weight: float) -> Step:
    """The sum over each window times ``weight``: over images a convolution of each channel."""
    channels = out.tensors[source].shape[-1]
    if channels > 0 and len(found.kernel) == 2:
        kernel = np.full((1, *found.kernel, channels), weight, np.float32)
        read = [source, out.numbers(kernel, f"{out.node}/weights"), out.bias(None, channels, None)]
        return (
            "DEPTHWISE_CONV_2D",
            read,
            ("DepthwiseConv2DOptions", {**found.settings(), "depthMultiplier": 1}),
        )
    code, read, options = _over_slices(out, "ADD", source, found)
    shape = (out.tensors[source].shape[0], *found.made, channels)
    sums = _step(out, (code, read, options), shape)
    return "MUL", [sums, out.numbers(np.array(weight, np.float32), f"{out.node}/weight")], ("MulOptions", {})


def _counted(found: Window, *, with_pads: bool) -> np.ndarray | None:
    """Elements of a window over those that count, (1, ..., 1) as stored; None where all count everywhere."""
    factor = np.ones((), np.float64)
    for place, (kernel, begin, end, size, made) in enumerate(
        zip(found.kernel, found.begins, found.declared, found.sizes, found.made, strict=True)
    ):
        low, high = (-begin, size + end) if with_pads else (0, size)
        if size < 0:
            if begin or (end and not with_pads):
                raise Unsupported(f"the pads of an image of free size do not count: {FIX_SIZES}")
            counts = np.full(1, kernel)
        else:
            at = np.arange(made)[:, None] * found.strides[place] - begin
            at = at + np.arange(kernel) * found.dilations[place]
            counts = ((at >= low) & (at < high)).sum(axis=1)
        factor = factor[..., None] * (kernel / counts)
    return None if (factor == 1).all() else factor[None, ..., None].astype(np.float32)


def _powers(out: Emitter, index: int, p: int) -> int:
    if p == 2:
        return _step_like(out, ("MUL", [index, index], ("MulOptions", {})))
    index = _step_like(out, ("ABS", [index], ("AbsOptions", {})))
    if p == 1:
        return index
    exponent = out.numbers(np.array(p, np.float32), f"{out.node}/p")
    return _step_like(out, ("POW", [index, exponent], ("PowOptions", {})))


def _root(out: Emitter, sums: Step, p: int, shape: Sequence[int], laid: Order) -> Step:
    if p == 1:
        return sums
    index = _step(out, sums, shape, laid)
    if p == 2:
        return "SQRT", [index], NO_OPTIONS
    exponent = out.numbers(np.array(1 / p, np.float32), f"{out.node}/root")
    return "POW", [index, exponent], ("PowOptions", {})


def _over_all(out: Emitter, code: str, source: int) -> Step:
    axes = np.arange(1, len(out.tensors[source].shape) - 1, dtype=np.int32)
    return code, [source, out.numbers(axes, f"{out.node}/axes")], ("ReducerOptions", {"keepDims": True})


def _reshaped(out: Emitter, index: int, shape: Sequence[int]) -> Step:
    return "RESHAPE", [index, out.numbers(np.array(shape, np.int32), f"{out.node}/shape")], NO_OPTIONS


def _step(out: Emitter, step: Step, shape: Sequence[int], laid: Order | None = None) -> int:
    """Emit an operator on the way; type and parameters are its first operand's."""
    code, inputs, options = step
    like = out.tensors[inputs[0]]
    version = 1 if like.params is None or code == "RESHAPE" else 2
    return out.step(
        code, inputs, shape, options, dtype=like.dtype, order=laid, params=like.params, version=version
    )


def _step_like(out: Emitter, step: Step) -> int:
    like = out.tensors[step[1][0]]
    return _step(out, step, like.shape, like.order)


def _finish(out: Emitter, step: Step, result: ir.Value, laid: Order, params: QuantParams | None) -> None:
    code, inputs, options = step
    version = 1 if code == "RESHAPE" else None
    out.emit(code, inputs, result, options, order=laid, params=params, version=version)


def _stored_shape(out: Emitter, result: ir.Value, laid: Order) -> tuple[int, ...]:
    return stored_sizes(out.shape(result), laid)


_MOVING = {
    "QuantizeLinear", "DequantizeLinear", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity",
    "Reshape", "Transpose", "Slice", "Split", "Flatten", "Squeeze", "Unsqueeze", "Dropout",
    "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
"""What makes nothing below zero of its first operand if that holds nothing."""


def _never_negative(value: ir.Value | None) -> bool:
    """Whether nothing in a value is below zero, as far as can be seen through what only moves numbers."""
    source = None if value is None else value.producer()
    if source is None:
        return False
    if source.op_type in _MOVING:
        return _never_negative(source.inputs[0])
    if source.op_type == "Concat":
        return all(_never_negative(operand) for operand in source.inputs)
    return activation_of(source) in ("RELU", "RELU6") or source.op_type in _NEVER_NEGATIVE
