"""Quantization-aware training: the quantized graph itself is finetuned, and what it learned becomes a plan.

The loop, its order of samples, checkpoints and validation are those of `finetune`; what trains is the graph
of `learned.py`. The float graph teaches. Without labels it alone does, on whatever samples there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from deploy.data.dataset import Batch, Dataset, split
from deploy.data.scores import Judged, MeanMetric, Metric, Outputs
from deploy.execute.module import GraphModule
from deploy.progress import SILENT, Progress
from deploy.spec.finetune import Distill, Finetune
from deploy.spec.plan import TensorPlan
from deploy.train.finetune import Trained, finetune
from deploy.train.learned import ScaleType, learnable, read_back
from deploy.train.score import MakeMetric
from deploy.train.score import tensors as in_torch

_RATE, _RATE_ALONE = 2e-4, 1e-4
"""Learning rates, 5 and 10 times lower than that of finetuning: with a training set, and on calibration
samples alone, where more undoes a rounding that was chosen well."""
_HELD_OUT = 0.2
"""Share of samples that judge the epochs where no others were given."""


@dataclass(frozen=True)
class Retrained:
    """The float graph, the plan's tensors and the integers of its constants, as they were learned together.

    ``trained`` holds scores and history: the score before is that of the plan as it came. ``better`` is
    whether an epoch beat it; if none did everything is as it came, but for the last bit of scales.
    """

    model: ir.Model
    tensors: dict[str, TensorPlan]
    codes: dict[str, np.ndarray]
    trained: Trained

    @property
    def better(self) -> bool:
        return self.trained.best > 0


def careful(*, labelled: bool, epochs: int = 20, batch: int = 32) -> Finetune:
    """Settings for this: Adam, a low learning rate, weights that do not decay, the float graph as teacher of
    half the loss, or of all of it without labels.

    What learns is of size 1, so the rate is the share by which it changes in a step: five times as much suits
    weights that are far from right, as 4 bits rounded to nearest.
    """
    return Finetune(
        epochs=epochs,
        batch=batch,
        optimizer="adamw",
        lr=_RATE if labelled else _RATE_ALONE,
        weight_decay=0.0,
        distill=Distill(alpha=0.5 if labelled else 0.0),
    )


def train_quantized(
    model: ir.Model,
    tensors: Mapping[str, TensorPlan],
    codes: Mapping[str, np.ndarray],
    step: Finetune,
    *,
    train: Dataset,
    validation: Dataset | None = None,
    metric: MakeMetric | None = None,
    largest: int = 127,
    scale_type: ScaleType = "float32",
    learn_scales: bool = True,
    root: Path | None = None,
    workdir: Path,
    seed: int = 0,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Retrained:
    """Train what ``tensors`` and ``codes`` make of the float graph ``model``, batch norm folded.

    ``largest`` is the greatest code of a weight, ``scale_type`` what scales are stored in; shared and
    prescribed parameters, zero points and the scales of biases stay what the plan's rules ask for. Epochs are
    judged by ``validation`` with ``metric``; without such data by a fifth of ``train``, which is then held
    out, and by how near the outputs are to the float graph's. Raises UsageError for a plan with parameters
    of single readers, and what `finetune` raises.
    """
    learned = learnable(
        model, tensors, codes, largest=largest, scale_type=scale_type, learn_scales=learn_scales
    )
    if validation is None:
        validation, train = split(train, _HELD_OUT, seed)
        metric = nearness(model)
    trained = finetune(
        learned.model,
        step,
        train=train,
        validation=validation,
        teachers=() if step.distill is None else (model,),
        metric=metric,
        root=root,
        workdir=workdir,
        seed=seed,
        threads=threads,
        prepare=learned.prepare,
        progress=progress,
    )
    found, plans, integers = read_back(trained.model, learned, model)
    return Retrained(found, plans, integers, trained)


def nearness(model: ir.Model) -> Callable[[], Metric]:
    """A metric that compares outputs with those of the float graph ``model``: the mean square of the
    difference over that of the output, a mean over samples and outputs. Smaller is better; labels are not
    looked at."""
    module = GraphModule(model, trainable=lambda _: False)

    def judge(outputs: Outputs, batch: Batch) -> Judged:
        with torch.no_grad():
            exact = module(in_torch(batch.feeds, torch.device("cpu")))
        parts = []
        for name, value in exact.items():
            if value.is_floating_point() and value.ndim and len(value) == len(batch):
                wanted = value.double().reshape(len(batch), -1).numpy()
                found = np.asarray(outputs[name], np.float64).reshape(len(batch), -1)
                parts.append(((found - wanted) ** 2).mean(1) / max((wanted**2).mean(), 1e-12))
        return Judged(np.mean(parts, axis=0) if parts else np.zeros(len(batch)))

    return lambda: MeanMetric("distance to the float graph", judge, higher_is_better=False)
