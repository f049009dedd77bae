"""Which channels of a graph are tied, and which constants scale them.

Every channel of every value gets a number. Where values are added, concatenated, pooled, padded or moved the
numbers follow; a layer's input and output channels have numbers of their own. Channels of one number can be
divided by one factor without changing what the network computes, if the constants that make them are divided
by it and those that read them multiplied. Number 0 stands for channels that must stay as they are: inputs,
outputs, and what an operation reads that is not positively homogeneous.

The numbers of a value are an array that broadcasts to it: size 1 along axes on which they do not depend.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant, replace_weight
from deploy.graph.labels import FIXED
from deploy.quantize.channel_rules import RULES
from deploy.quantize.channel_walk import Channels, Slot, Walk

__all__ = ["FIXED", "Channels", "Slot", "as_rows", "follow", "scale"]


def follow(model: ir.Model, reached: Mapping[str, np.ndarray] | None = None) -> Channels:
    """Number the channels of ``model``, whose shapes are inferred.

    ``reached`` says of Clip nodes by name which channels reach the bounds on data, as a boolean array that
    broadcasts to their value: those are fixed, all are where a node is not named.
    """
    walk = Walk(reached=reached or {}, rules=RULES)
    for value in model.graph.inputs:
        walk.fix(value)
    for node in model.graph:
        walk.visit(node)
    for value in model.graph.outputs:
        walk.pin(walk.ids(value))
    return walk.result()


def scale(model: ir.Model, channels: Channels, factors: np.ndarray) -> ir.Model:
    """A copy of ``model`` in which channels of number i are divided by ``factors[i]``, a positive number.

    The function stays what it was, but for the rounding of float32 and channels beyond a Clip's bounds.
    """
    copy = model.clone()
    nodes = {node.name: node for node in copy.graph}
    changes: dict[tuple[str, int], np.ndarray] = {}
    for slot in channels.slots:
        by = factors[np.maximum(slot.ids, 0)]
        if (by != 1).any():
            key = (slot.node.name or "", slot.index)
            changes[key] = changes.get(key, np.ones(())) * by ** float(slot.power)
    for (name, index), by in changes.items():
        array = constant(nodes[name].inputs[index])
        assert array is not None
        replace_weight(copy, nodes[name], index, array.astype(np.float64) * by)
    return copy


def as_rows(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """Weights, or what goes with them, as [outputs, inputs that one output reads, taps]."""
    if node.op_type == "Conv":
        return array.reshape(*array.shape[:2], -1)
    if node.op_type == "ConvTranspose":
        group = node.attributes.get_int("group", 1)
        split = array.reshape(group, array.shape[0] // group, array.shape[1], -1)
        return split.transpose(0, 2, 1, 3).reshape(group * array.shape[1], array.shape[0] // group, -1)
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    flat = array if turned else array.T
    return flat[:, :, None]
