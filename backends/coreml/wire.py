"""Protocol Buffers' wire format, read within bounds, without the classes that a schema would make.

A message is a row of fields, each a number, a kind and a content (Protocol Buffers, "Encoding"). What is
read belongs to nobody we know: the length of every field is checked against its message's, and so many fields
are read of one file as real ones have many times over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

MOST_FIELDS = 8_000_000
"""Fields read of one file; a network of a thousand operations has some fifty thousand."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Damaged(Exception):  # noqa: N818 (it says what the file is)
    """A file that is not what it claims to be, with what is wrong."""


class Wire:
    """The bytes of one file, and how many fields may still be read of them."""

    def __init__(self, data: bytes, most: int = MOST_FIELDS) -> None:
        self.data = data
        self._left = most

    def whole(self) -> Message:
        """The outermost message."""
        return Message(self, 0, len(self.data))

    def fields(self, at: int, end: int) -> list[tuple[int, int, int, int]]:
        """Number, kind, and where the content starts and ends; for a varint, its value and 0.

        Raises Damaged where a field reaches beyond the message.
        """
        data = self.data
        found: list[tuple[int, int, int, int]] = []
        while at < end:
            key = data[at]
            at += 1
            if key >= 0x80:
                key, at = self._varint(at - 1, end)
            kind = key & 7
            if kind in (_BYTES, _VARINT):
                if at >= end:
                    raise Damaged("a field without content")
                value = data[at]
                at += 1
                if value >= 0x80:
                    value, at = self._varint(at - 1, end)
                if kind == _VARINT:
                    found.append((key >> 3, kind, value, 0))
                    continue
                start, at = at, at + value
            elif kind in (_FIXED32, _FIXED64):
                start, at = at, at + (4 if kind == _FIXED32 else 8)
            else:  # groups, which nothing has written since 2008
                raise Damaged(f"a field of kind {kind}")
            if at > end:
                raise Damaged("a field reaches beyond its message")
            found.append((key >> 3, kind, start, at))
        self._left -= len(found)
        if self._left < 0:
            raise Damaged("more fields than any network has")
        return found

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """A number of seven bits to the byte, least significant first, and where it ends."""
        value = 0
        for index in range(10):
            if at + index >= end:
                raise Damaged("a number reaches beyond its message")
            byte = self.data[at + index]
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return value & (2**64 - 1), at + index + 1
        raise Damaged("a number of more than ten bytes")


class Message:
    """A message's fields by number. What is missing has the value that the format gives it: 0 or nothing."""

    __slots__ = ("_fields", "_wire", "end", "start")

    def __init__(self, wire: Wire, start: int, end: int) -> None:
        self._wire, self.start, self.end = wire, start, end
        self._fields: list[tuple[int, int, int, int]] | None = None

    def _of(self, number: int, kind: int) -> list[tuple[int, int, int, int]]:
        if self._fields is None:
            self._fields = self._wire.fields(self.start, self.end)
        return [field for field in self._fields if field[0] == number and field[1] == kind]

    def has(self, number: int) -> bool:
        """Whether a message is there, maybe an empty one."""
        return bool(self._of(number, _BYTES))

    def messages(self, number: int) -> list[Message]:
        """All messages of that number."""
        return [Message(self._wire, start, end) for _, _, start, end in self._of(number, _BYTES)]

    def message(self, number: int) -> Message:
        """The last message of that number, which is what counts; an empty one where there is none."""
        found = self._of(number, _BYTES)
        return Message(self._wire, *found[-1][2:]) if found else Message(self._wire, 0, 0)

    def entries(self, number: int) -> Iterator[tuple[str, Message]]:
        """A map from texts to messages."""
        for entry in self.messages(number):
            yield entry.text(1), entry.message(2)

    def integer(self, number: int) -> int:
        """A signed number."""
        found = self._of(number, _VARINT)
        return _signed(found[-1][2]) if found else 0

    def natural(self, number: int) -> int:
        """A number that is not negative."""
        found = self._of(number, _VARINT)
        return found[-1][2] if found else 0

    def texts(self, number: int) -> list[str]:
        """All texts of that number."""
        return [self._text(start, end) for _, _, start, end in self._of(number, _BYTES)]

    def text(self, number: int) -> str:
        """A text."""
        found = self._of(number, _BYTES)
        return self._text(*found[-1][2:]) if found else ""

    def content(self, number: int) -> memoryview:
        """Plain bytes."""
        found = self._of(number, _BYTES)
        return memoryview(self._wire.data)[slice(*found[-1][2:])] if found else memoryview(b"")

    def fixed(self, number: int, dtype: str) -> np.ndarray:
        """A row of float32 or float64, packed or not."""
        width = np.dtype(dtype).itemsize
        single = _FIXED32 if width == 4 else _FIXED64
        if self._fields is None:
            self._fields = self._wire.fields(self.start, self.end)
        parts: list[np.ndarray] = []
        for found, kind, start, end in self._fields:
            if found == number and kind in (_BYTES, single):
                if (end - start) % width:
                    raise Damaged(f"a row of {dtype} of {end - start} bytes")
                parts.append(np.frombuffer(self._wire.data, f"<{dtype}", (end - start) // width, start))
        return np.concatenate(parts) if parts else np.zeros(0, dtype)

    def varints(self, number: int) -> np.ndarray:
        """A row of int64, packed or not."""
        if self._fields is None:
            self._fields = self._wire.fields(self.start, self.end)
        parts: list[np.ndarray] = []
        for found, kind, start, end in self._fields:
            if found == number and kind == _BYTES:
                parts.append(_packed(np.frombuffer(self._wire.data, np.uint8, end - start, start)))
            elif found == number and kind == _VARINT:
                parts.append(np.array([_signed(start)], np.int64))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def real(self, number: int, kind: str = "<f") -> float:
        """A float of four bytes, or of eight ("<d")."""
        found = self._of(number, _FIXED32 if kind == "<f" else _FIXED64)
        return float(struct.unpack_from(kind, self._wire.data, found[-1][2])[0]) if found else 0.0

    def _text(self, start: int, end: int) -> str:
        try:
            return self._wire.data[start:end].decode()
        except UnicodeDecodeError as e:
            raise Damaged("a text that is none") from e


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _packed(data: np.ndarray) -> np.ndarray:
    """The numbers of a packed row, all at once."""
    last = data < 0x80
    if data.size and not last[-1]:
        raise Damaged("a row of numbers breaks off")
    ends = np.flatnonzero(last)
    if not ends.size:
        return np.zeros(0, np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if int((ends - starts).max()) >= 10:
        raise Damaged("a number of more than ten bytes")
    place = np.arange(data.size) - np.repeat(starts, ends - starts + 1)
    parts = (data & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(parts, starts).view(np.int64)
