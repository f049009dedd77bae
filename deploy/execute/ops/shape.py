"""Where elements stand: reshaping, joining, cutting, padding. No arithmetic, whatever the type.

A shape is an int64 tensor on the CPU, wherever the data are: it ends as a list of Python's integers. Float
codes of quantized values pass through everything here like any other tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_SIGNED = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
    torch.float8_e4m3fn: torch.int8,
    torch.float8_e4m3fnuz: torch.int8,
    torch.float8_e5m2: torch.int8,
    torch.float8_e5m2fnuz: torch.int8,
}
"""Types that much of torch does not even move, and one of the same width that it does."""


def plain(x: Tensor) -> Tensor:
    """``x``, or its bits in a type that every operation of torch can move."""
    return x.view(_SIGNED[x.dtype]) if x.dtype in _SIGNED else x


def as_before(moved: Tensor, x: Tensor) -> Tensor:
    """What was made of ``plain(x)`` in the type of ``x``. Others are not touched: ``view(dtype)`` would cut
    the gradient even where the type stays."""
    return moved.view(x.dtype) if x.dtype in _SIGNED else moved


def integers(node: Node, index: int) -> Callable[[Tensor | None], list[int] | None]:
    """How to read an input of integers: while the kernel is made if it is constant, else from its tensor."""
    found = node.constant(index)
    if found is None:
        return lambda given: None if given is None else given.reshape(-1).tolist()
    fixed = [int(number) for number in found.reshape(-1)]
    return lambda _: fixed


@ops.kernel("Shape")
def shape(node: Node) -> Kernel:
    start, end = node.integer("start"), node.ir.attributes.get_int("end")

    def run(x: Tensor) -> Tensor:
        return torch.tensor(list(x.shape[start:end]), dtype=torch.int64)

    return run


ops.row("Size", lambda x: torch.tensor(x.numel(), dtype=torch.int64))


@ops.kernel("Reshape")
def reshape(node: Node) -> Kernel:
    target, keep_zero = integers(node, 1), node.flag("allowzero")

    def run(x: Tensor, shape: Tensor) -> Tensor:
        sizes = target(shape) or []
        if 0 in sizes and not keep_zero:
            sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
        if -1 in sizes and x.numel() == 0:  # torch does not guess what is left of nothing
            rest = math.prod(size for size in sizes if size != -1)
            sizes = [0 if size == -1 and rest else size for size in sizes]
        return x.reshape(sizes)

    return run


@ops.kernel("Flatten")
def flatten(node: Node) -> Kernel:
    axis = node.integer("axis", 1)

    def run(x: Tensor) -> Tensor:
        return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))

    return run


@ops.kernel("Squeeze")
def squeeze(node: Node) -> Kernel:
    read = integers(node, 1)

    def run(x: Tensor, axes: Tensor | None = None) -> Tensor:
        given = read(axes)
        return x.squeeze() if given is None else x.squeeze(tuple(given))

    return run


@ops.kernel("Unsqueeze")
def unsqueeze(node: Node) -> Kernel:
    read = integers(node, 1)

    def run(x: Tensor, axes: Tensor) -> Tensor:
        given = read(axes) or []
        rank = x.ndim + len(given)
        for axis in sorted(a % rank for a in given):
            x = x.unsqueeze(axis)
        return x

    return run


@ops.kernel("Transpose")
def transpose(node: Node) -> Kernel:
    order = node.integers("perm")

    def run(x: Tensor) -> Tensor:
        return x.permute(order or tuple(reversed(range(x.ndim))))

    return run


@ops.kernel("Expand")
def expand(node: Node) -> Kernel:
    target = integers(node, 1)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        sizes = target(shape) or []
        offset = x.ndim - len(sizes)
        sizes = [*x.shape[: max(0, offset)], *sizes]
        kept = [*[1] * max(0, -offset), *x.shape]
        return x.expand([a if b == 1 else b for a, b in zip(kept, sizes, strict=True)])

    return run


@ops.kernel("Concat")
def concat(node: Node) -> Kernel:
    axis = node.integer("axis")

    def run(*parts: Tensor) -> Tensor:
        if any(part.device != parts[0].device for part in parts):  # constants next to sizes, in a shape
            parts = tuple(part.cpu() for part in parts)
        return torch.cat(parts, axis)

    return run


@ops.kernel("Split")
def split(node: Node) -> Kernel:
    axis, read, count = node.integer("axis"), integers(node, 1), node.outputs()

    def run(x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        parts = read(sizes)
        if parts is None:
            length = x.shape[axis]
            each = -(-length // count)
            parts = [max(0, min(each, length - each * i)) for i in range(count)]
        return torch.split(x, parts, axis)

    return run


@ops.kernel("Slice")
def slice_(node: Node) -> Kernel:
    read_starts, read_ends, read_axes, read_steps = (integers(node, i) for i in range(1, 5))

    def run(
        x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
    ) -> Tensor:
        begins, stops = read_starts(starts) or [], read_ends(ends) or []
        along, strides = read_axes(axes), read_steps(steps)
        window = [slice(None)] * x.ndim
        for i, (begin, stop) in enumerate(zip(begins, stops, strict=True)):
            axis = i if along is None else along[i]
            # ONNX's rules for what lies outside are those of Python.
            begin, stop, step = slice(begin, stop, strides[i] if strides else 1).indices(x.shape[axis])
            if step < 0:  # which torch does not take: the same elements of the reversed axis
                x, last = x.flip(axis), x.shape[axis] - 1
                begin, stop, step = last - begin, last - stop, -step
            window[axis] = slice(begin, max(begin, stop), step)
        return x[tuple(window)]

    return run


@ops.kernel("Tile")
def tile(node: Node) -> Kernel:
    read = integers(node, 1)

    def run(x: Tensor, repeats: Tensor) -> Tensor:
        return x.repeat(read(repeats) or [])

    return run


@ops.kernel("Pad")
def pad(node: Node) -> Kernel:
    mode, read_pads, read_axes = node.string("mode", "constant"), integers(node, 1), integers(node, 3)
    fill = node.constant(2)
    fixed = None if fill is None or fill.dtype.kind not in "fiub" else fill.reshape(()).item()

    def run(x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        given = read_pads(pads) or []
        along = read_axes(axes)
        sides = dict.fromkeys(range(x.ndim), (0, 0))
        half = len(given) // 2
        for i, axis in enumerate(range(half) if along is None else along):
            sides[axis % x.ndim] = given[i], given[half + i]
        if mode == "constant":
            number = fixed if fixed is not None or value is None else value.reshape(()).item()
            both = [side for axis in reversed(range(x.ndim)) for side in sides[axis]]
            return functional.pad(x, both, value=number or 0) if any(both) else x
        for axis, (begin, end) in sides.items():
            if min(begin, end) < 0:  # which crops, and does so first
                kept = x.shape[axis] + min(begin, 0) + min(end, 0)
                x, sides[axis] = x.narrow(axis, max(-begin, 0), kept), (max(begin, 0), max(end, 0))
        if _in_torch(x, list(sides.values()), mode):
            both = [side for axis in reversed(range(2, x.ndim)) for side in sides[axis]]
            return functional.pad(x, both, "reflect" if mode == "reflect" else "replicate")
        for axis, (begin, end) in sides.items():
            if begin or end:
                x = x.index_select(axis, _mirrored(x.shape[axis], begin, end, mode).to(x.device))
        return x

    return run


def _in_torch(x: Tensor, sides: Sequence[tuple[int, int]], mode: str) -> bool:
    """Whether it is spatial padding of a picture, for which torch has kernels."""
    usual = x.ndim in (3, 4, 5) and x.is_floating_point() and x.numel() > 0 and not any(map(any, sides[:2]))
    inside = all(max(side) < size for side, size in zip(sides, x.shape, strict=True))
    return usual and (mode == "edge" or (mode == "reflect" and inside))


def _mirrored(size: int, begin: int, end: int, mode: str) -> Tensor:
    """Which element of an axis of ``size`` stands at each place of the padded one."""
    places = torch.arange(-begin, size + end)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    period = max(1, 2 * (size - 1))
    places = places.remainder(period)
    return torch.minimum(places, period - places) if size > 1 else places


@ops.kernel("Trilu")
def trilu(node: Node) -> Kernel:
    keep = torch.triu if node.integer("upper", 1) else torch.tril
    read = integers(node, 1)

    def run(x: Tensor, k: Tensor | None = None) -> Tensor:
        return as_before(keep(plain(x), (read(k) or [0])[0]), x)

    return run


@ops.kernel("ReverseSequence")
def reverse_sequence(node: Node) -> Kernel:
    time, batch = node.integer("time_axis"), node.integer("batch_axis", 1)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        x = x.movedim((time, batch), (0, 1))
        step, length = torch.arange(x.shape[0], device=x.device)[:, None], lengths.to(x.device)[None]
        source = torch.where(step < length, length - 1 - step, step)
        taken = x[source, torch.arange(x.shape[1], device=x.device)]
        return taken.movedim((0, 1), (time, batch))

    return run
