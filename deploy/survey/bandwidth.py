"""How fast this machine reads and writes its caches and its memory, by one thread and by several.

After STREAM (McCalpin 1995, "Memory bandwidth and machine balance in current high performance computers"):
each kernel goes over its arrays many times, bytes count as the kernel's text says them, what a cache fetches
besides does not. Large arrays are gone over in pieces, so that a round is short: another process has the core
for milliseconds at a time, and most rounds should pass without. By numpy, so that nothing has to be compiled:

read    two arrays are multiplied and summed (a dot product of 2,048 numbers at a time)
copy    one array is copied to another
update  ``y += x``: two arrays read and one written, STREAM's Add; its Triad moves the same, but would be two
        passes in numpy
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import numpy as np
from numpy.lib.stride_tricks import as_strided

from deploy.survey.readings import Cache

Pass = Callable[[], object]

_ROW = 8192
"""Numbers of one dot product: few enough that BLAS starts no threads of its own."""
_INSIDE = 256 * 1024
"""Below this size the passes are one call of numpy, whose start would otherwise be a part of the time."""
_PIECE = 8 * 2**20
_WINDOW_S, _WINDOW_TOGETHER_S = 0.001, 0.003
"""Several threads need longer ones, as they do not start in the same instant."""
_SMALLEST, _LARGEST, _LARGEST_QUICK = 64 * 2**20, 512 * 2**20, 256 * 2**20
_OF_LAST = 8
"""Memory is measured on so many times the last cache, each of two arrays four times it, as STREAM asks."""
_UNKNOWN = (Cache("l1d", 32, 1, 1, ""), Cache("l2", 256, 1, 1, ""))
"""The least that any processor of the last ten years has."""


@dataclass(frozen=True)
class Level:
    """``size`` is the working set in bytes of each thread."""

    name: str
    size: int


@dataclass(frozen=True)
class Rate:
    """Gigabytes (10^9) in a second of all threads together; the spread is interquartile over median."""

    gb_s: float
    spread: float


@dataclass(frozen=True)
class _Stream:
    """One thread's arrays. ``passes(n)`` gives a call that goes n times over so many ``bytes`` of them."""

    bytes: int
    passes: Callable[[int], Pass]


def levels(caches: Sequence[Cache], memory: int, threads: int, *, quick: bool) -> list[Level]:
    """Working sets that fit half into each thread's part of a cache, and one that fits none.

    Levels that a thread's part makes no larger than the one below are left out.
    """
    known = list(caches) or list(_UNKNOWN)
    found: list[Level] = []
    for cache in known:
        together = min(cache.shared_by, math.ceil(threads / cache.count))
        size = cache.kib * 1024 // 2 // max(1, together)
        if not found or size >= 2 * found[-1].size:
            found.append(Level(cache.name.removesuffix("d"), size))
    last = known[-1]
    together = last.kib * 1024 * min(last.count, threads)
    most = min(_LARGEST_QUICK if quick else _LARGEST, memory // 8)
    size = min(max(_OF_LAST * together, _SMALLEST), most) // threads
    return [*found, Level("memory", size)]


def bandwidth(kernel: str, size: int, threads: int, rounds: int) -> Rate:
    """The rate of ``read``, ``copy`` or ``update`` over ``size`` bytes for each of ``threads`` threads.

    A round starts all threads together and ends with the last of them. Rates are medians over the rounds.
    """
    streams: list[_Stream | None] = [None] * threads
    starts, ends = np.zeros((rounds, threads)), np.zeros((rounds, threads))
    counts = [1]
    barrier = threading.Barrier(threads)

    def work(thread: int) -> None:
        try:
            measure(thread)
        except BaseException:
            barrier.abort()  # else the others would wait for this thread for ever
            raise

    def measure(thread: int) -> None:
        stream = _KERNELS[kernel](size)  # made by its thread, so that its memory lies near
        streams[thread] = stream
        if thread == 0:
            counts[0] = _fitting(stream, _WINDOW_S if threads == 1 else _WINDOW_TOGETHER_S)
        barrier.wait()
        call = stream.passes(counts[0])
        call()
        for number in range(rounds):
            barrier.wait()
            starts[number, thread] = time.perf_counter()
            call()
            ends[number, thread] = time.perf_counter()

    with ThreadPoolExecutor(threads) as pool:
        errors = [done.exception() for done in [pool.submit(work, thread) for thread in range(threads)]]
    for error in errors:
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    moved = counts[0] * sum(stream.bytes for stream in streams if stream is not None)
    rates = moved / (ends.max(axis=1) - starts.min(axis=1)) / 1e9
    low, typical, high = np.percentile(rates, [25, 50, 75])
    return Rate(float(typical), float((high - low) / typical))


def _fitting(stream: _Stream, window_s: float) -> int:
    """How many passes fill a window; what interrupts one of a few tries does not count."""
    count = max(1, 2**20 // stream.bytes)
    call = stream.passes(count)
    call()
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) / count)
    return max(1, math.ceil(window_s / max(min(taken), 1e-9)))


