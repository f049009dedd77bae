"""What training makes small: cross-entropy, mean squared error, or the user's own function.

Whether a graph puts out scores or probabilities is read off its end. Where a Softmax or Sigmoid stands there,
the loss takes what it reads, since the logarithm of a rounded probability is worse than the score itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from deploy.data.dataset import Dataset
from deploy.data.python_ref import PREFIX, load_function
from deploy.errors import DataError, DeployError, UsageError
from deploy.graph.ends import scores as ending
from deploy.spec.finetune import Finetune

Kind = Literal["classes", "each", "values"]
"""One class of several; a yes or no for each class; numbers."""

_TINY = 1e-30
_CERTAIN = 1e-7

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Head:
    """An output that is trained. ``target`` is the key of its labels, None without.

    ``read`` is the value that the loss looks at: the output, or what its Softmax or Sigmoid reads.
    ``probabilities`` says that it holds such. ``axis`` counts classes.
    """

    output: str
    target: str | None
    kind: Kind
    read: str
    probabilities: bool
    axis: int

    def scores(self, results: Tensors) -> Tensor:
        """Scores (n, classes, positions) for classes, else of the value's own shape; at least float32."""
        found = results[self.read]
        found = found.float() if found.dtype in (torch.float16, torch.bfloat16) else found
        if self.kind == "classes":
            found = torch.log(found.clamp_min(_TINY)) if self.probabilities else found
            return found.movedim(self.axis, 1).reshape(len(found), found.shape[self.axis], -1)
        if self.kind == "each" and self.probabilities:
            return torch.logit(found, eps=_CERTAIN)
        return found


def heads(
    model: ir.Model, shapes: Mapping[str, Sequence[int]], targets: Mapping[str, np.ndarray], step: Finetune
) -> tuple[Head, ...]:
    """The outputs that have labels in ``targets`` (some samples' of them), or all without any labels.

    ``shapes`` are those of the outputs for as many samples. Raises DataError where labels do not fit.
    """
    floats = [v for v in model.graph.outputs if v.dtype is not None and v.dtype.is_floating_point()]
    names = [value.name or "" for value in floats]
    if not names:
        raise UsageError(
            "the model puts out whole numbers only, which cannot be trained",
            hint="cut off the argmax at its end",
        )
    pairs: list[tuple[str, str | None]] = [(name, name) for name in names if name in targets]
    if not pairs and targets:
        key = "" if "" in targets else next(iter(targets)) if len(targets) == 1 else None
        if key is None:
            listed = ", ".join(f"'y.{name}'" for name in targets)
            raise DataError(
                f"no labels fit an output of the model: there are {listed}, and outputs {', '.join(names)}",
                hint=f"save them under 'y.<output>', such as 'y.{names[0]}'",
            )
        pairs = [(names[0], key)]
    values = {value.name or "": value for value in floats}
    return tuple(
        _head(values[name], key, shapes[name], targets[key] if key is not None else None, step)
        for name, key in pairs or [(name, None) for name in names]
    )


def _head(
    value: ir.Value, key: str | None, shape: Sequence[int], target: np.ndarray | None, step: Finetune
) -> Head:
    name, how = value.name or "", ending(value)
    users = step.loss.startswith(PREFIX)  # its labels may be anything
    axis = class_axis(shape, None if target is None or users else target.shape)
    kind = _kind(how, shape, axis, target, step.loss)
    if kind == "classes" and axis is None:
        assert target is not None
        raise DataError(
            f"the labels of output '{name}' have shape {list(target.shape)}, the output {list(shape)}: "
            "there is no axis of classes between them",
            hint="give one class number per sample or position, or choose loss = 'mse'",
        )
    if kind != "classes" and target is not None and not users:
        one_hot = kind == "each" and axis is not None
        if not one_hot and _squeezed(shape) != _squeezed(target.shape):
            raise DataError(
                f"the labels of output '{name}' have shape {list(target.shape)}, the output {list(shape)}",
                hint="targets need the output's shape; class numbers need a loss of classes",
            )
    read, probabilities = name, False
    if kind != "values":
        read, probabilities = scores_before(value)
    return Head(name, key, kind, read, probabilities, 1 if axis is None else axis)


def _kind(how: str, shape: Sequence[int], axis: int | None, target: np.ndarray | None, loss: str) -> Kind:
    if loss == "mse":
        return "values"
    if how == "each":
        return "each"
    if loss == "cross_entropy":
        return "classes"
    if target is not None and loss == "auto":
        return "classes" if target.dtype.kind in "iub" and axis is not None else "values"
    if how != "unknown" or len(_squeezed(shape)) == 2:
        return "classes"
    return "values"


def scores_before(value: ir.Value) -> tuple[str, bool]:
    """The name of the value that holds an output's scores, and whether these are probabilities after all."""
    node = value.producer()
    if node is not None and node.op_type in ("Softmax", "Sigmoid") and node.inputs[0] is not None:
        return node.inputs[0].name or "", False
    return value.name or "", ending(value) in ("probabilities", "each")


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0], *(size for size in shape[1:] if size != 1)) if shape else ()


