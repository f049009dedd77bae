"""Recipes by name, as steps that fit the model, the data and the target.

    fast        no training: the channels that matter least, what is left refitted on samples
    balanced    a third of the work, trained on for a while with the model as it came as the teacher
    smallest    all but a quarter of the work, trained on for long; factors, and 2:4 where that pays

Without training data, or where the graph cannot be trained on them, steps take what can be had from samples,
whose answers by the model as it came are learned from in a few steps; without samples nothing is taken, since
nothing would tell what it costs.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from deploy.data.dataset import Dataset
from deploy.graph.groups import find_groups
from deploy.graph.shapes import model_inputs
from deploy.spec.compression import LowRank, Prune, Sparsify
from deploy.spec.finetune import Distill, Finetune
from deploy.spec.recipe import Preset, Recipe, Step

_TUNE = 200
"""Steps on samples where there are no training data: MLPerf's ResNet-8 less 30 % of its MACs is then right on
71.9 % of 2,000 images instead of 70.2 %."""


@dataclass(frozen=True)
class Means:
    """What there is to work with. ``samples``: whether there are real calibration samples; ``pays``: whether
    2:4 sparsity makes the target faster."""

    model: ir.Model
    samples: bool
    train: Dataset | None
    pays: bool
    target: str


def expand(preset: Preset, means: Means) -> Recipe:
    """The steps that a preset means here, and what it leaves out and why."""
    steps: list[Step] = []
    notes: list[str] = []
    why_not = _why_not_trained(means) if preset != "fast" else ""
    if why_not:
        notes.append(f"no finetuning: {why_not}")
    trains = preset != "fast" and not why_not
    if not means.samples and not trains:
        notes.append("nothing is taken away: there are no calibration samples to tell what that costs")
        return Recipe(preset=preset, notes=tuple(notes))
    if not _thins(means.model):
        notes.append("no pruning: no channels of this model can go")
    else:
        steps += _pruning(preset, means, trains)
    if preset == "smallest":
        if means.samples:
            steps.append(LowRank(lost=0.01, finetune=_training(means, 3) if trains else None))
        else:
            notes.append("no factors: there are no calibration samples to choose their ranks by")
    if means.pays and means.samples:
        steps.append(Sparsify(finetune=_training(means, 3) if trains else None))
    elif not means.pays:
        notes.append(f"no 2:4 sparsity: nothing on {means.target} is faster with it")
    return Recipe(preset=preset, steps=tuple(steps), notes=tuple(notes))


def _pruning(preset: Preset, means: Means, trains: bool) -> list[Step]:
    if not trains:
        share = {"fast": 0.2, "balanced": 0.3, "smallest": 0.5}[preset]
        return [Prune(macs=share, tune=0 if preset == "fast" else _TUNE)]
    share = 0.35 if preset == "balanced" else 0.75
    if preset == "balanced":
        return [_from_samples(means, share), _training(means, 8)]
    rounds = _from_samples(means, share).model_copy(update={"finetune": _training(means, 2)})
    return [rounds, _training(means, 20)]


def _from_samples(means: Means, share: float) -> Prune:
    if means.samples:
        return Prune(macs=share)
    return Prune(macs=share, criterion="l2", scope="global", compensate=False)


def _training(means: Means, epochs: int) -> Finetune:
    """Short trainings with the model before the recipe as the teacher; labels where there are some."""
    normed = any(node.op_type == "BatchNormalization" for node in means.model.graph)
    convolves = any(node.op_type == "Conv" for node in means.model.graph)
    labelled = means.train is not None and means.train.labelled
    return Finetune(
        epochs=epochs,
        lr=0.01 if normed or convolves else 1e-3,
        batch_norm="insert" if convolves and not normed else "train",
        distill=Distill(alpha=0.3 if labelled else 0.0),
    )


def _why_not_trained(means: Means) -> str:
    if means.train is None:
        return "there are no training data (--train)"
    fixed = [v.name for v in model_inputs(means.model) if v.shape and isinstance(v.shape[0], int)]
    if fixed:
        return f"the batch of input '{fixed[0]}' is fixed, so samples cannot be trained on together"
    return ""


def _thins(model: ir.Model) -> bool:
    return any(len(family.atoms) > 1 for family in find_groups(model).families)
