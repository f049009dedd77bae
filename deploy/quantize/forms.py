"""Forms that concern weights alone, for which no data are needed.

fp16     large weights are float16 constants behind a Cast
w8, w4   they are integers behind a DequantizeLinear, everything else is float
dynamic  the same in 8 bits, and products round what they read by ranges found while running
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from deploy.graph.blocks import Block
from deploy.graph.dynamic import rounded_inputs, rounding_inputs
from deploy.graph.edit import constant
from deploy.graph.qdq import insert
from deploy.graph.weights import SMALLEST, fits_half, large_weights, stored_as_half
from deploy.quantize.weights import assign_weights
from deploy.spec.plan import BlockPlan, TensorPlan
from deploy.spec.profile import Runtime
from deploy.spec.tensors import Precision

WeightForm = Literal["fp16", "dynamic", "w8", "w4"]


@dataclass(frozen=True)
class Stored:
    """A graph with its weights in a form, the parameters of those that are integers, and what that changed.

    ``weights`` are the names of all that are stored otherwise; ``rounded`` the nodes that round what they
    read, with the axes that share one scale.
    """

    graph: ir.Model
    tensors: Mapping[str, TensorPlan]
    weights: frozenset[str]
    rounded: Mapping[str, tuple[int, ...]]

    def literal(self) -> ir.Model:
        """The graph that says, node by node, what is computed."""
        return rounding_inputs(self.graph, self.rounded) if self.rounded else self.graph


def store_weights(model: ir.Model, form: WeightForm, runtime: Runtime, excluded: Collection[str]) -> Stored:
    """The graph in that form. Weights that a node in ``excluded`` reads stay as they are."""
    if form == "fp16":
        halved = [name for name in large_weights(model, excluded) if _fits(model, name)]
        return Stored(stored_as_half(model, halved), {}, frozenset(halved), {})
    assignment = assign_weights(model, 4 if form == "w4" else 8, excluded)
    graph = insert(model, assignment.tensors, assignment.codes)
    rounded = rounded_inputs(graph, runtime.rounds) if form == "dynamic" else {}
    return Stored(graph, assignment.tensors, frozenset(assignment.tensors), rounded)


def _fits(model: ir.Model, name: str) -> bool:
    array = constant(model.graph.initializers[name])
    return array is not None and fits_half(array)


def form_plans(
    stored: Stored, form: WeightForm, blocks: Iterable[Block], runtime: Runtime, excluded: Collection[str]
) -> tuple[BlockPlan, ...]:
    """What each block is computed in, and why where it is not in the form that was asked for."""
    alone: Precision = "w8" if form == "dynamic" else form
    readers = {
        node.name
        for node in stored.graph.graph
        if any(value is not None and value.name in stored.weights for value in node.inputs)
    }
    plans = []
    for block in blocks:
        converted, rounds = (
            not readers.isdisjoint(block.nodes),
            not stored.rounded.keys().isdisjoint(block.nodes),
        )
        reason = ""
        if not set(excluded).isdisjoint(block.nodes):
            reason = "excluded by the user"
        elif not converted:
            reason = f"no weights of {SMALLEST} numbers or more"
        elif form == "dynamic" and not rounds:
            reason = f"{runtime.name} rounds no activations for {block.kind} here"
        precision = form if rounds else alone if converted else runtime.float_precision
        plans.append(BlockPlan(id=block.id, nodes=block.nodes, precision=precision, reason=reason))
    return tuple(plans)
