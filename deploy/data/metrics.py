"""The metrics by name. A metric judges outputs batch by batch; baseline and artifact each get their own.

    baseline = make_metric("agreement")
    artifact = make_metric("agreement", reference=baseline)      # compared with what the baseline saw

Besides the built-in ones, ``python:package.module:function`` names the user's own: it is called with
(outputs, targets), both name -> array with samples along the first axis and a plain ``y`` under "", and
returns one number per sample, or one number for the batch. Larger is better unless the function has an
attribute ``higher_is_better = False``; its attribute ``unit``, if any, is shown beside the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.data.dataset import Batch, Dataset
from deploy.data.python_ref import PREFIX, load_function
from deploy.data.rankings import Auc, MacroF1, MeanIoU, Spearman
from deploy.data.scores import (
    Gathered,
    Judge,
    Judged,
    MeanMetric,
    Metric,
    Outputs,
    choose_output,
    mse,
    psnr,
    top_k,
)
from deploy.data.source import nearest
from deploy.errors import DataError, DeployError, UsageError
from deploy.spec.tensors import TensorSpec

_COMPARED = 4096
"""Values per sample that agreement keeps of the reference's outputs together, at most."""


@dataclass(frozen=True)
class Setting:
    """What a metric may be told: the output it looks at, a label to skip (mean IoU), the baseline's metric
    that it is compared with (agreement)."""

    output: str | None = None
    ignore_label: int | None = None
    reference: Metric | None = None


METRICS: dict[str, Callable[[Setting], Metric]] = {
    "top1": lambda s: top_k("top1", 1, s.output),
    "top5": lambda s: top_k("top5", 5, s.output),
    "macro_f1": lambda s: MacroF1(s.output),
    "mse": lambda s: mse(s.output),
    "psnr": lambda s: psnr(s.output),
    "miou": lambda s: MeanIoU(s.output, s.ignore_label),
    "auc": lambda s: Auc(s.output),
    "spearman": lambda s: Spearman(s.output),
    "agreement": lambda s: agreement(s.output, s.reference),
}


def make_metric(
    name: str,
    *,
    output: str | None = None,
    ignore_label: int | None = None,
    reference: Metric | None = None,
    root: Path | None = None,
) -> Metric:
    """A fresh metric of that name.

    ``reference`` is the metric that judged the float model on the same samples; only agreement looks at it.
    ``root`` is where the user's modules are found. Raises UsageError for an unknown name.

    >>> labels = {"": np.array([1, 0])}
    >>> metric = make_metric("top1")
    >>> batch = Batch(feeds={}, targets=labels, groups=None, ids=np.arange(2))
    >>> metric.update({"logits": np.array([[0.1, 0.9], [0.2, 0.8]])}, batch)
    >>> metric.result().value
    0.5
    """
    if name.startswith(PREFIX):
        return _user_metric(name, root)
    if name not in METRICS:
        raise UsageError(
            f"unknown metric '{name}'",
            hint=f"{nearest(name, list(METRICS))}metrics: {', '.join(METRICS)}, "
            "or python:package.module:function",
        )
    if ignore_label is not None and name != "miou":
        raise UsageError(
            f"[metric] ignore_label means nothing to metric {name}", hint="remove it, or choose metric miou"
        )
    return METRICS[name](Setting(output, ignore_label, reference))


def default_metric(dataset: Dataset, outputs: Sequence[TensorSpec]) -> str:
    """The metric that the labels and outputs suggest.

    top1 for one whole number per sample and an output of classes; miou for one per pixel; mse for targets
    of the output's shape; else agreement, which needs no labels.
    """
    batch = next(dataset.batches(1, feeds=False))
    named = [spec for spec in outputs if spec.name in batch.targets and "" not in batch.targets]
    spec = named[0] if named else outputs[0]
    target = batch.targets.get(spec.name, batch.targets.get(""))
    if target is None:
        return "agreement"
    tail = [size for size in spec.shape[1:] if size != 1]
    found = [size for size in target.shape[1:] if size != 1]
    if target.dtype.kind in "uib":
        if not found and (len(tail) == 1 or (not tail and spec.dtype.startswith(("int", "uint")))):
            return "top1"
        return "miou" if len(found) == 2 and len(tail) == 3 else "agreement"
    same = len(tail) == len(found) and all(
        isinstance(want, str) or want == size for want, size in zip(tail, found, strict=True)
    )
    return "mse" if same else "agreement"


def agreement(output: str | None, reference: Metric | None) -> MeanMetric:
    """How far the model does what the float model does; no labels are needed.

    For an output of classes the share of samples given the same class; for other outputs the mean over
    samples of 1 - (power of the error / power of the reference), at least 0, so that a drop of 0.01 is a
    signal 20 dB above its error; for whole numbers the share that is equal. Of several outputs that have a
    row for each sample, each sample counts what it is worth in its worst one; ``output`` names the only one
    to look at. Without ``reference`` this is the float model itself: its outputs are kept, and it agrees.
    """
    earlier: _Agreement | None = None
    if reference is not None:
        if not isinstance(reference, MeanMetric) or not isinstance(reference.judge, _Agreement):
            raise ValueError("agreement is compared with the agreement metric of the float model")
        earlier = reference.judge
    return MeanMetric("agreement", _Agreement(output, earlier), unit="fraction")


