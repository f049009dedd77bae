"""Arithmetic, one element at a time, with broadcasting; running sums and products; bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from deploy.execute.ops.cast import UNSIGNED, to_type, widened
from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_ROWS: dict[str, Callable[..., Tensor]] = {
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # halves to even, as ONNX wants it
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}

for _name, _function in _ROWS.items():
    ops.row(_name, _function)


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    if x.is_floating_point() or x.is_complex():
        return torch.div(x, y)
    return torch.div(x, y, rounding_mode="trunc")


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of two as one of any number."""

    def run(*inputs: Tensor) -> Tensor:
        return function(*inputs) if len(inputs) == 2 else reduce(function, inputs)

    return run


_WIDENED: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "BitwiseNot": torch.bitwise_not,
    "Div": _quotient,
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Sub": torch.sub,
}

for _name, _function in _WIDENED.items():
    ops.kernel(_name)(widened(_function))

ops.row("Sum", _folded(torch.add))


@ops.kernel("Mean")
def mean(_: Node) -> Kernel:
    def run(*inputs: Tensor) -> Tensor:
        return reduce(torch.add, inputs) / len(inputs)

    return run


@ops.kernel("Mod")
def mod(node: Node) -> Kernel:
    # Without fmod the sign is the divisor's, as in Python; with it the dividend's, as in C.
    return widened(torch.fmod if node.flag("fmod") else torch.remainder)(node)


@ops.kernel("Pow")
def power(node: Node) -> Kernel:
    exponent = node.constant(1)
    number = float(exponent) if exponent is not None and exponent.ndim == 0 else None

    def run(x: Tensor, y: Tensor) -> Tensor:
        if number is not None and x.is_floating_point():
            return torch.pow(x, number)  # torch knows squares and roots among plain numbers
        if x.is_floating_point():
            return torch.pow(x, y if y.is_floating_point() else y.to(x.dtype)).to(x.dtype)
        # An integer to a negative or broken power: in float64, then cut off.
        if y.is_floating_point():
            return to_type(torch.pow(x.to(torch.float64), y.to(torch.float64)), x.dtype)
        return torch.pow(x.to(torch.int64), y.to(torch.int64)).to(x.dtype)

    return run


@ops.kernel("Clip")
def clip(node: Node) -> Kernel:
    low, high = _number(node, 1), _number(node, 2)
    if low is False or high is False:
        return widened(lambda x, low=None, high=None: torch.clamp(x, low, high))(node)
    if low is None and high is None:
        return lambda x, *_: x

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        if x.dtype in UNSIGNED:
            return torch.clamp(x.to(torch.int64), low, high).to(x.dtype)
        return torch.clamp(x, low, high)

    return run


def _number(node: Node, index: int) -> float | int | None:
    """The constant scalar at ``index``, None where it is absent, False where it is computed."""
    if not node.has(index):
        return None
    array = node.constant(index)
    if array is None:
        return False
    found: float | int = array.item() if array.dtype.kind in "iufb" else float(array)
    return found + 0 if isinstance(found, bool) else found


@ops.kernel("CumSum")
def running_sum(node: Node) -> Kernel:
    return _running(node, torch.cumsum, 0)


@ops.kernel("CumProd")
def running_product(node: Node) -> Kernel:
    return _running(node, torch.cumprod, 1)


def _running(node: Node, function: Callable[..., Tensor], start: int) -> Kernel:
    exclusive, reverse, given = node.flag("exclusive"), node.flag("reverse"), node.constant(1)
    fixed = None if given is None else int(np.asarray(given).reshape(-1)[0])

    def run(x: Tensor, where: Tensor) -> Tensor:
        axis = int(where) if fixed is None else fixed
        y = x.flip(axis) if reverse else x
        if exclusive and x.shape[axis]:
            first = torch.full_like(y.narrow(axis, 0, 1), start)
            y = torch.cat([first, y.narrow(axis, 0, x.shape[axis] - 1)], axis)
        y = function(y, axis, dtype=x.dtype)
        return y.flip(axis) if reverse else y

    return run


@ops.kernel("BitShift")
def shift(node: Node) -> Kernel:
    left = node.string("direction") == "LEFT"

    def run(x: Tensor, by: Tensor) -> Tensor:
        bits, steps = x.to(torch.int64), by.to(torch.int64)
        if left:
            return (bits << steps).to(x.dtype)
        # The sign of int64 is a bit like any other here: what it drags in from the left is cut off.
        kept = ~(torch.full_like(bits, -1) << (64 - steps))
        return ((bits >> steps) & kept).to(x.dtype)

    return run
