"""Weights beside a program: blob storage, version 2 (``MILBlob/Blob/StorageFormat.hpp`` of coremltools).

A head of 64 bytes, then for every blob 64 bytes that describe it and its data, each at a multiple of 64. The
program says where the description of a constant lies, and its type and shape; both are checked against what
stands there.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from backends.coreml.wire import Damaged

_HEAD = struct.Struct("<II")
_DESCRIPTION = struct.Struct("<IIQQQ")
_BLOCK = 64
_VERSION, _SENTINEL = 2, 0xDEADBEEF
_TYPES = {
    1: "float16", 2: "float32", 3: "uint8", 4: "int8", 5: "bfloat16", 6: "int16", 7: "uint16", 8: "int4",
    9: "uint1", 10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6", 14: "int32", 15: "uint32",
    16: "float8_e4m3fn", 17: "float8_e5m2",
}  # fmt: skip
NARROW = {"int4": 4, "uint4": 4, "uint6": 6, "uint3": 3, "uint2": 2, "uint1": 1}
"""Types of which several lie in a byte, with their bits."""


class Storage:
    """A file of blobs, mapped: what is not read takes no memory. Close it after use.

    Raises Damaged where it is none.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < _BLOCK:
                raise Damaged(f"{path.name} has {size} bytes, less than its head")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _, version = _HEAD.unpack_from(self._map, 0)
        if version != _VERSION:
            self._map.close()
            raise Damaged(f"{path.name} is of version {version}; version {_VERSION} is read")

    def blob(self, offset: int, dtype: str, count: int) -> np.ndarray:
        """``count`` numbers of that type, described at ``offset``. Raises Damaged where there are others."""
        size = len(self._map)
        if offset < _BLOCK or offset % _BLOCK or offset + _BLOCK > size:
            raise Damaged(f"a blob at byte {offset} of {self.name}, which has {size}")
        sentinel, kind, length, start, padding = _DESCRIPTION.unpack_from(self._map, offset)
        if sentinel != _SENTINEL:
            raise Damaged(f"nothing describes a blob at byte {offset} of {self.name}")
        if _TYPES.get(kind) != dtype:
            raise Damaged(
                f"the blob at byte {offset} of {self.name} is of {_TYPES.get(kind, kind)}, not {dtype}"
            )
        if start % _BLOCK or start < _BLOCK or start > size or length > size - start:
            raise Damaged(f"the blob at byte {offset} of {self.name} reaches beyond its end")
        if dtype in NARROW:
            have = (8 * length - (padding if padding < 8 else 0)) // NARROW[dtype]
        else:
            have = length // np.dtype(dtype).itemsize if dtype in _PLAIN else -1
        if have != count:
            raise Damaged(f"the blob at byte {offset} of {self.name} has {have} numbers, not {count}")
        raw = np.frombuffer(self._map, np.uint8, length, start)
        return unpacked(raw, dtype, count)

    def close(self) -> None:
        """Arrays that were read stay valid."""
        try:
            self._map.close()
        except BufferError:  # they hold the mapping, which ends with them
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_PLAIN = frozenset(("float16", "float32", "uint8", "int8", "int16", "uint16", "int32", "uint32"))


def unpacked(raw: np.ndarray, dtype: str, count: int) -> np.ndarray:
    """``count`` numbers out of bytes; several to a byte begin at its lowest bits and may go on in the next.

    int4 becomes int8, narrow unsigned ones uint8. Raises Damaged where there are too few.

    >>> unpacked(np.array([0b11100100], np.uint8), "uint2", 4)
    array([0, 1, 2, 3], dtype=uint8)
    >>> unpacked(np.array([0x8F], np.uint8), "int4", 2)
    array([-1, -8], dtype=int8)
    """
    bits = NARROW.get(dtype)
    if bits is None:
        if raw.nbytes != count * np.dtype(dtype).itemsize:
            raise Damaged(f"{raw.nbytes} bytes are not {count} numbers of {dtype}")
        return raw.view(np.dtype(dtype).newbyteorder("<"))
    if 8 * raw.size < count * bits:
        raise Damaged(f"{raw.size} bytes are too few for {count} numbers of {dtype}")
    if bits == 4:
        codes = np.stack([raw & 0xF, raw >> 4], axis=1).reshape(-1)[:count]
    else:
        rows = np.unpackbits(raw, bitorder="little", count=count * bits).reshape(count, bits)
        codes = np.packbits(rows, axis=1, bitorder="little").reshape(-1)
    if dtype == "int4":
        return ((codes ^ 8).astype(np.int8)) - np.int8(8)
    return codes
