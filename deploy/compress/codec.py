"""Weights at rest: a codebook, and indices in canonical Huffman codes. What is read is what was written, bit
for bit.

The bytes, all numbers little-endian:

    "DPAL" 1                   magic and version
    crc32                      uint32, of all that follows
    dtype rank grouped wide    uint8 each; wide: sizes of streams are uint32, else uint16
    groups values axis size    uint32 each; groups and size of the palette
    streams                    uint32
    shape                      uint32 each
    codebook                   groups x values numbers
    lengths                    values x uint8, of the Huffman codes
    sizes                      bytes of each stream
    streams                    symbol i is in stream i % streams

Such bytes may come from anybody. Every count is checked against how many bytes there are before anything of
that size is made; a symbol has one bit at least, so what is decoded has no more than eight indices a byte.
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np

from deploy.compress.huffman import code_lengths, complete, read, write
from deploy.compress.palette import MOST, Palette
from deploy.errors import ModelError

_MAGIC = b"DPAL\x01"
_HEAD = struct.Struct("<4B5I")
_DTYPES = ("<f4", "<f2", "<f8", "|i1", "|u1", "<i2", "<u2", "<i4")
_RANK = 8
_PER_STREAM, _STREAMS = 256, 2048
"""Symbols in a stream, at least, so that its size in the head counts little; streams, at most: more are no
faster."""


def encode(palette: Palette) -> bytes:
    """The palette as bytes. Raises ValueError for a type of numbers or a rank that the format lacks."""
    codebook, indices = palette.codebook, np.ascontiguousarray(palette.indices)
    dtype = codebook.dtype.newbyteorder("<").str
    if dtype not in _DTYPES or not 0 < indices.ndim <= _RANK or not 0 < codebook.shape[1] <= MOST:
        raise ValueError(f"a palette of {dtype} of {indices.ndim} axes cannot be written")
    symbols = indices.reshape(-1)
    lengths = code_lengths(np.bincount(symbols, minlength=codebook.shape[1]))
    streams = max(1, min(_STREAMS, symbols.size // _PER_STREAM))
    sizes, data = write(symbols, lengths, streams)
    wide = bool(sizes.max(initial=0) > 0xFFFF)
    grouped = palette.axis is not None
    kind = _DTYPES.index(dtype), indices.ndim, grouped, wide
    head = _HEAD.pack(*kind, *codebook.shape, palette.axis or 0, palette.size, streams)
    body = b"".join((
        head,
        struct.pack(f"<{indices.ndim}I", *indices.shape),
        codebook.astype(dtype).tobytes(),
        lengths.tobytes(),
        sizes.astype("<u4" if wide else "<u2").tobytes(),
        data,
    ))  # fmt: skip
    return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def decode(data: bytes, origin: str = "coded weights") -> Palette:
    """The palette that `encode` was given. Raises ModelError, naming ``origin``, for all other bytes."""
    found = _decoded(data)
    if isinstance(found, str):
        raise ModelError(
            f"{origin}: {found}", hint="the bytes were damaged or cut short: copy or write them again"
        )
    return found


def _decoded(data: bytes) -> Palette | str:
    """The palette, or what is wrong with the bytes."""
    start = len(_MAGIC) + 4
    if data[: len(_MAGIC)] != _MAGIC:
        return "no coded weights of this version"
    if len(data) < start + _HEAD.size:
        return "cut short"
    body = memoryview(data)[start:]
    if zlib.crc32(body) != struct.unpack_from("<I", data, len(_MAGIC))[0]:
        return "the checksum is wrong"
    kind, rank, grouped, wide, groups, values, axis, size, streams = _HEAD.unpack_from(body)
    if kind >= len(_DTYPES) or not 0 < rank <= _RANK or grouped > 1 or wide > 1 or not 0 < values <= MOST:
        return "the head makes no sense"
    dtype = np.dtype(_DTYPES[kind])
    parts = (4 * rank, groups * values * dtype.itemsize, values, streams * (4 if wide else 2))
    if len(body) < _HEAD.size + sum(parts):
        return "cut short"
    cuts, at = [], _HEAD.size
    for part in parts:
        cuts.append(body[at : at + part])
        at += part
    coded = bytes(body[at:])
    shape = struct.unpack(f"<{rank}I", cuts[0])
    lengths = np.frombuffer(cuts[2], np.uint8)
    sizes = np.frombuffer(cuts[3], "<u4" if wide else "<u2").astype(np.int64)
    count = math.prod(shape)
    if not _sensible(shape, groups, axis if grouped else None, size):
        return "groups and shape do not fit"
    if count > 8 * len(coded) or int(sizes.sum()) != len(coded) or not 0 < streams <= max(count, 1):
        return "the streams do not fit"
    codebook = np.frombuffer(cuts[1], dtype).reshape(groups, values)
    if count == 0:
        return Palette(codebook, np.zeros(shape, np.uint8), axis if grouped else None, size)
    if not complete(lengths):
        return "the code is not one"
    symbols = read(coded, sizes, lengths, count)
    if symbols is None:
        return "the streams do not end where they should"
    return Palette(codebook, symbols.reshape(shape), axis if grouped else None, size)


def _sensible(shape: tuple[int, ...], groups: int, axis: int | None, size: int) -> bool:
    if math.prod(max(n, 1) for n in shape) >= 1 << 40:  # numpy would not even make an empty array of it
        return False
    if axis is None:
        return groups == 1
    return axis < len(shape) and size > 0 and groups == -(-shape[axis] // size)
