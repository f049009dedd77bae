"""Convolution: CONV_2D, DEPTHWISE_CONV_2D where each channel has filters of its own, CONV_3D for volumes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.layout import LACKING, Order, plain
from backends.tflite.network import Options, Setting
from backends.tflite.ops.folded import folded
from backends.tflite.ops.window import Window, image_order, padded, window
from backends.tflite.optable import OpTable
from backends.tflite.reading import stored_constant
from deploy.adapter.optable import Unsupported
from deploy.spec.plan import QuantParams
from deploy.spec.tensors import QuantType

ops = OpTable()

_DENSE: dict[int, Order] = {1: (0, LACKING, 2, 1), 2: (0, 2, 3, 1), 3: (2, 3, 4, 1, 0)}
_DEPTHWISE: dict[int, Order] = {1: (1, LACKING, 2, 0), 2: (1, 2, 3, 0)}
_HYBRID = 5
"""The version of CONV_2D that reads floats beside weights with one scale a channel."""
_GROUPED = 6
"""The version of CONV_2D from which filters may see a part of the channels only; XNNPACK takes it whole."""


@ops.lower("Conv")
def conv(node: ir.Node, out: Emitter) -> None:
    """Weights (O, I / groups, H, W) are stored (O, H, W, I / groups), of a depthwise one (1, H, W, O)."""
    image, weights = node.inputs[:2]
    shape = out.shape(weights)
    found = window(node, out, shape[2:])
    if len(shape) == 5:
        _volume(node, out, found)
        return
    groups = node.attributes.get_int("group", 1)
    depthwise = groups > 1 and shape[1] == 1
    result, activation = out.activation(node)
    params = out.product(result, image, weights)
    hybrid = groups == 1 and out.hybrid(node, weights)
    order = (_DEPTHWISE if depthwise else _DENSE)[len(shape) - 2]
    kernel = _kernel(out, weights, order, integer=params is not None or hybrid)
    scale = None if params is None else bias_scale(out, image, kernel)
    bias = out.bias(node.inputs[2] if len(node.inputs) > 2 else None, shape[0], scale)
    laid = image_order(len(shape))
    source = out.read(image, laid, integer=params is not None)
    if out.folds and groups == 1 and params is not None and params.type == "int8":
        source, kernel, found = folded(out, source, kernel, found)
    source = padded(out, source, found)
    settings = found.settings(activation)
    if depthwise:
        options: Options = ("DepthwiseConv2DOptions", {**settings, "depthMultiplier": shape[0] // groups})
        version = 3 if params else 2 if max(found.dilations) > 1 else 1
        code = "DEPTHWISE_CONV_2D"
    else:
        options = ("Conv2DOptions", {**settings})
        version = _GROUPED if groups > 1 else _HYBRID if hybrid else 3 if params else 1
        code = "CONV_2D"
    out.emit(code, [source, kernel, bias], result, options, order=laid, params=params, version=version)


def bias_scale(out: Emitter, image: ir.Value | None, kernel: int) -> QuantParams:
    """The parameters that a bias must have: scale of the input times that of the weights."""
    source, weights = out.params(image), out.tensors[kernel].params
    assert source is not None and weights is not None
    if any(weights.zero_point):
        raise Unsupported("integer weights must be symmetric")
    scale = tuple(source.scale[0] * s for s in weights.scale)
    axis = None if len(scale) == 1 else 0
    kind: QuantType = "int64" if source.type == "int16" else "int32"
    return QuantParams(type=kind, scale=scale, zero_point=(0,) * len(scale), axis=axis)


def _kernel(out: Emitter, weights: ir.Value | None, order: Order, *, integer: bool) -> int:
    """Weights that are computed are read like anything else; XNNPACK leaves that to LiteRT's own kernel."""
    if weights is not None and stored_constant(weights) is None and not integer:
        return out.read(weights, order)
    return out.weight(weights, order, integer=integer)


def floats(out: Emitter, value: ir.Value | None) -> np.ndarray:
    """A constant's numbers, dequantized; its integers stand in the file all the same, for the plan's sake."""
    array = None if value is None else stored_constant(value)
    if value is None or array is None:
        raise Unsupported("its weights must be constants")
    params = out.params(value)
    if params is None:
        return array.astype(np.float32)
    out.weight(value, plain(array.ndim), integer=True)
    shape = [1] * array.ndim
    if params.axis is not None:
        shape[params.axis] = -1
    scale, zero = (np.array(numbers).reshape(shape) for numbers in (params.scale, params.zero_point))
    found: np.ndarray = (array - zero) * scale
    return found.astype(np.float32)


def _volume(node: ir.Node, out: Emitter, found: Window) -> None:
    """Weights are stored (D, H, W, I, O); each group is a convolution of its own. Only in float."""
    image, weights = node.inputs[:2]
    shape, groups = out.shape(weights), node.attributes.get_int("group", 1)
    kernel = _kernel(out, weights, _DENSE[3], integer=False)
    bias = out.bias(node.inputs[2] if len(node.inputs) > 2 else None, shape[0], None)
    laid = image_order(5)
    source = padded(out, out.read(image, laid), found)
    result, activation = out.activation(node)
    settings: dict[str, Setting] = {"padding": found.padding, "fusedActivationFunction": activation}
    for place, axis in enumerate("DHW"):
        settings[f"stride{axis}"] = found.strides[place]
        settings[f"dilation{axis}Factor"] = found.dilations[place]
    options: Options = ("Conv3DOptions", settings)
    if groups == 1:
        out.emit("CONV_3D", [source, kernel, bias], result, options, order=laid)
        return
    made = [out.shape(result)[axis] for axis in laid]
    parts = [
        out.step("CONV_3D", list(part), [*made[:-1], shape[0] // groups], options, order=laid)
        for part in zip(
            split(out, source, 4, groups),
            split(out, kernel, 4, groups),
            split(out, bias, 0, groups),
            strict=True,
        )
    ]
    out.emit("CONCATENATION", parts, result, ("ConcatenationOptions", {"axis": 4}), order=laid)


def split(out: Emitter, index: int, axis: int, count: int) -> list[int]:
    """A tensor in ``count`` equal parts along a stored axis; a constant is cut here and now."""
    tensor = out.tensors[index]
    if tensor.data is not None:
        cut = np.split(tensor.data, count, axis)
        return [out.numbers(np.ascontiguousarray(part), f"{tensor.name}/part") for part in cut]
    size = tensor.shape[axis] // count
    parts = []
    for number in range(count):
        begin, sizes = [0] * len(tensor.shape), list(tensor.shape)
        begin[axis], sizes[axis] = number * size, size
        places = [
            out.numbers(np.array(given, np.int32), f"{out.node}/{name}")
            for name, given in (("begin", begin), ("size", sizes))
        ]
        parts.append(out.step("SLICE", [index, *places], sizes, ("SliceOptions", {}), dtype=tensor.dtype))
    return parts
