"""Convolution: CONV_2D, or DEPTHWISE_CONV_2D where each channel has filters of its own."""

from __future__ import annotations

import onnx_ir as ir

from backends.tflite.emitter import Emitter, Options
from backends.tflite.layout import NHWC, Order
from backends.tflite.ops.window import padded, window
from backends.tflite.optable import OpTable
from backends.tflite.reading import Unsupported
from deploy.spec.plan import QuantParams

ops = OpTable()

_HYBRID = 5
"""The version of CONV_2D that reads floats beside weights with one scale a channel."""
_DENSE: Order = (0, 2, 3, 1)
_DEPTHWISE: Order = (1, 2, 3, 0)


@ops.lower("Conv")
def conv(node: ir.Node, out: Emitter) -> None:
    """Weights (O, I / groups, H, W) are stored (O, H, W, I), of a depthwise convolution (1, H, W, O)."""
    image, weights = node.inputs[:2]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    shape = out.shape(weights)
    found = window(node, out, shape[2:])
    groups = node.attributes.get_int("group", 1)
    channels = out.shape(image)[1]
    depthwise = groups > 1 and groups == channels
    if groups > 1 and not depthwise:
        raise Unsupported("a grouped convolution must be depthwise")
    result, activation = out.activation(node)
    params = out.integer(result, [image, weights])
    order = _DEPTHWISE if depthwise else _DENSE
    hybrid = groups == 1 and out.hybrid(node, weights)
    kernel = out.weight(weights, order, integer=params is not None or hybrid)
    scale = None if params is None else bias_scale(out, image, kernel)
    bias_index = out.bias(bias, shape[0], scale)
    source = out.read(image, NHWC, integer=params is not None)
    source = padded(out, source, found, out.tensors[source].params)
    options: Options = (
        "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
        {
            "padding": found.padding,
            "strideH": found.strides[0],
            "strideW": found.strides[1],
            "dilationHFactor": found.dilations[0],
            "dilationWFactor": found.dilations[1],
            "fusedActivationFunction": activation,
        },
    )
    dilated = depthwise and max(found.dilations) > 1
    if depthwise:
        options[1]["depthMultiplier"] = shape[0] // groups
    out.emit(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        [source, kernel, bias_index],
        result,
        options,
        order=NHWC,
        params=params,
        version=_HYBRID if hybrid else 3 if params else 2 if dilated else 1,
    )


def bias_scale(out: Emitter, image: ir.Value | None, kernel: int) -> QuantParams:
    """The parameters that a bias must have: scale of the input times that of the weights."""
    source, weights = out.params(image), out.tensors[kernel].params
    assert source is not None and weights is not None
    if any(weights.zero_point):
        raise Unsupported("integer weights must be symmetric")
    scale = tuple(source.scale[0] * s for s in weights.scale)
    axis = None if len(scale) == 1 else 0
    return QuantParams(type="int32", scale=scale, zero_point=(0,) * len(scale), axis=axis)
