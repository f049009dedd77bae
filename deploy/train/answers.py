"""What teachers say, asked once: about each sample as it is, or about several views of its images.

A teacher may cost many times what the graph that learns from it costs, and would be asked about every sample
in every epoch. A few views of each image, moved and mirrored, are nearly as good as ever new ones.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.cache import flush
from deploy.data.dataset import Dataset
from deploy.errors import UsageError
from deploy.progress import SILENT, Progress
from deploy.spec.finetune import Augment
from deploy.spec.tensors import Layout
from deploy.train.augment import View, channels_last, draw_view, looked_at
from deploy.train.distill import Teacher
from deploy.train.loader import FULL, found_room, new_file, note_room, number, require_no_room
from deploy.train.score import tensors

_SHARE_OF_DISK = 0.5
_VIEW = 2
"""Tells the seed of a view from those of batches."""


@dataclass(frozen=True)
class Views:
    """So many views of each of ``samples``; they follow from ``seed`` and from what ``augment`` says of
    cropping and flipping."""

    drawn: tuple[View, ...]
    words: str
    """What they follow from, as part of a name."""


def draw_views(count: int, samples: int, augment: Augment, seed: int) -> Views:
    """``count`` views of each of so many images."""
    drawn = []
    for index in range(count):
        generator = torch.Generator().manual_seed(number(seed, index, 0, _VIEW))
        drawn.append(draw_view(samples, augment, generator))
    return Views(tuple(drawn), f"crop {augment.crop} flip {augment.flip} seed {seed}")


@dataclass(frozen=True)
class Answers:
    """What teachers said, by sample. ``arrays`` holds for each view, for each teacher, an array
    (samples, ...) for each head; without ``views`` there is one, of the samples as they are."""

    arrays: tuple[tuple[tuple[np.ndarray, ...], ...], ...]
    views: Views | None = None

    def of(self, rows: np.ndarray, epoch: int, device: torch.device) -> list[list[Tensor]]:
        """For each teacher a tensor for each head."""
        found = self.arrays[epoch % len(self.arrays)]
        return [[torch.from_numpy(array[rows]).to(device) for array in own] for own in found]

    def view(self, rows: np.ndarray, epoch: int) -> View | None:
        """How the images were looked at that `of` tells about."""
        return None if self.views is None else self.views.drawn[epoch % len(self.arrays)].of(rows)


def remember(
    teachers: Sequence[Teacher],
    dataset: Dataset,
    batch: int,
    folder: Path,
    digests: Sequence[str],
    images: Mapping[str, Layout],
    device: torch.device,
    views: Views | None = None,
    progress: Progress = SILENT,
) -> Answers | None:
    """All teachers' answers on ``dataset``, kept in ``folder`` for a run that goes on later; None, with a
    warning, where they would take more than half of the free disk. Whether they would is found once for each
    ``folder``, as in `open_loader`; raises UsageError as that does."""
    arrays = []
    shares = 1 if views is None else len(views.drawn)
    for index in range(shares):
        view = None if views is None else views.drawn[index]
        of_view = []
        for teacher, digest in zip(teachers, digests, strict=True):
            words = f"{digest} {dataset.digest} {teacher.heads} {batch} {teacher.precision}"
            words += "" if views is None else f" {views.words} view {index}"
            place = folder / f"teacher-{hashlib.sha256(words.encode()).hexdigest()[:32]}"
            room = found_room(place)
            try:
                fits = place.is_dir() or (
                    room is not False
                    and _record(
                        _said(teacher, dataset, batch, images, view, device),
                        len(dataset),
                        place,
                        _SHARE_OF_DISK if not room else None,
                        shares * len(teachers),
                    )
                )
            except OSError as e:
                if e.errno not in FULL:
                    raise
                require_no_room(place, e)
                fits = False
            note_room(place, fits)
            if not fits:
                progress.warn(f"{folder}: no room for what the teacher says; it runs anew for every batch")
                return None
            of_view.append(
                tuple(
                    np.load(place / f"{i}.npy", mmap_mode="r", allow_pickle=False)
                    for i in range(len(teacher.heads))
                )
            )
        if views is not None:
            progress.note(f"asked about view {index + 1} of {shares} of each sample")
        arrays.append(tuple(of_view))
    return Answers(tuple(arrays), views)


def _said(
    teacher: Teacher,
    dataset: Dataset,
    batch: int,
    images: Mapping[str, Layout],
    view: View | None,
    device: torch.device,
) -> Iterator[list[np.ndarray]]:
    """For each batch in order an array for each head."""
    start = 0
    for block in dataset.batches(batch):
        feeds = tensors(block.feeds, device)
        if view is not None:
            feeds, _ = looked_at(feeds, {}, view.of(np.arange(start, start + len(block))), images)
        start += len(block)
        yield [t.float().cpu().numpy() for t in teacher.scores(channels_last(feeds, images))]


def _record(
    said: Iterator[list[np.ndarray]], samples: int, place: Path, limit: float | None, times: int
) -> bool:
    """Write one teacher's answers; the folder appears whole or not at all. False where ``times`` as much
    would take more than this share of the free disk; None where that is not asked."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for leftover in place.parent.glob(f"{place.name}.new-*"):  # a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{place.name}.new-", dir=place.parent))
    arrays: list[np.ndarray] = []
    start = 0
    try:
        for found in said:
            if not arrays:
                size = sum(a[0].nbytes for a in found) * samples * times
                if limit is not None and size > shutil.disk_usage(scratch).free * limit:
                    return False
                arrays = [
                    new_file(scratch / f"{i}.npy", a.dtype, (samples, *a.shape[1:]))
                    for i, a in enumerate(found)
                ]
            for array, values in zip(arrays, found, strict=True):
                array[start : start + len(values)] = values
            start += len(found[0])
        for array in arrays:
            assert isinstance(array, np.memmap)
            array.flush()
        flush(scratch)
        scratch.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return True


def require_mixable(answers: Answers, augment: Augment) -> None:
    """Raises UsageError where parts of images are exchanged and answers have a place in the image."""
    if augment.cutmix and any(np.prod(array.shape[2:]) > 1 for own in answers.arrays[0] for array in own):
        raise UsageError(
            "[recipe] distill: cutmix exchanges parts of images, and what the teacher was asked beforehand "
            "has a place in them",
            hint="set views = 0, or cutmix = 0",
        )
