"""Where a layer adds one number to each output channel, and how a shift gets in there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, is_constant, replace_weight, sole_consumer

_THIRD = ("Conv", "ConvTranspose", "Gemm")


def bias_slot(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node and input by which a layer's bias enters: its third input, present or not, or the constant of
    the Add behind a MatMul. None where there is no place for one that is its own.

    A Gemm with beta other than 1, and a bias that others read, have none.
    """
    if node.op_type in _THIRD:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) != 1.0:
            return None
        if bias is None:
            return node, 2
        own = is_constant(bias) and len(bias.uses()) == 1 and not bias.is_graph_output()
        return (node, 2) if own and _vector(bias, output_channels(node)) else None
    if node.op_type != "MatMul":
        return None
    following = sole_consumer(node.outputs[0])
    if following is None or following.op_type != "Add":
        return None
    for index, value in enumerate(following.inputs):
        if value is not None and value is not node.outputs[0] and is_constant(value):
            own = len(value.uses()) == 1 and not value.is_graph_output()
            return (following, index) if own and _vector(value, output_channels(node)) else None
    return None


def channel_axis(node: ir.Node) -> int:
    """The axis of a layer's output along which its channels lie."""
    return -1 if node.op_type in ("MatMul", "Gemm") else 1


def output_channels(node: ir.Node) -> int | None:
    """How many channels a layer with constant weights makes."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or weight.shape is None or not is_constant(weight):
        return None
    sizes = weight.shape.numpy()
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0):
        return sizes[0]
    if node.op_type == "ConvTranspose":
        return sizes[1] * node.attributes.get_int("group", 1)
    return sizes[1] if len(sizes) == 2 else None


def bias_array(node: ir.Node) -> np.ndarray | None:
    """The bias of a layer that has a slot, float64, one number for each channel; zeros where it is absent."""
    slot, channels = bias_slot(node), output_channels(node)
    if slot is None or channels is None:
        return None
    array = constant(slot[0].inputs[slot[1]] if slot[1] < len(slot[0].inputs) else None)
    return np.zeros(channels) if array is None else array.astype(np.float64).reshape(-1)


def set_bias(model: ir.Model, node: ir.Node, array: np.ndarray) -> ir.Value:
    """Store one number for each channel as the bias of ``node``, which has a slot. Returns the constant."""
    slot = bias_slot(node)
    assert slot is not None
    where, index = slot
    old = where.inputs[index] if index < len(where.inputs) else None
    if old is not None and old.shape is not None:
        return replace_weight(model, where, index, array.reshape(old.shape.numpy()))
    weight = node.inputs[1]
    assert weight is not None and weight.dtype is not None
    if index >= len(where.inputs):
        where.resize_inputs(index + 1)
    new = add_initializer(model, f"{node.name}/bias", array.astype(weight.dtype.numpy()))
    where.replace_input_with(index, new)
    return new


def _vector(value: ir.Value, channels: int | None) -> bool:
    """Whether a constant has one number for each of the last axis' entries and nothing else."""
    shape = () if value.shape is None else tuple(value.shape)
    return bool(shape) and shape[-1] == channels and all(size == 1 for size in shape[:-1])
