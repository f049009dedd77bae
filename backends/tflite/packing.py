"""FlatBuffers' builder for many tables that are alike: the same bytes in half the time.

FlatBuffers' own writes a table number by number: it asks each for its type, looks where the next aligned
place is, and in the end for a table whose numbers lie alike, to which the new one refers. Here only the first
table of a kind is left to it; where that has its numbers, later ones get theirs, all at once.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import flatbuffers
from flatbuffers.number_types import UOffsetTFlags
from flatbuffers.packer import soffset, uoffset, voffset

_WIDEST = 8
"""Bytes of the widest number: tables that begin at the same place modulo this are padded alike."""


class _Layout(NamedTuple):
    """How a kind of table lies: its numbers, backwards, and its vtable, counted from the file's end.

    ``references`` are the fields that refer to something, by number and by place in the table.
    """

    numbers: struct.Struct
    vtable: int
    references: tuple[tuple[int, int], ...]


class Packer(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that takes ``room`` bytes at first. A number too large for its type raises `struct.error`."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self._fields: list[tuple[int, Any]] = []
        """Slot and type of what the table that was begun will hold,"""
        self._numbers: list[int | float] = []
        """and the numbers; references count from the file's end as long as it is not written."""
        self._layouts: dict[tuple[object, ...], _Layout] = {}
        """By where a table begins, its slots and their types."""

    # The names are FlatBuffers', whose generated code calls these.

    def Prep(self, size: int, more: int) -> None:  # noqa: N802
        padding = (self.head - len(self.Bytes) - more) % size
        if padding or size > self.minalign or self.head < size + more:
            super().Prep(size, more)

    def Prepend(self, flags: Any, number: float) -> None:  # noqa: N802
        self.Prep(flags.bytewidth, 0)
        self.head -= flags.bytewidth
        flags.packer_type.pack_into(self.Bytes, self.head, number)

    def PrependUOffsetTRelative(self, target: int) -> None:  # noqa: N802
        self.Prep(uoffset.size, 0)
        self.head -= uoffset.size
        uoffset.pack_into(self.Bytes, self.head, self.Offset() - target)

    def PrependSlot(self, flags: Any, slot: int, number: float, default: float) -> None:  # noqa: N802
        if number != default:
            self._fields.append((slot, flags))
            self._numbers.append(number)

    def PrependUOffsetTRelativeSlot(self, slot: int, target: int, default: int) -> None:  # noqa: N802
        self.PrependSlot(UOffsetTFlags, slot, target, default)

    def EndObject(self) -> int:  # noqa: N802
        fields, numbers, self._fields, self._numbers = self._fields, self._numbers, [], []
        kind = (self.Offset() % _WIDEST, *fields)
        layout = self._layouts.get(kind)
        if layout is None:
            made = self._first(fields, numbers)
            self._layouts[kind] = self._layout(made, fields)
            return made
        self.current_vtable, self.nested = None, False
        self.Prep(1, layout.numbers.size)
        self.head -= layout.numbers.size
        made = int(self.Offset())
        for index, place in layout.references:
            numbers[index] = made - place - numbers[index]
        layout.numbers.pack_into(self.Bytes, self.head, layout.vtable - made, *reversed(numbers))
        return made

    def _first(self, fields: list[tuple[int, Any]], numbers: list[int | float]) -> int:
        for (slot, flags), number in zip(fields, numbers, strict=True):
            if flags is UOffsetTFlags:
                self.PrependUOffsetTRelative(int(number))
            else:
                self.Prepend(flags, number)
            self.Slot(slot)
        return int(super().EndObject())

    def _layout(self, made: int, fields: list[tuple[int, Any]]) -> _Layout:
        """How the table lies that ends, counted from the file's end, where the last one begins."""
        start = len(self.Bytes) - made
        vtable = start - soffset.unpack_from(self.Bytes, start)[0]
        size, *places = (
            voffset.unpack_from(self.Bytes, vtable + voffset.size * n)[0]
            for n in (1, *(2 + slot for slot, _ in fields))
        )
        text, end = soffset.format, soffset.size
        for (_, flags), place in reversed(list(zip(fields, places, strict=True))):
            text += f"{place - end}x{flags.packer_type.format[-1]}"
            end = place + flags.bytewidth
        references = tuple((n, place) for n, place in enumerate(places) if fields[n][1] is UOffsetTFlags)
        return _Layout(struct.Struct(f"{text}{size - end}x"), len(self.Bytes) - vtable, references)
