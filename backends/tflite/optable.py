"""The table of operations: ONNX name -> the function that decides and emits, and for which types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.reading import TYPES, Unsupported

Lowering = Callable[[ir.Node, Emitter], None]

FLOATS = ("float32",)
NUMBERS = ("float32", "int32", "int64")
ANY = TYPES


@dataclass(frozen=True)
class Operation:
    """``types`` are those of the first operand and of the results; functions see to the other operands."""

    lower: Lowering
    types: Collection[str]

    def __call__(self, node: ir.Node, out: Emitter) -> None:
        """Emit a node. Raises Unsupported with the reason where it cannot be said in TFLite."""
        for value in (*node.inputs[:1], *node.outputs):
            dtype = None if value is None or not value.name else value.dtype
            if dtype is None:
                continue
            name = "string" if dtype.is_string() else dtype.numpy().name
            if name not in self.types:
                raise Unsupported(f"of {name}; it is written for {', '.join(self.types)}")
        self.lower(node, out)


class OpTable:
    """One family's operations. An operation can stand in it once.

    >>> table = OpTable()
    >>> @table.lower("Neg", types=NUMBERS)
    ... def neg(node, out): ...
    >>> "Neg" in table
    True
    """

    def __init__(self) -> None:
        self._operations: dict[str, Operation] = {}

    def lower(self, *names: str, types: Collection[str] = FLOATS) -> Callable[[Lowering], Lowering]:
        """Register a function for the operations of these names. Raises ValueError for one that is taken."""

        def register(function: Lowering) -> Lowering:
            for name in names:
                self.add(name, Operation(function, types))
            return function

        return register

    def add(self, name: str, operation: Operation) -> None:
        """Raises ValueError for a name that is taken."""
        if name in self._operations:
            raise ValueError(f"{name} is lowered twice")
        self._operations[name] = operation

    def __contains__(self, name: object) -> bool:
        return name in self._operations

    def __getitem__(self, name: str) -> Operation:
        return self._operations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._operations)


def joined(families: Iterable[OpTable]) -> OpTable:
    """All families in one table. Raises ValueError where two of them name the same operation."""
    table = OpTable()
    for family in families:
        for name in family:
            table.add(name, family[name])
    return table
