"""What layers do to the labels of channels: convolutions, products, normalisations, recurrent cells.

A layer's outputs have labels of their own, and its weights those of both sides. Grouped convolutions lose
either whole groups or the same channels of every group, whichever leaves more units; attention loses heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant_tensor, is_constant
from deploy.graph.labels import Found, rank_of, sizes_of, varying
from deploy.graph.ties import Load, Ties, is_weight, turned


def _weights(ties: Ties, node: ir.Node, index: int = 1) -> tuple[int, ...] | None:
    """The sizes of constant float weights, turned or not; None where they are computed or integers."""
    value = node.inputs[index]
    between = turned(value)
    tensor = constant_tensor(value if between is None else between[0].inputs[0])
    if tensor is None or not tensor.dtype.is_floating_point():
        ties.because = "its weights are computed, not constant numbers"
        return None
    return sizes_of(value)


def _put(ids: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return ids.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _slots(
    ties: Ties, node: ir.Node, rank: int, inputs: tuple[int, np.ndarray], made: tuple[int, np.ndarray]
) -> None:
    """Weights of ``rank``, by the (axis, labels) of both sides, and the work that shrinks with them."""
    ties.add(node, 1, _put(inputs[1], inputs[0], rank), "reads")
    ties.add(node, 1, _put(made[1], made[0], rank), "makes")


def _conv(ties: Ties, node: ir.Node) -> Found:
    """Conv and ConvTranspose; depthwise, grouped and whole."""
    shape = _weights(ties, node)
    if shape is None or is_constant(node.inputs[0]):
        return None
    group, turned = node.attributes.get_int("group", 1), node.op_type == "ConvTranspose"
    inputs, outputs = (shape[0], shape[1] * group) if turned else (shape[1] * group, shape[0])
    read, rank = ties.along(node.inputs[0], 1, inputs), len(shape)
    if group == 1:
        made = ties.fresh(outputs)
        _slots(ties, node, rank, (0 if turned else 1, read), (1 if turned else 0, made))
        parts: tuple[np.ndarray, ...] = (read, made)
    elif inputs == group:
        made = read.repeat(outputs // group)  # depthwise: an output goes with its input
        ties.add(node, 1, _put(read if turned else made, 0, rank), "follows")
        parts = (read,)
    else:
        made, parts = _grouped(ties, node, read, group, outputs)
    ties.loads.append(Load(node, parts))
    if len(node.inputs) > 2:
        ties.follow(node, 2, made)
    return [_put(made, 1, rank)]


def _grouped(
    ties: Ties, node: ir.Node, read: np.ndarray, group: int, outputs: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Groups of several channels each: as units, or cut all alike."""
    rank, turned = rank_of(node.inputs[1]), node.op_type == "ConvTranspose"
    into, out = read.reshape(group, -1), ties.fresh(outputs).reshape(group, -1)
    if group >= max(into.shape[1], out.shape[1]):
        units = ties.merge(ties.tie(into, [1]), ties.tie(out, [1]))
        first = into if turned else out
        ties.add(node, 1, _put(np.broadcast_to(units, first.shape), 0, rank), "makes")
        return out.reshape(-1), (units.reshape(-1),)
    into_one, out_one = ties.tie(into, [0]).reshape(-1), ties.tie(out, [0]).reshape(-1)
    if turned:
        _slots(ties, node, rank, (0, into.reshape(-1)), (1, out_one))
    else:
        _slots(ties, node, rank, (1, into_one), (0, out.reshape(-1)))
    return out.reshape(-1), (into_one, out_one)


def _gemm(ties: Ties, node: ir.Node) -> Found:
    shape = _weights(ties, node)
    if (
        shape is None
        or len(shape) != 2
        or is_constant(node.inputs[0])
        or node.attributes.get_int("transA", 0) != 0
    ):
        return None
    reads, makes = (1, 0) if node.attributes.get_int("transB", 0) == 1 else (0, 1)
    read, made = ties.along(node.inputs[0], 1, shape[reads]), ties.fresh(shape[makes])
    _slots(ties, node, 2, (reads, read), (makes, made))
    ties.loads.append(Load(node, (read, made)))
    if len(node.inputs) > 2:
        ties.follow(node, 2, made)
    return [made[None, :]]


def _matmul(ties: Ties, node: ir.Node) -> Found:
    """By a weight matrix on either side, or of two values."""
    left, right = node.inputs
    if not is_weight(left) and not is_weight(right):
        return _product(ties, node)
    index, value = (1, left) if is_weight(right) else (0, right)
    shape, ids = _weights(ties, node, index), ties.ids(value)
    axis = -1 if index else -2
    if shape is None or len(shape) != 2 or ids.ndim < 2:
        return None
    if any(i != ids.ndim + axis for i in varying(ids)):
        # It works along another axis than that of the channels, or inside of each head alike.
        ids = ties.tie(ids, [ids.ndim + axis])
        ties.loads.append(Load(node, (ids,)))
        ties.left[node.name or ""] = "it mixes along another axis than that of the channels, for each alike"
        return [ids]
    reads, makes = (0, 1) if index else (1, 0)
    read, made = ties.along(value, axis, shape[reads]), ties.fresh(shape[makes])
    ties.add(node, index, _put(read, reads, 2), "reads")
    ties.add(node, index, _put(made, makes, 2), "makes")
    ties.loads.append(Load(node, (read, made)))
    return [_put(made, axis, ids.ndim)]


