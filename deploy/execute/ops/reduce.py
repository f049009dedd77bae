"""Reductions over axes: Reduce*, ArgMax, ArgMin."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deploy.execute.ops.cast import UNSIGNED, to_type
from deploy.execute.optable import Build, Kernel, Node, OpTable

ops = OpTable()

Reduction = Callable[[Tensor, list[int], bool], Tensor]
"""Of a tensor, over these axes (at least one, none negative), which are kept with one element if so said."""


def _kernel(function: Reduction, alone: Callable[[Tensor], Tensor] | None = None) -> Build:
    """``alone`` is what is left to do where there is no axis to reduce over."""

    def build(node: Node) -> Kernel:
        keep, nothing = node.integer("keepdims", 1) != 0, node.flag("noop_with_empty_axes")
        given = node.constant(1)
        if given is not None:
            fixed: list[int] | None = [int(axis) for axis in given.reshape(-1)]
        else:
            fixed = None if node.has(1) else node.integers("axes")

        def run(x: Tensor, where: Tensor | None = None) -> Tensor:
            axes = fixed if fixed is not None else [] if where is None else where.tolist()
            dims = [axis % x.ndim for axis in axes] if axes or nothing else list(range(x.ndim))
            if not dims:
                return x if alone is None else alone(x)
            if x.dtype in UNSIGNED:
                return function(x.to(torch.int64), dims, keep).to(x.dtype)
            return function(x, dims, keep)

        return run

    return build


def _back(found: Tensor, x: Tensor) -> Tensor:
    """An integer's root or logarithm, computed in float, as an integer again."""
    return found if found.dtype == x.dtype else to_type(found, x.dtype)


def _sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.sum(x, dims, keep, dtype=x.dtype)


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, dims, keep)
    return _back(torch.mean(x.to(torch.float64), dims, keep), x)


def _largest(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return _extreme(x, dims, keep, torch.amax, lowest=True)


def _smallest(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return _extreme(x, dims, keep, torch.amin, lowest=False)


def _extreme(
    x: Tensor, dims: list[int], keep: bool, function: Callable[..., Tensor], *, lowest: bool
) -> Tensor:
    if all(x.shape[dim] for dim in dims):
        return function(x, dims, keep)
    # Of nothing: the number that leaves every other one as it is.
    if x.dtype == torch.bool:
        start: float | int | bool = not lowest
    elif x.is_floating_point():
        start = -torch.inf if lowest else torch.inf
    else:
        start = torch.iinfo(x.dtype).min if lowest else torch.iinfo(x.dtype).max
    return torch.full_like(torch.sum(x, dims, keep), start, dtype=x.dtype)


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    y = x
    for dim in sorted(dims, reverse=True):  # torch takes one axis at a time
        y = torch.prod(y, dim, keep, dtype=x.dtype)
    return y


def _l1(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.sum(torch.abs(x), dims, keep, dtype=x.dtype)


def _l2(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        found: Tensor = torch.linalg.vector_norm(x, 2, dims, keep)
        return found
    wide = x.to(torch.float64)
    return _back(torch.sqrt(torch.sum(wide * wide, dims, keep)), x)


def _log_sum(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return _back(torch.log(torch.sum(x, dims, keep)), x)


def _log_sum_exp(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return _back(torch.logsumexp(x if x.is_floating_point() else x.to(torch.float64), dims, keep), x)


def _sum_square(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return torch.sum(x * x, dims, keep, dtype=x.dtype)


ops.kernel("ReduceSum")(_kernel(_sum))
ops.kernel("ReduceMean")(_kernel(_mean))
ops.kernel("ReduceMax")(_kernel(_largest))
ops.kernel("ReduceMin")(_kernel(_smallest))
ops.kernel("ReduceProd")(_kernel(_product))
ops.kernel("ReduceL1")(_kernel(_l1, torch.abs))
ops.kernel("ReduceL2")(_kernel(_l2, torch.abs))
ops.kernel("ReduceLogSum")(_kernel(_log_sum, lambda x: _back(torch.log(x), x)))
ops.kernel("ReduceLogSumExp")(_kernel(_log_sum_exp))
ops.kernel("ReduceSumSquare")(_kernel(_sum_square, torch.square))


@ops.kernel("ArgMax")
def arg_max(node: Node) -> Kernel:
    return _arg(node, torch.argmax)


@ops.kernel("ArgMin")
def arg_min(node: Node) -> Kernel:
    return _arg(node, torch.argmin)


def _arg(node: Node, function: Callable[..., Tensor]) -> Kernel:
    axis, keep = node.integer("axis"), node.integer("keepdims", 1) != 0
    last = node.flag("select_last_index")

    def run(x: Tensor) -> Tensor:
        y = x.to(torch.int64) if x.dtype in UNSIGNED else x
        if not last:
            return function(y, axis, keep)  # torch finds the first of equals
        return x.shape[axis] - 1 - function(y.flip(axis), axis, keep)

    return run
