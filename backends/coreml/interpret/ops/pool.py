"""Pooling, window by window over all channels at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Refused
from backends.coreml.interpret.ops.windows import Pads, padded, padding, per_axis, taps


class _Geometry:
    """Where windows lie: ``pads`` include what ``ceil_mode`` adds behind."""

    def __init__(self, call: Call, x: np.ndarray) -> None:
        rank = x.ndim - 2
        self.kernel = call.integers("kernel_sizes")
        if rank < 1 or len(self.kernel) != rank or min(self.kernel) < 1:
            raise Refused(f"a window of {self.kernel} over {list(x.shape)}")
        self.strides = per_axis(call, "strides", rank)
        self.dilations = [1] * rank
        sizes = x.shape[2:]
        self.given = padding(call, sizes, self.kernel, self.strides, self.dilations)
        ceil = call.flag("ceil_mode")
        self.count = [
            _count(n, k, s, before, behind, ceil)
            for n, k, s, (before, behind) in zip(sizes, self.kernel, self.strides, self.given, strict=True)
        ]
        if min(self.count) < 1:
            raise Refused(f"a window of {self.kernel} over {list(sizes)}")
        self.pads: Pads = [
            (before, max(behind, (c - 1) * s + k - n - before))
            for n, k, s, c, (before, behind) in zip(
                sizes, self.kernel, self.strides, self.count, self.given, strict=True
            )
        ]

    def over(self, x: np.ndarray, join: np.ufunc) -> np.ndarray:
        """All values of each window, joined axis by axis."""
        if self.count == [1] * len(self.count):
            window = x[(slice(None), slice(None), *(slice(size) for size in self.kernel))]
            return np.asarray(join.reduce(window, axis=tuple(range(2, x.ndim)), keepdims=True))
        for axis, (size, count, stride) in enumerate(
            zip(self.kernel, self.count, self.strides, strict=True), start=2
        ):
            first, *others = (
                x[(*(slice(None),) * axis, *window)] for window in taps([size], [count], [stride], [1])
            )
            x = join(first, others[0]) if others else first
            for other in others[1:]:
                join(x, other, out=x)
        return x


def _count(size: int, kernel: int, stride: int, before: int, behind: int, ceil: bool) -> int:
    """How many windows there are; a last one that would begin behind the input and its padding is none."""
    room = size + before + behind - kernel
    if not ceil:
        return room // stride + 1
    count = math.ceil(room / stride) + 1
    return count - 1 if (count - 1) * stride >= size + before and before + behind > 0 else count


def max_pool(call: Call) -> np.ndarray:
    x = call.array("x")
    at = _Geometry(call, x)
    least = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return at.over(padded(x, at.pads, least), np.maximum)


def avg_pool(call: Call) -> np.ndarray:
    x = call.array("x")
    at = _Geometry(call, x)
    y = at.over(padded(x, at.pads), np.add)
    if not any(map(any, at.pads)):
        return y / np.asarray(math.prod(at.kernel), x.dtype)
    counted = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if not call.flag("exclude_padding_from_average"):  # what ceil_mode adds behind the padding never counts
        more = [(0, all_[1] - given[1]) for all_, given in zip(at.pads, at.given, strict=True)]
        counted = padded(padded(counted, at.given, 1.0), more)
    else:
        counted = padded(counted, at.pads)
    return y / at.over(counted, np.add)


def l2_pool(call: Call) -> np.ndarray:
    x = call.array("x")
    at = _Geometry(call, x)
    return np.sqrt(at.over(padded(x * x, at.pads), np.add))


KERNELS: Mapping[str, Kernel] = {"max_pool": max_pool, "avg_pool": avg_pool, "l2_pool": l2_pool}
