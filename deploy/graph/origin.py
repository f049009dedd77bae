"""Where nodes come from that were written out of one: its name, and the block that they form.

A recurrent layer written out step by step is some hundred nodes. They are named after it (``gru/step3/sum``),
and two notes on each node (ONNX's ``metadata_props``, which files keep) say what follows from that: whoever
names the layer means all of them, and its steps are one block, for they share their weights.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

_ORIGIN, _BLOCK = "deploy.origin", "deploy.block"


def mark(node: ir.Node, origin: ir.Node, block: str) -> None:
    """Note that ``node`` was written out of ``origin``, and belongs to the block of that name."""
    node.metadata_props[_ORIGIN] = f"{origin.op_type} {origin.name}"
    node.metadata_props[_BLOCK] = block


def origin(node: ir.Node) -> tuple[str, str]:
    """Operation and name of the node that ``node`` was written out of; its own where it always was there.

    >>> model = ir.from_onnx_text(
    ...     '''<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] z)
    ...     { [one] y = Relu(x) [two] z = Abs(y) }'''
    ... )
    >>> one, two = model.graph
    >>> mark(two, one, "one/steps")
    >>> origin(one), origin(two), block(two)
    (('Relu', 'one'), ('Relu', 'one'), 'one/steps')
    """
    said = node.metadata_props.get(_ORIGIN)
    if said is None:
        return node.op_type, node.name or ""
    op_type, _, name = said.partition(" ")
    return op_type, name


def block(node: ir.Node) -> str | None:
    """The block that a node was written into; None where its neighbours decide."""
    return node.metadata_props.get(_BLOCK)


def written_out(model: ir.Model, names: Collection[str]) -> frozenset[str]:
    """Names of all nodes that are called so, or were written out of one that was."""
    return frozenset(
        node.name or "" for node in model.graph if node.name in names or origin(node)[1] in names
    )
