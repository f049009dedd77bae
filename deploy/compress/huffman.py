"""Canonical Huffman codes of limited length, and many streams of them read at once.

A code is told by its lengths alone: codes of one length are consecutive numbers, in the order of the
symbols. Lengths are the best of at most `LONGEST` bits (package-merge, Larmore and Hirschberg 1990), so that
a table of 2^LONGEST entries, which fits a processor's first cache, reads a code in one look-up.

Numpy has no fast loop over bits, but it can do one step for thousands of streams: a part's symbol i lies in
its stream i % streams, and each round takes one symbol off every stream of every part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LONGEST = 12
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


@dataclass(frozen=True)
class Coded:
    """``count`` symbols in streams of so many bytes each, by codes of these `complete` lengths."""

    lengths: np.ndarray
    count: int
    sizes: np.ndarray


def write(symbols: np.ndarray, streams: int, kinds: int) -> tuple[Coded, bytes]:
    """At least one symbol, each below ``kinds``, in so many streams; each begins with a byte of its own."""
    lengths = code_lengths(np.bincount(symbols, minlength=kinds))
    table = codes(lengths)
    sizes, parts = [], []
    for stream in range(streams):
        own = symbols[stream::streams]
        bits = lengths[own].astype(np.int64)
        ends = np.cumsum(bits)
        out = np.zeros(-(-int(ends[-1]) // 8) * 8, np.uint8)
        code = table[own].astype(np.int64)
        for back in range(LONGEST):
            here = bits > back
            out[ends[here] - 1 - back] = code[here] >> back & 1
        packed = np.packbits(out)
        sizes.append(len(packed))
        parts.append(packed.tobytes())
    return Coded(lengths, len(symbols), np.array(sizes, np.int64)), b"".join(parts)


def read(data: bytes, parts: Sequence[Coded]) -> list[np.ndarray] | None:
    """The symbols (uint8) of each of ``parts``, whose streams follow each other; None where bits do not fit.

    Sizes add up to ``data``, each part has a symbol or more for each of its streams, and a stream or more.
    Whatever the bits are, nothing outside of ``data`` is read. Memory: a byte for each stream and round, as
    many rounds as the longest stream has symbols, and ``data`` once more.
    """
    streams = np.array([len(part.sizes) for part in parts])
    owner = np.repeat(np.arange(len(parts)), streams)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(streams) - streams, streams)
    counts = np.array([part.count for part in parts])[owner]
    many = (counts - within - 1) // streams[owner] + 1
    # Streams that go on longer come first, so that those at work are always the first so many.
    order = np.argsort(-many, kind="stable")
    ends = np.cumsum(np.concatenate([part.sizes for part in parts]))
    starts = (ends - np.concatenate([part.sizes for part in parts])) * 8
    symbol, bits, begins = _tables([part.lengths for part in parts])
    longest = np.array([int(part.lengths.max()) for part in parts])
    found = _rounds(
        np.frombuffer(data + bytes(16 - len(data) % 8), ">u8").astype(np.uint64),
        place := starts[order].astype(np.uint64),
        many[order],
        symbol,
        bits,
        begins[owner[order]].astype(np.uint64),
        (64 - longest)[owner[order]].astype(np.uint64),
        64 // int(longest.max()),
    )
    if ((place + np.uint64(7)) >> np.uint64(3) != ends[order].astype(np.uint64)).any():
        return None
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    columns = np.split(back, np.cumsum(streams)[:-1])
    rounds = [-(-part.count // len(part.sizes)) for part in parts]
    return [
        np.take(found[:last], column, axis=1).reshape(-1)[: part.count]
        for part, column, last in zip(parts, columns, rounds, strict=True)
    ]


def _rounds(
    words: np.ndarray,
    place: np.ndarray,
    many: np.ndarray,
    symbol: np.ndarray,
    bits: np.ndarray,
    begins: np.ndarray,
    shift: np.ndarray,
    together: int,
) -> np.ndarray:
    """One symbol off every stream, round by round: (rounds, streams). ``place`` goes on to where each ends.

    ``many`` symbols are in each stream, descending. A stream's table begins at ``begins`` and is looked into
    by what is left of 64 bits behind ``shift``. ``together`` codes are in these for certain.
    """
    found = np.zeros((int(many[0]), len(many)), np.uint8)
    working = np.searchsorted(-many, -np.arange(len(found)), side="left")
    room = [np.empty(len(many), np.uint64) for _ in range(4)]
    short = np.empty(len(many), np.uint8)
    limit = np.uint64(len(words) - 2)
    for start in range(0, len(found), together):
        alive = int(working[start])
        index, step, window, rest = (one[:alive] for one in room)
        np.right_shift(place[:alive], _SIX, out=index)
        np.minimum(index, limit, out=index)
        np.bitwise_and(place[:alive], _MASK, out=step)
        np.take(words, index.view(np.int64), out=window, mode="clip")
        np.left_shift(window, step, out=window)
        index += _ONE
        np.take(words, index.view(np.int64), out=rest, mode="clip")
        np.subtract(_MASK, step, out=step)
        rest >>= _ONE
        rest >>= step
        window |= rest
        for row in range(start, min(start + together, len(found))):
            alive = int(working[row])
            index, step, window = (one[:alive] for one in room[:3])
            np.right_shift(window, shift[:alive], out=index)
            index += begins[:alive]
            np.take(symbol, index.view(np.int64), out=found[row, :alive], mode="clip")
            np.take(bits, index.view(np.int64), out=short[:alive], mode="clip")
            np.copyto(step, short[:alive])
            window <<= step
            place[:alive] += step
    return found


def _tables(every: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By the next bits, as many as a part's longest code has: which symbol begins there, and how long it is;
    the tables of all parts one after the other, and where each begins."""
    symbols, lengths_, sizes = [], [], []
    for lengths in every:
        used = np.flatnonzero(lengths)
        used = used[np.argsort(lengths[used], kind="stable")]
        widths = lengths[used].astype(np.int64)
        places = 1 << (int(lengths.max()) - widths)
        if len(used) == 1:  # what no code begins with is read as the only one there is
            places *= 2
        symbol, bits = np.repeat(used, places).astype(np.uint8), np.repeat(widths, places).astype(np.uint8)
        symbols.append(symbol)
        lengths_.append(bits)
        sizes.append(len(symbol))
    begins = np.cumsum(sizes) - np.array(sizes)
    return np.concatenate(symbols), np.concatenate(lengths_), begins
