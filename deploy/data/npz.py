"""Reads ``.npz`` and ``.npy`` files as streams: memory does not depend on the number of samples.

An ``.npz`` is a zip of ``.npy`` files (numpy.lib.format). Members that are stored plainly are read at their
position in the file, a few samples at a time. Deflated ones are unpacked once into a temporary file and read
from there, since a build reads its samples for each candidate anew; very large ones are unpacked in order,
chunk by chunk, in every pass. Positioned reads are preferred to a memory map since mapped pages would count
as memory of the process. Pickles are never read.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from deploy.data.source import Column, check_column
from deploy.errors import DataError

_PIECE = 1 << 18
_WHOLE_LIMIT = 256 << 20
"""Largest column-major array that is read at once: its samples are scattered over the whole file."""
_BOMB_RATIO, _BOMB_BYTES = 200, 4 << 30
"""A member that expands by more than this factor to more than so many bytes is taken for a zip bomb."""
_SAMPLE_LIMIT = 1 << 30
_UNPACKED_LIMIT = 1 << 30
"""Largest deflated array that is unpacked into a temporary file."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, struct.error, NotImplementedError)


@dataclass(frozen=True)
class _Stored:
    """Where an array lies: ``stored_at`` is the file position of ``stored_bytes`` bytes, packed or plain.

    ``member`` is its name in the archive where it is deflated.
    """

    column: Column
    column_major: bool
    header_bytes: int
    stored_at: int
    stored_bytes: int
    member: str | None = None


