"""What 8 bits do to decisions, measured on a few samples: scores that fall into one step, probabilities that
become 0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import is_constant
from deploy.graph.qdq import dequantize_array, quantize_array
from deploy.quantize.range_hazards import Measured, Params, decides
from deploy.quantize.seen import Run
from deploy.spec.plan import QuantParams

TIED = 0.2
"""Share of the decisions whose two best scores get one code, from which it is warned of."""
FEWEST = 2
"""So many ties at least: one may be chance."""
LOST_MASS = 0.1
"""Share of all probability that lies below half a step and becomes 0, from which it is warned of."""


@dataclass
class _Question:
    """``value`` is quantized by ``params``; along ``axis`` the ``best`` scores matter, or the mass."""

    node: ir.Node
    value: str
    params: QuantParams
    axis: int
    largest: bool = True
    rows: int = 0
    tied: int = 0
    mass: float = 0.0
    lost: float = 0.0

    def look(self, values: np.ndarray) -> None:
        """Count one batch."""
        rows = np.moveaxis(values, self.axis, -1).reshape(-1, values.shape[self.axis])
        codes = quantize_array(rows, self.params)
        if self.value == self.node.outputs[0].name:
            back = dequantize_array(codes, self.params)
            self.mass += float(rows.sum())
            self.lost += float(rows[back <= 0].sum())
        if rows.shape[1] < 2:
            return
        signed = rows if self.largest else -rows
        first, second = (np.partition(signed, -k, axis=1)[:, -k] for k in (1, 2))
        order = np.sort(codes.astype(np.int32) if self.largest else -codes.astype(np.int32), axis=1)
        self.rows += len(rows)
        self.tied += int(np.count_nonzero((first > second) & (order[:, -1] == order[:, -2])))


def tie_hazards(model: ir.Model, params: Params, run: Run) -> Iterator[Measured]:
    """Selections and Softmaxes whose scores are quantized on the runtime, on the samples' own codes."""
    questions = [q for node in model.graph for q in _questions(node, params)]
    if not questions:
        return
    for values in run(sorted({q.value for q in questions})):
        for question in questions:
            if np.isfinite(values[question.value]).all():
                question.look(values[question.value])
    for question in questions:
        yield from _said(question)


def _questions(node: ir.Node, params: Params) -> Iterator[_Question]:
    value = node.inputs[0] if node.inputs else None
    if value is None or is_constant(value):
        return
    if node.op_type in ("ArgMax", "ArgMin", "TopK"):
        axis = node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)
        largest = node.op_type != "ArgMin" and node.attributes.get_int("largest", 1) == 1
        asked = [(value, params(value, node))]
    elif node.op_type == "Softmax":
        axis, largest = node.attributes.get_int("axis", -1), True
        asked = [(node.outputs[0], params(node.outputs[0], None))]
        if decides(node):
            asked.append((value, params(value, node)))
    else:
        return
    for scores, given in asked:
        if given is not None:
            yield _Question(node, scores.name or "", given, axis, largest)


def _said(question: _Question) -> Iterator[Measured]:
    node, step = question.node, question.params.scale[0]
    if question.value == node.outputs[0].name:
        share = question.lost / question.mass if question.mass else 0.0
        if share > LOST_MASS:
            yield Measured(
                node.name or "",
                "softmax-levels",
                f"{share:.0%} of its probability lies in entries below half a step of {step:.2g}, which "
                "become 0",
                "keep what reads it float, as over many entries 8 bits are too few",
                share,
            )
        if not decides(node):
            return
    share = question.tied / question.rows if question.rows else 0.0
    if share > TIED and question.tied >= FEWEST:
        yield Measured(
            node.name or "",
            "tied-scores",
            f"in {question.tied} of {question.rows} rows the two best scores fall into one step of "
            f"{step:.2g}, so which comes first is chance",
            "keep the scores before it float",
            share,
        )