def _product(ties: Ties, node: ir.Node) -> Found:
    """Of two values. Heads (labelled axes before the last two) are units; so is what is summed over."""
    rank = rank_of(node.outputs[0])
    if any(rank_of(v) < 2 for v in node.inputs):
        return None
    a, b = (ids.reshape((1,) * (rank - ids.ndim) + ids.shape) for ids in map(ties.ids, node.inputs))
    if any(i < rank - 2 for ids in (a, b) for i in varying(ids)):
        one, other = (
            (ties.tie(ids, [rank - 2, rank - 1]), (1,) * (rank - len(sizes)) + (*sizes[:-2], 1, 1))
            for ids, sizes in ((a, sizes_of(node.inputs[0])), (b, sizes_of(node.inputs[1])))
        )
        heads = ties.meet(*one, *other)
        ties.loads.append(Load(node, (heads,)))
        return [heads]
    inner = sizes_of(node.inputs[0])[-1]
    if any(ids.shape[-1] > 1 and ids.shape[-2] > 1 for ids in (a, b)):
        return None
    rows, columns = np.take(a, [0], -1), np.take(b, [0], -2)
    shared = ties.merge(_inner(a, -1, inner), _inner(b, -2, inner))
    rows = rows if a.shape[-2] > 1 else np.zeros((1,) * rank, np.int64)
    columns = columns if b.shape[-1] > 1 else np.zeros((1,) * rank, np.int64)
    if rows.size > 1 and columns.size > 1:
        ties.pin(rows, "they become rows of a product whose columns are channels too")
        rows = np.zeros((1,) * rank, np.int64)
    ties.loads.append(Load(node, (shared, rows, columns)))
    return [rows if rows.size > 1 else columns]


def _inner(ids: np.ndarray, axis: int, size: int) -> np.ndarray:
    """The labels that a product sums over."""
    return np.broadcast_to(ids.reshape(-1), (size,)) if ids.shape[axis] > 1 else np.zeros(size, np.int64)


def _recurrent(ties: Ties, node: ir.Node) -> Found:
    """LSTM, GRU, RNN read fewer inputs; their own width stays."""
    shape = _weights(ties, node)
    if shape is None or len(shape) != 3:
        return None
    ids = ties.ids(node.inputs[0])
    read = ties.along(node.inputs[0], -1, shape[2]) if ids.ndim == 3 else np.zeros(shape[2], np.int64)
    ties.add(node, 1, _put(read, 2, 3), "reads")
    ties.loads.append(Load(node, (read,), shape[2] / (shape[2] + sizes_of(node.inputs[2])[-1])))
    for value in node.inputs[2:]:
        ties.pin(ties.ids(value), "they are the state of a recurrent cell")
    ties.left[node.name or ""] = "a recurrent cell keeps its width: its gates and states are one"
    return []


def embedding(ties: Ties, node: ir.Node) -> Found:
    """Rows of a constant table, chosen by what is computed: its width can shrink."""
    table, ids = node.inputs[0], ties.ids(node.inputs[1])
    sizes, rank = sizes_of(table), rank_of(node.outputs[0])
    axis = node.attributes.get_int("axis", 0)
    if not is_constant(table) or len(sizes) != 2 or axis not in (0, -2) or _weights(ties, node, 0) is None:
        return None
    ties.pin(ids, "they choose rows of a table")
    made = ties.fresh(sizes[1])
    ties.add(node, 0, made[None, :], "makes")
    return [_put(made, -1, rank)]


def _batch_norm(ties: Ties, node: ir.Node) -> Found:
    """Its moving statistics, which it puts out while training, are of channels too."""
    ids = ties.ids(node.inputs[0])
    vector = ids[0].reshape(ids.shape[1], -1)[:, 0] if ids.ndim > 1 else ids
    for index in range(1, 5):
        ties.follow(node, index, vector)
    return [ids] + [vector] * (len(node.outputs) - 1)


def _instance_norm(ties: Ties, node: ir.Node) -> Found:
    ids = ties.ids(node.inputs[0])
    if any(i > 1 for i in varying(ids)):
        ties.restricted.append(ids)
    for index in (1, 2):
        ties.follow(node, index, ids[0].reshape(ids.shape[1], -1)[:, 0])
    return [ids]


def _group_norm(ties: Ties, node: ir.Node) -> Found:
    """The same channels of every group go, so the groups stay what they are."""
    groups, channels = node.attributes.get_int("num_groups", 1), sizes_of(node.inputs[0])[1]
    ids = ties.along(node.inputs[0], 1, channels)
    ties.tie(ids.reshape(groups, -1), [0])
    ties.restricted.append(ids)
    for index in (1, 2):
        ties.follow(node, index, ids)
    return [_put(ids, 1, rank_of(node.inputs[0]))]


def _layer_norm(ties: Ties, node: ir.Node) -> Found:
    """Over the last axes. Its statistics become those of what is left."""
    ids, rank = ties.ids(node.inputs[0]), rank_of(node.inputs[0])
    if any(v.name and (v.uses() or v.is_graph_output()) for v in node.outputs[1:]):
        return None
    axis = node.attributes.get_int("axis", -1) % rank
    inside = [i for i in varying(ids) if i >= axis]
    if inside and len(inside) < len(varying(ids)):
        ids = ties.tie(ids, inside)
    elif inside:
        ties.restricted.append(ids)
    for index in range(1, len(node.inputs)):
        ties.follow(node, index, ids)
    return [ids]


LAYERS: Mapping[str, Callable[[Ties, ir.Node], Found]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
}
