"""Predicted against measured latency of one model: what the cost model is worth on this machine.

For every runtime of the target the float build and the one in INT8 throughout are made, timed in turn, and
predicted from the machine's overlay, whole and block by block.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deploy.cache import scratch
from deploy.errors import UsageError
from deploy.measure.blocks import block_times
from deploy.measure.latency import TimingPlan
from deploy.predict.kernels import UnknownSizeError
from deploy.predict.latency import Costs, Prediction, UnknownCostError, predict
from deploy.progress import Progress
from deploy.quantize.candidate import Candidate, Subject, build_candidate
from deploy.spec.tensors import Precision
from deploy.stages import steps
from deploy.stages.baseline import Contender, race
from deploy.stages.job import Ingredients, Job, open_job
from deploy.stages.legalize import legalize
from deploy.stages.record import Record, open_cache
from deploy.stages.request import Request
from deploy.stages.target import find_target

_PLAN = TimingPlan(seconds=1.0)


@dataclass(frozen=True)
class Row:
    """One build of the model on one runtime, in milliseconds.

    ``measured`` is what one run of twenty stays below: the machine undisturbed, as the points of an overlay
    are. ``quartiles`` are what half of the runs lie between. ``blocks`` are (id, predicted, measured by the
    runtime's own profiler or None).
    """

    runtime: str
    precision: Precision
    prediction: Prediction
    measured: float
    quartiles: tuple[float, float]
    blocks: tuple[tuple[str, float, float | None], ...]

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.prediction.ms / self.measured - 1

    @property
    def spread(self) -> float:
        """Interquartile range over the middle between the quartiles: above 0.2 the machine was disturbed."""
        low, high = self.quartiles
        return 2 * (high - low) / (high + low)


@dataclass(frozen=True)
class Check:
    """``rows`` by runtime and precision; ``skipped`` says of runtimes why they are not among them."""

    model: str
    rows: tuple[Row, ...]
    skipped: tuple[str, ...] = ()

    @property
    def median_error(self) -> float:
        """Of the absolute errors."""
        return statistics.median(abs(row.error) for row in self.rows) if self.rows else math.nan


def check(request: Request, costs: Mapping[str, Costs], progress: Progress) -> Check:
    """Build, time and predict ``request.source`` for the request's target on each runtime in ``costs``.

    Raises what a build raises, and UsageError where a size is free that times depend on, or nothing like one
    of the model's kernels was measured.
    """
    record = Record(progress)
    target = find_target(request.target, request.runtime)
    with open_cache(request.cache, progress) as cache:
        source = steps.read_source(request, cache, record)
        prepared = steps.clean(source, request, cache, record)
        baseline = steps.baseline(source, prepared)
        roles = steps.open_data(prepared, request, record)
        prepared = legalize(target, prepared, request.threads, cache, record)
        able = steps.check(target, prepared, request, record)
        made_of = Ingredients(able, prepared, roles, request)
        calibrated = steps.calibrate(made_of, cache, record)
        with scratch("check") as work, record.stage("measure") as stage:
            job = open_job(made_of, baseline.artifact, calibrated, None, work, progress)
            measured = [subject for subject in job.subjects if subject.runtime.name in costs]
            rows = _rows(job, measured, costs)
            stage.outcome = f"{len(rows)} builds"
    missing = sorted({s.runtime.name for s in job.subjects} - {s.runtime.name for s in measured})
    skipped = tuple(f"{name} was not measured on this machine" for name in missing)
    return Check(prepared.facts.source.name, rows, skipped)


def _rows(job: Job, subjects: list[Subject], costs: Mapping[str, Costs]) -> tuple[Row, ...]:
    built = [
        (subject, precision, build_candidate(subject, floats, job.work / subject.runtime.name / precision))
        for subject in subjects
        for precision, floats in _forms(subject)
    ]
    if not built:
        return ()
    feeds = job.one_inference(built[0][2].artifact)
    batch = len(next(iter(feeds.values())))
    predictions = [
        _predicted(subject, candidate, costs[subject.runtime.name], batch) for subject, _, candidate in built
    ]
    contenders = {
        f"{subject.runtime.name} {precision}": Contender(subject.backend, candidate.artifact, subject.options)
        for subject, precision, candidate in built
    }
    times = race(contenders, feeds, _PLAN)
    rows = []
    for (subject, precision, candidate), prediction in zip(built, predictions, strict=True):
        timing = times[f"{subject.runtime.name} {precision}"]
        fastest, low, high = (float(ms) for ms in np.percentile(timing.runs, [5, 25, 75]))
        rows.append(
            Row(
                runtime=subject.runtime.name,
                precision=precision,
                prediction=prediction,
                measured=fastest,
                quartiles=(low, high),
                blocks=_blocks(job, subject, candidate, prediction),
            )
        )
    return tuple(rows)


def _predicted(subject: Subject, candidate: Candidate, costs: Costs, batch: int) -> Prediction:
    try:
        return predict(subject.graph, candidate.plan.tensors, subject.runtime, costs, batch=batch)
    except UnknownSizeError as e:
        raise UsageError(
            f"a size is free at {e.node}, and what it takes depends on that",
            hint="fix the inputs' sizes: --shape NAME=SIZES (`deploy inspect MODEL` lists the inputs)",
        ) from e
    except UnknownCostError as e:
        raise UsageError(
            f"{subject.runtime.name}: {e}", hint="measure the machine again: deploy profile --fresh"
        ) from e


def _forms(subject: Subject) -> list[tuple[Precision, frozenset[str]]]:
    everything = frozenset(block.id for block in subject.blocks)
    forms: list[tuple[Precision, frozenset[str]]] = [(subject.float_precision, everything)]
    if subject.histograms and subject.int8_blocks():
        forms.append((subject.integer_precision, frozenset()))
    return forms


def _blocks(
    job: Job, subject: Subject, candidate: Candidate, prediction: Prediction
) -> tuple[tuple[str, float, float | None], ...]:
    feeds = job.one_inference(candidate.artifact)
    measured = block_times(
        candidate.qdq, subject.blocks, subject.backend, candidate.artifact, subject.options, feeds
    )
    predicted = prediction.by_block(subject.blocks)
    return tuple((block.id, predicted[block.id], measured.get(block.id)) for block in subject.blocks)
