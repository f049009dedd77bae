"""Products of activations and constant matrices, their weights laid out alike: [K, N], K summed over."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant
from deploy.graph.weights import large_weights

SHORTEST = 32
"""Sums over fewer products stay float: their kernels cost more than they win."""


def product_weights(
    model: ir.Model, operations: Collection[str], excluded: Collection[str] = ()
) -> dict[str, list[ir.Node]]:
    """Large constant matrices that nothing but ``operations`` multiplies from the right: name -> the nodes.

    Not those whose readers want them laid out differently, or scaled (a Gemm with alpha or beta).
    """
    found = {}
    for name, uses in large_weights(model, excluded).items():
        nodes = [node for node, _ in uses]
        shape = model.graph.initializers[name].shape
        if (
            shape is None
            or len(shape) != 2
            or any(slot != 1 or not _plain(node, operations) for node, slot in uses)
        ):
            continue
        turned = {_turned(node) for node in nodes}
        size = shape[1 if turned == {True} else 0]
        if len(turned) == 1 and isinstance(size, int) and size >= SHORTEST:
            found[name] = nodes
    return found


def _plain(node: ir.Node, operations: Collection[str]) -> bool:
    if node.op_type not in operations or node.domain not in ("", "ai.onnx"):
        return False
    source = node.inputs[0]
    if source is None or source.shape is None or len(source.shape) < 2:
        return False
    attributes = node.attributes
    scaled = attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0
    return not scaled and not attributes.get_int("transA", 0)


def _turned(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("transB", 0))


def columns_last(model: ir.Model, weights: Mapping[str, Collection[ir.Node]]) -> ir.Model:
    """A copy in which Gemm reads ``weights`` (of `product_weights`) as MatMul does; the names stay."""
    turned = {name for name, nodes in weights.items() if any(_turned(node) for node in nodes)}
    if not turned:
        return model
    copy = model.clone()
    for name in turned:
        old = copy.graph.initializers.pop(name)
        array = constant(model.graph.initializers[name])
        assert array is not None
        new = add_initializer(copy, name, np.ascontiguousarray(array.T))
        for node, slot in old.uses():
            node.replace_input_with(slot, new)
            node.attributes["transB"] = ir.AttrInt64("transB", 0)
    return copy
