"""Functions spelled out in TFLite's operators, written as they are on paper: ``(x * x + 1.0).sqrt()``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import cast
from backends.tflite.layout import Order, plain
from backends.tflite.network import Options, Setting

_TABLES = {
    "ABS": "AbsOptions", "ADD": "AddOptions", "COS": "CosOptions", "DIV": "DivOptions", "EXP": "ExpOptions",
    "EQUAL": "EqualOptions", "FLOOR_MOD": "FloorModOptions", "GREATER": "GreaterOptions",
    "GREATER_EQUAL": "GreaterEqualOptions", "LESS": "LessOptions", "LESS_EQUAL": "LessEqualOptions",
    "LOGICAL_AND": "LogicalAndOptions", "LOGICAL_OR": "LogicalOrOptions", "LOGICAL_NOT": "LogicalNotOptions",
    "MAXIMUM": "MaximumMinimumOptions", "MINIMUM": "MaximumMinimumOptions", "MUL": "MulOptions",
    "NEG": "NegOptions", "NOT_EQUAL": "NotEqualOptions", "POW": "PowOptions", "SELECT_V2": "SelectV2Options",
    "SQUARE": "SquareOptions", "SQUARED_DIFFERENCE": "SquaredDifferenceOptions", "SUB": "SubOptions",
}  # fmt: skip
_FUSING = ("ADD", "SUB", "MUL", "DIV")
_WIDE = {"SUB": 3, "DIV": 2, "MAXIMUM": 3, "MINIMUM": 3}
"""Versions from which on operands of more than 4 axes are broadcast."""


def options(code: str, activation: str = "NONE") -> Options:
    """The options of an elementwise operator."""
    fields: dict[str, Setting] = {"fusedActivationFunction": activation} if code in _FUSING else {}
    return _TABLES.get(code, ""), fields


def version(code: str, shapes: Sequence[Sequence[int]]) -> int:
    """The lowest version of an operator that takes floats or plain integers of these shapes."""
    wide = max(map(len, shapes)) > 4 and len({tuple(shape) for shape in shapes}) > 1
    return _WIDE.get(code, 1) if wide else 1


@dataclass(frozen=True)
class Term:
    """A tensor with arithmetic. What operators make is laid out like the operand with the most axes."""

    out: Emitter
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored."""
        return self.out.tensors[self.index].shape

    @property
    def dtype(self) -> str:
        return self.out.tensors[self.index].dtype

    def number(self, number: float, dtype: str = "") -> Term:
        """A constant of the term's type."""
        array = np.array(number, dtype or self.dtype)
        return Term(self.out, self.out.numbers(array, f"{self.out.node}/number"))

    def apply(self, code: str, *others: Term | float, dtype: str = "", activation: str = "NONE") -> Term:
        """An elementwise operator of this operand and more; ``dtype`` is the result's, if another."""
        operands = [self, *(o if isinstance(o, Term) else self.number(o) for o in others)]
        tensors = [self.out.tensors[term.index] for term in operands]
        order = max((tensor.order for tensor in tensors), key=len)
        shapes = [tensor.shape for tensor in tensors]
        made = self.out.step(
            code,
            [term.index for term in operands],
            broadcast(shapes),
            options(code, activation),
            dtype=dtype or self.dtype,
            order=order,
            version=version(code, shapes),
        )
        return Term(self.out, made)

    def __add__(self, other: Term | float) -> Term:
        return self.apply("ADD", other)

    def __sub__(self, other: Term | float) -> Term:
        return self.apply("SUB", other)

    def __mul__(self, other: Term | float) -> Term:
        return self.apply("MUL", other)

    def __truediv__(self, other: Term | float) -> Term:
        return self.apply("DIV", other)

    def __radd__(self, other: float) -> Term:
        return self.apply("ADD", other)

    def __rmul__(self, other: float) -> Term:
        return self.apply("MUL", other)

    def __rsub__(self, other: float) -> Term:
        return self.number(other).apply("SUB", self)

    def __rtruediv__(self, other: float) -> Term:
        return self.number(other).apply("DIV", self)

    def __neg__(self) -> Term:
        return self.apply("NEG")

    def exp(self) -> Term:
        return self.apply("EXP")

    def log(self) -> Term:
        return self.apply("LOG")

    def sqrt(self) -> Term:
        return self.apply("SQRT")

    def square(self) -> Term:
        """SQUARE knows float32 only."""
        return self.apply("SQUARE") if self.dtype == "float32" else self * self

    def abs(self) -> Term:
        """ABS lacks int64."""
        return self.apply("MAXIMUM", -self) if self.dtype == "int64" else self.apply("ABS")

    def relu(self) -> Term:
        return self.apply("RELU")

    def at_least(self, bound: float) -> Term:
        return self.apply("MAXIMUM", bound)

    def at_most(self, bound: float) -> Term:
        return self.apply("MINIMUM", bound)

    def sign(self) -> Term:
        """1 and -1 for what is further than 1e-38 from 0. SIGN itself would split the delegated graph."""
        return self.apply("MUL", 3e38, activation="RELU_N1_TO_1")

    def where(self, condition: Term, otherwise: Term | float) -> Term:
        """This where the condition holds."""
        return condition._select(self, otherwise if isinstance(otherwise, Term) else self.number(otherwise))

    def _select(self, one: Term, other: Term) -> Term:
        return self.apply("SELECT_V2", one, other, dtype=one.dtype)

    def cast(self, dtype: str) -> Term:
        """As another type; itself where it is of that."""
        return Term(self.out, cast(self.out, self.index, dtype))

    def reduced(self, code: str, places: Iterable[int], *, keep: bool = True) -> Term:
        """Over axes, counted as stored, which stay with size 1 or go; itself over none."""
        tensor = self.out.tensors[self.index]
        chosen = sorted(places)
        if not chosen:
            return self
        axes = self.out.numbers(np.array(chosen, np.int32), f"{self.out.node}/axes")
        sizes = enumerate(tensor.shape)
        shape = [1 if place in chosen else size for place, size in sizes if keep or place not in chosen]
        order = tensor.order if keep else without(tensor.order, {tensor.order[place] for place in chosen})
        given: Options = ("ReducerOptions", {"keepDims": keep})
        made = self.out.step(code, [self.index, axes], shape, given, dtype=tensor.dtype, order=order)
        return Term(self.out, made)

    def reshaped(self, shape: Sequence[int], order: Sequence[int] | None = None) -> Term:
        """The same elements under other sizes, of which one may be -1; ``order`` says how they lie."""
        given = self.out.numbers(np.array(shape, np.int32), f"{self.out.node}/shape")
        kept = plain(len(shape)) if order is None else tuple(order)
        made = self.out.step("RESHAPE", [self.index, given], shape, dtype=self.dtype, order=kept)
        return Term(self.out, made)

    def becomes(self, result: ir.Value) -> None:
        """This is a value of the graph."""
        self.out.carried[result] = self.index


def without(order: Order, axes: Collection[int]) -> Order:
    """The order of what is left of a value when axes are gone.

    >>> without((0, 2, 3, 1), {0})
    (1, 2, 0)
    """
    left = [axis for axis in order if axis not in axes]
    return tuple(sorted(left).index(axis) for axis in left)


def broadcast(shapes: Iterable[Sequence[int]]) -> tuple[int, ...]:
    """The shape of what operands of these shapes make together; a free size stays one.

    >>> broadcast([(-1, 1, 4), (3, 1)])
    (-1, 3, 4)
    """
    known = list(shapes)
    rank = max(map(len, known))
    padded = [(*(1,) * (rank - len(shape)), *shape) for shape in known]
    made = []
    for sizes in zip(*padded, strict=True):
        wide = [size for size in sizes if size not in (1, -1)]
        made.append(wide[0] if wide else min(sizes))
    return tuple(made)
