"""Canonical codes against Huffman's own algorithm, and streams against a reader bit by bit."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.compress.huffman import LONGEST, code_lengths, codes, complete, read, write


def bits_of_huffman(counts: np.ndarray) -> int:
    """The bits of a Huffman code of any length: what all its merges weigh."""
    heap = [int(c) for c in counts if c]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40).filter(lambda c: sum(x > 0 for x in c) > 1))
def test_lengths_are_as_good_as_huffmans_where_these_are_short(counts: list[int]) -> None:
    array = np.array(counts)
    lengths = code_lengths(array)
    assert complete(lengths)
    assert ((lengths > 0) == (array > 0)).all()
    assert int((array * lengths).sum()) == bits_of_huffman(array)


def test_long_codes_are_cut_to_the_longest_allowed() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = code_lengths(np.array(fibonacci))
    assert lengths.max() == LONGEST
    assert complete(lengths)
    flat = code_lengths(np.ones(256, int))
    assert (flat == 8).all()


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=256).filter(lambda c: sum(x > 0 for x in c) > 1))
def test_no_code_begins_another(counts: list[int]) -> None:
    lengths = code_lengths(np.array(counts))
    words = sorted(
        format(code, f"0{bits}b") for code, bits in zip(codes(lengths), lengths, strict=True) if bits
    )
    assert all(not b.startswith(a) for a, b in itertools.pairwise(words))


def bit_by_bit(data: bytes, lengths: np.ndarray, count: int) -> list[int]:
    table = {(int(b), int(c)): i for i, (c, b) in enumerate(zip(codes(lengths), lengths, strict=True)) if b}
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    found, code, used = [], 0, 0
    for bit in bits:
        code, used = code << 1 | int(bit), used + 1
        if (used, code) in table:
            found.append(table[used, code])
            code = used = 0
        if len(found) == count:
            break
    return found


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 9)), min_size=1, max_size=5),
)
def test_all_streams_are_read_as_one_would_be(seed: int, parts: list[tuple[int, int]]) -> None:
    draw = np.random.default_rng(seed)
    symbols, coded, streams = [], [], []
    for count, wanted in parts:
        kinds = int(draw.integers(1, 60))
        own = (draw.exponential(kinds / 6, count).astype(int) % kinds).astype(np.uint8)
        part, data = write(own, min(wanted, count), kinds)
        symbols.append(own)
        coded.append(part)
        streams.append(data)
        ends = np.cumsum(part.sizes)
        for i, end in enumerate(ends):
            alone = own[i :: len(ends)]
            assert bit_by_bit(data[end - part.sizes[i] : end], part.lengths, len(alone)) == alone.tolist()
    found = read(b"".join(streams), coded)
    assert found is not None
    assert all((a == b).all() for a, b in zip(found, symbols, strict=True))


@pytest.mark.parametrize("change", ["bits", "size", "count"])
def test_what_does_not_end_where_it_should_is_told(change) -> None:
    symbols = np.random.default_rng(0).geometric(0.3, 4096).clip(0, 15).astype(np.uint8)
    coded, data = write(symbols, 4, 16)
    if change == "bits":
        data = bytes(len(data))
    elif change == "size":
        coded = replace(coded, sizes=coded.sizes + np.array([1, -1, 0, 0]))
    else:
        coded = replace(coded, count=3000)
    assert read(data, [coded]) is None


def test_codes_that_leave_gaps_are_none() -> None:
    assert not complete(np.array([2, 2, 2], np.uint8))
    assert not complete(np.array([1, 1, 1], np.uint8))
    assert not complete(np.array([0, 0], np.uint8))
    assert not complete(np.array([13] * 2, np.uint8))
    assert complete(np.array([0, 1], np.uint8))
