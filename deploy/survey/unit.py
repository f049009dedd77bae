"""A unit: one size of a kernel class as a graph, repeated in a chain.

What a kernel takes is the time of one chain less that of another. Usually these are a long and a short one:
what a graph costs besides falls out. Where a kernel cannot follow itself (it changes the shape, or runtimes
would merge it with its like) the other chain is as long and lacks the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer
from deploy.graph.shapes import infer
from deploy.spec.overlay import KernelClass

OPSET = 21
KEPT_FLOAT = "float"
"""Nodes whose names begin so stay float in a unit that is otherwise INT8."""


@dataclass
class Sketch:
    """A graph in the making, one node behind the other.

    ``first`` is its input, ``once`` holds by a word what a repetition need not make again.
    """

    model: ir.Model
    generator: np.random.Generator
    first: ir.Value
    count: int = 0
    taken: set[str] = field(default_factory=set)
    once: dict[str, ir.Value] = field(default_factory=dict)

    def node(self, op: str, inputs: Sequence[ir.Value], *, name: str = "", **attributes: object) -> ir.Value:
        """Append a node; its result."""
        self.count += 1
        made = ir.node(
            op,
            list(inputs),
            attributes={k: v for k, v in attributes.items() if v is not None},  # type: ignore[misc]
            name=f"{name or op.lower()}_{self.count}",
        )
        made.outputs[0].name = f"v{self.count}"
        self.model.graph.append(made)
        return made.outputs[0]

    def weight(self, *shape: int, depth: int = 0) -> ir.Value:
        """Random numbers that keep the magnitude of what passes through them (He et al. 2015)."""
        array = self.generator.standard_normal(shape, np.float32)
        return self.constant(array * np.float32(math.sqrt(2.0 / depth) if depth else 0.1))

    def constant(self, array: np.ndarray) -> ir.Value:
        return add_initializer(self.model, f"c{len(self.taken)}", array, self.taken)


Shape = tuple[int | str, ...]
Extend = Callable[[Sketch, ir.Value], ir.Value]


@dataclass(frozen=True)
class Unit:
    """One size of a kernel class.

    ``input`` is the shape of what the chain starts from, its batch a name, as exporters leave it, ``extend``
    appends one repetition, ``without`` one that lacks the kernel, where that is what it is compared with.
    ``shape`` says in words what is measured. ``also`` are classes of kernels of the unit that share its time
    by their bytes. ``quick`` ones are in the short survey, too.
    """

    op: KernelClass
    shape: str
    input: Shape
    extend: Extend
    quick: bool = False
    without: Extend | None = None
    also: tuple[KernelClass, ...] = ()


def chain(shape: Shape, extend: Extend, repeats: int) -> ir.Model:
    """A float graph with shapes that repeats a unit, from an input ``x`` to an output ``y``."""
    first = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([first], [], nodes=[], opset_imports={"": OPSET}, name="chain")
    sketch = Sketch(ir.Model(graph, ir_version=10), np.random.default_rng(0), first)
    value = first
    for _ in range(repeats):
        value = extend(sketch, value)
    value.name = "y"
    graph.outputs.append(value)
    return infer(sketch.model)
