"""Batch normalisation that no convolution took in: a product and a sum for each channel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter, Tensor
from backends.tflite.layout import NHWC, plain
from backends.tflite.optable import OpTable
from backends.tflite.reading import Unsupported
from deploy.graph.edit import constant

ops = OpTable()


@ops.lower("BatchNormalization")
def batch_normalization(node: ir.Node, out: Emitter) -> None:
    rank = len(out.shape(node.inputs[0]))
    arrays = [constant(value) for value in node.inputs[1:5]]
    if rank not in (2, 4) or any(array is None for array in arrays):
        raise Unsupported("only images or vectors, with constant parameters")
    if node.attributes.get_int("training_mode", 0):
        raise Unsupported("it normalises by the batch, as in training")
    scale, shift, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    order = NHWC if rank == 4 else plain(2)
    source = out.read(node.inputs[0], order)
    factors = out.numbers(factor.astype(np.float32), f"{node.name}/factor")
    shifts = out.numbers((shift - mean * factor).astype(np.float32), f"{node.name}/shift")
    made = Tensor(f"{node.name}/scaled", out.tensors[source].shape, "float32", order)
    scaled = out.inner("MUL", [source, factors], made, ("MulOptions", {}))
    result, activation = out.activation(node)
    options = {"fusedActivationFunction": activation}
    out.emit("ADD", [scaled, shifts], result, ("AddOptions", {**options}), order=order)
