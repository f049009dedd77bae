"""The table of operations: ONNX name -> a function that reads a node's attributes once and gives its kernel.

    ops = OpTable()

    @ops.kernel("Conv")
    def conv(node: Node) -> Kernel:
        strides = node.integers("strides")
        def run(x, w, b=None): ...
        return run

    ops.row("Relu", torch.relu)          # one to one: torch's function takes ONNX's inputs in ONNX's order

A kernel takes the node's inputs in order, None where an optional one is absent, and returns the output, or a
tuple where there are several. It must not change its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx_ir as ir

from deploy.errors import UnsupportedError
from deploy.graph.edit import constant

Kernel = Callable[..., object]
Build = Callable[["Node"], Kernel]


class Body(Protocol):
    """The graph in an If, Loop or Scan, ready to run (`program.Program`)."""

    captured: list[str]
    """What it reads from around it, by name."""
    outputs: list[str]

    def run(self, given: Sequence[object], outer: Sequence[object] = ()) -> list[object]:
        """Its outputs, from its inputs and the captured values, all in order."""


@dataclass
class Mode:
    """What a module tells its kernels while it runs: they look here each time."""

    training: bool = False
    """As ``nn.Module.training``."""
    batch_statistics: bool = True
    """Whether, while training, batch norm uses the batch's statistics and moves the running ones in place."""
    momentum: float | None = None
    """torch's: the share of the new batch. None: what the node says (1 - ONNX's)."""


@dataclass(frozen=True)
class Node:
    """What a kernel may know of its node when it is made."""

    ir: ir.Node
    version: int
    """The operator set that the graph imports."""
    body: Callable[[str], Body]
    """The body in the graph attribute of that name."""
    mode: Mode = field(default_factory=Mode)

    @property
    def op(self) -> str:
        return self.ir.op_type

    def integer(self, name: str, default: int = 0) -> int:
        return self.ir.attributes.get_int(name, default)

    def real(self, name: str, default: float = 0.0) -> float:
        return self.ir.attributes.get_float(name, default)

    def flag(self, name: str) -> bool:
        return self.integer(name) != 0

    def string(self, name: str, default: str = "") -> str:
        return self.ir.attributes.get_string(name, default)

    def integers(self, name: str, default: Iterable[int] = ()) -> list[int]:
        found = self.ir.attributes.get_ints(name)
        return list(default) if found is None else list(found)

    def reals(self, name: str, default: Iterable[float] = ()) -> list[float]:
        found = self.ir.attributes.get_floats(name)
        return list(default) if found is None else list(found)

    def has(self, index: int) -> bool:
        """Whether the input at ``index`` is there."""
        return index < len(self.ir.inputs) and self.ir.inputs[index] is not None

    def constant(self, index: int) -> np.ndarray | None:
        """The input at ``index`` where it is a constant of the graph, read while the kernel is made."""
        value = self.ir.inputs[index] if index < len(self.ir.inputs) else None
        return None if value is None else constant(value)

    def outputs(self) -> int:
        """How many outputs there are, absent ones in between counted."""
        return len(self.ir.outputs)

    def wants(self, index: int) -> bool:
        """Whether anybody could read the output at ``index``."""
        return index < len(self.ir.outputs) and bool(self.ir.outputs[index].name)

    def unsupported(self, why: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self.op} '{self.ir.name}': {why}", hint="replace this operation in the model"
        )


class OpTable(dict[str, Build]):
    """The kernels of one family; :mod:`deploy.execute.ops` joins them all."""

    def kernel(self, *names: str) -> Callable[[Build], Build]:
        """Register a function under these operations. Raises ValueError where one is taken."""

        def register(build: Build) -> Build:
            for name in names:
                self._add(name, build)
            return build

        return register

    def row(self, name: str, function: Kernel) -> None:
        """An operation without attributes that torch computes as it is."""
        self._add(name, lambda _: function)

    def _add(self, name: str, build: Build) -> None:
        if name in self:
            raise ValueError(f"operation {name} stands in the table twice")
        self[name] = build


def join(families: Iterable[OpTable]) -> dict[str, Build]:
    """One table of all families. Raises ValueError where two have an operation of the same name."""
    table = OpTable()
    for family in families:
        for name, build in family.items():
            table._add(name, build)
    return table
