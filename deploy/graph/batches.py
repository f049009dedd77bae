"""Products of matrices that lie along more than two leading axes, with these folded into one.

    (B, W, H, S, D) x (B, W, H, D, T) -> (B W, H, S, D) x (B W, H, D, T) -> (B, W, H, S, T)

The last leading axis stays by itself, so the product has four axes; changes of shape move nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, fresh_name, names, replace_node

_AXES = 4


def fold_batches(model: ir.Model) -> int:
    """MatMuls of five axes and more, alike in all but the last two > of four, between changes of shape."""
    taken = names(model)
    return sum(_fold(model, node, taken) for node in list(model.graph) if node.op_type == "MatMul")


def _fold(model: ir.Model, node: ir.Node, taken: set[str]) -> bool:
    if node.domain != "" or any(value is None or value.shape is None for value in node.inputs):
        return False
    sizes = [list(value.shape) for value in node.inputs if value is not None and value.shape is not None]
    result = node.outputs[0].shape
    if result is None or any(len(shape) <= _AXES for shape in sizes) or sizes[0][:-2] != sizes[1][:-2]:
        return False
    targets = [_folded(shape) for shape in sizes]
    back = _said(list(result))
    if back is None or any(target is None for target in targets):
        return False
    folded = []
    for value, target in zip(node.inputs, targets, strict=True):
        assert value is not None and target is not None
        folded.append(_reshape(model, node, value, target, taken))
    name = fresh_name(model, f"{node.name}/folded", taken)
    product = ir.node("MatMul", folded, name=node.name, outputs=[ir.Value(name=name)])
    product.metadata_props.update(node.metadata_props)
    assert node.graph is not None
    node.graph.insert_before(node, product)
    replace_node(node, "Reshape", [product.outputs[0], _numbers(model, node, back, taken)], name=name)
    return True


def _folded(shape: list[int | ir.SymbolicDim]) -> list[int] | None:
    """The leading axes but the last one as -1: whatever they are, what is behind has to be known."""
    behind = [size for size in shape[-_AXES + 1 :] if isinstance(size, int)]
    return [-1, *behind] if len(behind) == _AXES - 1 else None


def _said(shape: list[int | ir.SymbolicDim]) -> list[int] | None:
    """A shape as Reshape takes it; None where more than one size is free."""
    found = [size if isinstance(size, int) else -1 for size in shape]
    return found if found.count(-1) <= 1 and 0 not in found else None


def _numbers(model: ir.Model, node: ir.Node, sizes: list[int], taken: set[str]) -> ir.Value:
    return add_initializer(model, f"{node.name}/shape", np.array(sizes, np.int64), taken)


def _reshape(model: ir.Model, node: ir.Node, value: ir.Value, sizes: list[int], taken: set[str]) -> ir.Value:
    name = fresh_name(model, f"{node.name}/Reshape", taken)
    shape = _numbers(model, node, sizes, taken)
    made = ir.node("Reshape", [value, shape], name=name, outputs=[ir.Value(name=name)])
    made.metadata_props.update(node.metadata_props)
    assert node.graph is not None
    node.graph.insert_before(node, made)
    return made.outputs[0]
