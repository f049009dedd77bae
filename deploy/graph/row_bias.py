"""The Add of one constant for each column behind a product, which chains of a profile (`fuses`) call Bias."""

from __future__ import annotations

import onnx_ir as ir

from deploy.graph.edit import is_constant, sole_consumer

BIAS = "Bias"
"""How `fuses` calls an Add of one constant for each column behind a product with constant weights."""


def chain_word(node: ir.Node) -> str:
    """How chains of a profile call a node: by its operation, or `BIAS`."""
    return BIAS if bias_behind(node) is not None else node.op_type


def bias_behind(node: ir.Node) -> ir.Value | None:
    """The constant that an Add adds to each row of the product before it, if nobody else reads either."""
    if node.op_type != "Add" or len(node.inputs) != 2:
        return None
    for product, bias in (node.inputs, reversed(node.inputs)):
        head = None if product is None else product.producer()
        if head is None or head.op_type != "MatMul" or product is None or bias is None:
            continue
        weight = head.inputs[1]
        fits = weight is not None and weight.shape is not None and len(weight.shape) == 2
        if not fits or weight is None or not is_constant(weight) or sole_consumer(product) is not node:
            continue
        if one_per_channel(head, weight, bias):
            return bias
    return None


def one_per_channel(head: ir.Node, weight: ir.Value, bias: ir.Value) -> bool:
    """Whether ``bias`` is this node's alone, one entry for each output channel: sums take any shape."""
    if not is_constant(bias) or len(bias.uses()) != 1 or bias.is_graph_output():
        return False
    if head.op_type not in ("Gemm", "MatMul"):
        return True
    channels = weight.shape[0 if head.attributes.get_int("transB", 0) else 1] if weight.shape else None
    return bias.shape is not None and tuple(bias.shape) == (channels,)
