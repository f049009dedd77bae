"""What a metric is, how it finds its output and target, and metrics that are a mean over samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from deploy.data.dataset import Batch
from deploy.data.source import nearest
from deploy.errors import DataError, UsageError, VerificationError

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Score:
    """A metric's value over all samples seen. ``per_class`` is empty where classes mean nothing."""

    value: float
    higher_is_better: bool
    unit: str
    per_class: dict[str, float] = field(default_factory=dict)


class Metric(Protocol):
    """Takes outputs batch by batch, keeps a few numbers per sample, gives one value."""

    name: str
    higher_is_better: bool

    @property
    def samples(self) -> int:
        """How many samples were seen."""

    def update(self, outputs: Outputs, batch: Batch) -> None:
        """Judge the model's ``outputs`` for ``batch``.

        Raises DataError where targets are missing or do not fit, VerificationError where an output is NaN.
        """

    def result(self) -> Score:
        """The value over all samples. Raises DataError where it is not defined on them."""

    def resample(self, index: np.ndarray) -> float:
        """The value if the samples were those at ``index``, in order of update and with repetition; NaN
        where it is not defined on them."""


class Gathered:
    """Numbers per sample, collected batch by batch."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self.count = 0

    def add(self, values: np.ndarray) -> None:
        self._parts.append(values)
        self.count += len(values)

    def all(self) -> np.ndarray:
        """Everything added so far, joined once."""
        if not self._parts:
            raise DataError("no samples were evaluated", hint="give evaluation data with at least one sample")
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0]


@dataclass(frozen=True)
class Judged:
    """One number per sample; ``classes`` are the samples' classes where they have one. ``as_whole`` where
    the batch was given one number as a whole, which all its samples carry."""

    values: np.ndarray
    classes: np.ndarray | None = None
    as_whole: bool = False


Judge = Callable[[Outputs, Batch], Judged]


class PerSample(ABC):
    """A metric that is the mean of one number per sample."""

    def __init__(self, name: str, *, higher_is_better: bool = True, unit: str = "") -> None:
        self.name, self.higher_is_better, self.unit = name, higher_is_better, unit
        self._classes = Gathered()

    @property
    @abstractmethod
    def samples(self) -> int: ...

    @abstractmethod
    def update(self, outputs: Outputs, batch: Batch) -> None: ...

    @property
    @abstractmethod
    def values(self) -> np.ndarray:
        """float64, one per sample in order of update."""

    @property
    def batches(self) -> np.ndarray | None:
        """The batch of each sample where batches were judged as a whole: they are then what varies."""
        return None

    @property
    def grain(self) -> float:
        """What one sample is worth where each has a class that is right or wrong; 0 where they count by
        degrees."""
        answers = self._classes.count and np.isin(self.values, (0.0, 1.0)).all()
        return 1 / self.samples if answers else 0.0

    def result(self) -> Score:
        values = self.values
        per_class: dict[str, float] = {}
        if self._classes.count:
            names, which = np.unique(self._classes.all(), return_inverse=True)
            means = np.bincount(which, values) / np.bincount(which)
            per_class = {str(n): float(m) for n, m in zip(names, means, strict=True)}
        return Score(float(values.mean()), self.higher_is_better, self.unit, per_class)

    def resample(self, index: np.ndarray) -> float:
        return float(self.values[index].mean())


class MeanMetric(PerSample):
    """The mean over samples of what ``judge`` says of each."""

    def __init__(self, name: str, judge: Judge, *, higher_is_better: bool = True, unit: str = "") -> None:
        super().__init__(name, higher_is_better=higher_is_better, unit=unit)
        self._judge = judge
        self._values, self._batches = Gathered(), Gathered()

    @property
    def samples(self) -> int:
        return self._values.count

    @property
    def values(self) -> np.ndarray:
        return self._values.all()

    @property
    def batches(self) -> np.ndarray | None:
        return self._batches.all() if self._batches.count else None

    def update(self, outputs: Outputs, batch: Batch) -> None:
        judged = self._judge(outputs, batch)
        if not np.isfinite(judged.values).all():
            first = int(batch.ids[np.argmin(np.isfinite(judged.values))])
            raise DataError(
                f"metric {self.name} is not a finite number for sample {first}",
                hint="look at that sample's target and output",
            )
        if judged.as_whole:
            self._batches.add(np.full(len(batch), self._values.count))
        self._values.add(judged.values.astype(np.float64))
        if judged.classes is not None:
            self._classes.add(judged.classes)


def top_k(name: str, k: int, output: str | None) -> MeanMetric:
    """Share of samples whose class is among the ``k`` largest outputs; ties go to the lower class number."""

    def judge(outputs: Outputs, batch: Batch) -> Judged:
        found, target = output_and_target(outputs, batch, output, name)
        if k == 1:
            predicted, classes = predicted_classes(found, name)
            labels = class_labels(target, batch, classes, name)
            return Judged(predicted == labels, labels)
        scores = class_scores(found, name)
        labels = class_labels(target, batch, scores.shape[1], name)
        own = scores[np.arange(len(labels)), labels][:, np.newaxis]
        lower = np.arange(scores.shape[1]) < labels[:, np.newaxis]
        rank = np.sum((scores > own) | ((scores == own) & lower), axis=1)
        return Judged(rank < k, labels)

    return MeanMetric(name, judge, unit="fraction")


def mse(output: str | None) -> MeanMetric:
    """Mean squared error: over the values of a sample, then over samples."""

    def judge(outputs: Outputs, batch: Batch) -> Judged:
        return Judged(_squared_error(outputs, batch, output, "mse")[0])

    return MeanMetric("mse", judge, higher_is_better=False, unit="squared error")


def psnr(output: str | None) -> MeanMetric:
    """Peak signal-to-noise ratio in dB of each sample, then the mean over samples.

    The peak is 255 for integer targets and 1 for others. A perfect sample counts 100 dB, not infinity.
    """

    def judge(outputs: Outputs, batch: Batch) -> Judged:
        error, target = _squared_error(outputs, batch, output, "psnr")
        peak = 255.0 if target.dtype.kind in "ui" else 1.0
        return Judged(10 * np.log10(peak**2 / np.maximum(error, 1e-10 * peak**2)))

    return MeanMetric("psnr", judge, unit="dB")


def _squared_error(
    outputs: Outputs, batch: Batch, output: str | None, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    found, target = output_and_target(outputs, batch, output, metric)
    if squeezed(found.shape) != squeezed(target.shape):
        raise DataError(
            f"metric {metric}: the output has shape {found.shape}, the targets {target.shape}",
            hint="targets need the output's shape; choose another output with [metric] output",
        )
    n = len(batch)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is reported by the caller
        difference = found.reshape(n, -1).astype(np.float64) - target.reshape(n, -1).astype(np.float64)
        return np.mean(difference**2, axis=1), target


def choose_output(outputs: Outputs, batch: Batch, output: str | None) -> tuple[str, np.ndarray]:
    """The output to look at: the one asked for, else the first that has targets of its own name, else the
    first. Raises UsageError for an unknown name, VerificationError where it holds NaN."""
    if output is None:
        own = [name for name in outputs if name in batch.targets and "" not in batch.targets]
        output = own[0] if own else next(iter(outputs))
    elif output not in outputs:
        raise UsageError(
            f"[metric] output '{output}' is not an output of the model",
            hint=f"{nearest(output, list(outputs))}outputs: {', '.join(outputs)}",
        )
    found = outputs[output]
    if found.dtype.kind == "f" and np.isnan(found).any():
        row = int(np.argmax(np.isnan(found.reshape(len(batch), -1)).any(axis=1)))
        raise VerificationError(
            f"the model's output '{output}' is NaN for sample {int(batch.ids[row])}",
            hint="run the float model on that sample: if it gives NaN too, model or sample is at fault",
        )
    return output, found


def output_and_target(
    outputs: Outputs, batch: Batch, output: str | None, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """The output to look at and the targets it is compared with: those of its name, else the plain ones,
    else the only ones. Raises DataError where there are none."""
    name, found = choose_output(outputs, batch, output)
    targets = batch.targets
    if not targets:
        raise DataError(
            f"metric {metric} needs labels, and the data have none",
            hint="save labels under 'y', or choose the metric agreement, which needs none",
        )
    key = name if name in targets else ""
    if key not in targets and len(targets) == 1:
        key = next(iter(targets))
    if key not in targets:
        known = ", ".join(f"'y.{k}'" for k in targets)
        raise DataError(
            f"metric {metric}: no labels for output '{name}', there are {known}",
            hint=f"save them as 'y.{name}', or choose another output with [metric] output",
        )
    return found, targets[key]


def class_scores(found: np.ndarray, metric: str) -> np.ndarray:
    """The output as (samples, classes): one axis of classes, others of size 1. Raises DataError."""
    if len(squeezed(found.shape)) != 2 or found.dtype.kind != "f":
        raise DataError(
            f"metric {metric} needs an output of shape [samples, classes], found {found.dtype} {found.shape}",
            hint="choose another output with [metric] output, or another metric",
        )
    return found.reshape(len(found), -1)


def predicted_classes(found: np.ndarray, metric: str) -> tuple[np.ndarray, int | None]:
    """The class of each sample and the number of classes, which is unknown where the model itself ends in
    an argmax. Raises DataError where the output is neither."""
    if found.dtype.kind in "ui" and len(squeezed(found.shape)) == 1:
        return found.reshape(-1).astype(np.int64), None
    scores = class_scores(found, metric)
    return scores.argmax(axis=1), scores.shape[1]


def class_labels(target: np.ndarray, batch: Batch, classes: int | None, metric: str) -> np.ndarray:
    """Targets as int64 (samples,), each below ``classes``. Raises DataError naming the first bad sample."""
    if len(squeezed(target.shape)) != 1:
        one_hot = target.ndim == 2 and target.shape[1] == classes
        raise DataError(
            f"metric {metric} needs one class number per sample, the labels have shape {target.shape}",
            hint="they look one-hot: save labels.argmax(axis=1)" if one_hot else "save class numbers as 'y'",
        )
    flat = target.reshape(-1)
    labels = flat.astype(np.int64)
    bad = (labels < 0) | (labels != flat)
    if classes is not None:
        bad |= labels >= classes
    if bad.any():
        row = int(np.argmax(bad))
        limit = "" if classes is None else f" to {classes - 1}"
        raise DataError(
            f"metric {metric}: label {flat[row]:g} in sample {int(batch.ids[row])} is not a class "
            f"from 0{limit}",
            hint="count classes from 0, as the model's output does",
        )
    return labels


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of size 1, but with the first, which is samples."""
    return (shape[0], *(size for size in shape[1:] if size != 1)) if shape else ()
