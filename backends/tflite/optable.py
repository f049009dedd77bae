"""The table of operations: ONNX name -> the function that decides and emits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir

from backends.tflite.emitter import Emitter

Lowering = Callable[[ir.Node, Emitter], None]


class OpTable:
    """One family's operations. An operation can stand in it once.

    >>> table = OpTable()
    >>> @table.lower("Neg")
    ... def neg(node, out): ...
    >>> "Neg" in table
    True
    """

    def __init__(self) -> None:
        self._lowerings: dict[str, Lowering] = {}

    def lower(self, *names: str) -> Callable[[Lowering], Lowering]:
        """Register a function for the operations of these names. Raises ValueError for one that is taken."""

        def register(function: Lowering) -> Lowering:
            for name in names:
                if name in self._lowerings:
                    raise ValueError(f"{name} is lowered twice")
                self._lowerings[name] = function
            return function

        return register

    def __contains__(self, name: object) -> bool:
        return name in self._lowerings

    def __getitem__(self, name: str) -> Lowering:
        return self._lowerings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lowerings)


def joined(families: Iterable[OpTable]) -> OpTable:
    """All families in one table. Raises ValueError where two of them name the same operation."""
    table = OpTable()
    for family in families:
        for name in family:
            table.lower(name)(family[name])
    return table
