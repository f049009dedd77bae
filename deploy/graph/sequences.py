"""Sequences that PyTorch's exporters leave where a model splits or unbinds a tensor, as plain tensors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, fresh_name, names, replace_node, scalar, substitute


def split_sequences(model: ir.Model) -> int:
    """SplitToSequence whose parts are only taken out by constant numbers > Split; Gather where it unbinds.

    Runtimes other than ONNX Runtime know no sequences. Nodes stay where the sizes of the parts are not known.
    """
    done = 0
    for node in list(model.graph):
        if node.op_type != "SplitToSequence" or node.domain != "":
            continue
        sizes = _sizes(node)
        positions = None if sizes is None else _positions(node.outputs[0], len(sizes))
        if sizes is None or positions is None:
            continue
        axis = node.attributes.get_int("axis", 0)
        if len(node.inputs) < 2 and not node.attributes.get_int("keepdims", 1):
            for reader in positions:
                replace_node(reader, "Gather", [node.inputs[0], reader.inputs[1]], {"axis": axis})
        else:
            _split(model, node, sizes, positions, axis)
        model.graph.remove(node, safe=True)
        done += 1
    return done


def _split(
    model: ir.Model, node: ir.Node, sizes: list[int], positions: dict[ir.Node, int], axis: int
) -> None:
    bounds = add_initializer(model, f"{node.name}_sizes", np.asarray(sizes, np.int64))
    split = ir.node("Split", [node.inputs[0], bounds], {"axis": axis}, num_outputs=len(sizes), name=node.name)
    taken = names(model)
    for part in split.outputs:
        part.name = fresh_name(model, f"{node.outputs[0].name}_part", taken)
        if node.inputs[0] is not None:
            part.type = node.inputs[0].type
    model.graph.insert_before(node, split)
    for reader, position in positions.items():
        part = split.outputs[position]
        if part.shape is None:
            part.shape = reader.outputs[0].shape
        if substitute(reader.outputs[0], part):
            model.graph.remove(reader, safe=True)
        else:  # two outputs of the graph are the same part
            replace_node(reader, "Identity", [part])


def _sizes(node: ir.Node) -> list[int] | None:
    """The sizes of the parts along the axis, None where they are not known."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    axis = node.attributes.get_int("axis", 0)
    total = shape[axis] if shape is not None and -shape.rank() <= axis < shape.rank() else None
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return [1] * total if isinstance(total, int) and total > 0 else None
    given = constant(node.inputs[1])
    if given is None:
        return None
    if given.ndim:
        return [int(size) for size in given]
    size = int(given)
    if not isinstance(total, int) or size <= 0 or total <= 0:
        return None
    return [min(size, total - start) for start in range(0, total, size)]


def _positions(sequence: ir.Value, count: int) -> dict[ir.Node, int] | None:
    """Which part each reader takes; None where one does anything else with the sequence."""
    found: dict[ir.Node, int] = {}
    for reader in sequence.consumers():
        at = scalar(reader.inputs[1]) if reader.op_type == "SequenceAt" and reader.domain == "" else None
        if at is None or reader.graph is not sequence.graph or not -count <= at < count:
            return None
        found[reader] = int(at) % count
    return None if sequence.is_graph_output() else found
