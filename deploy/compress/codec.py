"""Weights at rest: codebooks, and indices in canonical Huffman codes, exactly reversible.

The bytes, all numbers little-endian:

    "DPAL" 1                   magic and version
    crc32                      uint32, of all that follows
    count                      uint32, of palettes; of each of them
        name                   uint16 for its bytes, and these, UTF-8
        dtype rank             uint8 each
        grouped wide           uint8 each; wide: sizes are uint32, else uint16
        groups values          uint32 each, of the codebook
        axis size streams      uint32 each
        shape                  uint32 each
        codebook               groups x values numbers
        lengths                values x uint8, of the Huffman codes
        sizes                  of its streams in bytes
    streams                    of all palettes; symbol i is in stream i % streams of its palette

All palettes are read together, since small tensors alone keep no vector busy. Such bytes may come from
anybody. Every count is checked against how many bytes there are before anything of that size is made; a
symbol has one bit at least, so there are no more than eight indices a byte.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deploy.compress.huffman import Coded, complete, read, write
from deploy.errors import ModelError
from deploy.graph.palette import MOST, Palette

_MAGIC = b"DPAL\x01"
_HEAD = struct.Struct("<4B5I")
_DTYPES = ("<f4", "<f2", "<f8", "|i1", "|u1", "<i2", "<u2", "<i4")
_RANK = 8
_PER_STREAM, _STREAMS = 256, 4096
"""Symbols in a stream, at least, so that its size counts little; streams, about: more are no faster."""
_ROOM = 1 << 24
"""Bytes that rounds of short streams may take besides."""


class _DamagedError(Exception):
    """What is wrong with the bytes."""


def encode(palettes: Mapping[str, Palette]) -> bytes:
    """All palettes as bytes. Raises ValueError for a type of numbers or a rank that the format lacks."""
    total = sum(palette.indices.size for palette in palettes.values())
    each = max(_PER_STREAM, -(-total // _STREAMS))
    each = min(each, max(1, _ROOM // max(len(palettes), 1)))
    heads, streams = [struct.pack("<I", len(palettes))], []
    for name, palette in palettes.items():
        codebook, indices = palette.codebook, np.ascontiguousarray(palette.indices)
        dtype = codebook.dtype.newbyteorder("<").str
        if dtype not in _DTYPES or not 0 < indices.ndim <= _RANK or not 0 < codebook.shape[1] <= MOST:
            raise ValueError(f"'{name}': a palette of {dtype} of {indices.ndim} axes cannot be written")
        coded, data = Coded(np.zeros(codebook.shape[1], np.uint8), 0, np.zeros(0, np.int64)), b""
        if indices.size:
            coded, data = write(indices.reshape(-1), -(-indices.size // each), codebook.shape[1])
        wide = bool(coded.sizes.max(initial=0) > 0xFFFF)
        kind = _DTYPES.index(dtype), indices.ndim, palette.axis is not None, wide
        text = name.encode()
        heads += [
            struct.pack("<H", len(text)) + text,
            _HEAD.pack(*kind, *codebook.shape, palette.axis or 0, palette.size, len(coded.sizes)),
            struct.pack(f"<{indices.ndim}I", *indices.shape),
            codebook.astype(dtype).tobytes(),
            coded.lengths.tobytes(),
            coded.sizes.astype("<u4" if wide else "<u2").tobytes(),
        ]
        streams.append(data)
    body = b"".join([*heads, *streams])
    return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def decode(data: bytes, origin: str = "coded weights") -> dict[str, Palette]:
    """The palettes that `encode` was given. Raises ModelError, naming ``origin``, for all other bytes."""
    try:
        return _decoded(data)
    except _DamagedError as e:
        raise ModelError(
            f"{origin}: {e}", hint="the bytes were damaged or cut short: copy or write them again"
        ) from e


@dataclass
class _Bytes:
    """What is left to be read."""

    left: memoryview

    def take(self, size: int) -> memoryview:
        if size > len(self.left):
            raise _DamagedError("cut short")
        found, self.left = self.left[:size], self.left[size:]
        return found


def _decoded(data: bytes) -> dict[str, Palette]:
    if data[: len(_MAGIC)] != _MAGIC:
        raise _DamagedError("no coded weights of this version")
    source = _Bytes(memoryview(data)[len(_MAGIC) :])
    if struct.unpack("<I", source.take(4))[0] != zlib.crc32(source.left):
        raise _DamagedError("the checksum is wrong")
    found: dict[str, Palette] = {}
    parts: dict[str, Coded] = {}
    for _ in range(struct.unpack("<I", source.take(4))[0]):
        name, palette, coded = _head(source)
        if name in found:
            raise _DamagedError("two palettes have one name")
        found[name] = palette
        if coded.count:
            parts[name] = coded
    coded_bytes = bytes(source.left)
    total = sum(part.count for part in parts.values())
    if sum(int(part.sizes.sum()) for part in parts.values()) != len(coded_bytes) or total > 8 * len(
        coded_bytes
    ):
        raise _DamagedError("the streams do not fit")
    rounds = max((-(-part.count // len(part.sizes)) for part in parts.values()), default=0)
    if rounds * sum(len(part.sizes) for part in parts.values()) > 4 * total + 2 * _ROOM:
        raise _DamagedError("the streams are of too different lengths")
    symbols = read(coded_bytes, list(parts.values())) if parts else []
    if symbols is None:
        raise _DamagedError("the streams do not end where they should")
    for name, own in zip(parts, symbols, strict=True):
        empty = found[name]
        found[name] = Palette(empty.codebook, own.reshape(empty.indices.shape), empty.axis, empty.size)
    return found


def _head(source: _Bytes) -> tuple[str, Palette, Coded]:
    """A palette whose indices stand for nothing but their shape yet, and how they are coded."""
    text = bytes(source.take(struct.unpack("<H", source.take(2))[0]))
    kind, rank, grouped, wide, groups, values, axis, size, streams = _HEAD.unpack(source.take(_HEAD.size))
    if kind >= len(_DTYPES) or not 0 < rank <= _RANK or grouped > 1 or wide > 1 or not 0 < values <= MOST:
        raise _DamagedError("a head makes no sense")
    shape = struct.unpack(f"<{rank}I", source.take(4 * rank))
    dtype = np.dtype(_DTYPES[kind])
    codebook = np.frombuffer(source.take(groups * values * dtype.itemsize), dtype).reshape(groups, values)
    lengths = np.frombuffer(source.take(values), np.uint8)
    sizes = np.frombuffer(source.take((4 if wide else 2) * streams), "<u4" if wide else "<u2").astype(
        np.int64
    )
    count = math.prod(shape)
    fits = axis < rank and size > 0 and groups == -(-shape[axis] // size) if grouped else groups == 1
    # Numpy would not even make an empty array of more.
    if not fits or math.prod(max(n, 1) for n in shape) >= 1 << 40:
        raise _DamagedError("groups and shape do not fit")
    if not (0 < streams <= count and complete(lengths) if count else streams == 0):
        raise _DamagedError("a code is none")
    if count > 8 * len(source.left):
        raise _DamagedError("cut short")
    try:
        name = text.decode()
    except UnicodeDecodeError as e:
        raise _DamagedError("a name is no text") from e
    # One byte that all places share: nothing of the claimed size is made before the streams are checked.
    indices = np.broadcast_to(np.uint8(0), shape)
    return name, Palette(codebook, indices, axis if grouped else None, size), Coded(lengths, count, sizes)
