"""Compression: the recipe's steps, one after the other, graph in and graph out.

Each try of a step is kept in the cache by all that it depends on; what depends on the target goes in only for
steps that ask for it, so targets share the others. A build that was killed while it trained goes on from the
last checkpoint. What a step may cost is decided in `guard.py`, what it needs is asked in `recipe.py` before
any of them runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import onnx_ir as ir

from deploy.bundle.report import figures
from deploy.bundle.report.ablation import goal
from deploy.cache import Cache
from deploy.data.python_ref import code_digest
from deploy.errors import DeployError
from deploy.frontend.onnx_file import digest as graph_digest
from deploy.graph.edit import weight_bytes
from deploy.progress import Progress
from deploy.spec.ablation import Ablation, PlaceRecord, StepChoice, StepRecord
from deploy.spec.compression import LowRank, Prune, Shrink, Sparsify
from deploy.spec.document import digest, parse, render
from deploy.spec.finetune import Finetune
from deploy.spec.manifest import Lock
from deploy.spec.recipe import Step
from deploy.stages.capture import open_source
from deploy.stages.costs import costs_of
from deploy.stages.ground import alignment, ground_for, runner, sparsity_pays
from deploy.stages.guard import TRIES, Stretch, allowed, softened, softening, stretches, within
from deploy.stages.prepare import Prepared, advance, load
from deploy.stages.record import Record
from deploy.stages.request import Request, Roles
from deploy.stages.target import Target
from deploy.stages.training import CURVES, Training, training_of
from deploy.stages.yardstick import Judged, Yardstick

_BUSY = "another build is at the same step: waiting for what comes of it"
_RECORD, _JUDGED = "step.json", "judged.json"


@dataclass(frozen=True)
class _Work:
    """What all steps of one recipe share."""

    yard: Yardstick
    judged: Judged
    lock: Lock | None
    cache: Cache
    record: Record

    @property
    def request(self) -> Request:
        return self.yard.request

    @property
    def roles(self) -> Roles:
        return self.yard.roles

    @property
    def progress(self) -> Progress:
        return self.record.progress


@dataclass(frozen=True)
class _Tried:
    """A step that ran: what the graph is now, and what is to be said."""

    prepared: Prepared
    record: StepRecord


def compress(
    prepared: Prepared,
    target: Target,
    roles: Roles,
    request: Request,
    lock: Lock | None,
    cache: Cache,
    record: Record,
) -> Prepared:
    """The graph after all steps, with the record of what each won and cost; the one given without a recipe.

    Steps that cost too much are softened or undone, unless a ``lock`` says what became of them. Raises what
    the steps raise; of a preset's steps those that cannot work here are left out, and that is told.
    """
    steps = request.recipe.steps
    if not steps:
        return prepared
    yard = Yardstick(prepared, roles, request, target, costs_of(target, request.threads), record.progress)
    work = _Work(yard, _judged(yard, cache, record), lock, cache, record)
    every, made = tuple(stretches(steps)), list[_Tried]()
    lost = 0.0
    now = prepared
    for place, stretch in enumerate(every):
        choice = None if lock is None or lock.recipe is None else lock.recipe[stretch.number - 1]
        limit = allowed(stretch, every[place + 1 :], lost, request.budget.max_drop, yard.quantizes)
        tried = _settled(work, stretch, now, lost, limit, choice)
        made += tried
        if tried and tried[-1].record.kept:
            now = tried[-1].prepared
            lost = tried[-1].record.figures.drop or 0.0
    return replace(now, ablation=_ablation(work, made))


def choices(ablation: Ablation, steps: Sequence[Step]) -> tuple[StepChoice, ...]:
    """What became of every step, for a lock."""
    kept = {record.number: record for record in ablation.steps if record.kept}
    return tuple(
        StepChoice(
            step=step.step,
            softened=0 if number not in kept else kept[number].softened,
            share=1.0 if number not in kept else kept[number].share,
            protect=_left_out(kept[number]) if number in kept else (),
            kept=number in kept,
        )
        for number, step in enumerate(steps, 1)
    )


def _left_out(record: StepRecord) -> tuple[str, ...]:
    """The layers that a step was softened by."""
    return record.step.protect if isinstance(record.step, Sparsify) and record.softened else ()


def _settled(
    work: _Work, stretch: Stretch, before: Prepared, lost: float, limit: float, choice: StepChoice | None
) -> list[_Tried]:
    """All tries of a step and of the trainings behind it; the last ones are kept if any are."""
    if choice is not None:
        return _replayed(work, stretch, before, limit, choice)
    name = f"step {stretch.number} ({stretch.head.step})"
    tried = _tries(work, stretch, stretch.head, 0, before)
    cost = _cost(tried, lost)
    if not tried or not stretch.guarded or cost is None or within(cost, limit):
        return [_with(one, limit if stretch.guarded else None, "") for one in tried]
    undone = [_with(one, limit, _too_much(work, cost, limit)) for one in tried]
    search = softening(stretch.head, weight_bytes(before.clean), undone[0].record.places)
    best: list[_Tried] = []
    for times in range(1, TRIES):
        head = search.next()
        if head is None:
            break
        why = "more of it may hold" if best else undone[-1].record.undone
        work.progress.warn(f"{name} is tried again with {goal(head)}: {why}")
        tried = _tries(work, stretch, head, times, before, search.share)
        cost = _cost(tried, lost)
        held = cost is not None and within(cost, limit)
        search.judged(held)
        if held:
            undone += (_with(one, limit, "more of it holds") for one in best)
            best = [_with(one, limit, "") for one in tried]
        elif cost is not None:
            undone += (_with(one, limit, _too_much(work, cost, limit)) for one in tried)
    if not best:
        work.progress.warn(f"{name} is left out: {undone[-1].record.undone}")
    return [*undone, *best]


def _replayed(
    work: _Work, stretch: Stretch, before: Prepared, limit: float, choice: StepChoice
) -> list[_Tried]:
    """A step and its trainings as a lock has them; nothing where they were left out."""
    if not choice.kept:
        return []
    head = softened(stretch.head, choice.share, weight_bytes(before.clean))
    if isinstance(head, Sparsify) and choice.softened:
        head = head.model_copy(update={"protect": choice.protect})
    tried = _tries(work, stretch, head, choice.softened, before, choice.share)
    return [_with(one, limit if stretch.guarded else None, "") for one in tried]


def _too_much(work: _Work, cost: float, limit: float) -> str:
    unit = work.judged.unit
    return f"it costs {figures.difference(cost, unit)} where {figures.difference(limit, unit)} is allowed"


def _with(tried: _Tried, limit: float | None, undone: str) -> _Tried:
    changed = tried.record.model_copy(update={"allowed": limit, "undone": undone})
    return replace(tried, record=changed)


def _cost(tried: Sequence[_Tried], lost: float) -> float | None:
    """What a step and its trainings have lost; None where nothing tells."""
    drop = tried[-1].record.figures.drop if tried else None
    return None if drop is None else drop - lost


def _tries(
    work: _Work, stretch: Stretch, head: Step, times: int, before: Prepared, share: float = 1.0
) -> list[_Tried]:
    """A step and the trainings behind it, once. Of a preset nothing where it cannot work here."""
    found: list[_Tried] = []
    for offset, step in enumerate((head, *stretch.trainings)):
        now = found[-1].prepared if found else before
        try:
            one = _once(work, stretch.number + offset, step, times, now)
            if not offset:
                one = replace(one, record=one.record.model_copy(update={"share": share}))
            found.append(one)
        except DeployError as e:
            if work.request.recipe.preset is None:
                raise
            work.progress.warn(f"{step.step} is left out of the recipe: {e.message}")
            break
    return found


def _once(work: _Work, number: int, step: Step, times: int, before: Prepared) -> _Tried:
    """One step, from the cache where it ran before."""
    with work.record.stage(step.step) as stage:
        teachers = _teachers(work, step)
        key = _key(work, step, before, teachers)
        with work.cache.alone(key, lambda: work.progress.note(_BUSY)) as folder:
            write = partial(_write, work, step, before, teachers, folder)
            entry, stage.cached = work.cache.fetch(key, write)
        record = parse(StepRecord, (entry / _RECORD).read_text(), origin=entry / _RECORD)
        record = record.model_copy(update={"number": number, "softened": times})
        after = load(entry)
        stem = f"{number}-{step.step}" + (f"-softened-{times}" if times else "")
        curves = [(_named(stem, path), path) for path in sorted((entry / CURVES).glob("*"))]
        drop = record.figures.drop
        unit = work.judged.unit
        lost = f", {figures.signed(-drop, unit)}" if drop else ""
        stage.outcome = f"{record.told or goal(step)}{lost}"
    return _Tried(replace(after, curves=(*before.curves, *curves)), record)


def _named(stem: str, path: Path) -> str:
    """How a curve is called in the bundle: by its step, and by its number where a step trains often."""
    return f"{stem}{path.suffix}" if path.stem == "1" else f"{stem}-{path.name}"


def _write(
    work: _Work,
    step: Step,
    before: Prepared,
    teachers: tuple[ir.Model, ...],
    kept: Path,
    folder: Path,
) -> None:
    """Run a step; ``kept`` outlives a build that is killed, ``folder`` becomes the entry of the cache."""
    request, begin = work.request, time.perf_counter()
    tune = Training(
        request=request,
        roles=work.roles,
        teachers=teachers,
        work=kept,
        curves=folder / CURVES,
        progress=work.progress,
    )
    result = runner(step)(step, before.clean, ground_for(work.yard, tune, kept, teachers))
    clean, fused = advance(before, result.model, folder, request.threads)
    record = StepRecord(
        number=1,
        step=step,
        figures=work.yard.figures(clean, fused),
        told=result.told,
        places=tuple(
            PlaceRecord(
                place=row.place,
                what=row.what,
                kept=row.kept,
                before=_measured(row.before),
                after=_measured(row.after),
                rise=_measured(row.rise),
            )
            for row in result.rows
        ),
        shared=result.shared,
        seconds=round(time.perf_counter() - begin, 3),
    )
    (folder / _RECORD).write_text(render(record))


def _measured(error: float) -> float | None:
    return None if math.isnan(error) else error


def _teachers(work: _Work, step: Step) -> tuple[ir.Model, ...]:
    """Who teaches: other sources, read like the one that is built, else the graph before the recipe; nobody
    where nothing is distilled. They are part of the step's key, since a file may change and keep its name."""
    trains, request = training_of(step), work.request
    if trains is None or trains.distill is None:
        return ()
    opened = (
        open_source(
            name, root=request.root, shapes={}, seed=request.seed, cache=work.cache, progress=work.progress
        )
        for name in trains.distill.teachers
    )
    return tuple(one.source.model for one in opened) or (work.yard.before.clean,)