def class_axis(shape: Sequence[int], target: Sequence[int] | None) -> int | None:
    """The axis of ``shape`` that counts classes: the one that ``target`` lacks, 1 before the last.

    Targets of the same shape are taken for probabilities of classes. Without a target it is the only axis
    longer than 1, the last of three, the second of more.
    """
    if len(shape) < 2:
        return None
    if target is None:
        longer = [axis for axis in range(1, len(shape)) if shape[axis] > 1]
        return longer[0] if len(longer) == 1 else 2 if len(shape) == 3 else 1
    for axis in (1, len(shape) - 1):
        rest = [size for index, size in enumerate(shape) if index != axis]
        if _squeezed(rest) == _squeezed(target) and shape[axis] > 1:
            return axis
    return 1 if _squeezed(shape) == _squeezed(target) and shape[1] > 1 else None


Task = Callable[[Tensors, Tensors], Tensor]
"""From outputs and scores by name, and targets by key, to a loss, the mean over the samples."""


def make_task(found: Sequence[Head], step: Finetune, outputs: Sequence[str], root: Path | None) -> Task:
    """The loss on labels. Raises UsageError where the user's function is not found."""
    if step.loss.startswith(PREFIX):
        return _users(step.loss, tuple(outputs), root)

    def task(results: Tensors, targets: Tensors) -> Tensor:
        parts = [
            label_loss(head, results, targets[head.target], step) for head in found if head.target is not None
        ]
        return torch.stack(parts).sum()

    return task


def label_loss(head: Head, results: Tensors, target: Tensor, step: Finetune) -> Tensor:
    """The loss of one output; a mean over samples and positions."""
    scores = head.scores(results)
    if head.kind == "values":
        return functional.mse_loss(scores, target.to(scores.dtype).reshape(scores.shape))
    if head.kind == "each":
        if target.numel() != scores.numel():
            target = functional.one_hot(target.long(), scores.shape[head.axis]).movedim(-1, head.axis)
        return functional.binary_cross_entropy_with_logits(
            scores, target.to(scores.dtype).reshape(scores.shape)
        )
    smoothing = step.label_smoothing
    if target.is_floating_point():
        wanted = target.to(scores.dtype).movedim(head.axis, 1) if target.ndim > 2 else target.to(scores.dtype)
        return functional.cross_entropy(scores, wanted.reshape(scores.shape), label_smoothing=smoothing)
    classes = target.long().reshape(len(scores), -1)
    if step.ignore_label is None:
        return functional.cross_entropy(scores, classes, label_smoothing=smoothing)
    total = functional.cross_entropy(
        scores, classes, ignore_index=step.ignore_label, label_smoothing=smoothing, reduction="sum"
    )
    return total / (classes != step.ignore_label).sum().clamp_min(1)


def check_labels(
    dataset: Dataset, found: Sequence[Head], shapes: Mapping[str, Sequence[int]], step: Finetune
) -> None:
    """Every class number is one of the model's. Raises DataError naming the first sample that is not."""
    for head in found:
        if head.target is None or head.kind == "values" or step.loss.startswith(PREFIX):
            continue
        classes = shapes[head.output][head.axis]
        values = int(np.prod(shapes[head.output][1:]))
        for batch in dataset.batches(1024, feeds=False):
            target = batch.targets[head.target]
            if target.dtype.kind == "f" or (head.kind == "each" and target[0].size == values):
                break
            bad = (target < 0) | (target >= classes)
            if step.ignore_label is not None:
                bad &= target != step.ignore_label
            if bad.any():
                row, *_ = np.argwhere(bad)[0]
                raise DataError(
                    f"{dataset.origin}: sample {int(batch.ids[row])} has label {target[bad][0]}, but the "
                    f"model has classes 0 to {classes - 1}",
                    hint="count classes from 0; a label that means nothing goes into ignore_label",
                )


def _users(reference: str, outputs: tuple[str, ...], root: Path | None) -> Task:
    function = load_function(reference, root)

    def task(results: Tensors, targets: Tensors) -> Tensor:
        try:
            answer = function({name: results[name] for name in outputs}, dict(targets))
        except DeployError:
            raise
        except Exception as e:  # the user's function may raise anything
            raise DataError(
                f"{reference} failed: {type(e).__name__}: {e}",
                hint="it is called with (outputs, targets), both dictionaries of tensors",
            ) from e
        if not isinstance(answer, Tensor) or not answer.is_floating_point() or answer.ndim > 1:
            told = (
                f"{answer.dtype} {list(answer.shape)}"
                if isinstance(answer, Tensor)
                else type(answer).__name__
            )
            raise DataError(
                f"{reference} returned {told}", hint="return a tensor: one number, or one for each sample"
            )
        if not answer.requires_grad and torch.is_grad_enabled():
            raise DataError(
                f"{reference} returned a number that no output went into",
                hint="compute the loss with torch, without .item(), .detach() or numpy",
            )
        return answer.mean()

    return task
