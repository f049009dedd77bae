"""What in a graph makes quantization lose accuracy or a target refuse it, seen before any data are.

A ``note`` is handled by the defaults and explains what a build does; a ``warning`` is worth a decision by the
user.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import COMPUTE, MOVEMENT, activation_from
from deploy.graph.edit import all_nodes, constant, constant_tensor, is_constant, scalar
from deploy.graph.shapes import batch_axis, free_dimensions
from deploy.graph.weight_hazards import (
    Finding,
    Findings,
    Severity,
    of_batch_norm,
    of_half_precision,
    of_weights,
)
from deploy.spec.manifest import KnownHazard

UNLIKE_RANGES = 8.0
"""Widest over narrowest operand of a Concat: beyond it the narrow one loses three bits."""

_BOUNDED = {"Sigmoid": 1.0, "HardSigmoid": 1.0, "Softmax": 1.0, "Tanh": 1.0, "Softsign": 1.0}
_WIDE = frozenset(
    ("Exp", "Log", "Pow", "Sqrt", "Reciprocal", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
)
_NONLINEAR = frozenset(("Sigmoid", "HardSigmoid", "Tanh", "Erf", "Clip", "Relu", "Softplus"))

_SWISH: Finding = (
    "swish",
    "its small negative values share one scale with large positive ones, so symmetric 8 bits lose them: "
    "keep it one operation and quantize its result asymmetrically, or leave it float",
    "note",
)
_NORMALIZATION: Finding = (
    "normalization",
    "squares and a square root need more than 8 bits: it stays float, so its input is dequantized first",
    "note",
)
_RECURRENT: Finding = (
    "recurrent",
    "rounding errors add up from step to step: most runtimes keep it float, tflite computes its steps in "
    "INT8 where the accuracy allows it",
    "warning",
)
_ROWS: Finding = (
    "data-dependent",
    "how many rows come out depends on the data, which static targets refuse: cut the graph before it and "
    "do the rest on the host",
    "warning",
)
_BY_OPERATION: dict[str, Finding] = {
    "Softmax": (
        "softmax",
        "an 8-bit input makes its exponentials coarse: it stays float, its output takes the fixed scale "
        "1/256",
        "note",
    ),
    "LogSoftmax": (
        "softmax",
        "its range has no lower bound, so 8 bits lose the likely classes: keep it float, or end at the "
        "logits",
        "note",
    ),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
         "LpNormalization", "MeanVarianceNormalization"),
        _NORMALIZATION,
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    **dict.fromkeys(("HardSwish", "Swish", "Mish", "Gelu"), _SWISH),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique", "Compress"), _ROWS),
    "TopK": (
        "selection",
        "scores closer than one 8-bit step tie and change places: keep the scores before it float",
        "warning",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Hazard:
    """``node`` is a node's name, or an input's where the hazard is its shape; ``text`` says what happens and
    what to do."""

    node: str
    kind: str
    text: str
    severity: Severity


def hazards(model: ir.Model) -> list[Hazard]:
    """All hazards, inputs first, then by node in graph order, bodies included."""
    found = list(_free_sizes(model))
    nodes = list(all_nodes(model))
    spelled_out = {part for n in nodes for value in n.outputs for part in activation_from(value) or ()}
    checked: set[ir.Value] = set()
    for node in nodes:
        checks = (
            of_weights(node),
            of_batch_norm(node),
            _operation(node, spelled_out),
            _joined(node),
            _ends(node),
        )
        for check in (*checks, of_half_precision(node, checked)):
            found.extend(Hazard(node.name or "", kind, text, severity) for kind, text, severity in check)
    return found


def grouped(found: Iterable[Hazard]) -> tuple[KnownHazard, ...]:
    """Each kind once with the nodes that the same is true of, warnings first."""
    places: dict[tuple[str, Severity, str], list[str]] = {}
    for hazard in found:
        places.setdefault((hazard.kind, hazard.severity, hazard.text), []).append(hazard.node)
    known = [
        KnownHazard(kind=kind, severity=severity, text=text, nodes=tuple(nodes))
        for (kind, severity, text), nodes in places.items()
    ]
    return tuple(sorted(known, key=lambda hazard: hazard.severity != "warning"))


def _free_sizes(model: ir.Model) -> Iterator[Hazard]:
    batch = batch_axis(model)
    for dimension, places in free_dimensions(model).items():
        name, axis = places[0]
        if dimension == batch:
            text = (
                f"its batch '{dimension}' is free: targets with static shapes are built for 1 unless pinned"
            )
            yield Hazard(name, "dynamic-batch", text, "note")
        else:
            sizes = _example(model, name, batch)
            text = (
                f"dimension {axis} is free, which static targets refuse: pin it with --shape {name}={sizes}"
            )
            yield Hazard(name, "dynamic-shape", text, "warning")


def _example(model: ir.Model, name: str, batch: str | None) -> str:
    """The sizes of an input as the command line takes them, ``1,3,<height>,<width>``."""
    shape = next(v.shape for v in model.graph.inputs if v.name == name)
    dims = shape.dims if shape is not None else ()
    return ",".join("1" if d == batch else str(d) if isinstance(d, int) else f"<{d}>" for d in dims)


def _operation(node: ir.Node, spelled_out: set[ir.Node]) -> Findings:
    """Operations that stay float or have no static form, as single nodes or spelled out."""
    if node.op_type in _BY_OPERATION:
        yield _BY_OPERATION[node.op_type]
    elif node.op_type == "Gather" and node.inputs[0] is not None:
        table = constant_tensor(node.inputs[0])
        if table is not None and len(table.shape) > 1 and table.dtype.is_floating_point():
            yield (
                "embedding",
                f"a table of {table.shape[0]} rows ({table.nbytes / 2**20:.1f} MiB) is looked up, not "
                "multiplied: 8 bits make it smaller, never faster",
                "note",
            )
    elif node.op_type in _WIDE and node not in spelled_out and not _after_wide(node):
        yield (
            "wide-range",
            "its result spans orders of magnitude, of which 8 bits keep two: leave the chain that starts "
            "here float",
            "note",
        )
    for value in node.outputs:
        function = activation_from(value)
        if function is not None and any(part.op_type in _NONLINEAR for part in function):
            yield ("swish", f"behind it {len(function)} nodes spell out one activation; {_SWISH[1]}", "note")


def _joined(node: ir.Node) -> Findings:
    """Concat gives its operands one scale, though some are bounded and others are not."""
    if (
        node.op_type != "Concat"
        or node.outputs[0].dtype is None
        or not node.outputs[0].dtype.is_floating_point()
    ):
        return
    reach = [_reach(v) for v in node.inputs if v is not None]
    bounded = [r for r in reach if r]
    if not bounded or (len(bounded) == len(reach) and max(bounded) <= UNLIKE_RANGES * min(bounded)):
        return
    small = min(bounded)
    if _reaches_output(node.outputs[0]):
        yield (
            "detection-head",
            f"scores up to {small:g} and unbounded values such as boxes share one scale, so the scores "
            "vanish: leave it float, or end the graph at its operands",
            "warning",
        )
    else:
        yield (
            "concat-ranges",
            f"an operand that ends at {small:g} shares one scale with wider ones and keeps few levels: "
            "leave it float",
            "warning",
        )


def _ends(node: ir.Node) -> Findings:
    if node.op_type in ("Sigmoid", "HardSigmoid") and _reaches_output(node.outputs[0]):
        yield (
            "sigmoid-output",
            "the output has 256 steps from 0 to 1, so probabilities below 0.002 become 0: leave it float, "
            "or end at the logits",
            "note",
        )


def _after_wide(node: ir.Node) -> bool:
    """Whether another wide-range operation comes before in the same chain, of which one finding is enough."""
    waiting, seen = list(node.predecessors()), {node}
    while waiting:
        producer = waiting.pop()
        if producer in seen or producer.op_type in COMPUTE:
            continue
        if producer.op_type in _WIDE:
            return True
        seen.add(producer)
        waiting.extend(producer.predecessors())
    return False


def _reach(value: ir.Value) -> float | None:
    """How far from zero a value can get by what computes it, None where that has no bound."""
    node = value.producer()
    while (
        node is not None
        and node.op_type in MOVEMENT
        and node.inputs[0] is not None
        and not is_constant(value)
    ):
        value = node.inputs[0]
        node = value.producer()
    array = constant(value)
    if array is not None:
        return float(np.abs(array).max(initial=0.0))
    if node is not None and node.op_type == "Clip" and len(node.inputs) == 3:
        ends = [scalar(v) for v in node.inputs[1:]]
        return None if None in ends else max(abs(e) for e in ends if e is not None)
    return None if node is None else _BOUNDED.get(node.op_type)


def _reaches_output(value: ir.Value) -> bool:
    """Whether the value is an output of the graph, as it is or only moved."""
    return value.is_graph_output() or any(
        n.op_type in MOVEMENT and any(map(_reaches_output, n.outputs)) for n in value.consumers()
    )
