"""What a step of a recipe stands on, and what it hands back: the frame that every step fills.

A step is a function ``run(step, model, ground)``, found by the table in `deploy/stages/recipe.py`:

    def run(step: Prune, model: ir.Model, ground: Ground) -> StepResult

``model`` is the clean graph with inferred shapes and batch norm as nodes; it stays as it is, and the result
is another graph with the same inputs and outputs. A step does what ``step`` says and no less: whether that
costs too much, and with which smaller goal it is tried again, is decided by who calls (`stages/recipe.py`).
What can be refused without running anything is refused by a function ``check(step, model, ground)`` in the
same module, where there is one; it raises UsageError, says the reasons and changes nothing.

Equal ``model``, ``step`` and ``ground`` give equal results: all randomness follows from ``ground.seed``, all
of torch runs with ``ground.threads`` (`train.finetune.reproducible`). A step may be killed at any time and is
then run again from its beginning; trainings that it asked for by ``ground.tune`` go on where they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

from deploy.compress.step import Step
from deploy.data.dataset import Dataset
from deploy.data.scores import Metric, Score
from deploy.errors import UsageError
from deploy.progress import SILENT, Progress
from deploy.spec.finetune import Finetune

if TYPE_CHECKING:
    from deploy.train.finetune import Prepare


class Tune(Protocol):
    """Trains a graph on between a step's rounds."""

    def __call__(self, model: ir.Model, step: Finetune, prepare: Prepare | None = None, /) -> ir.Model:
        """The graph with better weights, by the project's labels, metric and teachers. ``prepare`` is handed
        the module before training and gives what is called after every step. Raises UsageError where
        there are no training data, and what `train.finetune` raises."""


def _no_training(_model: ir.Model, _step: Finetune, _prepare: Prepare | None = None, /) -> ir.Model:
    raise UsageError("there are no training data", hint="leave finetune out of the step, or give --train")


def _unknown(_model: ir.Model) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Ground:
    """``samples`` are the calibration samples, of which a step takes the first ``step.samples``; ``train``
    and ``validation`` are labelled ones; None where there are none. ``given`` is the graph before the recipe,
    with the same inputs and outputs as every later one; ``teachers`` are those of the step's own training,
    else ``given``.

    ``score`` judges a graph on validation data by the project's metric, without labels by its agreement with
    ``given`` on ``samples``; ``drop`` says by how much that is worse than ``given``, in the metric's unit.
    Both are None where there are no samples at all. ``metric`` makes a fresh metric for labels, None where
    they and the outputs suggest one.

    ``latency`` is what the target is predicted to take for one inference, in ms, with integers wherever it
    can if the build quantizes; None where nothing is known of its kernels. It folds batch norm itself and
    takes some hundredths of a second. ``align`` is the multiple of channels that the target computes well, 1
    if any. ``pays`` says whether a runtime of the target is faster with 2:4 sparse weights, ``why`` says it
    in words.

    ``workdir`` outlives a build that is killed; it belongs to this step alone.
    """

    samples: Dataset | None
    given: ir.Model
    workdir: Path
    train: Dataset | None = None
    validation: Dataset | None = None
    teachers: tuple[ir.Model, ...] = ()
    score: Callable[[ir.Model], Score | None] = _unknown
    drop: Callable[[ir.Model], float | None] = _unknown
    metric: Callable[[], Metric] | None = None
    latency: Callable[[ir.Model], float | None] = _unknown
    tune: Tune = _no_training
    align: int = 1
    pays: bool = False
    why: str = ""
    seed: int = 0
    threads: int = 1
    root: Path | None = None
    progress: Progress = SILENT


@dataclass(frozen=True)
class StepResult:
    """``told`` says in a few words what was done, for the terminal and the report; ``rows`` say it place by
    place, in graph order.

    ``shared`` are weights that hold few different values, as a palette stores them.
    """

    model: ir.Model
    told: str = ""
    rows: tuple[Step, ...] = ()
    shared: tuple[str, ...] = ()
