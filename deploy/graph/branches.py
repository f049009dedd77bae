"""An If whose condition is known becomes the way that it takes."""

from __future__ import annotations

import onnx_ir as ir

from deploy.graph.edit import fresh_name, names, remove, scalar, substitute


def choose_branches(model: ir.Model) -> int:
    """Put the nodes of the branch that a constant condition chooses in the place of the If, in place.

    Names that are taken get a number. An If inside the branch is met the next time.
    """
    chosen = 0
    for node in list(model.graph):
        condition = scalar(node.inputs[0]) if node.op_type == "If" and node.domain == "" else None
        if condition is not None:
            _put_in_place(
                model, node, node.attributes["then_branch" if condition else "else_branch"].as_graph()
            )
            chosen += 1
    return chosen


def _put_in_place(model: ir.Model, node: ir.Node, branch: ir.Graph) -> None:
    taken = names(model)
    results = list(branch.outputs)
    branch.outputs.clear()
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        _rename(model, value, taken)
        model.graph.register_initializer(value)
    inner = list(branch)
    branch.remove(inner)
    for moved in inner:
        moved.name = fresh_name(model, moved.name or moved.op_type, taken)
        for value in moved.outputs:
            if value.name:
                _rename(model, value, taken)
    model.graph.insert_before(node, inner)
    for old, new in zip(node.outputs, results, strict=True):
        if substitute(old, new):
            continue
        # An input or constant, or one that is an output already, cannot bear an output's name.
        copied = ir.Value(name=fresh_name(model, f"{old.name}_copy", taken), type=new.type, shape=new.shape)
        copy = ir.node(
            "Identity", [new], name=fresh_name(model, f"{old.name}_identity", taken), outputs=[copied]
        )
        model.graph.insert_before(node, copy)
        substitute(old, copied)
    remove([node])


def _rename(model: ir.Model, value: ir.Value, taken: set[str]) -> None:
    """A name of its own in the whole model; the tensor behind a constant is shared and keeps its name."""
    tensor, value.const_value = value.const_value, None
    value.name = fresh_name(model, value.name or "value", taken)
    value.const_value = tensor
