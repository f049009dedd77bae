"""The metrics by name. A metric judges outputs batch by batch; baseline and artifact each get their own.

    baseline = make_metric("agreement")
    artifact = make_metric("agreement", reference=baseline)      # compared with what the baseline saw

Besides the built-in ones, ``python:package.module:function`` names the user's own: it is called with
(outputs, targets), both name -> array with samples along the first axis and a plain ``y`` under "", and
returns one number per sample, or one number for the batch. Larger is better unless the function has an
attribute ``higher_is_better = False``; its attribute ``unit``, if any, is shown beside the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.data.agreement import Agreement, Joined
from deploy.data.dataset import Batch, Dataset
from deploy.data.python_ref import PREFIX, load_function
from deploy.data.rankings import Auc, MacroF1, MeanIoU, Spearman
from deploy.data.scores import (
    Judge,
    Judged,
    MeanMetric,
    Metric,
    Outputs,
    mse,
    psnr,
    top_k,
)
from deploy.data.source import nearest
from deploy.errors import DataError, DeployError, UsageError
from deploy.spec.tensors import TensorSpec


@dataclass(frozen=True)
class Setting:
    """What a metric may be told: the output it looks at, a label to skip (mean IoU), the baseline's metric
    that it is compared with and the outputs that are looked at in parts (agreement)."""

    output: str | None = None
    ignore_label: int | None = None
    reference: Metric | None = None
    joined: Joined | None = None


METRICS: dict[str, Callable[[Setting], Metric]] = {
    "top1": lambda s: top_k("top1", 1, s.output),
    "top5": lambda s: top_k("top5", 5, s.output),
    "macro_f1": lambda s: MacroF1(s.output),
    "mse": lambda s: mse(s.output),
    "psnr": lambda s: psnr(s.output),
    "miou": lambda s: MeanIoU(s.output, s.ignore_label),
    "auc": lambda s: Auc(s.output),
    "spearman": lambda s: Spearman(s.output),
    "agreement": lambda s: _agreement(s),
}


def make_metric(
    name: str,
    *,
    output: str | None = None,
    ignore_label: int | None = None,
    reference: Metric | None = None,
    root: Path | None = None,
    joined: Joined | None = None,
) -> Metric:
    """A fresh metric of that name.

    Only agreement looks at ``reference``, the metric that judged the float model on the same samples, and at
    the outputs that are ``joined`` of numbers of several kinds. ``root`` is where the user's modules are
    found. Raises UsageError for an unknown name.

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
    return METRICS[name](Setting(output, ignore_label, reference, joined))


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


def _agreement(s: Setting) -> Agreement:
    if s.reference is not None and not isinstance(s.reference, Agreement):
        raise ValueError("agreement is compared with the agreement metric of the float model")
    return Agreement(s.output, s.reference, s.joined)


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