def _read(size: int) -> _Stream:
    row = min(_ROW, size // 8)
    rows = max(1, size // 8 // row)
    a, b = _numbers(rows * row), _numbers(rows * row)
    if size > _INSIDE:
        pieces = _pieces(a.reshape(rows, row), b.reshape(rows, row))
        return _in_pieces([(p.nbytes + q.nbytes, partial(np.vecdot, p, q)) for p, q in pieces])

    def passes(count: int) -> Pass:
        shape, strides = (count, rows, row), (0, 4 * row, 4)
        left, right = as_strided(a, shape, strides), as_strided(b, shape, strides)
        sums = np.empty((count, rows), np.float32)
        return lambda: np.vecdot(left, right, out=sums)

    return _Stream(8 * rows * row, passes)


def _copy(size: int) -> _Stream:
    half = size // 2
    a, b = _numbers(half // 4), _numbers(half // 4)
    if size > _INSIDE:
        return _in_pieces([(p.nbytes + q.nbytes, partial(np.copyto, q, p)) for p, q in _pieces(a, b)])
    # One item as large as the array: numpy copies items whole, and so many of them within one call.
    whole = np.dtype((np.void, half))
    source, target = a.view(whole), b.view(whole)

    def passes(count: int) -> Pass:
        left, right = as_strided(target, (count,), (0,)), as_strided(source, (count,), (0,))
        return lambda: np.copyto(left, right)

    return _Stream(2 * half, passes)


def _update(size: int) -> _Stream:
    x, y = _numbers(size // 8), _numbers(size // 8)
    if size > _INSIDE:
        return _in_pieces([(3 * p.nbytes, partial(np.add, q, p, out=q)) for p, q in _pieces(x, y)])

    def passes(count: int) -> Pass:
        rows = as_strided(x, (count + 1, x.size), (0, 4))  # the first is copied, every other added
        return lambda: np.add.reduce(rows, axis=0, out=y)

    return _Stream(3 * x.nbytes, passes)


def _pieces(*arrays: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    """The arrays cut alike, into parts of one size as far as that goes."""
    count = max(1, sum(array.nbytes for array in arrays) // _PIECE)
    length = len(arrays[0]) // count
    return [tuple(a[i * length : (i + 1) * length] for a in arrays) for i in range(count)]


def _in_pieces(pieces: Sequence[tuple[int, Pass]]) -> _Stream:
    """A pass is one piece, and the next one goes on behind it."""
    turns = cycle([call for _, call in pieces])

    def passes(count: int) -> Pass:
        def calls() -> None:
            for call in islice(turns, count):
                call()

        return calls

    return _Stream(pieces[0][0], passes)


def _numbers(count: int) -> np.ndarray:
    """Written once, so that the memory is there; not zeros, whose pages may all be one."""
    return np.full(count, 0.5, np.float32)


_KERNELS: dict[str, Callable[[int], _Stream]] = {"read": _read, "copy": _copy, "update": _update}
KERNELS = tuple(_KERNELS)