def _key(work: _Work, step: Step, before: Prepared, teachers: tuple[ir.Model, ...]) -> str:
    """All that the result of a step depends on, and nothing else."""
    request, roles, trains = work.request, work.roles, training_of(step)
    parts: dict[str, object] = {}
    if trains is not None:
        parts["loss"] = code_digest(trains.loss, request.root)
        parts["teachers"] = [graph_digest(teacher) for teacher in teachers]
    looks = isinstance(step, Prune) and step.criterion == "taylor"
    if trains is not None or looks or (isinstance(step, Sparsify) and step.tune):
        parts["train"] = None if roles.train is None else roles.train.digest
    if not isinstance(step, Finetune):
        parts["samples"] = None if roles.calibration is None else roles.calibration.digest
    if isinstance(step, Prune | Shrink | LowRank) and step.align is None:
        parts["align"] = alignment(work.yard.target)
    if isinstance(step, Sparsify):
        parts["pays"] = sparsity_pays(work.yard.target)
    if isinstance(step, Prune) and step.latency is not None:
        parts["costs"] = [work.yard.foresight.key, digest(work.yard.target.profile), request.precision]
        parts["runtimes"] = [route.runtime.name for route in work.yard.target.routes]
    return work.cache.key(
        "compress",
        graph=before.facts.clean_sha256,
        before=work.yard.before.facts.clean_sha256,
        step=digest(step),
        validation=None if roles.validation is None else roles.validation.digest,
        metric=digest(request.metric),
        metric_code=code_digest(request.metric.name, request.root),
        seed=request.seed,
        threads=request.threads,
        torch=version("torch") if find_spec("torch") else "",
        **parts,
    )


