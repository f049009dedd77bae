"""The large weights of a graph, and a copy of it that stores them as float16."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, constant_tensor, fresh_name, names

SMALLEST = 1024
"""Constants of fewer numbers stay float: storing them otherwise saves less than it may cost."""

_SLOTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1), "Gather": (0,)}
"""Where operations read their weights."""
_HALF, _CAST = "/f16", "/cast"


def large_weights(model: ir.Model, excluded: Collection[str] = ()) -> dict[str, list[tuple[ir.Node, int]]]:
    """Float constants of at least `SMALLEST` numbers that are read as weights alone: name -> (node, input).

    Not those that a node in ``excluded`` reads, nor the outputs of the graph.
    """
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < SMALLEST:
            continue
        uses = [(node, slot) for node, slot in value.uses()]
        if uses and not value.is_graph_output() and all(_reads_weight(*use, excluded) for use in uses):
            found[name] = uses
    return found


def _reads_weight(node: ir.Node, slot: int, excluded: Collection[str]) -> bool:
    return (
        slot in _SLOTS.get(node.op_type, ()) and node.domain in ("", "ai.onnx") and node.name not in excluded
    )


def output_axis(node: ir.Node, slot: int, rank: int) -> int:
    """The axis of a weight that counts outputs: rows of an embedding, columns of a matrix on the right."""
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if slot == 0 or node.attributes.get_int("transB", 0) != 0 else 1
    return rank - 1 if node.op_type == "MatMul" and slot == 1 else 0


def fits_half(array: np.ndarray) -> bool:
    """Whether float16 holds an array: nothing beyond its range, and not everything below its normal part."""
    largest = float(np.abs(array).max(initial=0.0))
    limits = np.finfo(np.float16)
    return largest == 0.0 or float(limits.smallest_normal) <= largest <= float(limits.max)


def stored_as_half(model: ir.Model, chosen: Collection[str]) -> ir.Model:
    """A copy in which the constants ``chosen`` are float16 behind a Cast, whose result bears their names."""
    copy = model.clone()
    taken = names(copy)
    for name in chosen:
        array = constant(copy.graph.initializers[name])
        value = copy.graph.initializers.pop(name)
        assert array is not None
        half = add_initializer(copy, name + _HALF, array.astype(np.float16), taken)
        node_name = fresh_name(copy, name + _CAST, taken)
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT.value}, name=node_name)
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        value.replace_all_uses_with(cast.outputs[0])
        cast.outputs[0].name = name
        copy.graph.insert_before(copy.graph[0], cast)
    return copy
