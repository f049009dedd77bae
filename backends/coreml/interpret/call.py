"""What a kernel sees: one call of an operation, its operands by name, typed.

A float16 value travels as float32 whose numbers are float16's: NumPy computes float16 one number at a time.
Lists are tuples of arrays. Whatever does not fit is refused with the parameter's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Operand = np.ndarray | tuple[np.ndarray, ...]
"""A tensor, or a list of them."""
Result = Operand | tuple[Operand, ...]

LARGEST = 2**33
"""Bytes of the largest value that is made."""


class Refused(Exception):  # noqa: N818 (a verdict on one call)
    """An operation that cannot be evaluated, with the reason."""


class Fixed:
    """The operands of one operation that are constants, and what was read of them: each is read once."""

    __slots__ = ("numbers", "operands", "rows", "texts", "whole")

    def __init__(self, operands: Mapping[str, Sequence[Operand]]) -> None:
        self.operands = operands
        self.whole: dict[str, int] = {}
        self.numbers: dict[str, float] = {}
        self.texts: dict[str, str] = {}
        self.rows: dict[str, list[int]] = {}


class Call:
    """One operation with its operands; ``results`` are the types that the program gives to its results.

    Of ``operands``, those in ``fixed`` are the same in every call.
    """

    __slots__ = ("_fixed", "_operands", "results", "type")

    def __init__(
        self, type_: str, operands: Mapping[str, Sequence[Operand]], fixed: Fixed, results: Sequence[str]
    ) -> None:
        self.type, self._operands, self._fixed, self.results = type_, operands, fixed, results

    def has(self, name: str) -> bool:
        """Whether the parameter is given."""
        return name in self._operands

    def operands(self, name: str) -> Sequence[Operand]:
        """All values of a parameter."""
        found = self._operands.get(name)
        if not found:
            raise Refused(f"'{name}' is missing")
        return found

    def array(self, name: str) -> np.ndarray:
        """A tensor."""
        found = self._operands.get(name)
        if found and len(found) == 1 and isinstance(found[0], np.ndarray):
            return found[0]
        raise Refused(f"'{name}' is no single tensor" if found else f"'{name}' is missing")

    def maybe(self, name: str) -> np.ndarray | None:
        """A tensor, None where it is left out."""
        found = self._operands.get(name)
        if not found:
            return None
        if len(found) != 1 or not isinstance(found[0], np.ndarray):
            raise Refused(f"'{name}' is no single tensor")
        return found[0]

    def arrays(self, name: str) -> list[np.ndarray]:
        """Tensors, one or more."""
        found = [value for value in self.operands(name) if isinstance(value, np.ndarray)]
        if len(found) != len(self.operands(name)):
            raise Refused(f"'{name}' holds a list")
        return found

    def listed(self, name: str) -> tuple[np.ndarray, ...]:
        """A list."""
        (found,) = self.operands(name)
        if isinstance(found, np.ndarray):
            raise Refused(f"'{name}' is no list")
        return found

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        if name in self._fixed.whole:
            return self._fixed.whole[name]
        found = self.maybe(name)
        if found is None:
            if default is None:
                raise Refused(f"'{name}' is missing")
            return default
        if found.size != 1 or found.dtype.kind not in "iub":
            raise Refused(f"'{name}' is no whole number")
        number = int(found.reshape(-1)[0])
        if name in self._fixed.operands:
            self._fixed.whole[name] = number
        return number

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        if name in self._fixed.numbers:
            return self._fixed.numbers[name]
        found = self.maybe(name)
        if found is None:
            if default is None:
                raise Refused(f"'{name}' is missing")
            return default
        if found.size != 1 or found.dtype.kind not in "fiub":
            raise Refused(f"'{name}' is no number")
        number = float(found.reshape(-1)[0])
        if name in self._fixed.operands:
            self._fixed.numbers[name] = number
        return number

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return bool(self.number(name, default))

    def text(self, name: str, default: str | None = None) -> str:
        """A text."""
        if name in self._fixed.texts:
            return self._fixed.texts[name]
        found = self.maybe(name)
        if found is None:
            if default is None:
                raise Refused(f"'{name}' is missing")
            return default
        if found.size != 1 or found.dtype.kind != "U":
            raise Refused(f"'{name}' is no text")
        text = str(found.reshape(-1)[0])
        if name in self._fixed.operands:
            self._fixed.texts[name] = text
        return text

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """A row of whole numbers."""
        if name in self._fixed.rows:
            return self._fixed.rows[name].copy()
        found = self.maybe(name)
        if found is None:
            if default is None:
                raise Refused(f"'{name}' is missing")
            return list(default)
        if found.dtype.kind not in "iub" or found.ndim > 1:
            raise Refused(f"'{name}' is no row of whole numbers")
        row = [int(number) for number in found.reshape(-1)]
        if name in self._fixed.operands:
            self._fixed.rows[name] = row
            return row.copy()
        return row


Kernel = Callable[[Call], Result]
Ready = Callable[[Call], tuple[tuple[str, ...], Callable[..., np.ndarray]] | None]
"""What a kernel may be asked once, with the operands that are fixed: the parameters that are left, and what
is to do with them in every run. None, or Refused, where more must be known."""


def sized(shape: Sequence[int], itemsize: int = 4) -> tuple[int, ...]:
    """A shape that an operation makes out of numbers, checked before memory is asked for."""
    if any(size < 0 for size in shape):
        raise Refused(f"it makes an array of sizes {list(shape)}")
    if math.prod(shape) * itemsize > LARGEST:
        raise Refused(f"it makes an array of sizes {list(shape)}, more than {LARGEST / 2**30:.0f} GiB")
    return tuple(shape)


def axis_of(axis: int, rank: int) -> int:
    """An axis that may be counted from the end."""
    if not -rank <= axis < rank:
        raise Refused(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank
