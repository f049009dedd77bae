"""Windows that slide over the last axes: what convolutions and pooling share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from backends.coreml.interpret.call import Call, Refused, sized

Pads = list[tuple[int, int]]
_Sizes = tuple[int, ...]


def padding(
    call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Pads:
    """How much stands before and behind each of the ``sizes``.

    ``same`` gives ceil(size / stride) results; where that is odd, more stands behind, or before for
    ``same_lower``.
    """
    kind = call.text("pad_type", "valid")
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        pads = call.integers("pad", [0] * 2 * len(sizes))
        if len(pads) != 2 * len(sizes) or min(pads, default=0) < 0:
            raise Refused(f"pad {pads} for {len(sizes)} axes")
        return list(zip(pads[::2], pads[1::2], strict=True))
    if kind not in ("same", "same_lower"):
        raise Refused(f"pad_type {kind}")
    totals = [
        max(0, s * math.ceil(n / s) - n + (k - 1) * d + 1 - s)
        for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    less = [(total // 2, total - total // 2) for total in totals]
    return less if kind == "same" else [(behind, before) for before, behind in less]


def per_axis(call: Call, name: str, rank: int) -> list[int]:
    """A whole number for each axis, 1 by itself. Raises Refused for others than positive ones."""
    found = call.integers(name, [1] * rank)
    if len(found) != rank or min(found, default=1) < 1:
        raise Refused(f"{name} {found} for {rank} axes")
    return found


def results(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """How many windows fit into padded ``sizes``. Raises Refused where it is none."""
    found = [
        (n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    if min(found, default=1) < 1:
        raise Refused(f"a window of {list(kernel)} over {list(sizes)}")
    return found


def padded(x: np.ndarray, pads: Pads, fill: float = 0.0) -> np.ndarray:
    """``x`` with ``fill`` around its last axes."""
    if not any(map(any, pads)):
        return x
    lead = x.ndim - len(pads)
    whole = [*x.shape[:lead], *(n + sum(p) for n, p in zip(x.shape[lead:], pads, strict=True))]
    out = np.full(sized(whole, x.itemsize), fill, x.dtype)
    inner = [slice(b, b + n) for (b, _), n in zip(pads, x.shape[lead:], strict=True)]
    out[(slice(None),) * lead + tuple(inner)] = x
    return out


_MOST_KEPT = 256
"""Places of a kernel up to which its slices are kept from one run to the next."""


def taps(
    kernel: Sequence[int], count: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> Iterable[tuple[slice, ...]]:
    """For each place of the kernel, what all windows see there of the padded axes."""
    given = tuple(kernel), tuple(count), tuple(strides), tuple(dilations)
    return _kept(*given) if math.prod(kernel) <= _MOST_KEPT else _taps(*given)


def _taps(kernel: _Sizes, count: _Sizes, strides: _Sizes, dilations: _Sizes) -> Iterator[tuple[slice, ...]]:
    for place in np.ndindex(*kernel):
        yield tuple(
            slice(p * d, p * d + (n - 1) * s + 1, s)
            for p, n, s, d in zip(place, count, strides, dilations, strict=True)
        )


@lru_cache(maxsize=256)
def _kept(kernel: _Sizes, count: _Sizes, strides: _Sizes, dilations: _Sizes) -> tuple[tuple[slice, ...], ...]:
    return tuple(_taps(kernel, count, strides, dilations))
