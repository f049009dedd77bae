"""Training batches in an order that depends on seed and epoch alone.

A dataset streams; training wants its samples in another order every epoch. They are therefore unpacked
once: into memory where they are few, else into plain ``.npy`` files, which are mapped and read by position.
Where not even the disk holds them they stream on, shuffled within windows.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from deploy.cache import flush
from deploy.data.dataset import Batch, Dataset
from deploy.errors import DataError, UsageError
from deploy.progress import SILENT, Progress

IN_MEMORY = 256 << 20
"""Bytes of samples that are held in memory."""
_SHARE_OF_DISK = 0.5
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write to a full disk fails with."""
_UNPACK = 256


@dataclass(frozen=True)
class Samples:
    """Some samples; ``rows`` are their positions in the dataset, from 0 whatever it is a view of."""

    feeds: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    rows: np.ndarray


class Loader(Protocol):
    """Gives the batches of an epoch."""

    @property
    def batches(self) -> int:
        """How many there are in an epoch."""

    def epoch(self, number: int, first: int = 0) -> Iterator[Samples]:
        """The batches of an epoch from number ``first`` on. Raises DataError where values are unfit."""


def number(*parts: int) -> int:
    """A seed of 63 bits out of several numbers, such as (seed, epoch, batch)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def open_loader(
    dataset: Dataset,
    batch: int,
    seed: int,
    folder: Path,
    *,
    in_memory: int = IN_MEMORY,
    on_disk: int | None = None,
    progress: Progress = SILENT,
) -> Loader:
    """A loader of ``dataset``, whose unpacked samples lie in ``folder`` if they are more than ``in_memory``
    bytes, and stream if they are more than ``on_disk`` (half of what is free).

    Batches of an epoch differ in size by at most one sample, so that there is no small last one. Whether
    there is room is found once for each ``folder``, since the order of samples follows from it: a training
    that goes on there finds the same order, however full the disk is by then. Raises DataError where values
    are unfit, UsageError where samples were unpacked, are gone, and there is no room for them any more.
    """
    if len(dataset) < 1:
        raise DataError(f"{dataset.origin}: no samples to train on", hint="give at least one")
    first = next(dataset.batches(1))
    total = _bytes(first) * len(dataset)
    if total <= in_memory:
        return Shuffled(*_arrays(dataset, first, None), batch, seed)
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = folder / f"samples-{dataset.digest[:32]}"
    room = found_room(unpacked)
    if room is None and not unpacked.is_dir():
        limit = int(shutil.disk_usage(folder).free * _SHARE_OF_DISK) if on_disk is None else on_disk
        room = total <= limit
    if room is not False:
        try:
            loader = Shuffled(*_unpacked(dataset, first, unpacked), batch, seed)
        except OSError as e:
            if e.errno not in FULL:
                raise
            require_no_room(unpacked, e)
        else:
            note_room(unpacked, True)
            return loader
    note_room(unpacked, False)
    window = max(1, in_memory // _bytes(first) // batch) * batch
    progress.warn(
        f"{dataset.origin}: {total / 1e9:.1f} GB of samples do not fit {folder}; they are shuffled only "
        f"among {window} that follow each other"
    )
    return Windows(dataset, batch, window, seed)


def found_room(place: Path) -> bool | None:
    """Whether there was room for ``place`` when a training in that folder began; None before."""
    note = place.with_name(f"room-{place.name}")
    return note.read_text() == "yes" if note.is_file() else None


def note_room(place: Path, found: bool) -> None:
    """What `found_room` answers from now on."""
    with contextlib.suppress(OSError):  # of a disk too full for that the next checkpoint tells
        place.with_name(f"room-{place.name}").write_text("yes" if found else "no")


def require_no_room(place: Path, error: OSError) -> None:
    """Raises UsageError where the training that lacks room for ``place`` now began with it."""
    if found_room(place):
        raise UsageError(
            f"{place}: no space left for it, and the training that is to go on there began with it",
            hint=f"free some space, or remove the folder {place.parent} to start anew",
        ) from error


@dataclass(frozen=True)
class Shuffled:
    """Arrays, in memory or mapped, whose samples are taken in a new order every epoch."""

    feeds: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    batch: int
    seed: int

    def __len__(self) -> int:
        return len(next(iter((*self.feeds.values(), *self.targets.values()))))

    @property
    def batches(self) -> int:
        return -(-len(self) // self.batch)

    def epoch(self, number: int, first: int = 0) -> Iterator[Samples]:
        order = _order(len(self), self.seed, number)
        for rows in np.array_split(order, self.batches)[first:]:
            yield Samples(
                {name: array[rows] for name, array in self.feeds.items()},
                {name: array[rows] for name, array in self.targets.items()},
                rows,
            )


@dataclass(frozen=True)
class Windows:
    """A stream in windows of ``window`` samples, a multiple of ``batch``, each shuffled in memory."""

    dataset: Dataset
    batch: int
    window: int
    seed: int

    @property
    def batches(self) -> int:
        whole, rest = divmod(len(self.dataset), self.window)
        return whole * (self.window // self.batch) + -(-rest // self.batch)

    def epoch(self, number: int, first: int = 0) -> Iterator[Samples]:
        start, skip = 0, first
        for part, block in enumerate(self.dataset.batches(self.window)):
            count = len(block)
            order = _order(count, self.seed, number, part)
            for rows in np.array_split(order, -(-count // self.batch)):
                if skip:
                    skip -= 1
                    continue
                yield Samples(
                    {name: array[rows] for name, array in block.feeds.items()},
                    {name: array[rows] for name, array in block.targets.items()},
                    start + rows,
                )
            start += count


def _order(count: int, *parts: int) -> np.ndarray:
    return np.random.default_rng(np.random.SeedSequence(parts)).permutation(count)


def _bytes(sample: Batch) -> int:
    return sum(array.nbytes for array in (*sample.feeds.values(), *sample.targets.values()))


def _file(role: str, name: str) -> str:
    return f"{role}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.npy"


def _arrays(
    dataset: Dataset, first: Batch, folder: Path | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All feeds and targets, in memory or in new files of ``folder``."""

    def empty(role: str, name: str, like: np.ndarray) -> np.ndarray:
        shape = (len(dataset), *like.shape[1:])
        if folder is None:
            return np.empty(shape, like.dtype)
        return new_file(folder / _file(role, name), like.dtype, shape)

    feeds = {name: empty("x", name, array) for name, array in first.feeds.items()}
    targets = {name: empty("y", name, array) for name, array in first.targets.items()}
    start = 0
    for block in dataset.batches(_UNPACK):
        there = slice(start, start + len(block))
        for name, array in block.feeds.items():
            feeds[name][there] = array
        for name, array in block.targets.items():
            targets[name][there] = array
        start += len(block)
    return feeds, targets


def _unpacked(
    dataset: Dataset, first: Batch, folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The dataset as mapped files in ``folder``, which appears whole or not at all."""
    if not folder.is_dir():
        for leftover in folder.parent.glob(f"{folder.name}.new-*"):  # a run that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))
        try:
            _arrays(dataset, first, scratch)
            flush(scratch)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return (
        {name: _mapped(folder / _file("x", name)) for name in first.feeds},
        {name: _mapped(folder / _file("y", name)) for name in first.targets},
    )


def new_file(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A new ``.npy`` file, mapped. Its room is reserved first, since a mapped file that meets a full disk
    ends the process (SIGBUS). Raises OSError where there is too little."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    elif shutil.disk_usage(path.parent).free < path.stat().st_size:
        raise OSError(errno.ENOSPC, "no space left on device", str(path))
    return array


def _mapped(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as e:
        raise UsageError(
            f"{path}: the unpacked samples are damaged: {e}", hint=f"remove the folder {path.parent}"
        ) from e
    return found
