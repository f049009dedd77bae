"""Activations that stand alone; those behind a convolution, product or sum are part of it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter, Options, Tensor
from backends.tflite.layout import NHWC, plain
from backends.tflite.ops.elementwise import common_order, operand, unary
from backends.tflite.optable import OpTable
from backends.tflite.reading import Unsupported, activation_of
from deploy.graph.edit import is_constant

ops = OpTable()

_FIXED = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
"""Scale and zero point that these kernels always write."""

ops.lower("Relu")(unary("RELU"))
ops.lower("HardSwish")(unary("HARD_SWISH", "HardSwishOptions"))


@ops.lower("Clip")
def clip(node: ir.Node, out: Emitter) -> None:
    code = activation_of(node)
    if code == "NONE":
        raise Unsupported("only Clip from 0, from 0 to 6 and from -1 to 1 is written")
    unary(code)(node, out)


@ops.lower("Sigmoid")
def sigmoid(node: ir.Node, out: Emitter) -> None:
    _saturating(node, out, "LOGISTIC")


@ops.lower("Tanh")
def tanh(node: ir.Node, out: Emitter) -> None:
    _saturating(node, out, "TANH")


def _saturating(node: ir.Node, out: Emitter, code: str) -> None:
    params = out.integer(node.outputs[0], node.inputs)
    if params is not None and (params.scale[0], params.zero_point[0]) != _FIXED[code]:
        params = None
    _emit(node, out, code, ("", {}), params is not None)


@ops.lower("LeakyRelu")
def leaky_relu(node: ir.Node, out: Emitter) -> None:
    options: Options = ("LeakyReluOptions", {"alpha": node.attributes.get_float("alpha", 0.01)})
    _emit(node, out, "LEAKY_RELU", options, out.integer(node.outputs[0], node.inputs) is not None)


@ops.lower("Elu")
def elu(node: ir.Node, out: Emitter) -> None:
    if node.attributes.get_float("alpha", 1.0) != 1.0:
        raise Unsupported("only alpha = 1 is written")
    _emit(node, out, "ELU", ("", {}), out.integer(node.outputs[0], node.inputs) is not None, version=1)


@ops.lower("PRelu")
def prelu(node: ir.Node, out: Emitter) -> None:
    value, slope = node.inputs[:2]
    rank = len(out.shape(value))
    if not is_constant(slope) or rank > 4 or rank < 2:
        raise Unsupported("its slopes must be constants, for 2 to 4 axes")
    order = common_order(out, [value], rank)
    read = [operand(out, v, order, integer=False) for v in (value, slope)]
    # The kernel wants the slopes without the batch.
    slopes = out.tensors[read[1]]
    if slopes.data is None or slopes.shape[0] != 1:
        raise Unsupported("slopes of their own for each sample")
    read[1] = out.numbers(slopes.data.reshape(slopes.shape[1:]), f"{node.name}/slopes")
    out.emit("PRELU", read, node.outputs[0], order=order)


@ops.lower("HardSigmoid")
def hard_sigmoid(node: ir.Node, out: Emitter) -> None:
    """relu6(x + 3) / 6, which XNNPACK takes whole, where TFLite has no operation of its own."""
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    if abs(alpha - 1 / 6) > 1e-6 or beta != 0.5:
        raise Unsupported("only alpha = 1/6 and beta = 1/2 are written")
    source = out.read(node.inputs[0])
    tensor = out.tensors[source]
    three, sixth = (
        out.numbers(np.array(number, np.float32), f"{node.name}/{name}")
        for name, number in (("three", 3), ("sixth", 1 / 6))
    )
    made = Tensor(f"{node.name}/relu6", tensor.shape, "float32", tensor.order)
    shifted = out.inner("ADD", [source, three], made, ("AddOptions", {"fusedActivationFunction": "RELU6"}))
    out.emit("MUL", [shifted, sixth], node.outputs[0], ("MulOptions", {}), order=tensor.order)


@ops.lower("Softmax", "LogSoftmax")
def softmax(node: ir.Node, out: Emitter) -> None:
    """Over the last axis as stored: the channels of an image where it is stored channels last."""
    rank = len(out.shape(node.inputs[0]))
    axis = node.attributes.get_int("axis", -1) % rank
    if axis != rank - 1 and (axis, rank) != (1, 4):
        raise Unsupported("only the last axis, or the channels of an image")
    if rank > 4:
        raise Unsupported("more than 4 axes")
    order = plain(rank) if axis == rank - 1 else NHWC
    source = out.read(node.inputs[0], order)
    if node.op_type == "Softmax":
        out.emit("SOFTMAX", [source], node.outputs[0], ("SoftmaxOptions", {"beta": 1.0}), order=order)
    else:
        out.emit("LOG_SOFTMAX", [source], node.outputs[0], ("LogSoftmaxOptions", {}), order=order)


def _emit(
    node: ir.Node, out: Emitter, code: str, options: Options, integer: bool, version: int | None = None
) -> None:
    source = out.read(node.inputs[0], integer=integer)
    params = out.stored(node.outputs[0]) if integer else None
    order = out.tensors[source].order
    out.emit(code, [source], node.outputs[0], options, order=order, params=params, version=version)
