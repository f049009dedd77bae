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
from deploy.data.images import open_images
from deploy.data.npz import open_npy, open_npz
from deploy.data.python_ref import PREFIX, open_python
from deploy.data.source import ArraySource, Source, check_column
from deploy.errors import DataError
from deploy.spec.tensors import Normalisation, TensorSpec

_NO_NORMALISATION: Mapping[str, Normalisation] = {}


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

    def __len__(self) -> int: ...

    def batches(self, size: int, limit: int | None = None, *, feeds: bool = True) -> Iterator[Batch]:
        """The first ``limit`` samples, ``size`` at a time, the last batch smaller.

        With ``feeds`` false only targets and groups are read. Raises DataError where values are unfit.
        """

    def select(self, rows: np.ndarray) -> Dataset:
        """A view of the samples at these ascending positions of this dataset."""


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
) -> Dataset:
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
        spec.name: fit.converter(opened.origin, spec, columns[spec.name], scaling[spec.name], image=images)
        for spec in inputs
    }
    settings = repr([(spec.name, spec.dtype, spec.layout, scaling[spec.name]) for spec in inputs] + [labels])
    return FittedSource(opened, names, converters, settings, np.arange(count, dtype=np.int64))


def _open_source(
    source: str | Path | Mapping[str, np.ndarray],
    inputs: Sequence[TensorSpec],
    labels: str,
    root: Path | None,
) -> tuple[Source, bool]:
    """The source, and whether its samples are images that were fitted to the input's size."""
    if not inputs:
        raise DataError("the model has no inputs, so no data can be fed", hint="nothing to calibrate")
    if isinstance(source, Mapping):
        if not source:
            raise DataError("no arrays given", hint="give one array per input of the model")
        return ArraySource("data", {name: np.asarray(array) for name, array in source.items()}), False
    if str(source).startswith(PREFIX):
        return open_python(str(source), [spec.name for spec in inputs], labels, root), False
    path = Path(source) if root is None else root / source
    if not path.exists():
        where = "" if root is None else "; in deploy.toml relative ones start at its folder"
        raise DataError(f"{path}: no such file", hint=f"check the path of the data{where}")
    if path.is_dir():
        return open_images(path, _only(path, inputs), labels), True
    if path.suffix == ".npy":
        return open_npy(path, _only(path, inputs).name), False
    return open_npz(path), False


def _only(origin: str | Path, inputs: Sequence[TensorSpec]) -> TensorSpec:
    """The model's only input. Raises DataError where there are several."""
    if len(inputs) > 1:
        names = ", ".join(spec.name for spec in inputs)
        raise DataError(
            f"{origin}: holds data for one input, but the model has {len(inputs)} ({names})",
            hint="save all of them in one file: np.savez('data.npz', " + f"{inputs[0].name}=..., ...)",
        )
    return inputs[0]


def take(dataset: Dataset, start: int, stop: int) -> Dataset:
    """A view of the samples from ``start`` up to ``stop``, as many as there are. Raises DataError if none."""
    rows = np.arange(len(dataset), dtype=np.int64)[start:stop]
    if not len(rows):
        raise DataError(
            f"{dataset.origin}: no samples from {start} to {stop}, it holds {len(dataset)}",
            hint="give more data",
        )
    return dataset.select(rows)


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


def check_labels(
    dataset: Dataset, classes: int, *, target: str = "", ignore_label: int | None = None
) -> None:
    """Every label of ``target`` is a class number below ``classes``, or ``ignore_label``.

    Raises DataError naming the first sample whose label is negative, too large or not a whole number.
    """
    for batch in dataset.batches(1024, feeds=False):
        if target not in batch.targets:
            raise DataError(
                f"{dataset.origin}: no labels" + (f" for '{target}'" if target else ""),
                hint="save class numbers under 'y'",
            )
        values = batch.targets[target].reshape(len(batch), -1)
        if values.dtype.kind == "f" and (values != np.floor(values)).any():
            raise DataError(
                f"{dataset.origin}: labels are not whole numbers, expected classes 0 to {classes - 1}",
                hint="save class numbers as integers, or choose a metric for values, such as mse",
            )
        bad = (values < 0) | (values >= classes)
        if ignore_label is not None:
            bad &= values != ignore_label
        if bad.any():
            row = int(np.argmax(bad.any(axis=1)))
            value = values[row][bad[row]][0]
            raise DataError(
                f"{dataset.origin}: label {value:g} in sample {int(batch.ids[row])} is "
                f"{'negative' if value < 0 else 'too large'}, the model has classes 0 to {classes - 1}",
                hint="count classes from 0; name a label to be skipped with [metric] ignore_label",
            )
