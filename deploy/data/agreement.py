"""How far an artifact does what the float model does; no labels are needed.

For an output of classes a sample counts where it is given the same class; for whole numbers with the share
that is equal; for maps and other numbers with 1 - (power of its error / mean power of the float model's
output), at least 0, so that a drop of 0.01 is a signal 20 dB above its error. The mean power is over all
samples: in one that is empty nearly nothing may be wrong by nearly nothing. Of several outputs, and of the
parts of one that joins numbers of several kinds, each sample counts what it is worth in its worst: boxes of
hundreds of pixels would hide that all scores beside them are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from deploy.data.dataset import Batch
from deploy.data.scores import Gathered, Outputs, PerSample, choose_output
from deploy.errors import DataError

_COMPARED = 4096
"""Values per sample that are kept of the reference's outputs together, at most."""

Joined = Mapping[str, tuple[int, tuple[int, ...]]]
"""The outputs that join numbers of several kinds: along which axis, and how many of each kind."""


class Agreement(PerSample):
    """Keeps per sample the class of each output, or values at places drawn once, and compares in order.

    Looks at ``output`` alone, at all that have a row for each sample where that is None; ``joined`` are those
    that are looked at in parts. Without ``reference`` this is the float model itself: it agrees.
    """

    def __init__(
        self, output: str | None = None, reference: Agreement | None = None, joined: Joined | None = None
    ) -> None:
        super().__init__("agreement", unit="fraction")
        self._output, self._reference = output, reference
        self._joined = {} if joined is None else joined
        self._ids = Gathered()
        self._kept: dict[str, Gathered] = {}
        self._off: dict[str, Gathered] = {}

    @property
    def samples(self) -> int:
        return self._ids.count

    def update(self, outputs: Outputs, batch: Batch) -> None:
        views = list(self._views(outputs, batch))
        there = slice(self._ids.count, self._ids.count + len(batch))
        self._ids.add(batch.ids)
        reference = self._reference
        if reference is None:
            for view in views:
                self._kept.setdefault(view.name, Gathered()).add(view.values.copy())
        elif not np.array_equal(reference._ids.all()[there], batch.ids):
            raise _not_the_same()
        else:
            for view in views:
                self._compare(view, reference, there, batch)
        if len(views) == 1 and views[0].classes:
            kept = (reference or self)._kept[views[0].name].all()
            self._classes.add(kept[there])

    @property
    def values(self) -> np.ndarray:
        reference = self._reference
        if reference is None:
            return np.ones(len(self._ids.all()))
        # Others have no row for each sample: it only looked so in some batches.
        compared = {name: off.all() for name, off in self._off.items() if off.count == self.samples}
        if not compared:
            raise _not_the_same()
        right = [np.maximum(0.0, 1.0 - off / reference._power(name)) for name, off in compared.items()]
        return np.asarray(np.min(right, axis=0))

    def _views(self, outputs: Outputs, batch: Batch) -> Iterator[_View]:
        names = [choose_output(outputs, batch, self._output)[0]]
        parts = {name: len(self._joined[name][1]) if name in self._joined else 1 for name in outputs}
        looked_at = sum(parts.values()) if self._output is None else parts[names[0]]
        most = max(1, _COMPARED // looked_at)
        if self._output is None:
            rows = [name for name, array in outputs.items() if array.ndim and len(array) == len(batch)]
            names += [name for name in rows if name != names[0]]
        for name in names:
            key = "" if name == names[0] else name  # a teacher may call its only output otherwise
            found = choose_output(outputs, batch, name)[1]
            axis, sizes = self._joined.get(name, (0, ()))
            if sizes and found.ndim > axis and len(found) == len(batch) and found.shape[axis] == sum(sizes):
                for number, part in enumerate(np.split(found, np.cumsum(sizes)[:-1], axis), 1):
                    yield _view(f"{key}, part {number}", part, len(batch), most, whole=False)
            else:
                yield _view(key, found, len(batch), most)

    def _compare(self, view: _View, reference: Agreement, there: slice, batch: Batch) -> None:
        """Gather by how much the samples at ``there`` are off, in the unit of `_power`."""
        kept, off = reference._kept.get(view.name), self._off.setdefault(view.name, Gathered())
        if kept is None or kept.count != reference.samples or off.count != there.start:
            return
        wanted = kept.all()[there]
        if wanted.shape != view.values.shape:
            raise _not_the_same()
        if view.values.dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                found = np.sum((view.values.astype(np.float64) - wanted) ** 2, axis=1)
            if not np.isfinite(found).all():
                raise DataError(
                    f"metric agreement is not a finite number for sample {batch.ids[~np.isfinite(found)][0]}",
                    hint="look at that sample's output",
                )
        else:
            found = np.asarray(view.values != wanted, np.float64).reshape(len(batch), -1).mean(axis=1)
        off.add(found)

    def _power(self, name: str) -> float:
        """The mean power of what was kept; 1 of classes and whole numbers, and where all are 0."""
        kept = self._kept[name].all()
        if kept.dtype.kind != "f":
            return 1.0
        return float(np.mean(np.sum(kept.astype(np.float64) ** 2, axis=1))) or 1.0


@dataclass(frozen=True)
class _View:
    """What is compared of an output, a row for each sample: values, or ``classes``."""

    name: str
    values: np.ndarray
    classes: bool = False


def _view(name: str, found: np.ndarray, samples: int, most: int, *, whole: bool = True) -> _View:
    """``whole`` is an output as it is, no part of one."""
    values = found.reshape(samples, -1)
    one_axis = len(found) == samples and sum(s > 1 for s in found.shape[1:]) == 1
    if whole and one_axis and found.dtype.kind == "f":
        return _View(name, values.argmax(axis=1), classes=True)
    if values.shape[1] > most:
        places = np.random.default_rng(0).choice(values.shape[1], most, replace=False)
        values = values[:, np.sort(places)]
    return _View(name, values)


def _not_the_same() -> ValueError:
    return ValueError("agreement needs the samples and outputs that the float model was judged on")
