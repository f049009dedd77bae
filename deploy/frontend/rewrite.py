"""Editing one node in its place: what every rule between opsets needs, and no more.

A rule turns the node itself into its new form, so that its name, its outputs and their readers stay; helper
nodes go before it, constants become initializers of the main graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.errors import UnsupportedError

Attribute = int | float | str | Sequence[int] | Sequence[float]


class NotExpressible(Exception):  # noqa: N818  it is a verdict on one node; `Edit.run` collects them
    """Raised by a rule with the reason why the wanted opset cannot say what this node says."""


@dataclass
class Edit:
    """A model being rewritten: the names taken so far, and every node that could not be."""

    model: ir.Model
    names: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    unsure: bool = False
    """Whether a rule had to take the long way because it did not know a rank."""

    def __post_init__(self) -> None:
        for graph in self.model.graphs():
            self.names.update(graph.initializers)
            self.names.update(value.name for value in graph.inputs if value.name)
            for node in graph:
                self.names.update(filter(None, [node.name, *(value.name for value in node.outputs)]))

    def fresh(self, stem: str) -> str:
        """A name that no value and no node bears yet."""
        name, number = stem, 1
        while name in self.names:
            name, number = f"{stem}_{number}", number + 1
        self.names.add(name)
        return name

    def constant(self, array: np.ndarray, node: ir.Node, what: str) -> ir.Value:
        """A new initializer for an input ``what`` of ``node``."""
        name = self.fresh(f"{node.name}/{what}")
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
        )
        self.model.graph.register_initializer(value)
        return value

    def integers(self, numbers: Sequence[int] | int, node: ir.Node, what: str) -> ir.Value:
        """A new int64 initializer, of one axis or, for a single number, of none."""
        return self.constant(np.array(numbers, np.int64), node, what)

    def before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        like: ir.Value | None = None,
    ) -> ir.Value:
        """The output of a helper node placed before ``node``; its type and shape are those of ``like``."""
        stem = self.fresh(f"{node.name}/{op_type}")
        output = ir.Value(name=self.fresh(f"{stem}_output"))
        if like is not None:
            output.type, output.shape = like.type, like.shape
        helper = ir.node(op_type, inputs, attributes=attributes, name=stem, outputs=[output])
        owner(node).insert_before(node, helper)
        return output

    def refuse(self, node: ir.Node, reason: str) -> None:
        self.refused.append(f"{node.op_type} '{node.name}' ({reason})")

    def raise_refused(self, what: str, hint: str) -> None:
        """Raises UnsupportedError listing every refused node; ``what`` says what they cannot become."""
        if self.refused:
            raise UnsupportedError(
                f"{len(self.refused)} operations {what}: {', '.join(self.refused)}", hint=hint
            )


Rule = Callable[[ir.Node, Edit], None]
"""Rewrites one node in place. Raises NotExpressible."""


def become(
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Attribute] | None = None,
) -> None:
    """Turn ``node`` into another operation; with ``attributes`` None those it has stay."""
    node.op_type = op_type
    set_inputs(node, inputs)
    if attributes is not None:
        node.attributes.clear()
        for name, value in attributes.items():
            node.attributes[name] = ir.convenience.convert_attribute(name, value)


def set_inputs(node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
    """Replace all inputs, leaving out absent ones at the end."""
    kept = list(inputs)
    while kept and kept[-1] is None:
        kept.pop()
    node.resize_inputs(len(kept))
    for index, value in enumerate(kept):
        node.replace_input_with(index, value)


def set_attribute(node: ir.Node, name: str, value: Attribute) -> None:
    """Set or replace an attribute by a plain Python value."""
    node.attributes[name] = ir.convenience.convert_attribute(name, value)


def given(node: ir.Node, index: int) -> ir.Value | None:
    """The input at ``index``, None where it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def required(node: ir.Node, index: int) -> ir.Value:
    """The input at ``index``. Raises NotExpressible where it is absent."""
    value = given(node, index)
    if value is None:
        raise NotExpressible(f"input {index} is missing")
    return value


def constant_array(value: ir.Value | None) -> np.ndarray | None:
    """The data of an initializer that no caller can override, None for everything else."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def rank(value: ir.Value | None) -> int | None:
    """The number of axes, None where it is unknown."""
    return None if value is None or value.shape is None else value.shape.rank()


def size(value: ir.Value, axis: int) -> int | None:
    """The static size of an axis, None where it is free or unknown."""
    if value.shape is None:
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def float_type(value: ir.Value) -> np.dtype:
    """NumPy type for a constant that must match ``value``; float32 where its type is unknown."""
    return np.dtype(np.float32 if value.dtype is None else value.dtype.numpy())


def owner(node: ir.Node) -> ir.Graph:
    """The graph that holds ``node``."""
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.op_type} '{node.name}' stands in no graph")
    return node.graph
