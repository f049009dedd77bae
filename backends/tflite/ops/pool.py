"""Pooling over windows, and over the whole image."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter, Setting
from backends.tflite.layout import NHWC
from backends.tflite.ops.window import Window, padded, window
from backends.tflite.optable import OpTable
from backends.tflite.reading import Unsupported, activation_of

ops = OpTable()


@ops.lower("MaxPool")
def max_pool(node: ir.Node, out: Emitter) -> None:
    """Zeros may stand for what lies outside only where nothing is below zero."""
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise Unsupported("the indices of the maxima")
    found = _window(node, out)
    image, result = node.inputs[0], node.outputs[0]
    if found.explicit and not _never_negative(image):
        raise Unsupported("these pads are neither SAME nor VALID, and its input may be negative")
    _emit(node, out, found, "MAX_POOL_2D", out.moved(result, [image]) is not None)


@ops.lower("AveragePool")
def average_pool(node: ir.Node, out: Emitter) -> None:
    found = _window(node, out)
    with_pads = node.attributes.get_int("count_include_pad", 0)
    if any(found.pads) and with_pads == found.same:
        if not with_pads:
            raise Unsupported("its pads are neither SAME nor VALID, and not counted")
        found = Window(found.kernel, found.strides, found.dilations, found.pads, False)
    elif found.explicit and not with_pads:
        raise Unsupported("its pads are neither SAME nor VALID, and not counted")
    _emit(node, out, found, "AVERAGE_POOL_2D", out.moved(node.outputs[0], [node.inputs[0]]) is not None)


@ops.lower("GlobalAveragePool")
def global_average_pool(node: ir.Node, out: Emitter) -> None:
    _global(node, out, "MEAN", out.integer(node.outputs[0], [node.inputs[0]]) is not None)


@ops.lower("GlobalMaxPool")
def global_max_pool(node: ir.Node, out: Emitter) -> None:
    _global(node, out, "REDUCE_MAX", out.moved(node.outputs[0], [node.inputs[0]]) is not None)


def _window(node: ir.Node, out: Emitter) -> Window:
    found = window(node, out, node.attributes.get_ints("kernel_shape", ()))
    if max(found.dilations) > 1:
        raise Unsupported("a window with gaps")
    if any(pad >= size for pad, size in zip(found.pads, (*found.kernel, *found.kernel), strict=True)):
        raise Unsupported("pads as wide as the window")
    return found


def _emit(node: ir.Node, out: Emitter, found: Window, code: str, integer: bool) -> None:
    image, result = node.inputs[0], node.outputs[0]
    source = out.read(image, NHWC, integer=integer)
    params = out.tensors[source].params
    source = padded(out, source, found, params)
    options: dict[str, Setting] = {
        "padding": found.padding,
        "strideH": found.strides[0],
        "strideW": found.strides[1],
        "filterHeight": found.kernel[0],
        "filterWidth": found.kernel[1],
    }
    out.emit(code, [source], result, ("Pool2DOptions", options), order=NHWC, params=params)


def _global(node: ir.Node, out: Emitter, code: str, integer: bool) -> None:
    image, result = node.inputs[0], node.outputs[0]
    if len(out.shape(image)) != 4:
        raise Unsupported("only images (4 axes) are written")
    source = out.read(image, NHWC, integer=integer)
    axes = out.numbers(np.array([1, 2], np.int32), f"{result.name}/axes")
    params = out.stored(result) if integer else None
    out.emit(code, [source, axes], result, ("ReducerOptions", {"keepDims": True}), order=NHWC, params=params)


def _never_negative(value: ir.Value | None) -> bool:
    """Whether a ReLU made the value, as far as can be seen through quantization and other poolings."""
    source = None if value is None else value.producer()
    if source is None:
        return False
    if source.op_type in ("QuantizeLinear", "DequantizeLinear", "MaxPool"):
        return _never_negative(source.inputs[0])
    return activation_of(source) in ("RELU", "RELU6")
