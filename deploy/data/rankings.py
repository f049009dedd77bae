"""Metrics that are not a mean over samples: macro F1, mean IoU, AUC, Spearman.

Each keeps what it needs per sample, so that its value on a resample is exact and quick.
"""

from __future__ import annotations

import numpy as np

from deploy.data.dataset import Batch
from deploy.data.scores import (
    Gathered,
    Outputs,
    Score,
    class_labels,
    class_scores,
    output_and_target,
    predicted_classes,
    squeezed,
)
from deploy.errors import DataError


class MacroF1:
    """Mean over classes of the F1 score. A class counts where a sample has it or is taken for it."""

    name = "macro_f1"
    higher_is_better = True

    def __init__(self, output: str | None) -> None:
        self._output = output
        self._labels, self._predicted = Gathered(), Gathered()

    @property
    def samples(self) -> int:
        return self._labels.count

    def update(self, outputs: Outputs, batch: Batch) -> None:
        found, target = output_and_target(outputs, batch, self._output, self.name)
        predicted, classes = predicted_classes(found, self.name)
        self._labels.add(class_labels(target, batch, classes, self.name))
        self._predicted.add(predicted)

    def result(self) -> Score:
        f1, present = self._f1(np.arange(self.samples))
        per_class = {str(c): float(f1[c]) for c in np.flatnonzero(present)}
        return Score(float(f1[present].mean()), True, "fraction", per_class)

    def resample(self, index: np.ndarray) -> float:
        f1, present = self._f1(index)
        return float(f1[present].mean())

    def _f1(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels, predicted = self._labels.all()[index], self._predicted.all()[index]
        classes = 1 + int(max(self._labels.all().max(), self._predicted.all().max()))
        hits = np.bincount(labels[labels == predicted], minlength=classes)
        both = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
        return 2 * hits / np.maximum(both, 1), both > 0


class MeanIoU:
    """Mean over classes of intersection over union, counted over all pixels of all samples.

    The output is (samples, classes, ...) or (samples, ..., classes) scores, or class numbers in the targets'
    shape; targets are class numbers (samples, ...). Pixels labelled ``ignore_label`` are left out, classes
    that neither the targets nor the output show do not count.
    """

    name = "miou"
    higher_is_better = True

    def __init__(self, output: str | None, ignore_label: int | None) -> None:
        self._output, self._ignore = output, ignore_label
        self._entries, self._count = Gathered(), 0

    @property
    def samples(self) -> int:
        return self._count

    def update(self, outputs: Outputs, batch: Batch) -> None:
        found, target = output_and_target(outputs, batch, self._output, self.name)
        predicted, classes, target = _pixel_classes(found, target)
        for truth, guess, sample in zip(target, predicted, batch.ids, strict=True):
            seen = truth.reshape(-1)
            keep = slice(None) if self._ignore is None else seen != self._ignore
            seen, guessed = seen[keep].astype(np.int64), guess.reshape(-1)[keep]
            if len(seen) and (seen.min() < 0 or seen.max() >= classes):
                bad = int(seen.min()) if seen.min() < 0 else int(seen.max())
                raise DataError(
                    f"metric miou: label {bad} in sample {int(sample)} is not a class "
                    f"from 0 to {classes - 1}",
                    hint="name a label to be skipped with [metric] ignore_label",
                )
            self._entries.add(_class_counts(self._count, seen, guessed, classes))
            self._count += 1

    def result(self) -> Score:
        iou, present = self._iou(np.ones(self._count))
        if not present.any():
            raise DataError("metric miou: every pixel is ignored", hint="correct [metric] ignore_label")
        per_class = {str(c): float(iou[c]) for c in np.flatnonzero(present)}
        return Score(float(iou[present].mean()), True, "fraction", per_class)

    def resample(self, index: np.ndarray) -> float:
        iou, present = self._iou(np.bincount(index, minlength=self._count))
        return float(iou[present].mean()) if present.any() else np.nan

    def _iou(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sample, which, hits, union = self._entries.all().T
        inside = np.bincount(which, times[sample] * hits)
        whole = np.bincount(which, times[sample] * union)
        return inside / np.maximum(whole, 1), whole > 0


def _class_counts(sample: int, seen: np.ndarray, guessed: np.ndarray, classes: int) -> np.ndarray:
    """Rows (sample, class, pixels in both, pixels in either) for the classes that one sample shows."""
    hits = np.bincount(seen[seen == guessed], minlength=classes)
    union = np.bincount(seen, minlength=classes) + np.bincount(guessed, minlength=classes) - hits
    shown = np.flatnonzero(union)
    return np.column_stack([np.full(len(shown), sample), shown, hits[shown], union[shown]])


def _pixel_classes(found: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Class numbers in the targets' shape, the number of classes, and the targets in that shape."""
    shape = found.shape
    if found.dtype.kind in "ui" and found.size == target.size:
        classes = 1 + max(int(found.max()), int(target.max()))
        return found.reshape(len(found), -1).astype(np.int64), classes, target.reshape(len(found), -1)
    for axis in (1, found.ndim - 1):
        rest = (len(found), *shape[1:axis], *shape[axis + 1 :])
        if found.ndim > 2 and squeezed(target.shape) == squeezed(rest):
            return found.argmax(axis=axis), shape[axis], target.reshape(rest)
    raise DataError(
        f"metric miou: output of shape {shape} and labels of shape {target.shape} do not match",
        hint="labels need one class number per pixel of the output: resize them to the output's size",
    )


class Auc:
    """Area under the ROC curve: of class 1 for two classes, else the mean over classes of one against rest.

    One value per sample is the score of class 1. Scores of several classes are probabilities if all lie in
    [0, 1]; others are taken for logits and go through softmax, since classes are compared between samples.
    """

    name = "auc"
    higher_is_better = True

    def __init__(self, output: str | None) -> None:
        self._output = output
        self._labels, self._scores = Gathered(), Gathered()
        self._logits: bool | None = None
        self._ranks: np.ndarray | None = None

    @property
    def samples(self) -> int:
        return self._labels.count

    def update(self, outputs: Outputs, batch: Batch) -> None:
        found, target = output_and_target(outputs, batch, self._output, self.name)
        if found.size == len(found):
            scores, classes = found.reshape(-1, 1).astype(np.float64), 2
        else:
            scores = class_scores(found, self.name).astype(np.float64)
            classes = scores.shape[1]
            if self._logits is None:
                self._logits = bool(scores.min() < 0 or scores.max() > 1)
            if self._logits and classes > 2:
                scores = np.exp(scores - scores.max(axis=1, keepdims=True))
                scores /= scores.sum(axis=1, keepdims=True)
            elif classes == 2:  # for logits the difference orders as softmax does, without its saturation
                scores = scores[:, 1:] - scores[:, :1]
        self._labels.add(class_labels(target, batch, classes, self.name))
        self._scores.add(scores)
        self._ranks = None

    def result(self) -> Score:
        values = self._areas(np.ones(self.samples))
        defined = np.isfinite(values)
        if not defined.any():
            raise DataError(
                "metric auc is not defined: all samples are of one class",
                hint="give evaluation data of at least two classes",
            )
        several = len(values) > 1
        per_class = {str(c): float(values[c]) for c in np.flatnonzero(defined)} if several else {}
        return Score(float(values[defined].mean()), True, "area", per_class)

    def resample(self, index: np.ndarray) -> float:
        values = self._areas(np.bincount(index, minlength=self.samples))
        defined = np.isfinite(values)
        return float(values[defined].mean()) if defined.any() else np.nan

    def _areas(self, times: np.ndarray) -> np.ndarray:
        """Per class, with each sample counted ``times`` over: the share of (positive, negative) pairs in
        the right order, ties counting half (Mann and Whitney 1947). NaN for a class without such pairs."""
        labels, scores = self._labels.all(), self._scores.all()
        if self._ranks is None:
            columns = [np.unique(column, return_inverse=True)[1] for column in scores.T]
            self._ranks = np.stack(columns).astype(np.int32)
        single = len(self._ranks) == 1
        areas = np.full(len(self._ranks), np.nan)
        for column, ranks in enumerate(self._ranks):
            positive = labels == (1 if single else column)
            right = np.bincount(ranks, times * positive)
            wrong = np.bincount(ranks, times * ~positive)
            pairs = right.sum() * wrong.sum()
            if pairs:
                areas[column] = right @ (np.cumsum(wrong) - wrong / 2) / pairs
        return areas


class Spearman:
    """Rank correlation of one output value per sample with its target; ties share their mean rank."""

    name = "spearman"
    higher_is_better = True

    def __init__(self, output: str | None) -> None:
        self._output = output
        self._found, self._target = Gathered(), Gathered()
        self._order: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def samples(self) -> int:
        return self._found.count

    def update(self, outputs: Outputs, batch: Batch) -> None:
        found, target = output_and_target(outputs, batch, self._output, self.name)
        if found.size != len(batch) or target.size != len(batch):
            raise DataError(
                f"metric spearman needs one value per sample, the output has shape {found.shape}, "
                f"the targets {target.shape}",
                hint="choose another output with [metric] output, or another metric",
            )
        self._found.add(found.reshape(-1))
        self._target.add(target.reshape(-1))
        self._order = None

    def result(self) -> Score:
        value = self.resample(np.arange(self.samples))
        if np.isnan(value):
            raise DataError(
                "metric spearman is not defined: all targets, or all outputs, are equal",
                hint="give evaluation data whose targets differ",
            )
        return Score(value, True, "correlation")

    def resample(self, index: np.ndarray) -> float:
        if self._order is None:
            a, b = (np.unique(g.all(), return_inverse=True)[1] for g in (self._found, self._target))
            self._order = a, b
        a, b = (_mean_ranks(order[index]) for order in self._order)
        a, b = a - a.mean(), b - b.mean()
        norm = np.sqrt((a @ a) * (b @ b))
        return float(a @ b / norm) if norm else np.nan


def _mean_ranks(order: np.ndarray) -> np.ndarray:
    """Ranks from 1 of non-negative whole numbers, equal ones sharing their mean rank."""
    counts = np.bincount(order)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[order])
