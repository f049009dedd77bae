"""What every kind of data looks like before it is fitted to a model: named arrays, first axis samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

import numpy as np

from deploy.errors import DataError

READABLE_KINDS = "biufUS"
"""Kinds of numpy types that are plain data: booleans, numbers, fixed-width text."""


@dataclass(frozen=True)
class Column:
    """Type and shape of one named array; ``shape[0]`` counts samples."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    @property
    def bytes(self) -> int:
        """Bytes of all samples."""
        return self.row_bytes * self.shape[0]


class Source(Protocol):
    """Data of one kind (a file, a folder, a program). Reading is repeatable and its memory does not grow."""

    @property
    def origin(self) -> str:
        """Where the data come from, for messages."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """The arrays there are, by name."""

    def rows(self, names: Sequence[str], selected: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        """The ``selected`` rows (ascending) of the arrays ``names``, ``size`` at a time, the last fewer.

        The arrays belong to the source: who changes one copies it first.
        """

    def digest(self, names: Sequence[str]) -> str:
        """SHA-256 (hex) of the content of the arrays ``names``, computed without holding them."""


@dataclass(frozen=True)
class ArraySource:
    """Arrays in memory; nothing is copied."""

    origin: str
    arrays: Mapping[str, np.ndarray]

    @property
    def columns(self) -> Mapping[str, Column]:
        return {name: Column(array.dtype, array.shape) for name, array in self.arrays.items()}

    def rows(self, names: Sequence[str], selected: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(selected), size):
            index = selected[start : start + size]
            yield {name: self.arrays[name][as_slice(index)] for name in names}

    def digest(self, names: Sequence[str]) -> str:
        hasher = hashlib.sha256()
        for name in names:
            array = self.arrays[name]
            hasher.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
            step = max(1, (1 << 20) // max(1, Column(array.dtype, array.shape).row_bytes))
            for start in range(0, len(array), step):
                hasher.update(np.ascontiguousarray(array[start : start + step]).tobytes())
        return hasher.hexdigest()


@dataclass(frozen=True)
class JoinedSources:
    """Sources with the same samples, each with other arrays."""

    origin: str
    parts: tuple[Source, ...]

    @property
    def columns(self) -> Mapping[str, Column]:
        return {name: column for part in self.parts for name, column in part.columns.items()}

    def rows(self, names: Sequence[str], selected: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        own = [(part, [name for name in names if name in part.columns]) for part in self.parts]
        streams = [part.rows(wanted, selected, size) for part, wanted in own if wanted]
        for blocks in zip(*streams, strict=True):
            yield {name: array for block in blocks for name, array in block.items()}

    def digest(self, names: Sequence[str]) -> str:
        found = [part.digest([name for name in names if name in part.columns]) for part in self.parts]
        return hashlib.sha256("".join(found).encode()).hexdigest()


def check_column(origin: str, name: str, column: Column) -> None:
    """Refuse what no reader may accept. Raises DataError for objects, records and arrays without samples."""
    if column.dtype.hasobject:
        raise DataError(
            f"{origin}: array '{name}' holds Python objects, which are stored as a pickle and never read",
            hint="save a plain numeric array, such as np.asarray(values, dtype=np.float32)",
        )
    if column.dtype.kind not in READABLE_KINDS or not column.dtype.itemsize:
        raise DataError(
            f"{origin}: array '{name}' has type {column.dtype}, expected plain numbers",
            hint="save each field as its own numeric array",
        )
    if not column.shape:
        raise DataError(
            f"{origin}: array '{name}' is a single value, expected an array whose first axis is samples",
            hint=f"save it with one entry per sample: '{name}'[sample, ...]",
        )
    if 0 in column.shape:
        raise DataError(
            f"{origin}: array '{name}' is empty (shape {column.shape})", hint="give at least one sample"
        )


def as_slice(index: np.ndarray) -> slice | np.ndarray:
    """``index`` as a slice where its entries are consecutive, which spares numpy the copy."""
    if len(index) and index[-1] - index[0] == len(index) - 1:
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def nearest(word: str, known: Sequence[str]) -> str:
    """``"did you mean 'x'? "`` where a known word is close, else nothing."""
    close = get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'? " if close else ""
