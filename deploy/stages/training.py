"""Trainings of a recipe: with which data, metric and teachers, what is said of them, and their curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploy.compress.ground import Ground, StepResult
from deploy.data.dataset import Dataset
from deploy.data.metrics import make_metric
from deploy.data.scores import Metric
from deploy.errors import UsageError
from deploy.progress import Progress
from deploy.spec.finetune import Finetune
from deploy.spec.recipe import Step
from deploy.stages.request import Request, Roles

if TYPE_CHECKING:
    from deploy.train.curve import History
    from deploy.train.finetune import Prepare, Trained

CURVES = "training"
"""The folder of curves, in the cache entry and in the bundle."""


def training_of(step: Step) -> Finetune | None:
    """The training that a step is, or asks for between its rounds."""
    if isinstance(step, Finetune):
        return step
    return getattr(step, "finetune", None)


def validated_by(request: Request) -> Callable[[], Metric] | None:
    """What the project judges by, where that can be said without another model to compare with."""
    section = request.metric
    if section.name in ("auto", "agreement"):
        return None

    def make() -> Metric:
        return make_metric(
            section.name, output=section.output, ignore_label=section.ignore_label, root=request.root
        )

    return make


@dataclass
class Training:
    """Trains graphs for one step, as often as it is called: the `Tune` of its ground.

    Checkpoints lie in ``work``, a folder for each call, so that a step that was killed finds those of its
    trainings again; ``curves`` gets a table and a picture of each. ``told`` says what came of them.
    """

    roles: Roles
    request: Request
    teachers: Sequence[ir.Model]
    work: Path
    curves: Path
    progress: Progress
    told: list[str] = field(default_factory=list)

    def __call__(self, model: ir.Model, step: Finetune, prepare: Prepare | None = None, /) -> ir.Model:
        """Raises UsageError where there are no training data or a pattern names no weight, and what
        `train.finetune` raises."""
        from deploy.train.batchnorm import normalise
        from deploy.train.finetune import finetune
        from deploy.train.weights import require_weights

        roles, request, number = self.roles, self.request, len(self.told) + 1
        if roles.train is None:
            raise UsageError("there are no training data", hint="give --train samples.npz")
        require_weights(model, step.trainable)
        told = ""
        if step.batch_norm == "insert":
            normalised = normalise(model, roles.train, trainable=step.trainable, threads=request.threads)
            model = normalised.model
            if normalised.count:
                told = f"{normalised.count} batch norms put back, outputs moved by {normalised.change:.1g}; "
        trained = finetune(
            model,
            step,
            train=roles.train,
            validation=validation(roles),
            teachers=() if step.distill is None else self.teachers,
            metric=validated_by(request),
            root=request.root,
            workdir=self.work / f"training-{number}",
            seed=request.seed,
            threads=request.threads,
            prepare=prepare,
            progress=self.progress,
        )
        _save_curves(trained.history, self.curves / str(number), self.progress)
        epochs = len(trained.history.epochs) - (trained.before is not None)
        self.told.append(f"trained for {epochs} epochs: {told}{_scores(trained)}")
        return trained.model


def validation(roles: Roles) -> Dataset | None:
    """The samples that choose, if they have labels: without any nothing says which epoch is the best."""
    return roles.validation if roles.validation is not None and roles.validation.labelled else None


def check(step: Finetune, model: ir.Model, ground: Ground) -> None:
    """Raises UsageError where a pattern of trainable weights means none."""
    from deploy.train.weights import require_weights

    del ground
    require_weights(model, step.trainable)


def run(step: Finetune, model: ir.Model, ground: Ground) -> StepResult:
    """The step that is nothing but training."""
    trained = ground.tune(model, step)
    told = ground.tune.told[-1] if isinstance(ground.tune, Training) else ""
    return StepResult(trained, told)


def _save_curves(history: History, path: Path, progress: Progress) -> None:
    from deploy.train.curve import save_csv, save_picture

    path.parent.mkdir(parents=True, exist_ok=True)
    save_csv(history, path.with_suffix(".csv"))
    if find_spec("matplotlib"):
        save_picture(history, path.with_suffix(".svg"))
    else:
        progress.note("no picture of the training: pip install 'deploy-compiler[plots]'")


def _scores(trained: Trained) -> str:
    stopped = f"; {trained.stopped}" if trained.stopped else ""
    if trained.score is None or trained.before is None:
        return f"the last weights, not validated{stopped}" + (f"; {trained.worse}" if trained.worse else "")
    if trained.best == 0:
        return f"no epoch was better than the graph as it came, {trained.before:.4g}{stopped}"
    return f"{trained.before:.4g} became {trained.score:.4g} (epoch {trained.best}){stopped}"
