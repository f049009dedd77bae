"""What each operation does to the numbers of channels: operation -> a function of the walk and the node."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant, is_constant
from deploy.graph.label_moves import MOVES
from deploy.graph.labels import ANY, FIXED, Found, rank_of, sizes_of
from deploy.quantize.channel_walk import Slot, Walk, own


def _layer(walk: Walk, node: ir.Node) -> Found:
    """Conv, ConvTranspose, Gemm, MatMul with weights of their own: both sides are free."""
    if node.op_type == "MatMul" and not is_constant(node.inputs[1]):
        return _product(walk, node)
    weight = constant(node.inputs[1]) if own(node, 1) else None
    if weight is None or is_constant(node.inputs[0]) or node.attributes.get_int("transA", 0) != 0:
        return None
    group = node.attributes.get_int("group", 1)
    wide = (1,) * (weight.ndim - 2)
    if node.op_type == "Conv":
        inputs, outputs = weight.shape[1] * group, weight.shape[0]
    elif node.op_type == "ConvTranspose":
        inputs, outputs = weight.shape[0], weight.shape[1] * group
    elif weight.ndim != 2:
        return None
    else:
        inputs, outputs = weight.shape[:: -1 if node.attributes.get_int("transB", 0) == 1 else 1]
    axis = -1 if node.op_type in ("MatMul", "Gemm") else 1
    read = walk.along(node.inputs[0], axis, inputs)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if read is None or (bias is not None and not (own(node, 2) and sizes_of(bias)[-1:] == (outputs,))):
        return None
    made = walk.fresh(outputs)
    if node.op_type == "Conv":
        rows = read.reshape(group, -1).repeat(outputs // group, axis=0).reshape(*weight.shape[:2], *wide)
        columns = made.reshape(-1, 1, *wide)
    elif node.op_type == "ConvTranspose":
        rows = read.reshape(-1, 1, *wide)
        columns = made.reshape(group, -1).repeat(inputs // group, axis=0).reshape(*weight.shape[:2], *wide)
    elif node.attributes.get_int("transB", 0):
        rows, columns = read[None, :], made[:, None]
    else:
        rows, columns = read[:, None], made[None, :]
    walk.slots += [Slot(node, 1, rows, 1, "layer"), Slot(node, 1, columns, -1, "layer")]
    if bias is not None:
        walk.slots.append(Slot(node, 2, made, -1, "layer"))
    rank = rank_of(node.outputs[0])
    return [made.reshape([-1 if i == axis % rank else 1 for i in range(rank)])]


def _product(walk: Walk, node: ir.Node) -> Found:
    """Of two activations: each column of the second makes a column of the result."""
    left, right = node.inputs
    ids = walk.ids(right)
    if ids.ndim < 2 or is_constant(left):
        return None
    walk.pin(walk.ids(left))
    return [
        walk.tie(ids, [ids.ndim - 2]).reshape(
            (1,) * (rank_of(node.outputs[0]) - ids.ndim) + ids.shape[:-2] + (1, -1)
        )
    ]


def _norm(walk: Walk, node: ir.Node) -> Found:
    """A norm over the last axis makes channels by its own scale and shift."""
    axis, rank = node.attributes.get_int("axis", -1), rank_of(node.outputs[0])
    used = [v for v in node.outputs[1:] if v.uses() or v.is_graph_output()]
    if axis not in (-1, rank - 1) or used or not all(own(node, i) for i in range(1, len(node.inputs))):
        return None
    walk.pin(walk.ids(node.inputs[0]))
    scale = constant(node.inputs[1])
    assert scale is not None
    made = walk.fresh(scale.size)
    walk.slots += [Slot(node, i, made, -1, "norm") for i in range(1, len(node.inputs))]
    return [made.reshape((1,) * (rank - 1) + (-1,))]


def _same(walk: Walk, node: ir.Node) -> Found:
    return [walk.ids(node.inputs[0])]


def _clip(walk: Walk, node: ir.Node) -> Found:
    reached = walk.reached.get(node.name or "")
    if reached is None:
        return None
    ids = walk.ids(node.inputs[0])
    walk.pin(np.broadcast_arrays(ids, reached)[0][np.broadcast_arrays(ids, reached)[1]])
    return [ids]


def _pool(walk: Walk, node: ir.Node) -> Found:
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return None
    ids = walk.ids(node.inputs[0])
    return [walk.tie(ids, range(2, ids.ndim))]


def _resize(walk: Walk, node: ir.Node) -> Found:
    before, after = sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
    return _pool(walk, node) if before[:2] == after[:2] else None


def _reduce(walk: Walk, node: ir.Node) -> Found:
    ids, axes = walk.ids(node.inputs[0]), constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        return None
    over = [int(a) % ids.ndim for a in axes]
    ids = walk.tie(ids, over)
    return [ids if node.attributes.get_int("keepdims", 1) else np.squeeze(ids, tuple(over))]


def _sum(walk: Walk, node: ir.Node) -> Found:
    """Add, Sub, Max, Min, Sum: what is put together is tied, and constants go along."""
    rank = rank_of(node.outputs[0])
    operands = [(i, v) for i, v in enumerate(node.inputs) if v is not None]
    if node.op_type == "Where":
        operands = operands[1:]
    ids = np.full((1,) * rank, ANY, np.int64)
    for _, value in operands:
        if not is_constant(value):
            found = walk.ids(value)
            ids = walk.merge(ids, found.reshape((1,) * (rank - found.ndim) + found.shape))
    for index, value in operands:
        array = constant(value)
        if array is None or not array.any():
            continue
        shape = (1,) * (rank - array.ndim) + array.shape
        narrow = [i for i in range(rank) if shape[i] == 1 and ids.shape[i] > 1]
        ids_here = walk.tie(ids, narrow)
        if not own(node, index) or narrow:
            walk.pin(ids)
            continue
        if array.ndim:
            ids_here = ids_here.reshape(ids_here.shape[rank - array.ndim :])
        walk.slots.append(Slot(node, index, ids_here if array.ndim else ids_here.reshape(()), -1, "shift"))
    return [ids]


def _times(walk: Walk, node: ir.Node) -> Found:
    """A product is homogeneous in one operand. Constants for the channels of what is fixed make channels."""
    rank = rank_of(node.outputs[0])
    left, right = node.inputs

    def full(ids: np.ndarray) -> np.ndarray:
        return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)

    if is_constant(right) or is_constant(left):
        if is_constant(left) and node.op_type == "Div":
            return None
        value, index = (left, 1) if is_constant(right) else (right, 0)
        ids, shape = full(walk.ids(value)), sizes_of(node.inputs[index])
        fixed = all(walk.root(int(i)) == FIXED for i in np.unique(ids[ids >= 0]))
        last = shape[-1:] == sizes_of(node.outputs[0])[-1:] and np.prod(shape) == shape[-1] > 1
        if fixed and node.op_type == "Mul" and own(node, index) and last:  # as of an RMS norm
            made = walk.fresh(shape[-1])
            walk.slots.append(Slot(node, index, made, -1, "norm"))
            return [made.reshape((1,) * (rank - 1) + (-1,))]
        return [ids]
    one, other = full(walk.ids(left)), full(walk.ids(right))
    if node.op_type == "Mul" and not (one > 0).any():
        one, other = other, one
    walk.pin(other)
    return [one]


RULES: Mapping[str, Callable[[Walk, ir.Node], Found]] = {
    **MOVES,
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _layer),
    "LayerNormalization": _norm,
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Neg", "Abs"), _same),
    "Clip": _clip,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    "Resize": _resize,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"), _reduce),
    **dict.fromkeys(("Add", "Sub", "Sum", "Max", "Min", "Where"), _sum),
    **dict.fromkeys(("Mul", "Div"), _times),
}