@dataclass(frozen=True)
class NumpyFile:
    """An opened ``.npz`` or ``.npy``: only headers were read.

    ``unpacked`` are the deflated arrays that were read before, each in a temporary file without its header,
    which goes when the object does.
    """

    path: Path
    arrays: Mapping[str, _Stored]
    unpacked: dict[str, Path] = field(default_factory=dict, compare=False, repr=False)

    @property
    def origin(self) -> str:
        return str(self.path)

    @property
    def columns(self) -> Mapping[str, Column]:
        return {name: stored.column for name, stored in self.arrays.items()}

    def rows(self, names: Sequence[str], selected: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        with ExitStack() as stack:
            readers = {name: self._reader(name, selected, size, stack) for name in names}
            for _ in range(0, len(selected), size):
                yield {name: next(reader) for name, reader in readers.items()}

    def digest(self, names: Sequence[str]) -> str:
        """Of the bytes as they are stored, so that packed data need not be unpacked to be recognised."""
        hasher = hashlib.sha256()
        with self.path.open("rb") as file:
            for name in names:
                stored = self.arrays[name]
                hasher.update(f"{name}:{stored.member is not None}:{stored.stored_bytes};".encode())
                file.seek(stored.stored_at)
                left = stored.stored_bytes
                while left:
                    piece = file.read(min(_PIECE, left))
                    if not piece:
                        raise _truncated(self.path, name)
                    hasher.update(piece)
                    left -= len(piece)
        return hasher.hexdigest()

    def _reader(self, name: str, selected: np.ndarray, size: int, stack: ExitStack) -> Iterator[np.ndarray]:
        stored = self.arrays[name]
        stream = self._open(name, stack)
        if stored.column_major:
            return _whole(self.path, name, stored, stream, selected, size)
        return _in_order(self.path, name, stored.column, stream, selected, size)

    def _open(self, name: str, stack: ExitStack) -> IO[bytes]:
        """A stream at the first byte of the first sample."""
        stored = self.arrays[name]
        if stored.member is None:
            return _at(self.path, stored.stored_at + stored.header_bytes, stack)
        if stored.column.bytes > _UNPACKED_LIMIT:
            return self._deflated(stored, stack)
        if name not in self.unpacked:
            self._unpack(name, stored)
        return _at(self.unpacked[name], 0, stack)

    def _unpack(self, name: str, stored: _Stored) -> None:
        try:
            descriptor, copy = tempfile.mkstemp(prefix="deploy-", suffix=".raw")
            weakref.finalize(self, Path.unlink, Path(copy), missing_ok=True)
            with os.fdopen(descriptor, "wb") as file, ExitStack() as stack:
                _copy(self._deflated(stored, stack), file, stored.column.bytes, self.path, name)
        except OSError as e:
            raise DataError(
                f"{self.path}: array '{name}' cannot be unpacked to {stored.column.bytes:,} bytes: {e}",
                hint="let TMPDIR name a folder with room, or save the data uncompressed, with np.savez",
            ) from e
        self.unpacked[name] = Path(copy)

    def _deflated(self, stored: _Stored, stack: ExitStack) -> IO[bytes]:
        assert stored.member is not None
        archive = stack.enter_context(zipfile.ZipFile(self.path))
        stream = stack.enter_context(archive.open(stored.member))
        stream.read(stored.header_bytes)
        return stream


def open_npz(path: Path) -> NumpyFile:
    """Read the headers of an ``.npz`` file. Raises DataError where it is not one, or is not safe to read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            arrays = {_array_name(path, i): _member(path, archive, i) for i in members}
    except zipfile.BadZipFile as e:
        raise _not_an_npz(path) from e
    if not arrays:
        raise DataError(f"{path}: holds no arrays", hint="save at least one: np.savez(path, x=samples)")
    if len(arrays) < len(members):
        raise DataError(f"{path}: two arrays of one name", hint="save the file again with np.savez")
    return NumpyFile(path, arrays)


def open_npy(path: Path, name: str) -> NumpyFile:
    """Read the header of an ``.npy`` file, whose one array is called ``name``."""
    with path.open("rb") as file:
        column, column_major = _header(str(path), name, file)
        start = file.tell()
    whole = path.stat().st_size
    if whole < start + column.bytes:
        raise _truncated(path, name)
    return NumpyFile(path, {name: _Stored(column, column_major, start, 0, whole)})


def _array_name(path: Path, info: zipfile.ZipInfo) -> str:
    if not info.filename.endswith(".npy"):
        raise DataError(
            f"{path}: contains '{info.filename}', which is not an array",
            hint="an .npz file holds arrays only: np.savez(path, x=samples, y=labels)",
        )
    return info.filename.removesuffix(".npy")


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Stored:
    """Where the member lies, after its header was read and found to agree with the archive's own figures."""
    name = info.filename.removesuffix(".npy")
    if info.flag_bits & 1:
        raise DataError(f"{path}: array '{name}' is encrypted", hint="save the file without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{path}: array '{name}' is packed with a method that numpy does not write",
            hint="save the file with np.savez or np.savez_compressed",
        )
    if info.file_size > _BOMB_BYTES and info.file_size > _BOMB_RATIO * info.compress_size:
        raise DataError(
            f"{path}: array '{name}' would expand from {info.compress_size} to {info.file_size} bytes: "
            "refused as a zip bomb",
            hint="save the data with np.savez, uncompressed",
        )
    try:
        with archive.open(info) as stream:
            column, column_major = _header(str(path), name, stream)
            header_bytes = stream.tell()
    except _DAMAGED as e:
        raise DataError(
            f"{path}: array '{name}' is damaged: {e}", hint="the file is corrupt; save it again"
        ) from e
    if info.file_size != header_bytes + column.bytes:
        raise _truncated(path, name)
    packed = info.compress_type == zipfile.ZIP_DEFLATED
    return _Stored(
        column,
        column_major,
        header_bytes,
        _data_position(path, info),
        info.compress_size,
        info.filename if packed else None,
    )


def _data_position(path: Path, info: zipfile.ZipInfo) -> int:
    """Behind the member's local header (PKWARE APPNOTE 4.3.7), whose name and extra lengths are its own."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
    return info.header_offset + 30 + int(name_length) + int(extra_length)


def _header(origin: str, name: str, stream: IO[bytes]) -> tuple[Column, bool]:
    """The array's type and shape, and whether it is column-major. Leaves ``stream`` at the first sample."""
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, column_major, dtype = read(stream)
    except (ValueError, EOFError) as e:
        raise DataError(
            f"{origin}: array '{name}' is not in the .npy format",
            hint="save it with np.save or np.savez (a pickle or text file is not read)",
        ) from e
    column = Column(dtype, tuple(int(n) for n in shape))
    check_column(origin, name, column)
    if column.row_bytes > _SAMPLE_LIMIT:
        raise DataError(
            f"{origin}: one sample of array '{name}' takes {column.row_bytes} bytes (shape {column.shape})",
            hint="the first axis of an array must be samples",
        )
    return column, bool(column_major) and len(column.shape) > 1


def _at(path: Path, position: int, stack: ExitStack) -> IO[bytes]:
    file = stack.enter_context(path.open("rb", buffering=0))
    file.seek(position)
    return file


def _copy(stream: IO[bytes], file: IO[bytes], count: int, path: Path, name: str) -> None:
    scratch = memoryview(bytearray(min(count, _PIECE)))
    for start in range(0, count, _PIECE):
        part = scratch[: min(_PIECE, count - start)]
        _fill(stream, part, path, name)
        file.write(part)


def _in_order(
    path: Path, name: str, column: Column, stream: IO[bytes], selected: np.ndarray, size: int
) -> Iterator[np.ndarray]:
    """The selected rows, read run by run into fresh arrays; rows between them are skipped."""
    position = 0
    for start in range(0, len(selected), size):
        index = selected[start : start + size]
        out = np.empty((len(index), *column.shape[1:]), column.dtype)
        target = out.reshape(-1).view(np.uint8).data
        breaks = np.flatnonzero(np.diff(index) != 1) + 1
        filled = 0
        for run in np.split(index, breaks):
            _skip(stream, (int(run[0]) - position) * column.row_bytes, path, name)
            length = len(run) * column.row_bytes
            _fill(stream, target[filled : filled + length], path, name)
            filled, position = filled + length, int(run[-1]) + 1
        yield out


def _whole(
    path: Path, name: str, stored: _Stored, stream: IO[bytes], selected: np.ndarray, size: int
) -> Iterator[np.ndarray]:
    column = stored.column
    if column.bytes > _WHOLE_LIMIT:
        raise DataError(
            f"{path}: array '{name}' is stored column by column and too large to be read at once",
            hint=f"save np.ascontiguousarray({name}) instead, so that samples can be streamed",
        )
    flat = np.empty(int(np.prod(column.shape)), column.dtype)
    _fill(stream, flat.view(np.uint8).data, path, name)
    array = flat.reshape(column.shape, order="F")
    for start in range(0, len(selected), size):
        yield np.ascontiguousarray(array[selected[start : start + size]])


def _skip(stream: IO[bytes], count: int, path: Path, name: str) -> None:
    if isinstance(stream, io.FileIO):
        stream.seek(count, io.SEEK_CUR)
        return
    scratch = memoryview(bytearray(min(count, _PIECE)))
    while count:
        part = scratch[: min(count, _PIECE)]
        _fill(stream, part, path, name)
        count -= len(part)


def _fill(stream: IO[bytes], target: memoryview, path: Path, name: str) -> None:
    done = 0
    while done < len(target):
        try:
            piece = stream.read(min(_PIECE, len(target) - done))
        except _DAMAGED as e:
            raise DataError(
                f"{path}: array '{name}' is damaged: {e}", hint="the file is corrupt; save it again"
            ) from e
        if not piece:
            raise _truncated(path, name)
        target[done : done + len(piece)] = piece
        done += len(piece)


def _truncated(path: Path, name: str) -> DataError:
    return DataError(
        f"{path}: array '{name}' is truncated: its header promises another number of bytes than are there",
        hint="the file is incomplete or damaged; copy or save it again",
    )


def _not_an_npz(path: Path) -> DataError:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"PK"):
        return DataError(
            f"{path}: truncated or damaged .npz file", hint="it is incomplete; copy or save it again"
        )
    if start == b"\x93NUMPY":
        return DataError(f"{path}: is a single .npy array, not an .npz file", hint="rename it to end in .npy")
    hint = "save the data with np.savez(path, x=samples, y=labels)"
    if start[:1] == b"\x80":
        return DataError(f"{path}: is a Python pickle, which is never read", hint=hint)
    return DataError(f"{path}: is not an .npz file" + ("" if start else " (it is empty)"), hint=hint)
