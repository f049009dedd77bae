"""A graph with channels zeroed where they are read, in place of removing them.

It computes what `shrink` computes, at the sizes it had: what a removal costs can be measured without one, and
that a removal is right can be proved. Normalisations whose statistics run over the channels are written out
over those that are left.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import (
    add_initializer,
    fresh_name,
    insert_behind,
    is_constant,
    names,
    take_over,
)
from deploy.graph.groups import Groups, copied
from deploy.graph.labels import rank_of, varying
from deploy.graph.shapes import infer
from deploy.graph.tie_rules import reduced

MIXING = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN"),
    *("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
)
"""What adds channels up."""
NORMS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization")


def masked(model: ir.Model, groups: Groups, removed: Collection[int]) -> ir.Model:
    """A copy of ``model`` in which the atoms ``removed`` reach nothing; ``groups`` are those of it."""
    gone = np.zeros(1 + max(groups.atoms, default=0), bool)
    gone[list(removed)] = True
    writing = _Writing(copied(model), groups, gone)
    for node in list(writing.model.graph):
        if node.op_type in MIXING:
            writing.zero_what_is_read(node)
        elif node.op_type in NORMS:
            writing.norm(node)
    return infer(writing.model)


class _Writing:
    """The copy, and what is written into it."""

    def __init__(self, model: ir.Model, groups: Groups, gone: np.ndarray) -> None:
        self.model = model
        self._groups, self._gone = groups, gone
        self._taken = names(model)

    def keeps(self, value: ir.Value | None) -> np.ndarray | None:
        """Which channels of a value stay, broadcasting to it; None if all do."""
        ids = None if value is None else self._groups.values.get(value.name or "")
        keep = None if ids is None else ~self._gone[ids]
        return None if keep is None or keep.all() else keep

    def zero_what_is_read(self, node: ir.Node) -> None:
        axes = reduced(node) if node.op_type == "ReduceMean" else None
        for index, value in enumerate(node.inputs):
            keep = self.keeps(value)
            if keep is None or value is None or is_constant(value):
                continue
            mask = self.number(keep, value)
            node.replace_input_with(index, self.put("Mul", [value, mask], node))
            if node.name in self._groups.statistics and set(axes or ()) & set(varying(keep)):
                insert_behind(self.model, node, "Div", self.number(np.array(keep.mean()), value))

    def number(self, array: np.ndarray, like: ir.Value) -> ir.Value:
        dtype = (like.dtype or ir.DataType.FLOAT).numpy()
        return add_initializer(self.model, f"{like.name}/mask", array.astype(dtype), self._taken)

    def put(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        before: ir.Node,
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        stem = f"{before.name}/masked"
        node = ir.node(op_type, inputs, attributes, name=fresh_name(self.model, stem, self._taken))
        node.outputs[0].name = fresh_name(self.model, stem, self._taken)
        assert before.graph is not None
        before.graph.insert_before(before, node)
        return node.outputs[0]

    def norm(self, node: ir.Node) -> None:
        """Mean and variance over the kept: those of the zeroed, divided by the kept share."""
        value = node.inputs[0]
        keep, rank = self.keeps(value), rank_of(value)
        if keep is None or value is None:
            return
        axis = varying(self._groups.values[value.name or ""])[0]
        first = 1
        if node.op_type == "LayerNormalization":
            first = node.attributes.get_int("axis", -1) % rank
            axes, scale_at = list(range(first, rank)), None
        else:
            axes, scale_at = list(range(2, rank)), 1
        if node.op_type != "GroupNormalization" and axis not in axes:
            return
        x, mask = value, self.number(keep, value)
        if node.op_type == "GroupNormalization":
            x, mask, axes = self._in_groups(node, value, keep)
        over = self.integers(axes, node)
        share = self.number(np.array(keep.mean()), value)
        epsilon = self.number(np.array(node.attributes.get_float("epsilon", 1e-5)), value)
        mean = self._mean(x, mask, over, share, node)
        centred = self.put("Sub", [x, mean], node)
        variance = self._mean(self.put("Mul", [centred, centred], node), mask, over, share, node)
        deviation = self.put("Sqrt", [self.put("Add", [variance, epsilon], node)], node)
        y = self.put("Div", [centred, deviation], node)
        if node.op_type == "GroupNormalization":
            y = self.put("Reshape", [y, self.put("Shape", [value], node)], node)
        for op_type, operand in zip(("Mul", "Add"), node.inputs[1:], strict=False):
            if operand is not None and scale_at is not None:
                wide = self.integers([-1 if i == scale_at else 1 for i in range(rank)], node)
                operand = self.put("Reshape", [operand, wide], node)
            y = y if operand is None else self.put(op_type, [y, operand], node)
        last = y.producer()
        assert last is not None
        take_over(last, node)

    def _mean(self, x: ir.Value, mask: ir.Value, over: ir.Value, share: ir.Value, node: ir.Node) -> ir.Value:
        total = self.put("ReduceMean", [self.put("Mul", [x, mask], node), over], node, {"keepdims": 1})
        return self.put("Div", [total, share], node)

    def _in_groups(
        self, node: ir.Node, value: ir.Value, keep: np.ndarray
    ) -> tuple[ir.Value, ir.Value, list[int]]:
        """[n, groups, channels of one, pixels], of which the last two are normalised over."""
        groups = node.attributes.get_int("num_groups", 1)
        each = keep.size // groups
        x = self.put("Reshape", [value, self.integers([0, groups, each, -1], node)], node)
        return x, self.number(keep.reshape(1, groups, each, 1), value), [2, 3]

    def integers(self, numbers: Sequence[int], node: ir.Node) -> ir.Value:
        return add_initializer(self.model, f"{node.name}/axes", np.array(numbers, np.int64), self._taken)
