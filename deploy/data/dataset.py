"""Datasets: samples in batches, in order, as often as asked, in memory that does not grow with their number.

A dataset is a source of named arrays (a file, a folder, a program, memory) fitted to a model's inputs.
Everything is checked once: names, types and shapes when it is opened, values while they stream by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from deploy.data import fit
from deploy.data.images import AUDIO, AUDIO_HINT, SUFFIXES, ImageFiles, open_image_files, open_images
from deploy.data.npz import open_npy, open_npz
from deploy.data.python_ref import PREFIX, open_python
from deploy.data.source import ArraySource, JoinedSources, Source, check_column
from deploy.errors import DataError
from deploy.spec.tensors import Normalisation, TensorSpec

_NO_NORMALISATION: Mapping[str, Normalisation] = {}
_AT_ONCE, _ENOUGH = 2**19, 2**21
_LEAST = 8


@dataclass(frozen=True)
class Batch:
    """Some samples, first axis samples in every array.

    ``feeds`` are the model's inputs by name. ``targets`` are keyed by "" for a plain ``y`` and by ``<name>``
    for ``y.<name>``; empty without labels. ``groups`` says which samples belong together (one patient, one
    recording). ``ids`` are int64 positions of the samples in what was opened; a view keeps them.
    """

    feeds: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    groups: np.ndarray | None
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Dataset(Protocol):
    """Samples that can be read again and again, in the same order."""

    @property
    def origin(self) -> str:
        """Where they come from, for messages."""

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what matters: the arrays that are read, their normalisation, the labels."""

    @property
    def labelled(self) -> bool:
        """Whether there are targets."""

    @property
    def fed(self) -> int:
        """How many numbers one sample feeds."""

    def __len__(self) -> int: ...

    def batches(self, size: int, limit: int | None = None, *, feeds: bool = True) -> Iterator[Batch]:
        """The first ``limit`` samples, ``size`` at a time, the last batch smaller.

        With ``feeds`` false only targets and groups are read. Raises DataError where values are unfit.
        """

    def select(self, rows: np.ndarray) -> Dataset:
        """A view of the samples at these ascending positions of this dataset."""


