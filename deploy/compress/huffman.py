"""Canonical Huffman codes of limited length, and many streams of them read at once.

A code is told by its lengths alone: codes of one length are consecutive numbers, in the order of the
symbols. Lengths are the best of at most `LONGEST` bits (package-merge, Larmore and Hirschberg 1990), so that
a table of 2^LONGEST entries, which fits a processor's first cache, reads a code in one look-up.

Numpy has no fast loop over bits, but it can do one step for thousands of streams: symbol i lies in stream
i % streams, and each round takes one symbol off every stream.
"""

from __future__ import annotations

import numpy as np

LONGEST = 12
_WINDOW = 64
_ONE, _SIX, _MASK = np.uint64(1), np.uint64(6), np.uint64(63)


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of each symbol's code, 0 where it does not occur; one that is alone has one bit.

    ``counts`` are at most 256. The sum of counts times lengths is least among codes of `LONGEST` bits.

    >>> code_lengths(np.array([5, 1, 1, 0]))
    array([1, 2, 2, 0], dtype=uint8)
    """
    lengths = np.zeros(len(counts), np.uint8)
    used = np.flatnonzero(counts)
    if len(used) <= 1:
        lengths[used] = 1
        return lengths
    single: list[tuple[int, tuple[int, ...]]] = sorted((int(counts[one]), (int(one),)) for one in used)
    level = single
    for _ in range(LONGEST - 1):
        packages = [
            (a + b, left + right) for (a, left), (b, right) in zip(level[::2], level[1::2], strict=False)
        ]
        level = sorted([*single, *packages])
    for _, symbols in level[: 2 * len(used) - 2]:
        for symbol in symbols:
            lengths[symbol] += 1
    return lengths


def codes(lengths: np.ndarray) -> np.ndarray:
    """The code of each symbol, first bit highest: numbers below 2^length."""
    found = np.zeros(len(lengths), np.uint32)
    code = 0
    for bits in range(1, LONGEST + 1):
        code <<= 1
        for symbol in np.flatnonzero(lengths == bits):
            found[symbol] = code
            code += 1
    return found


def complete(lengths: np.ndarray) -> bool:
    """Whether every sequence of bits means something: the lengths of a whole code, or one symbol's."""
    used = lengths[lengths > 0]
    if len(used) == 0 or used.max() > LONGEST:
        return False
    filled = int((1 << (LONGEST - used.astype(np.int64))).sum())
    return filled == 1 << LONGEST or (len(used) == 1 and used[0] == 1)


def write(symbols: np.ndarray, lengths: np.ndarray, streams: int) -> tuple[np.ndarray, bytes]:
    """(bytes of each stream, all streams one after the other); a stream begins with a byte of its own."""
    table = codes(lengths)
    sizes, parts = [], []
    for stream in range(streams):
        own = symbols[stream::streams]
        bits = lengths[own].astype(np.int64)
        ends = np.cumsum(bits)
        total = int(ends[-1]) if len(ends) else 0
        out = np.zeros(-(-total // 8) * 8, np.uint8)
        code = table[own].astype(np.int64)
        for back in range(LONGEST):
            here = bits > back
            out[ends[here] - 1 - back] = code[here] >> back & 1
        packed = np.packbits(out)
        sizes.append(len(packed))
        parts.append(packed.tobytes())
    return np.array(sizes, np.int64), b"".join(parts)


def read(data: bytes, sizes: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray | None:
    """The ``count`` symbols (uint8) of streams that follow each other; None where the bits do not fit.

    ``lengths`` are `complete` and ``sizes`` add up to ``data``. Whatever the bits are, nothing outside of
    ``data`` is read, and no more memory is taken than for the symbols, the streams and ``data`` once more.
    """
    streams = len(sizes)
    symbol, bits = _table(lengths)
    words = np.frombuffer(data + bytes(16 - len(data) % 8), ">u8").astype(np.uint64)
    ends = np.cumsum(sizes)
    place = ((ends - sizes) * 8).astype(np.uint64)
    limit = np.uint64(len(words) - 2)
    rounds = -(-count // streams)
    found = np.empty((rounds, streams), np.uint8)
    longest = int(lengths.max())
    together, shift = _WINDOW // longest, np.uint64(_WINDOW - longest)
    index, step, window, rest = (np.empty(streams, np.uint64) for _ in range(4))
    for start in range(0, rounds, together):
        np.right_shift(place, _SIX, out=index)
        np.minimum(index, limit, out=index)
        np.bitwise_and(place, _MASK, out=step)
        np.take(words, index.view(np.int64), out=window, mode="clip")
        np.left_shift(window, step, out=window)
        index += _ONE
        np.take(words, index.view(np.int64), out=rest, mode="clip")
        np.subtract(_MASK, step, out=step)
        rest >>= _ONE
        rest >>= step
        window |= rest
        for row in range(start, min(start + together, rounds)):
            np.right_shift(window, shift, out=index)
            np.take(symbol, index.view(np.int64), out=found[row], mode="clip")
            np.take(bits, index.view(np.int64), out=step, mode="clip")
            if row == rounds - 1:  # the last symbols do not go round
                step[count - row * streams :] = 0
            window <<= step
            place += step
    if ((place + np.uint64(7)) >> np.uint64(3) != ends.astype(np.uint64)).any():
        return None
    return found.reshape(-1)[:count]


def _table(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By the next bits, as many as the longest code has: which symbol begins there, and how long it is."""
    longest = int(lengths.max())
    symbol, bits = np.zeros(1 << longest, np.uint8), np.ones(1 << longest, np.uint64)
    start = 0
    for length in range(1, longest + 1):
        for one in np.flatnonzero(lengths == length):
            end = start + (1 << (longest - length))
            symbol[start:end], bits[start:end] = one, length
            start = end
    return symbol, bits
