"""The rungs of the ladder that train: roundings, and quantization-aware training, within a time.

How much is done follows from the size of the network and the number of samples, not from the clock: a build
that is repeated comes to the same integers.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

from deploy.data.dataset import Dataset
from deploy.data.scores import Metric
from deploy.errors import missing_extra
from deploy.graph.blocks import Block
from deploy.graph.cost import macs
from deploy.progress import SILENT, Progress
from deploy.quantize.assign import Assignment
from deploy.quantize.correct import Corrected
from deploy.spec.profile import QuantRules

_SPEED = 4e9
"""Multiply-accumulates a second and thread that a step of training is planned with, there and back."""
_WORK = 5
"""Multiply-accumulates of a training step over those of one inference: there, back twice, the teacher, and as
much again for rounding what lies between."""
_NODE_SECONDS = 8e-3
"""What a node takes of a step besides: many small ones, as of a recurrent layer written out, are slow."""
_EPOCHS, _BATCH = 20, 32
_SAMPLES = 256
"""Samples that roundings are chosen by, at most."""


@dataclass(frozen=True)
class Retraining:
    """``seconds`` that each rung may take, by plan. ``train`` are samples to learn from, else the calibration
    samples; ``validation`` with ``metric`` judges the epochs, else a part of what is learned from."""

    seconds: float = 60.0
    train: Dataset | None = None
    validation: Dataset | None = None
    metric: Callable[[], Metric] | None = None
    root: Path | None = None
    seed: int = 0
    threads: int = 1
    progress: Progress = SILENT


PLANNED = Retraining()


@dataclass(frozen=True)
class Rounded:
    """The assignment with other integers for weights; ``places`` is in how many units they differ."""

    result: Assignment
    places: int


@dataclass(frozen=True)
class Learned:
    """What training made of graph and assignment; None, and ``why``, where it made nothing better."""

    result: Corrected | None
    places: int = 0
    why: str = ""


def rounded(
    graph: ir.Model,
    blocks: Sequence[Block],
    assignment: Assignment,
    rules: QuantRules,
    dataset: Dataset,
    settings: Retraining,
) -> Rounded:
    """Weights rounded to what they do to the network (train/round.py).

    Raises ToolchainError without PyTorch, and what `round_weights` raises.
    """
    _need_torch()
    from deploy.train.round import Rounding, round_weights

    wanted = Rounding(
        largest=rules.largest_weight,
        samples=_SAMPLES,
        seconds=settings.seconds,
        seed=settings.seed,
        threads=settings.threads,
    )
    found = round_weights(
        graph, blocks, assignment.tensors, assignment.codes, dataset, wanted, settings.progress
    )
    places = sum(unit.turned > 0 for unit in (*found.layers, *found.units))
    return Rounded(Assignment(found.tensors, found.codes), places)


def retrained(
    graph: ir.Model, assignment: Assignment, rules: QuantRules, dataset: Dataset, settings: Retraining
) -> Learned:
    """The graph trained with every block quantized (train/qat.py), the float graph its teacher.

    Raises ToolchainError without PyTorch, and what `train_quantized` raises.
    """
    samples = dataset if settings.train is None else settings.train
    epochs = planned_epochs(graph, len(samples), settings)
    if epochs < 1:
        return Learned(None, why=f"one epoch would take longer than the {settings.seconds:.0f} s it may take")
    _need_torch()
    from deploy.train.qat import careful, train_quantized

    labelled = settings.train is not None and settings.train.labelled
    with tempfile.TemporaryDirectory(prefix="deploy-train-") as work:
        found = train_quantized(
            graph,
            assignment.tensors,
            assignment.codes,
            careful(labelled=labelled, epochs=epochs, batch=_BATCH),
            train=samples,
            validation=settings.validation if labelled else None,
            metric=settings.metric if labelled else None,
            largest=rules.largest_weight,
            scale_type=rules.scale,
            root=settings.root,
            workdir=Path(work),
            seed=settings.seed,
            threads=settings.threads,
            progress=settings.progress,
        )
    if not found.better:
        return Learned(None, why=f"none of {epochs} epochs was better than the graph as it came")
    return Learned(Corrected(found.model, Assignment(found.tensors, found.codes)), len(found.codes))


def planned_epochs(graph: ir.Model, samples: int, settings: Retraining) -> int:
    """How often so many samples can be learned from in the time given, 20 at most."""
    computing = _WORK * (macs(graph) or 0) * samples / (_SPEED * settings.threads)
    seconds = computing + _NODE_SECONDS * len(graph.graph) * math.ceil(samples / _BATCH)
    return min(_EPOCHS, math.floor(settings.seconds / max(seconds, 1e-9)))


def _need_torch() -> None:
    if find_spec("torch") is None:
        raise missing_extra("PyTorch", "torch")
