"""Products of matrices: FULLY_CONNECTED with constant weights, BATCH_MATMUL of two activations."""

from __future__ import annotations

import onnx_ir as ir

from backends.tflite.emitter import Emitter, Setting
from backends.tflite.layout import Order, plain
from backends.tflite.ops.conv import bias_scale
from backends.tflite.optable import OpTable
from backends.tflite.reading import Unsupported
from deploy.graph.edit import is_constant

ops = OpTable()

_HYBRID = 12
"""The version of FULLY_CONNECTED that reads floats beside weights with one scale a channel."""


@ops.lower("Gemm")
def gemm(node: ir.Node, out: Emitter) -> None:
    """alpha and beta must be 1: cleaning has folded others into the weights."""
    read = node.attributes
    if read.get_int("transA", 0) or read.get_float("alpha", 1.0) != 1 or read.get_float("beta", 1.0) != 1:
        raise Unsupported("only transA = 0, alpha = 1 and beta = 1 are written")
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    _fully_connected(node, out, bias, (0, 1) if read.get_int("transB", 0) else (1, 0))


@ops.lower("MatMul")
def matmul(node: ir.Node, out: Emitter) -> None:
    left, right = node.inputs[:2]
    a, b = out.shape(left), out.shape(right)
    constant = is_constant(right) or right not in out.carried
    if constant and len(b) == 2 and len(a) > 1:
        _fully_connected(node, out, None, (1, 0))
        return
    if min(len(a), len(b)) < 2 or max(len(a), len(b)) > 4:
        raise Unsupported("vectors, or more than 4 axes")
    operands = [out.read(value, plain(len(out.shape(value)))) for value in (left, right)]
    out.emit("BATCH_MATMUL", operands, node.outputs[0], ("BatchMatMulOptions", {}))


def _fully_connected(node: ir.Node, out: Emitter, bias: ir.Value | None, order: Order) -> None:
    """Weights are stored (outputs, inputs)."""
    left, right = node.inputs[:2]
    shape, kernel_shape = out.shape(left), out.shape(right)
    units, depth = (kernel_shape[axis] for axis in order)
    if shape[-1] != depth:
        raise Unsupported("the size of its last axis is free")
    result, activation = out.activation(node)
    params = out.integer(result, [left, right])
    hybrid = out.hybrid(node, right)
    kernel = out.weight(right, order, integer=params is not None or hybrid)
    bias_index = out.bias(bias, units, None if params is None else bias_scale(out, left, kernel))
    source = out.read(left, plain(len(shape)), integer=params is not None)
    keep = len(shape) > 2
    options: dict[str, Setting] = {"fusedActivationFunction": activation, "keepNumDims": keep}
    if hybrid:
        options["asymmetricQuantizeInputs"] = True
    out.emit(
        "FULLY_CONNECTED",
        [source, kernel, bias_index],
        result,
        ("FullyConnectedOptions", options),
        params=params,
        version=_HYBRID if hybrid else 5 if params else 2 if keep else 1,
    )
