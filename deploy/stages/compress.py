"""Compression: the recipe's steps, one after the other, graph in and graph out, for all targets alike.

What a step trained on is part of its key; a build that was killed while it trained goes on from the last
checkpoint when it is started again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploy.cache import Cache
from deploy.data.dataset import Dataset
from deploy.data.metrics import make_metric
from deploy.data.python_ref import code_digest
from deploy.data.scores import Metric
from deploy.errors import UsageError, missing_extra
from deploy.frontend.onnx_file import digest as graph_digest
from deploy.graph.edit import weight_bytes
from deploy.progress import Progress
from deploy.spec.document import digest
from deploy.spec.finetune import Finetune
from deploy.spec.measurement import Attempt
from deploy.spec.recipe import Step
from deploy.stages.capture import open_source
from deploy.stages.prepare import Prepared, advance, load
from deploy.stages.record import Record
from deploy.stages.request import Request, Roles

if TYPE_CHECKING:
    from deploy.train.curve import History
    from deploy.train.finetune import Trained

_BUSY = "another build is at the same step: waiting for what comes of it"
TRAINING = "training"
"""The folder of curves, in the cache entry and in the bundle."""


@dataclass(frozen=True)
class Task:
    """One step with all that it works on."""

    step: Step
    prepared: Prepared
    teachers: tuple[ir.Model, ...]
    train: Dataset
    validation: Dataset | None
    request: Request
    record: Record
    work: Path
    """Keeps checkpoints; it outlives a build that is killed."""


@dataclass(frozen=True)
class Stepped:
    """What a step made, and what is to be said of it as a row of what was tried."""

    model: ir.Model
    attempt: Attempt


def compress(prepared: Prepared, roles: Roles, request: Request, cache: Cache, record: Record) -> Prepared:
    """The graph after all steps; the one given where there are none.

    Raises UsageError where a step lacks what it needs, and what the steps raise.
    """
    given = prepared.clean
    if request.recipe.steps and not find_spec("torch"):
        raise missing_extra("PyTorch", "torch")
    for number, step in enumerate(request.recipe.steps, 1):
        with record.stage(step.step) as stage:
            train = _require(prepared, roles, step)
            validation = (
                roles.validation if roles.validation is not None and roles.validation.labelled else None
            )
            teachers = _teachers(given, step, request, cache, record.progress)
            key = cache.key(
                "compress",
                graph=prepared.facts.clean_sha256,
                teachers=[graph_digest(teacher) for teacher in teachers],
                step=digest(step),
                code=code_digest(step.loss, request.root) if isinstance(step, Finetune) else "",
                train=train.digest,
                validation=None if validation is None else validation.digest,
                metric=digest(request.metric),
                metric_code=code_digest(request.metric.name, request.root),
                seed=request.seed,
                threads=request.threads,
                torch=version("torch"),
            )

            def write(folder: Path, task: Task, number: int = number) -> None:
                if (task.prepared.folder / TRAINING).is_dir():
                    shutil.copytree(task.prepared.folder / TRAINING, folder / TRAINING)
                done = _RUN[type(task.step)](task, folder / TRAINING / f"{number}-{task.step.step}")
                advance(task.prepared, done.model, done.attempt, folder, request.threads)

            with cache.alone(key, lambda: record.progress.note(_BUSY)) as work:
                task = Task(step, prepared, teachers, train, validation, request, record, work)
                folder, stage.cached = cache.fetch(key, partial(write, task=task))
            prepared = load(folder)
            stage.outcome = prepared.facts.steps[-1].outcome
    return prepared


def _require(prepared: Prepared, roles: Roles, step: Step) -> Dataset:
    if prepared.facts.imported:
        raise UsageError(
            f"[[recipe]] {step.step}: the model came quantized, and its integers are final",
            hint="hand in the float model that it was made from",
        )
    if type(step) not in _RUN:
        raise UsageError(
            f"[[recipe]] {step.step}: builds do not run this step yet",
            hint="leave it out",
        )
    if roles.train is None:
        raise UsageError(
            f"[[recipe]] {step.step}: there are no training data",
            hint='give --train samples.npz, or [data] train = "samples.npz" in deploy.toml',
        )
    return roles.train


def _teachers(
    given: ir.Model, step: Step, request: Request, cache: Cache, progress: Progress
) -> tuple[ir.Model, ...]:
    """Who teaches: other sources, read like the one that is built, else ``given``, the graph before the
    recipe. They are part of the step's key, since a file may change and keep its name."""
    if not isinstance(step, Finetune) or step.distill is None:
        return ()
    opened = (
        open_source(name, root=request.root, shapes={}, seed=request.seed, cache=cache, progress=progress)
        for name in step.distill.teachers
    )
    return tuple(one.source.model for one in opened) or (given,)


def _finetune(task: Task, curves: Path) -> Stepped:
    from deploy.train.batchnorm import normalise
    from deploy.train.finetune import finetune
    from deploy.train.weights import require_weights

    step, request = task.step, task.request
    assert isinstance(step, Finetune)
    model, told = task.prepared.clean, ""
    require_weights(model, step.trainable)
    if step.batch_norm == "insert":
        normalised = normalise(model, task.train, trainable=step.trainable, threads=request.threads)
        model = normalised.model
        told = f"{normalised.count} batch norms put back, outputs moved by {normalised.change:.1g}; "
    trained = finetune(
        model,
        step,
        train=task.train,
        validation=task.validation,
        teachers=task.teachers,
        metric=validated_by(request),
        root=request.root,
        workdir=task.work,
        seed=request.seed,
        threads=request.threads,
        progress=task.record.progress,
    )
    _save_curves(trained.history, curves, task.record.progress)
    attempt = Attempt(
        name=f"trained for {len(trained.history.epochs) - (trained.before is not None)} epochs",
        runtime="torch",
        bytes=weight_bytes(trained.model),
        score=trained.score,
        drop=None,
        outcome=told + _scores(trained),
    )
    return Stepped(trained.model, attempt)


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


_RUN: Mapping[type[Step], Callable[[Task, Path], Stepped]] = {Finetune: _finetune}
"""Step -> what runs it."""
