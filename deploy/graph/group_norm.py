"""A group normalization that exporters spell as an instance normalization, as one node again.

    x -> Reshape (N, groups, all) -> InstanceNormalization -> Reshape (x) -> Mul (C, 1, 1) -> Add (C, 1, 1)

The three axes in between put the channels of a group and all pixels in one row, which a runtime that stores
channels last can only do by moving everything, twice.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, remove_dead, replace_node, sole_consumer


def join_group_norm(model: ir.Model) -> int:
    """Instance normalizations between two reshapes > GroupNormalization, with what scales it behind."""
    joined = 0
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "InstanceNormalization":
            joined += _join(model, node)
    return joined


def _join(model: ir.Model, node: ir.Node) -> bool:
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    after = sole_consumer(node.outputs[0])
    if before is None or after is None or {before.op_type, after.op_type} != {"Reshape"}:
        return False
    x, groups = before.inputs[0], _groups(before)
    if x is None or x.shape is None or groups is None or after.inputs[0] is not node.outputs[0]:
        return False
    if after.outputs[0].shape != x.shape:
        return False
    channels = x.shape[1]
    factor, shift = (constant(value) for value in node.inputs[1:3])
    if factor is None or shift is None or not isinstance(channels, int):
        return False
    scale, bias = (np.repeat(array, channels // groups) for array in (factor, shift))
    last, scale, bias = _scaled(after, scale, bias, channels, x.shape.rank())
    stored = [
        add_initializer(model, f"{node.name}/{name}", array.astype(np.float32))
        for name, array in (("scale", scale), ("bias", bias))
    ]
    attributes = {"num_groups": groups, "epsilon": node.attributes.get_float("epsilon", 1e-5)}
    replace_node(last, "GroupNormalization", [x, *stored], attributes, name=node.name)
    remove_dead([last_ for last_ in (after, node, before) if last_ is not last])
    return True


def _groups(reshape: ir.Node) -> int | None:
    """The number of groups where an image of any rank becomes (N, groups, everything else)."""
    x, result = reshape.inputs[0], reshape.outputs[0]
    if x is None or x.shape is None or result.shape is None or result.shape.rank() != 3 or x.shape.rank() < 3:
        return None
    channels, groups = x.shape[1], result.shape[1]
    whole = isinstance(channels, int) and isinstance(groups, int) and channels % groups == 0
    return groups if whole and isinstance(groups, int) and result.shape[0] == x.shape[0] else None


def _scaled(
    last: ir.Node, scale: np.ndarray, bias: np.ndarray, channels: int, rank: int
) -> tuple[ir.Node, np.ndarray, np.ndarray]:
    """The last node of those that scale and shift by channel, and what all of them come to."""
    for op_type in ("Mul", "Add"):
        node = sole_consumer(last.outputs[0])
        if node is None or node.op_type != op_type:
            continue
        others = [constant(value) for value in node.inputs if value is not last.outputs[0]]
        array = others[0] if len(others) == 1 else None
        if array is None or array.size != channels or array.ndim > rank:
            continue
        if array.shape != (1,) * (array.ndim - rank + 1) + (channels, *(1,) * (rank - 2)):
            continue
        numbers = array.reshape(channels)
        scale, bias = (scale * numbers, bias * numbers) if op_type == "Mul" else (scale, bias + numbers)
        last = node
    return last, scale, bias