class _Agreement:
    """Keeps per sample the class of each output, or values at places drawn once, and compares in order."""

    def __init__(self, output: str | None, reference: _Agreement | None) -> None:
        self._output, self._reference = output, reference
        self._ids = Gathered()
        self._kept: dict[str, Gathered] = {}

    def __call__(self, outputs: Outputs, batch: Batch) -> Judged:
        names = [choose_output(outputs, batch, self._output)[0]]
        if self._output is None:
            rows = [name for name, array in outputs.items() if array.ndim and len(array) == len(batch)]
            names += [name for name in rows if name != names[0]]
        most = _COMPARED if self._output is not None else _COMPARED // len(outputs)
        views = {n: _view(choose_output(outputs, batch, n)[1], len(batch), most) for n in names}
        start = self._ids.count
        self._ids.add(batch.ids)
        if self._reference is None:
            for name, (values, _) in views.items():
                kept = self._kept.setdefault(name, Gathered())
                if kept.count == start:  # else not a row for each sample: it only looked so in some batches
                    kept.add(values.copy())
            return Judged(np.ones(len(batch)), _classes(views))
        there = slice(start, start + len(batch))
        if not np.array_equal(self._reference._ids.all()[there], batch.ids):
            raise _not_the_same()
        worst, wanted = np.ones(len(batch)), dict[str, tuple[np.ndarray, bool]]()
        for name, (values, by_class) in views.items():
            known = self._reference._kept.get(name)
            if known is None or known.count != self._reference._ids.count:
                continue
            reference = known.all()[there]
            if reference.shape != values.shape:
                raise _not_the_same()
            wanted[name] = reference, by_class
            worst = np.minimum(worst, _alike(values, reference, by_class))
        return Judged(worst, _classes(wanted))


def _view(found: np.ndarray, samples: int, most: int) -> tuple[np.ndarray, bool]:
    """What is kept of an output, a row for each sample, and whether that is its class."""
    values = found.reshape(samples, -1)
    one_axis = len(found) == samples and sum(s > 1 for s in found.shape[1:]) == 1
    if one_axis and found.dtype.kind == "f":
        return values.argmax(axis=1), True
    if values.shape[1] > most:
        places = np.random.default_rng(0).choice(values.shape[1], most, replace=False)
        values = values[:, np.sort(places)]
    return values, False


def _classes(views: Mapping[str, tuple[np.ndarray, bool]]) -> np.ndarray | None:
    """The samples' classes, where the only output judged tells them."""
    only = list(views.values())
    return only[0][0] if len(only) == 1 and only[0][1] else None


def _alike(values: np.ndarray, wanted: np.ndarray, by_class: bool) -> np.ndarray:
    """Between 0 and 1 for each sample."""
    if by_class:
        return np.asarray(values == wanted, np.float64)
    if values.dtype.kind != "f":
        return np.mean(values == wanted, axis=1) if values.shape[1] else np.ones(len(values))
    with np.errstate(over="ignore", invalid="ignore"):  # infinite outputs are reported by the caller
        error = np.sum((values.astype(np.float64) - wanted) ** 2, axis=1)
        power = np.sum(wanted.astype(np.float64) ** 2, axis=1)
        relative = np.divide(error, power, out=np.where(error > 0, 1.0, 0.0), where=power > 0)
    return np.asarray(np.maximum(0.0, 1.0 - relative))


def _not_the_same() -> ValueError:
    return ValueError("agreement needs the samples and outputs that the float model was judged on")


def _user_metric(reference: str, root: Path | None) -> MeanMetric:
    function = load_function(reference, root)

    def judge(outputs: Outputs, batch: Batch) -> Judged:
        try:
            answer = np.asarray(function(dict(outputs), dict(batch.targets)))
        except DeployError:
            raise
        except Exception as e:  # the user's function may raise anything
            raise DataError(
                f"{reference} failed on samples {int(batch.ids[0])} to {int(batch.ids[-1])}: "
                f"{type(e).__name__}: {e}",
                hint="it is called with (outputs, targets), both dictionaries of arrays",
            ) from e
        if answer.dtype.kind not in "biuf" or answer.shape not in ((), (len(batch),)):
            raise DataError(
                f"{reference} returned {answer.dtype} of shape {answer.shape} for {len(batch)} samples",
                hint="return one number per sample, or one number for the batch",
            )
        values = np.broadcast_to(answer.astype(np.float64), (len(batch),))
        return Judged(values, as_whole=answer.ndim == 0)

    typed: Judge = judge
    better = bool(getattr(function, "higher_is_better", True))
    return MeanMetric(reference, typed, higher_is_better=better, unit=str(getattr(function, "unit", "")))