def at_once(dataset: Dataset, most: int) -> int:
    """How many samples to run together: ``most``, fewer where these feed more than half a million numbers,
    and one at least. What a network holds on the way is tens to hundreds of times what it is fed, and large
    samples gain nothing by company."""
    return max(1, min(most, _AT_ONCE // max(1, dataset.fed)))


def enough(dataset: Dataset, most: int) -> int:
    """How many samples tell a mean over all that is computed from them: ``most``, fewer where these feed more
    than two million numbers, and eight at least."""
    return min(most, max(_LEAST, _ENOUGH // max(1, dataset.fed)))


@dataclass(frozen=True)
class FittedSource:
    """A source whose arrays were given their roles. ``rows`` are the positions that belong to the dataset."""

    source: Source
    names: fit.Names
    converters: Mapping[str, fit.Convert]
    settings: str
    rows: np.ndarray

    @property
    def origin(self) -> str:
        return self.source.origin

    @property
    def labelled(self) -> bool:
        return bool(self.names.targets)

    @cached_property
    def fed(self) -> int:
        columns = self.source.columns
        return sum(columns[name].row_bytes // columns[name].dtype.itemsize for name in self.names.feeds)

    @cached_property
    def digest(self) -> str:
        used = sorted([*self.names.feeds, *self.names.targets.values(), *self._group_names])
        hasher = hashlib.sha256(self.source.digest(used).encode())
        hasher.update(self.settings.encode())
        if len(self.rows) != self._all:
            hasher.update(self.rows.astype("<i8").tobytes())
        return hasher.hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, limit: int | None = None, *, feeds: bool = True) -> Iterator[Batch]:
        rows = self.rows[:limit]
        inputs = self.names.feeds if feeds else ()
        wanted = [*inputs, *self.names.targets.values(), *self._group_names]
        if not wanted:
            for start in range(0, len(rows), size):
                yield Batch({}, {}, None, rows[start : start + size])
            return
        start = 0
        for raw in self.source.rows(wanted, rows, size):
            ids = rows[start : start + len(raw[wanted[0]])]
            start += len(ids)
            for name in self.names.targets.values():
                if raw[name].dtype.kind == "f":
                    fit.check_finite(self.origin, name, raw[name], ids)
            yield Batch(
                feeds={name: self.converters[name](raw[name], ids) for name in inputs},
                targets={key: raw[name] for key, name in self.names.targets.items()},
                groups=raw[self.names.groups] if self.names.groups else None,
                ids=ids,
            )

    def sample_names(self) -> list[str]:
        """The files of images, the numbers of other samples."""
        parts = self.source.parts if isinstance(self.source, JoinedSources) else (self.source,)
        files = next((part.files for part in parts if isinstance(part, ImageFiles)), None)
        return [str(row) if files is None else str(files[row]) for row in self.rows]

    def select(self, rows: np.ndarray) -> Dataset:
        return FittedSource(self.source, self.names, self.converters, self.settings, self.rows[rows])

    @property
    def _group_names(self) -> tuple[str, ...]:
        return (self.names.groups,) if self.names.groups else ()

    @property
    def _all(self) -> int:
        return self.source.columns[self.names.feeds[0]].shape[0]


def open_dataset(
    source: str | Path | Mapping[str, np.ndarray],
    inputs: Sequence[TensorSpec],
    *,
    normalisation: Mapping[str, Normalisation] = _NO_NORMALISATION,
    labels: str = "y",
    groups: str = "group",
    root: Path | None = None,
) -> FittedSource:
    """Open samples for a model with these ``inputs``.

    ``source`` is an ``.npz`` file, an ``.npy`` file (models with one input), a folder of images (one folder
    per class, or flat and then without labels), ``python:package.module:function``, or arrays in memory.
    Relative paths and Python references are looked up from ``root``. Arrays are named by input; labels
    stand under ``labels`` or ``<labels>.<name>``, group numbers under ``groups``.

    ``normalisation`` by input name (or the input's own) is applied here, unless it is folded into the graph.
    Raises DataError where the data are missing, damaged or do not fit, naming file, array and remedy.
    """
    fit.check_settings(inputs, normalisation)
    try:
        opened, images = _open_source(source, inputs, labels, root)
    except OSError as e:
        raise DataError(f"{source}: cannot be read: {e.strerror}", hint="check path and permissions") from e
    return _fitted(opened, images, inputs, normalisation, labels, groups)


def open_pictures(
    pictures: Mapping[str, Sequence[Path]],
    inputs: Sequence[TensorSpec],
    data: str | Path | None = None,
    *,
    labels: str = "y",
) -> FittedSource:
    """Open image files by input; what the model's other inputs take is in ``data``, as for
    `open_dataset`. The n-th image of each input and the n-th sample of ``data`` belong together.

    Raises DataError as `open_dataset` does, and for an input that nothing feeds.
    """
    by_name = {spec.name: spec for spec in inputs}
    parts: list[Source] = [open_image_files(paths, by_name[name]) for name, paths in pictures.items()]
    if data is not None:
        others = [spec for spec in inputs if spec.name not in pictures]
        if not others:
            raise DataError(f"{data}: nothing is left to feed, the images are all that the model takes")
        try:
            parts.append(_open_source(data, others, labels, None)[0])
        except OSError as e:
            raise DataError(f"{data}: cannot be read: {e.strerror}", hint="check path and permissions") from e
        twice = [name for name in pictures if name in parts[-1].columns]
        if twice:
            raise DataError(
                f"{data}: holds '{twice[0]}' as well, for which images were given", hint="give one of them"
            )
    opened = (
        parts[0] if len(parts) == 1 else JoinedSources(" and ".join(p.origin for p in parts), tuple(parts))
    )
    return _fitted(opened, frozenset(pictures), inputs, {}, labels, "group")


def _fitted(
    opened: Source,
    images: frozenset[str],
    inputs: Sequence[TensorSpec],
    normalisation: Mapping[str, Normalisation],
    labels: str,
    groups: str,
) -> FittedSource:
    """Everything that is known without reading samples is checked, and arrays get their roles."""
    columns = opened.columns
    for name, column in columns.items():
        check_column(opened.origin, name, column)
    names = fit.assign(opened.origin, columns, inputs, labels, groups)
    count = fit.check_counts(opened.origin, columns)
    fit.check_shapes(opened.origin, columns, inputs)
    for name in names.targets.values():
        if columns[name].dtype.kind not in "biuf":
            raise DataError(
                f"{opened.origin}: label array '{name}' has type {columns[name].dtype}, expected numbers",
                hint="save class numbers counted from 0",
            )
    if names.groups and len(columns[names.groups].shape) != 1:
        raise DataError(
            f"{opened.origin}: group array '{names.groups}' has shape {columns[names.groups].shape}",
            hint="give one number or word per sample",
        )
    scaling = {spec.name: normalisation.get(spec.name, spec.normalisation) for spec in inputs}
    converters = {
        spec.name: fit.converter(
            opened.origin, spec, columns[spec.name], scaling[spec.name], image=spec.name in images
        )
        for spec in inputs
    }
    settings = repr([(spec.name, spec.dtype, spec.layout, scaling[spec.name]) for spec in inputs] + [labels])
    return FittedSource(opened, names, converters, settings, np.arange(count, dtype=np.int64))


def _open_source(
    source: str | Path | Mapping[str, np.ndarray],
    inputs: Sequence[TensorSpec],
    labels: str,
    root: Path | None,
) -> tuple[Source, frozenset[str]]:
    """The source, and the inputs whose samples are images that were fitted to its size."""
    if not inputs:
        raise DataError("the model has no inputs, so no data can be fed", hint="nothing to calibrate")
    if isinstance(source, Mapping):
        if not source:
            raise DataError("no arrays given", hint="give one array per input of the model")
        return ArraySource("data", {name: np.asarray(array) for name, array in source.items()}), frozenset()
    if str(source).startswith(PREFIX):
        return open_python(str(source), [spec.name for spec in inputs], labels, root), frozenset()
    path = Path(source) if root is None else root / source
    if not path.exists():
        where = "" if root is None else "; in deploy.toml relative ones start at its folder"
        raise DataError(f"{path}: no such file", hint=f"check the path of the data{where}")
    if path.is_dir():
        spec = _only(path, inputs)
        return open_images(path, spec, labels), frozenset([spec.name])
    if path.suffix == ".npy":
        return open_npy(path, _only(path, inputs).name), frozenset()
    if path.suffix.lower() in AUDIO:
        raise DataError(f"{path}: is sound, which is not read directly", hint=AUDIO_HINT)
    if path.suffix.lower() in SUFFIXES:
        raise DataError(
            f"{path}: is one image, not a set of samples",
            hint=f"give the folder that it lies in; `deploy run` takes it as --image {path}",
        )
    return open_npz(path), frozenset()


def _only(origin: str | Path, inputs: Sequence[TensorSpec]) -> TensorSpec:
    """The model's only input. Raises DataError where there are several."""
    if len(inputs) > 1:
        names = ", ".join(spec.name for spec in inputs)
        raise DataError(
            f"{origin}: holds data for one input, but the model has {len(inputs)} ({names})",
            hint="save all of them in one file: np.savez('data.npz', " + f"{inputs[0].name}=..., ...)",
        )
    return inputs[0]


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Two views at random: about ``fraction`` of the samples, and the others; each in the dataset's order.

    Samples of one group stay together, so that the second part says something of unseen groups. Raises
    DataError where one part would be empty.
    """
    members = _group_numbers(dataset)
    order = np.random.default_rng(seed).permutation(int(members.max()) + 1)
    sizes = np.bincount(members)[order].cumsum()
    first = order[: 1 + int(np.argmin(np.abs(sizes - fraction * len(dataset))))]
    inside = np.isin(members, first)
    if inside.all() or not inside.any():
        raise DataError(
            f"{dataset.origin}: {len(dataset)} samples in {len(order)} groups cannot be split in two",
            hint="give more data, or give validation data of their own",
        )
    return dataset.select(np.flatnonzero(inside)), dataset.select(np.flatnonzero(~inside))


def _group_numbers(dataset: Dataset) -> np.ndarray:
    parts = [batch.groups for batch in dataset.batches(1024, feeds=False)]
    groups = [part for part in parts if part is not None]
    if len(groups) < len(parts):
        return np.arange(len(dataset))
    return np.unique(np.concatenate(groups), return_inverse=True)[1].reshape(-1)