def _judged(yard: Yardstick, cache: Cache, record: Record) -> Judged:
    """The graph before the recipe, scored once."""
    request, validation = yard.request, yard.roles.validation
    key = cache.key(
        "judged",
        graph=yard.before.facts.fused_sha256,
        validation=None if validation is None else validation.digest,
        metric=digest(request.metric),
        metric_code=code_digest(request.metric.name, request.root),
    )
    with record.stage("score") as stage:
        folder, stage.cached = cache.fetch(
            key, lambda new: cast(None, (new / _JUDGED).write_text(render(yard.judged())))
        )
        found = parse(Judged, (folder / _JUDGED).read_text(), origin=folder / _JUDGED)
        score = found.figures.score
        stage.outcome = "no samples to judge by" if score is None else figures.score(score, found.unit)
    return found


def _ablation(work: _Work, made: Sequence[_Tried]) -> Ablation:
    """The record of all steps, with their bytes on the target and the times of the graphs that are kept."""
    kept = [tried for tried in made if tried.record.kept]
    ms, basis = work.yard.times([work.yard.before.clean, *(tried.prepared.clean for tried in kept)])
    took = dict(zip((id(tried) for tried in kept), ms[1:], strict=True))
    records = []
    for tried in made:  # what belongs to a target is found here: others may share the tries
        own = {
            "latency_ms": took.get(id(tried)),
            "weight_bytes": work.yard.stored_bytes(tried.prepared.fused),
        }
        figured = tried.record.figures.model_copy(update=own)
        records.append(tried.record.model_copy(update={"figures": figured}))
    begin = {"latency_ms": ms[0], "weight_bytes": work.yard.stored_bytes(work.yard.before.fused)}
    judged, roles = work.judged, work.roles
    role = (
        "random" if roles.random else "calibration" if roles.validation is roles.calibration else "validation"
    )
    return Ablation(
        metric=judged.metric,
        unit=judged.unit,
        higher_is_better=judged.higher_is_better,
        role=role if judged.metric else "",
        samples=0 if roles.validation is None else len(roles.validation),
        basis=basis,
        before=judged.figures.model_copy(update=begin),
        steps=tuple(records),
    )
