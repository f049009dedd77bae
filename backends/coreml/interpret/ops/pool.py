"""Pooling, window by window over all channels at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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

    def windows(self) -> Sequence[tuple[slice, ...]]:
        return [
            (slice(None), slice(None), *window)
            for window in taps(self.kernel, self.count, self.strides, self.dilations)
        ]


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
    wide = padded(x, at.pads, least)
    first, *others = at.windows()
    y = wide[first].copy()
    for window in others:
        np.maximum(y, wide[window], out=y)
    return y


def _summed(x: np.ndarray, at: _Geometry, pads: Pads) -> np.ndarray:
    wide = padded(x, pads)
    if at.count == [1] * len(at.count) and wide.shape[2:] == tuple(at.kernel):
        return np.asarray(wide.sum(axis=tuple(range(2, x.ndim)), keepdims=True))
    first, *others = at.windows()
    y = wide[first].copy()
    for window in others:
        y += wide[window]
    return y


def avg_pool(call: Call) -> np.ndarray:
    x = call.array("x")
    at = _Geometry(call, x)
    counted = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if call.flag("exclude_padding_from_average"):
        number = _summed(counted, at, at.pads)
    else:  # what ceil_mode adds behind the padding never counts
        more = [(0, all_[1] - given[1]) for all_, given in zip(at.pads, at.given, strict=True)]
        number = _summed(padded(counted, at.given, 1.0), at, more)
    return _summed(x, at, at.pads) / number


def l2_pool(call: Call) -> np.ndarray:
    x = call.array("x")
    at = _Geometry(call, x)
    return np.sqrt(_summed(x * x, at, at.pads))


KERNELS: Mapping[str, Kernel] = {"max_pool": max_pool, "avg_pool": avg_pool, "l2_pool": l2_pool}
