"""The table of a backend that emits: ONNX name -> what decides and emits it, and for which types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Generic, TypeVar

import onnx_ir as ir

Out = TypeVar("Out")
"""What a backend's functions emit into."""


class Unsupported(Exception):  # noqa: N818 (it is a verdict, caught for each node)
    """A node that cannot be said in a backend's format, with the reason."""


@cache
def type_name(dtype: ir.DataType) -> str:
    """NumPy's name of a type; putting one together takes NumPy long."""
    return "string" if dtype.is_string() else dtype.numpy().name


@dataclass(frozen=True)
class Operation(Generic[Out]):
    """``types`` are those of the first operand and of the results; functions see to the other operands."""

    lower: Callable[[ir.Node, Out], None]
    types: Collection[str]

    def __call__(self, node: ir.Node, out: Out) -> None:
        """Emit a node. Raises Unsupported with the reason where the format cannot say it."""
        for value in (*node.inputs[:1], *node.outputs):
            dtype = None if value is None or not value.name else value.dtype
            if dtype is None:
                continue
            name = type_name(dtype)
            if name not in self.types:
                raise Unsupported(f"of {name}; it is written for {', '.join(self.types)}")
        self.lower(node, out)


class OpTable(Generic[Out]):
    """One family's operations. An operation can stand in it once.

    >>> table = OpTable[list[str]](("float32",))
    >>> @table.lower("Neg", types=("float32", "int32"))
    ... def neg(node, out): ...
    >>> "Neg" in table
    True
    """

    def __init__(self, types: Collection[str]) -> None:
        self._types = types
        self._operations: dict[str, Operation[Out]] = {}

    def lower(
        self, *names: str, types: Collection[str] | None = None
    ) -> Callable[[Callable[[ir.Node, Out], None]], Callable[[ir.Node, Out], None]]:
        """Register a function for the operations of these names, for the table's ``types`` unless others are
        given. Raises ValueError for a name that is taken."""

        def register(function: Callable[[ir.Node, Out], None]) -> Callable[[ir.Node, Out], None]:
            for name in names:
                self.add(name, Operation(function, self._types if types is None else types))
            return function

        return register

    def add(self, name: str, operation: Operation[Out]) -> None:
        """Raises ValueError for a name that is taken."""
        if name in self._operations:
            raise ValueError(f"{name} is lowered twice")
        self._operations[name] = operation

    def __contains__(self, name: object) -> bool:
        return name in self._operations

    def __getitem__(self, name: str) -> Operation[Out]:
        return self._operations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._operations)


def joined(families: Iterable[OpTable[Out]]) -> OpTable[Out]:
    """All families in one table. Raises ValueError where two of them name the same operation."""
    table = OpTable[Out](())
    for family in families:
        for name in family:
            table.add(name, family[name])
    return table
