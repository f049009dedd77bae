"""Elements by their places: gather and scatter, selection, ranking, one-hot.

Places may be negative and count from the end. They stand where the data stand, whichever device they came
from. Gradients go to the elements taken; where a maximum is met more than once they are shared out evenly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.ops.shape import as_before, integers, plain
from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
_NARROW = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
"""Types that torch does not calculate in, and one that holds them; the largest uint64 come back wrapped."""


def places(index: Tensor, size: int, like: Tensor) -> Tensor:
    """``index`` as int64 from 0 up, on the device of ``like``."""
    index = index.to(like.device, torch.int64)
    return torch.where(index < 0, index + size, index)


@ops.kernel("Gather")
def gather(node: Node) -> Kernel:
    axis, fixed = node.integer("axis"), node.constant(1)
    if fixed is not None and fixed.ndim == 0:
        place = int(fixed)
        return lambda x, _: x.select(axis, place)
    ascending = fixed is not None and (fixed.size == 0 or int(fixed.min()) >= 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        at = axis % x.ndim
        if at == 0 and x.ndim == 2 and x.is_floating_point():
            index = index.to(x.device) if ascending else places(index, x.shape[0], x)
            return functional.embedding(index, x)
        window: list[slice | Tensor] = [slice(None)] * at
        return x[(*window, index.to(x.device, torch.int64))]

    return run


@ops.kernel("GatherElements")
def gather_elements(node: Node) -> Kernel:
    axis = node.integer("axis")

    def run(x: Tensor, index: Tensor) -> Tensor:
        return as_before(plain(x).gather(axis, places(index, x.shape[axis], x)), x)

    return run


@ops.kernel("GatherND")
def gather_nd(node: Node) -> Kernel:
    batch = node.integer("batch_dims")

    def run(x: Tensor, index: Tensor) -> Tensor:
        own = [
            torch.arange(x.shape[axis], device=x.device).reshape([-1] + [1] * (index.ndim - 2 - axis))
            for axis in range(batch)
        ]
        return x[(*own, *index.to(x.device, torch.int64).unbind(-1))]

    return run


@ops.kernel("ScatterElements", "Scatter")
def scatter_elements(node: Node) -> Kernel:
    axis, reduction = node.integer("axis"), node.string("reduction", "none")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        return _scatter(x, axis, places(index, x.shape[axis], x), updates.to(x.dtype), reduction)

    return run


def _scatter(x: Tensor, axis: int, index: Tensor, updates: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return as_before(plain(x).scatter(axis, index, plain(updates)), x)
    wide = _NARROW.get(x.dtype, x.dtype)
    result = x.to(wide).scatter_reduce(axis, index, updates.to(wide), _REDUCTIONS[reduction])
    return result.to(x.dtype)


@ops.kernel("ScatterND")
def scatter_nd(node: Node) -> Kernel:
    reduction = node.string("reduction", "none")

    def run(x: Tensor, index: Tensor, updates: Tensor) -> Tensor:
        depth = index.shape[-1]
        sizes, row = x.shape[:depth], math.prod(x.shape[depth:])
        flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=x.device)
        for size, place in zip(sizes, index.unbind(-1), strict=True):
            flat = flat * size + places(place, size, x)
        rows = x.reshape(math.prod(sizes), row)
        where = flat.reshape(-1, 1).expand(-1, row)
        given = updates.to(x.dtype).reshape(where.shape)
        return _scatter(rows, 0, where, given, reduction).reshape(x.shape)

    return run


@ops.kernel("OneHot")
def one_hot(node: Node) -> Kernel:
    axis, read = node.integer("axis", -1), integers(node, 1)

    def run(index: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        (count,) = read(depth) or [0]
        at = axis % (index.ndim + 1)
        classes = torch.arange(count, device=values.device).reshape([-1] + [1] * (index.ndim - at))
        off, on = values.unbind(0)
        return torch.where(places(index, count, values).unsqueeze(at) == classes, on, off)

    return run


@ops.kernel("TopK")
def top_k(node: Node) -> Kernel:
    axis, largest, read = node.integer("axis", -1), bool(node.integer("largest", 1)), integers(node, 1)

    def run(x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        (count,) = read(k) or [0]
        # torch.topk leaves open which of equal elements come first; ONNX wants the lower place.
        values, where = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), where.narrow(axis, 0, count)

    return run


ops.row("NonZero", lambda x: plain(x).nonzero().T)


@ops.kernel("Compress")
def compress(node: Node) -> Kernel:
    flat, axis = "axis" not in node.ir.attributes, node.integer("axis")

    def run(x: Tensor, condition: Tensor) -> Tensor:
        kept = condition.to(x.device).nonzero().reshape(-1)
        return x.reshape(-1)[kept] if flat else x.index_select(axis, kept)

    return run


@ops.kernel("Unique")
def unique(node: Node) -> Kernel:
    flat, along = "axis" not in node.ir.attributes, node.integer("axis")
    ascending = bool(node.integer("sorted", 1))

    def run(x: Tensor) -> tuple[Tensor, ...]:
        if flat:
            x = x.reshape(-1)
        found, inverse, counts = torch.unique(x.detach(), return_inverse=True, return_counts=True, dim=along)
        size, count = x.shape[along], found.shape[along]
        first = torch.full((count,), size, device=x.device)
        first = first.scatter_reduce(0, inverse, torch.arange(size, device=x.device), "amin")
        if not ascending:
            order = first.argsort()
            first, counts, inverse = first[order], counts[order], order.argsort()[inverse]
        return x.index_select(along, first), first, inverse, counts

    return run
