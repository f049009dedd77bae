"""A factor and a shift per channel, folded into the weights of the convolution or product next to them.

Batch normalization in inference, multiplication and addition of constants are all ``y = x * factor + shift``
per channel. Weights are folded in float64 and stored in their own type. The compute node keeps its name; its
output takes the name of the last value folded into it. All steps work in place and return how often.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import (
    add_initializer,
    constant,
    is_constant,
    remove_dead,
    replace_node,
    replace_weight,
    sole_consumer,
    take_over,
)

_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}
Affine = tuple[np.ndarray, np.ndarray]
"""Factor and shift, float64, one number per channel."""


def fold_into_producer(model: ir.Model) -> int:
    """Conv, ConvTranspose, Gemm or MatMul, then a batch norm or constants per channel > one node."""
    folded = 0
    for node in list(model.graph):
        while (last := _affine_consumer(node)) is not None:
            channels = _output_channels(node)
            affine = (
                None if channels is None else _affine(last, node.outputs[0], channels, _channel_axis(node))
            )
            if affine is None or not _scale_output(model, node, affine):
                break
            take_over(node, last)
            folded += 1
    return folded


def fold_into_consumer(model: ir.Model) -> int:
    """A batch norm or constants per channel, then Conv, Gemm or MatMul > one node. No shift where it pads."""
    folded = 0
    for node in list(model.graph):
        if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul") or not _own_weight(node):
            continue
        if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
            continue
        source = node.inputs[0]
        first = source.producer() if source is not None else None
        if source is None or first is None or sole_consumer(source) is not node:
            continue
        value = _variable(first)
        channels = _input_channels(node)
        axis = -1 if node.op_type == "MatMul" else 1
        if value is None or channels is None or value.dtype not in _FLOATS:
            continue
        affine = _affine(first, value, channels, axis)
        if affine is None or not _scale_input(model, node, affine):
            continue
        node.replace_input_with(0, value)
        remove_dead([first])
        folded += 1
    return folded


def matmul_to_gemm(model: ir.Model) -> int:
    """MatMul with a constant matrix, then Add of a vector or a batch norm, all of rank 2 > Gemm."""
    made = 0
    for node in list(model.graph):
        last = sole_consumer(node.outputs[0]) if node.op_type == "MatMul" and node.domain == "" else None
        channels = _output_channels(node) if last is not None else None
        if last is None or channels is None or last.domain != "" or not _rank2(node):
            continue
        if last.op_type == "BatchNormalization":  # fold_into_producer does the rest
            replace_node(node, "Gemm", node.inputs)
            made += 1
            continue
        if last.op_type != "Add":
            continue
        bias = next((v for v in last.inputs if v is not node.outputs[0]), None)
        array = constant(bias)
        if bias is None or array is None or array.size != channels or array.shape[-1:] != (channels,):
            continue
        if array.ndim > 1:
            bias = add_initializer(model, bias.name or "bias", array.reshape(channels))
        gemm = replace_node(node, "Gemm", [node.inputs[0], node.inputs[1], bias])
        take_over(gemm, last)
        made += 1
    return made


def _rank2(node: ir.Node) -> bool:
    return all(v is not None and v.shape is not None and v.shape.rank() == 2 for v in node.inputs[:2])


def _affine_consumer(node: ir.Node) -> ir.Node | None:
    """The only reader of a compute node with its own weights, if that is an affine operation."""
    if (
        node.domain != ""
        or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        or not _own_weight(node)
    ):
        return None
    last = sole_consumer(node.outputs[0])
    return last if last is not None and _variable(last) is node.outputs[0] else None


def _own_weight(node: ir.Node) -> bool:
    """A constant float weight, and constant bias, that no other node reads: folding would double it."""
    for position, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        if not is_constant(value) or value.dtype not in _FLOATS:
            return False
        if position == 0 and len(value.uses()) > 1:
            return False
    return len(node.inputs) > 1 and node.inputs[1] is not None


def _variable(node: ir.Node) -> ir.Value | None:
    """The one input that is not constant of a batch norm or of Mul, Div, Add, Sub with a constant."""
    if node.domain != "" or node.inputs[0] is None:
        return None
    if node.op_type == "BatchNormalization":
        extra = any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
        training = node.attributes.get_int("training_mode", 0) != 0
        return None if extra or training or not all(map(is_constant, node.inputs[1:])) else node.inputs[0]
    if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    if is_constant(right) and not is_constant(left):
        return left
    # c / x is not affine; c - x is.
    return right if is_constant(left) and not is_constant(right) and node.op_type != "Div" else None


def _affine(node: ir.Node, value: ir.Value, channels: int, axis: int) -> Affine | None:
    """What ``node`` does to its input ``value``, channels along ``axis``; None if not per channel."""
    if node.op_type == "BatchNormalization":
        if axis not in (1,) and not (value.shape is not None and value.shape.rank() == 2):
            return None
        scale, bias, mean, var = (np.float64(constant(v)) for v in node.inputs[1:5])
        factor = scale / np.sqrt(var + node.attributes.get_float("epsilon", 1e-5))
        return factor, bias - mean * factor
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    array = constant(other)
    if array is None or array.dtype.kind != "f" or value.shape is None:
        return None
    rank = value.shape.rank()
    where = axis % rank - (rank - array.ndim)
    if array.ndim > rank or any(
        size != 1 and (i != where or size != channels) for i, size in enumerate(array.shape)
    ):
        return None
    number = np.broadcast_to(np.float64(array).reshape(-1), (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Mul":
        return number, zero
    if node.op_type == "Div":
        return (one / number, zero) if number.all() else None
    if node.op_type == "Add":
        return one, number
    return (one, -number) if node.inputs[0] is value else (-one, number)


def _channel_axis(node: ir.Node) -> int:
    return -1 if node.op_type == "MatMul" else 1


def _output_channels(node: ir.Node) -> int | None:
    weight = node.inputs[1]
    shape = weight.shape if weight is not None and is_constant(weight) else None
    if shape is None or not shape.is_static():
        return None
    dims = shape.numpy()
    match node.op_type:
        case "Conv":
            return dims[0]
        case "ConvTranspose":
            return dims[1] * node.attributes.get_int("group", 1)
        case "Gemm":
            return dims[0] if node.attributes.get_int("transB", 0) else dims[1]
        case _:
            return dims[1] if len(dims) == 2 else None


def _input_channels(node: ir.Node) -> int | None:
    weight = node.inputs[1]
    shape = weight.shape if weight is not None else None
    if shape is None or not shape.is_static():
        return None
    dims = shape.numpy()
    match node.op_type:
        case "Conv":
            return dims[1] * node.attributes.get_int("group", 1)
        case "Gemm":
            return dims[1] if node.attributes.get_int("transB", 0) else dims[0]
        case _:
            return dims[0] if len(dims) == 2 else None


def _bias(node: ir.Node, channels: int) -> np.ndarray | None:
    """The bias that a Conv or Gemm adds, zero where it has none; None if it is not one number a channel."""
    array = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if array is None:
        return np.zeros(channels)
    if array.size not in (1, channels) or (array.size == channels and array.shape[-1:] != (channels,)):
        return None
    bias = np.broadcast_to(np.float64(array).reshape(-1), (channels,))
    return bias * node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else bias


def _set_bias(model: ir.Model, node: ir.Node, bias: np.ndarray) -> None:
    if node.op_type == "Gemm":
        node.attributes.pop("beta", None)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        replace_weight(model, node, 2, bias)
        return
    weight = node.inputs[1]
    assert weight is not None and weight.dtype is not None
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, add_initializer(model, f"{node.name}_bias", bias.astype(weight.dtype.numpy())))


def _weight(node: ir.Node) -> np.ndarray:
    array = constant(node.inputs[1])
    assert array is not None
    return array.astype(np.float64)


def _scale_output(model: ir.Model, node: ir.Node, affine: Affine) -> bool:
    factor, shift = affine
    weight = _weight(node)
    if node.op_type == "MatMul":
        if shift.any():
            return False  # it has no bias; matmul_to_gemm gives it one where it can
        replace_weight(model, node, 1, weight * factor)
        return True
    bias = _bias(node, factor.size)
    if bias is None:
        return False
    if node.op_type == "Conv":
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    elif node.op_type == "ConvTranspose":
        group = node.attributes.get_int("group", 1)
        # Weights are [inputs, outputs of one group, ...]: each group of inputs has its own outputs.
        grouped = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
        scaled = grouped * factor.reshape(group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        scaled = scaled.reshape(weight.shape)
    else:
        scaled = weight * (factor[:, None] if node.attributes.get_int("transB", 0) else factor)
    if (factor != 1).any():
        replace_weight(model, node, 1, scaled)
    if (len(node.inputs) > 2 and node.inputs[2] is not None) or shift.any():
        _set_bias(model, node, bias * factor + shift)
    return True


def _scale_input(model: ir.Model, node: ir.Node, affine: Affine) -> bool:
    factor, shift = affine
    weight = _weight(node)
    outputs = _output_channels(node)
    if outputs is None or (shift.any() and not _takes_shift(node)):
        return False
    if node.op_type == "Conv":
        # Output o of a grouped convolution reads the inputs of its group only.
        group = node.attributes.get_int("group", 1)
        per_output = factor.reshape(group, -1).repeat(outputs // group, axis=0)
        moved = shift.reshape(group, -1).repeat(outputs // group, axis=0)
        wide = weight.reshape(outputs, weight.shape[1], -1)
        added = (wide.sum(axis=2) * moved).sum(axis=1)
        scaled = (wide * per_output[:, :, None]).reshape(weight.shape)
    else:
        matrix = weight.T if node.attributes.get_int("transB", 0) else weight
        added = shift @ matrix * node.attributes.get_float("alpha", 1.0)
        scaled = factor[:, None] * matrix
        scaled = scaled.T if node.attributes.get_int("transB", 0) else scaled
    bias = _bias(node, outputs)
    if bias is None:
        return False
    replace_weight(model, node, 1, scaled)
    if shift.any():
        _set_bias(model, node, bias + added)
    return True


def _takes_shift(node: ir.Node) -> bool:
    """A shift before a padded convolution is not there in the padding; a MatMul has no bias to take it."""
    if node.op_type == "Gemm":
        return True
    if node.op_type == "MatMul":
        return False
    padded = any(node.attributes.get_ints("pads", ()))
    return not padded and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
