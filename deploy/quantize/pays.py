"""What each block costs as float and in integers, and what stands between: the knapsack of one graph."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from deploy.graph.edit import is_constant
from deploy.graph.shapes import static_shape
from deploy.predict.kernels import Kernel
from deploy.predict.latency import CostSource, Prediction, predict
from deploy.quantize.candidate import Subject
from deploy.quantize.knapsack import Border, Option, Problem

_BYTES_CHANGED = 5
"""Of a change of form, for each number: four as a float, one as an integer."""


def problem_of(subject: Subject, costs: CostSource, harm: Mapping[str, float], batch: int = 1) -> Problem:
    """The choice between float and integers for every block that has it, ``harm`` by block id.

    Blocks that only move data go either way and harm nothing. Raises what `predict` raises.
    """
    everything = frozenset(block.id for block in subject.blocks)
    integers = subject.quantized(())
    as_float = predict(subject.graph, {}, subject.runtime, costs, batch)
    as_integers = predict(subject.graph, integers, subject.runtime, costs, batch)
    floats, codes = as_float.by_block(subject.blocks), _inside(subject, as_integers, batch)
    able = set(subject.int8_blocks())
    options = {
        block.id: (
            Option(subject.float_precision, floats[block.id]),
            Option(subject.integer_precision, codes[block.id], harm.get(block.id, 0.0)),
        )
        for block in subject.blocks
        if block.id in able or _only_moves(subject, block.nodes, integers)
    }
    assert options.keys() <= everything
    return Problem(options, tuple(_borders(subject, costs, batch)))


def _only_moves(subject: Subject, nodes: tuple[str, ...], quantized: Mapping[str, object]) -> bool:
    """Whether a block carries codes as it carries floats."""
    rules = subject.runtime.quant
    if rules is None:
        return False
    members = [subject.node(name) for name in nodes]
    return all(
        node.op_type in (*rules.forward, *rules.unify) and (node.outputs[0].name or "") in quantized
        for node in members
    )


def _inside(subject: Subject, prediction: Prediction, batch: int) -> dict[str, float]:
    """Milliseconds by block without the changes of form at its borders, but with those within."""
    owner = {name: block.id for block in subject.blocks for name in block.nodes}
    total = {block.id: 0.0 for block in subject.blocks}
    for part in prediction.parts:
        block = owner[part.kernel.nodes[0]]
        if part.kernel.op != "convert" or _made_inside(subject, part.kernel, owner, batch):
            total[block] += part.estimate.ms
    return total


def _made_inside(subject: Subject, change: Kernel, owner: Mapping[str, str], batch: int) -> bool:
    reader = subject.node(change.nodes[0])
    for value in reader.inputs:
        producer = None if value is None or is_constant(value) else value.producer()
        if producer is not None and owner.get(producer.name or "") == owner[change.nodes[0]]:
            shape = None if value is None else static_shape(value, batch)
            if shape is not None and _BYTES_CHANGED * math.prod(shape) == change.bytes:
                return True
    return False


def _borders(subject: Subject, costs: CostSource, batch: int) -> list[Border]:
    owner: dict[ir.Node, str] = {
        subject.node(name): block.id for block in subject.blocks for name in block.nodes
    }
    found = []
    for node in subject.graph.graph:
        for value in node.outputs:
            readers = {owner[reader] for reader in value.consumers() if reader in owner} - {owner[node]}
            shape = static_shape(value, batch)
            if not readers or shape is None or value.dtype is None or not value.dtype.is_floating_point():
                continue
            change = Kernel("convert", subject.integer_precision, (), 0, _BYTES_CHANGED * math.prod(shape))
            found.append(Border(owner[node], tuple(sorted(readers)), costs.kernel(change).estimate.ms))
    return found
