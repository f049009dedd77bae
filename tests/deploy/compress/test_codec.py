"""Bytes at rest: exactly reversible, small, and harmless whoever wrote them."""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.compress.codec import _HEAD, _MAGIC, decode, encode
from deploy.compress.huffman import write
from deploy.errors import ModelError
from deploy.graph.palette import Palette, palette_of

BODY = len(_MAGIC) + 4


def palette(shape=(40, 30), values=16, axis=None, size=0, seed=0) -> Palette:
    draw = np.random.default_rng(seed)
    groups = 1 if axis is None else -(-shape[axis] // size)
    indices = np.minimum(draw.geometric(0.2, shape) - 1, values - 1).astype(np.uint8)
    return Palette(draw.standard_normal((groups, values)).astype(np.float32), indices, axis, size)


def same(one: Palette, other: Palette) -> bool:
    return (
        one.codebook.tobytes() == other.codebook.tobytes()
        and one.codebook.dtype == other.codebook.dtype
        and one.indices.tobytes() == other.indices.tobytes()
        and one.indices.shape == other.indices.shape
        and (one.axis, one.size) == (other.axis, other.size)
    )


@settings(max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sampled_from([1, 2, 3, 16, 17, 255, 256]),
    st.booleans(),
    st.integers(1, 5),
)
def test_what_is_read_is_what_was_written(seed, shape, values, grouped, size) -> None:
    axis = seed % len(shape) if grouped else None
    one = palette(tuple(shape), values, axis, size if grouped else 0, seed)
    other = decode(encode({"w": one}))["w"]
    assert same(one, other)
    assert one.values().tobytes() == other.values().tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8, np.uint8])
def test_any_array_of_few_values_comes_back_bit_for_bit(dtype) -> None:
    array = np.random.default_rng(0).integers(0, 100, (50, 20)).astype(dtype)
    if np.issubdtype(dtype, np.floating):
        array[0, :4] = [-0.0, 0.0, np.nan, -np.inf]
    found = palette_of(array)
    assert found is not None
    assert decode(encode({"w": found}))["w"].values().tobytes() == array.tobytes()


def test_arrays_of_many_values_have_no_palette() -> None:
    assert palette_of(np.arange(257, dtype=np.float32)) is None
    late = np.zeros(40000, np.float32)
    late[-300:] = np.arange(300)
    assert palette_of(late) is None


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (1,)])
def test_empty_and_single_arrays(shape) -> None:
    one = palette(shape, 4)
    found = decode(encode({"a": one, "b": palette(), "c": one}))
    assert list(found) == ["a", "b", "c"]
    assert same(one, found["a"])
    assert same(palette(), found["b"])


def test_the_size_is_close_to_the_entropy() -> None:
    one = palette((600, 500), 32)
    share = np.bincount(one.indices.reshape(-1)) / one.indices.size
    share = share[share > 0]
    entropy = -(share * np.log2(share)).sum() * one.indices.size / 8
    assert len(encode({"w": one})) < 1.06 * entropy + 500
    assert one.stored_bytes == 128 + one.indices.size * 5 // 8


@settings(max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans())
def test_damaged_bytes_are_one_clear_error(seed: int, changes: int, forged: bool) -> None:
    """``forged``: with a checksum that fits; then what comes out may be wrong, but nothing else."""
    draw = np.random.default_rng(seed)
    damaged = {"w": palette(axis=1, size=7, values=9), "v": palette((900,), 4)}
    data = bytearray(encode(damaged))
    for _ in range(changes):
        data[draw.integers(len(data) if not forged else _HEAD.size + 60)] = draw.integers(256)
    if draw.random() < 0.3:
        del data[draw.integers(len(data)) :]
    if forged and len(data) > BODY:
        data[:BODY] = _MAGIC + struct.pack("<I", zlib.crc32(bytes(data[BODY:])))
    try:
        found = decode(bytes(data), "weights.bin")
    except ModelError as e:
        assert str(e).startswith("weights.bin: ")
    else:
        assert all(one.values().shape == one.indices.shape for one in found.values())
        assert forged or all(same(one, damaged[name]) for name, one in found.items())


HEADS = {
    "streams": (0, 2, 0, 1, 1, 16, 0, 0, 2**32 - 1),
    "groups": (2, 8, 1, 0, 2**32 - 1, 256, 0, 1, 1),
    "nothing": (0, 8, 1, 0, 0, 1, 7, 1, 1),
    "plain": (0, 2, 0, 1, 1, 2, 0, 0, 1),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [0, 2**10, 2**16, 2**32 - 1])
def test_claims_of_great_size_take_no_memory(head, size) -> None:
    given = HEADS[head]
    shape = struct.pack("<I", size) * given[1]
    rest = bytes(8) + b"\x01\x01" + struct.pack("<I", 1000) if head == "plain" else bytes(range(256))
    body = struct.pack("<IH", 1, 1) + b"w" + _HEAD.pack(*given) + shape + rest + bytes(1000)
    data = _MAGIC + struct.pack("<I", zlib.crc32(body)) + body
    tracemalloc.start()
    with pytest.raises(ModelError):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_streams_of_very_different_lengths_are_refused() -> None:
    """A round has room for every stream: one long and many short ones would take the product of both."""
    long = np.zeros(1 << 20, np.uint8)
    streams = {"long": write(long, 1, 2), "short": write(long[:4096], 4096, 2)}
    body = struct.pack("<I", 2)
    for name, (coded, _) in streams.items():
        body += struct.pack("<H", len(name)) + name.encode()
        body += _HEAD.pack(0, 1, 0, 1, 1, 2, 0, 0, len(coded.sizes)) + struct.pack("<I", coded.count)
        body += bytes(8) + coded.lengths.tobytes() + coded.sizes.astype("<u4").tobytes()
    body += b"".join(data for _, data in streams.values())
    with pytest.raises(ModelError, match="different lengths"):
        decode(_MAGIC + struct.pack("<I", zlib.crc32(body)) + body)


def test_what_the_format_lacks_is_refused_when_writing() -> None:
    with pytest.raises(ValueError):
        encode({"w": Palette(np.zeros((1, 2), np.complex64), np.zeros(3, np.uint8))})
