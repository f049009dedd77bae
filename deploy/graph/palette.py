"""Weights that share few values: a codebook for each group of channels, and the index of each weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

MOST = 256
"""Values of a codebook, so that an index is a byte."""
_GROUPS = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Palette:
    """``codebook`` is (groups, values); ``indices``, uint8, has the shape of the weights. Along ``axis`` each
    ``size`` neighbours, the last maybe fewer, are a group with a row of the codebook of its own; one group
    holds all where ``axis`` is None."""

    codebook: np.ndarray
    indices: np.ndarray
    axis: int | None = None
    size: int = 0

    @property
    def bits(self) -> int:
        """How many an index takes where each takes the same: 1, 2, 3, ... 8."""
        return max(1, int(self.codebook.shape[1] - 1).bit_length())

    @property
    def stored_bytes(self) -> int:
        """Of codebook and indices, packed without entropy coding."""
        return self.codebook.nbytes + -(-self.indices.size * self.bits // 8)

    def values(self) -> np.ndarray:
        """The weights, bit for bit as the codebook has them."""
        if self.axis is None:
            return np.take(self.codebook[0], self.indices)
        moved = np.moveaxis(self.indices, self.axis, 0)
        flat = moved.reshape(len(moved), -1)
        group = np.arange(len(moved)) // self.size
        found = np.take(self.codebook.reshape(-1), flat + (group * self.codebook.shape[1])[:, None])
        return np.ascontiguousarray(np.moveaxis(found.reshape(moved.shape), 0, self.axis))


@dataclass(frozen=True)
class PaletteForms:
    """The palettes that a runtime stores: of indices of so many ``bits``, with one codebook for a weight, for
    groups of as many channels each, or for any. ``half``: it computes in float16, and codebooks hold that.

    ``masks``: which weights may leave their zeros out behind a bit for each number; where floats may, a
    palette has to be smaller than these. ``integers``: weights that become INT8 are looked up, too, where
    they share few codes.
    """

    bits: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    groups: Literal["none", "equal", "any"] = "any"
    half: bool = False
    masks: Literal["none", "floats", "palettes"] = "none"
    integers: bool = False

    def bits_for(self, values: int) -> int | None:
        """What an index of so many values takes; None where there is none so wide."""
        return min((bits for bits in self.bits if values <= 1 << bits), default=None)

    def sizes(self, channels: int) -> tuple[int, ...]:
        """How many channels may share a codebook where there are so many."""
        if self.groups == "none":
            return ()
        return tuple(n for n in _GROUPS if n < channels and (self.groups == "any" or channels % n == 0))

    def plain_bytes(self, array: np.ndarray) -> int:
        """What the floats of a weight take."""
        kept = int(np.count_nonzero(array)) * array.itemsize
        return array.nbytes if self.masks == "none" else min(array.nbytes, kept + -(-array.size // 8))


ANY_PALETTE = PaletteForms()
"""What can be said, whatever stores it."""


@dataclass(frozen=True)
class Shared:
    """A palette with the ``bits`` of its indices as they are stored, and the bytes that all of it takes.

    ``masked``: zeros are left out behind a mask, and have no index.
    """

    palette: Palette
    bits: int
    bytes: int
    masked: bool


def palette_of(array: np.ndarray, axis: int | None = None, size: int = 0) -> Palette | None:
    """The palette of an array that has `MOST` different values at most, along ``axis`` in each ``size``
    neighbours; None of any other. Values are told apart by their bits, so -0.0 and every NaN come back as
    they were."""
    if axis is None:
        found = _book(array)
        return None if found is None else Palette(found[0][None], found[1])
    books, indices = [], np.empty(array.shape, np.uint8)
    for start in range(0, array.shape[axis], size):
        place = (slice(None),) * axis + (slice(start, start + size),)
        found = _book(array[place])
        if found is None:
            return None
        books.append(found[0])
        indices[place] = found[1]
    longest = max(len(book) for book in books)
    full = [np.concatenate([book, np.repeat(book[-1:], longest - len(book))]) for book in books]
    return Palette(np.stack(full), indices, axis, size)


def shared_palette(array: np.ndarray, axis: int, forms: PaletteForms = ANY_PALETTE) -> Shared | None:
    """The palette that takes fewest bytes, of all of a float32 array or of 64, 32, ... or 1 neighbours along
    ``axis``, as ``forms`` allow; None where storing it would save nothing."""
    if forms.half:
        with np.errstate(over="ignore"):
            array = array.astype(np.float16)
        if not np.isfinite(array).all():
            return None
    kept = int(np.count_nonzero(_bits(array)))
    plain = forms.plain_bytes(array)
    sizes = [n for n in forms.sizes(array.shape[axis]) if _least_bytes(array, axis, n, kept, forms) < plain]
    tried = [palette_of(array), *(palette_of(array, axis, size) for size in sizes)]
    found = [way for palette in tried if palette is not None for way in _ways(palette, kept, forms)]
    best = min(found, key=lambda way: way.bytes, default=None)
    return best if best is not None and best.bytes < plain else None


def _least_bytes(array: np.ndarray, axis: int, size: int, kept: int, forms: PaletteForms) -> float:
    """No palette of ``size`` neighbours takes less: what it would take if each group had as few values as
    the first numbers of the first one. By these alone trained weights, hardly two of them equal, are told."""
    first = np.unique(_bits(np.moveaxis(array, axis, 0)[:size].ravel()[: 2 * MOST]))
    groups = -(-array.shape[axis] // size)
    ways = [_stored_bytes(len(first), groups, array.itemsize, array.size, forms)]
    if forms.masks == "palettes":
        values = int(np.count_nonzero(first))
        ways.append(_stored_bytes(max(1, values), groups, array.itemsize, kept, forms))
    return min(taken for _, taken in ways)


def _ways(palette: Palette, kept: int, forms: PaletteForms) -> list[Shared]:
    """How a palette may be stored; ``kept`` of its numbers are not 0."""
    groups, values = palette.codebook.shape
    count = palette.indices.size
    ways = [(values, count, 0)]
    if forms.masks == "palettes" and 0 < kept < count:
        ways.append((without_zeros(palette).codebook.shape[1], kept, -(-count // 8)))
    found = []
    for held, indices, mask in ways:
        bits, taken = _stored_bytes(held, groups, palette.codebook.itemsize, indices, forms)
        if bits is not None:
            found.append(Shared(palette, bits, int(taken) + mask, mask > 0))
    return found


def _stored_bytes(
    values: int, groups: int, itemsize: int, indices: int, forms: PaletteForms
) -> tuple[int | None, float]:
    """The bits of an index, and the bytes of codebooks and indices: infinitely many where none is so wide."""
    bits = forms.bits_for(values)
    return (None, math.inf) if bits is None else (bits, (groups * itemsize << bits) + -(-indices * bits // 8))


def without_zeros(palette: Palette) -> Palette:
    """The palette of all numbers that are not 0; where there are zeros its indices mean nothing."""
    rows = [np.unique(row) for row in _bits(palette.codebook)]
    books = [row[row != 0].view(palette.codebook.dtype) for row in rows]
    longest = max(1, *(len(book) for book in books))
    full = [np.pad(book, (0, longest - len(book)), "edge" if len(book) else "constant") for book in books]
    # +0 is the least by its bits, so that it comes first where it is there
    shift = np.array([len(row) - len(book) for row, book in zip(rows, books, strict=True)])
    if palette.axis is None:
        moved = shift[0]
    else:
        group = np.arange(palette.indices.shape[palette.axis]) // palette.size
        moved = shift[group].reshape([-1 if at == palette.axis else 1 for at in range(palette.indices.ndim)])
    indices = np.maximum(palette.indices.astype(np.int16) - moved, 0).astype(np.uint8)
    return Palette(np.stack(full), indices, palette.axis, palette.size)


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def _book(array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The different values of an array, and the index of each of its numbers."""
    bits = _bits(array)
    if len(np.unique(bits.reshape(-1)[: 64 * MOST])) > MOST:
        return None
    different, indices = np.unique(bits, return_inverse=True)
    if len(different) > MOST:
        return None
    return different.view(array.dtype), indices.reshape(array.shape).astype(np.uint8)
