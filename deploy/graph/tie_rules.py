"""What every operation does to the labels of channels that may be removed: operation -> a function.

Zeroing a channel where it is read and removing it must come to the same. So functions of one number at a time
let every channel through, sums and products tie those that meet, and what compares channels with one another
(a softmax, a maximum over them) keeps them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant, is_constant
from deploy.graph.label_moves import MOVES, pick
from deploy.graph.labels import Found, rank_of, sizes_of, varying
from deploy.graph.tie_einsum import einsum
from deploy.graph.tie_layers import LAYERS, embedding
from deploy.graph.ties import Ties


def _same(ties: Ties, node: ir.Node) -> Found:
    return [ties.ids(node.inputs[0])]


def _clip(ties: Ties, node: ir.Node) -> Found:
    return _same(ties, node) if all(v is None or is_constant(v) for v in node.inputs[1:]) else None


def _together(ties: Ties, node: ir.Node) -> Found:
    """Number by number of several values: channels that meet go together, constants along with them."""
    rank = rank_of(node.outputs[0])
    moving = [v for v in node.inputs if v is not None and not is_constant(v)]
    ids, sizes = np.zeros((1,) * rank, np.int64), (1,) * rank
    for value in moving:
        here, wide = ties.ids(value), sizes_of(value)
        here = here.reshape((1,) * (rank - here.ndim) + here.shape)
        wide = (1,) * (rank - len(wide)) + wide
        ids = here if value is moving[0] else ties.meet(ids, sizes, here, wide)
        sizes = np.broadcast_shapes(sizes, wide)
    for index, operand in enumerate(node.inputs):
        if operand is not None and is_constant(operand):
            ties.follow(node, index, ids)
    return [ids]


def _pool(ties: Ties, node: ir.Node) -> Found:
    if any(v.name and (v.uses() or v.is_graph_output()) for v in node.outputs[1:]):
        return None
    ids = ties.ids(node.inputs[0])
    return [_without(ties, ids, [i for i in varying(ids) if i > 1])]


def _without(ties: Ties, ids: np.ndarray, axes: list[int]) -> np.ndarray:
    """Labels after something mixes along ``axes``."""
    if axes and len(axes) == len(varying(ids)):
        ties.pin(ids, "they lie along an axis that is mixed")
    return ties.tie(ids, axes)


def _resize(ties: Ties, node: ir.Node) -> Found:
    ids = ties.ids(node.inputs[0])
    before, after = sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
    return [_without(ties, ids, [i for i in varying(ids) if before[i] != after[i]])]


def reduced(node: ir.Node) -> list[int] | None:
    """The axes that a reduction runs over; None where they are computed."""
    rank = rank_of(node.inputs[0])
    given = node.inputs[1] if len(node.inputs) > 1 else None
    axes = constant(given)
    if given is not None and axes is None:
        return None
    if axes is None or not axes.size:
        return [] if node.attributes.get_int("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({int(a) % rank for a in axes.reshape(-1)})


def _reduce(ties: Ties, node: ir.Node) -> Found:
    """Sums are the same without zeros, means after a correction; nothing else is over channels.

    Means of a normalisation that is written out are those of what is left, as in the operator.
    """
    ids, axes = ties.ids(node.inputs[0]), reduced(node)
    if axes is None:
        return None
    over = [i for i in varying(ids) if i in axes]
    if over and len(over) == len(varying(ids)):
        if node.op_type not in _EXACT:
            ties.pin(ids, f"{node.op_type} compares them")
        elif node in ties.written:
            ties.restricted.append(ids)
        ids = np.zeros((1,) * ids.ndim, np.int64)
    else:
        ids = ties.tie(ids, over)
    return [ids if node.attributes.get_int("keepdims", 1) else np.squeeze(ids, tuple(axes))]


_EXACT = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare")


def _compared(ties: Ties, node: ir.Node) -> Found:
    """Softmax and its like, along one axis."""
    ids, rank = ties.ids(node.inputs[0]), rank_of(node.inputs[0])
    axis = _axis(node) % rank
    if axis in varying(ids):
        ties.pin(ids, f"{node.op_type} compares them")
    return [ids]


def _axis(node: ir.Node) -> int:
    if node.op_type == "CumSum":
        axis = constant(node.inputs[1])
        return 0 if axis is None else int(axis.reshape(-1)[0])
    return node.attributes.get_int("axis", -1)


def _best(ties: Ties, node: ir.Node) -> Found:
    """ArgMax, ArgMin."""
    ids, rank = ties.ids(node.inputs[0]), rank_of(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % rank
    if axis in varying(ids):
        ties.pin(ids, f"{node.op_type} compares them")
        ids = np.zeros((1,) * rank, np.int64)
    return [ids if node.attributes.get_int("keepdims", 1) else np.squeeze(ids, axis)]


def _gather(ties: Ties, node: ir.Node) -> Found:
    """By constant indices from a value, or rows of a constant table."""
    if is_constant(node.inputs[0]):
        return embedding(ties, node)
    if is_constant(node.inputs[1]):
        return pick(ties, node)
    ids = ties.ids(node.inputs[0])
    axis = node.attributes.get_int("axis", 0) % ids.ndim
    ties.pin(ties.ids(node.inputs[1]), "they choose what is gathered")
    if axis in varying(ids):
        return None
    index = (1,) * rank_of(node.inputs[1])
    return [ids.reshape(*ids.shape[:axis], *index, *ids.shape[axis + 1 :])]


def _expand(ties: Ties, node: ir.Node) -> Found:
    ids, rank = ties.operand(node, 0), rank_of(node.outputs[0])
    return [ids.reshape((1,) * (rank - ids.ndim) + ids.shape)]


def _tile(ties: Ties, node: ir.Node) -> Found:
    ids, before, after = ties.operand(node, 0), sizes_of(node.inputs[0]), sizes_of(node.outputs[0])
    times = [b // a if size > 1 else 1 for a, b, size in zip(before, after, ids.shape, strict=True)]
    return [np.tile(ids, times)]


def _depth_to_space(ties: Ties, node: ir.Node) -> Found:
    block, channels = node.attributes.get_int("blocksize"), sizes_of(node.inputs[0])[1]
    ids = ties.along(node.inputs[0], 1, channels)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        return [ties.tie(ids.reshape(block * block, -1), [0]).reshape(1, -1, 1, 1)]
    return [ties.tie(ids.reshape(-1, block * block), [1]).reshape(1, -1, 1, 1)]


def _space_to_depth(ties: Ties, node: ir.Node) -> Found:
    block, channels = node.attributes.get_int("blocksize"), sizes_of(node.inputs[0])[1]
    return [np.tile(ties.along(node.inputs[0], 1, channels), block * block).reshape(1, -1, 1, 1)]


def _sizes(_ties: Ties, _node: ir.Node) -> Found:
    """What reads or makes sizes alone: see `graph/tie_sizes.py`."""
    return []


# fmt: off
_ONE_BY_ONE = (
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sigmoid", "HardSigmoid", "HardSwish",
    "Tanh", "Softplus", "Softsign", "Mish", "Gelu", "Erf", "Exp", "Log", "Sqrt", "Abs", "Neg", "Reciprocal",
    "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh",
    "Acosh", "Atanh", "Not", "IsNaN", "IsInf", "Identity", "Dropout", "Cast", "Swish", "Shrink",
)
_SEVERAL = (
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Mod", "Where", "PRelu", "And", "Or",
    "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
)
_REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp",
)
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
# fmt: on

RULES: Mapping[str, Callable[[Ties, ir.Node], Found]] = {
    **MOVES,
    **LAYERS,
    "Einsum": einsum,
    **dict.fromkeys(_ONE_BY_ONE, _same),
    "Clip": _clip,
    **dict.fromkeys(_SEVERAL, _together),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_POOLS, _pool),
    "Resize": _resize,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "CumSum"), _compared),
    **dict.fromkeys(("ArgMax", "ArgMin"), _best),
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    **dict.fromkeys(("Shape", "Range", "ConstantOfShape"), _sizes),
}
