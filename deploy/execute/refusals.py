"""Why ONNX Runtime refuses a graph: it names the first node at most, so each is tried alone."""

from __future__ import annotations

import onnx_ir as ir

from deploy.errors import BackendError
from deploy.execute.reference import open_graph
from deploy.graph.blocks import reads
from deploy.graph.edit import is_constant


def refusal(model: ir.Model, node: ir.Node) -> str | None:
    """Why ONNX Runtime does not take this node by itself, fed with all that it reads, in bodies too.

    Empty where it takes it, None where that cannot be tried since a type is unknown.
    """
    inputs = [value for value in reads(node) if not is_constant(value)]
    if any(value.type is None for value in inputs):
        return None
    outputs = [value for value in node.outputs if value.name]
    alone = ir.Model(
        ir.convenience.extract(model.graph, inputs, outputs or node.outputs), ir_version=model.ir_version
    )
    try:
        with open_graph(alone, optimised=False):
            return ""
    except BackendError as e:
        return e.message.partition(": ")[2]
