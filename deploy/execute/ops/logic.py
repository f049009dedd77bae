"""Comparison, Boolean logic, Where, IsNaN, IsInf."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from deploy.execute.ops.cast import UNSIGNED
from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_ROWS: dict[str, Callable[..., Tensor]] = {
    "And": torch.logical_and,
    "IsNaN": torch.isnan,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
}

for _name, _function in _ROWS.items():
    ops.row(_name, _function)


def _ordered(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A comparison that knows unsigned integers."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        return function(_signed(x), _signed(y)) if x.dtype in UNSIGNED else function(x, y)

    return run


def _signed(x: Tensor) -> Tensor:
    """Unsigned integers as int64 in the same order: of 64 bits, half of them are moved down."""
    wide = x.to(torch.int64)
    return wide ^ torch.iinfo(torch.int64).min if x.dtype == torch.uint64 else wide


ops.row("Greater", _ordered(torch.gt))
ops.row("GreaterOrEqual", _ordered(torch.ge))
ops.row("Less", _ordered(torch.lt))
ops.row("LessOrEqual", _ordered(torch.le))


@ops.kernel("Equal")
def equal(_: Node) -> Kernel:
    def run(x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> Tensor:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return torch.eq(x, y)
        return torch.from_numpy(np.asarray(x == y, dtype=bool))  # text

    return run


@ops.kernel("Where")
def where(_: Node) -> Kernel:
    def run(condition: Tensor, x: Tensor | np.ndarray, y: Tensor | np.ndarray) -> Tensor | np.ndarray:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return torch.where(condition, x, y)
        return np.where(condition.cpu().numpy(), x, y)  # text

    return run


@ops.kernel("IsInf")
def is_infinite(node: Node) -> Kernel:
    positive, negative = node.integer("detect_positive", 1) != 0, node.integer("detect_negative", 1) != 0
    if positive and negative:
        return torch.isinf
    if positive:
        return torch.isposinf
    if negative:
        return torch.isneginf
    return lambda x: torch.zeros_like(x, dtype=torch.bool)
