"""What a report says, found once from a bundle's folder; how it looks is decided elsewhere.

A bundle may come from anywhere. Every text in a :class:`Report` has its control characters replaced, so that
no name can move a cursor, break a line or turn the reading direction; escaping for HTML or Markdown is left
to whoever writes these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Literal, TypeVar

from deploy.bundle.read import Bundle, load_lock, load_plan
from deploy.bundle.report import figures
from deploy.bundle.report.ablation import AblationTable, ablation
from deploy.bundle.report.blocks import Blocks, blocks
from deploy.bundle.report.explained import Whys, whys
from deploy.bundle.report.front import Front, front
from deploy.bundle.report.hardware import Hardware, hardware
from deploy.bundle.report.ladder import RungRow, rungs
from deploy.bundle.report.origin import Origin, origin
from deploy.bundle.report.running import Running, running
from deploy.bundle.report.summary import (
    Fact,
    Kind,
    Row,
    context,
    energy_note,
    reasons,
    rows,
    sentence,
)
from deploy.bundle.report.units import Unit, units
from deploy.errors import printable
from deploy.spec.manifest import Evaluation, KnownHazard, StageTime
from deploy.spec.measurement import Attempt

IN_SIGHT = 20
"""Blocks and classes that are shown at once; the rest is folded away."""

_NODES_NAMED = 6


@dataclass(frozen=True)
class AttemptRow:
    """One form of the model on the way to the artifact."""

    name: str
    runtime: str
    score: str
    drop: str
    size: str
    latency: str
    speed: str
    memory: str
    energy: str
    outcome: str
    chosen: bool


def weighings(attempts: Sequence[AttemptRow]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The columns that only some objectives fill, each with its head: memory and energy."""
    columns = (("memory", tuple(a.memory for a in attempts)), ("energy", tuple(a.energy for a in attempts)))
    return tuple((head, cells) for head, cells in columns if any(cells))


@dataclass(frozen=True)
class StageRow:
    """One stage of the build."""

    name: str
    time: str
    cached: bool


@dataclass(frozen=True)
class ClassRow:
    """One class of the metric; ``change`` is signed, below zero where the artifact is worse."""

    name: str
    before: str
    after: str
    change: str
    kind: Kind


@dataclass(frozen=True)
class HazardRow:
    """What was known of the model before the build, and of which nodes."""

    kind: str
    severity: Literal["note", "warning"]
    text: str
    nodes: str


@dataclass(frozen=True)
class Report:
    """Everything that a report says, in its order."""

    title: str
    target: str
    status: Literal["met", "missed", "float"]
    sentence: str
    reasons: tuple[str, ...]
    rows: tuple[Row, ...]
    context: tuple[Fact, ...]
    attempts: tuple[AttemptRow, ...]
    ablation: AblationTable
    front: Front
    rungs: tuple[RungRow, ...]
    stages: tuple[StageRow, ...]
    blocks: Blocks
    whys: Whys
    units: tuple[Unit, ...]
    classes: tuple[ClassRow, ...]
    notes: tuple[str, ...]
    hazards: tuple[HazardRow, ...]
    hardware: Hardware
    running: Running
    origin: Origin


def report(bundle: Bundle) -> Report:
    """The report of a bundle. Raises UsageError where a document of it is missing or damaged."""
    manifest, measured = bundle.manifest, bundle.measurements
    return cleaned(
        Report(
            title=manifest.source.name,
            target=manifest.target,
            status=manifest.verdict.status,
            sentence=sentence(bundle),
            reasons=reasons(bundle),
            rows=rows(bundle),
            context=context(bundle),
            attempts=_attempts(measured.attempts, manifest.evaluation),
            ablation=ablation(measured.compression, manifest.recipe.notes),
            front=front(measured, manifest.evaluation),
            rungs=rungs(measured.ladder, "" if manifest.evaluation is None else manifest.evaluation.unit),
            stages=tuple(_stage(stage) for stage in measured.stages),
            blocks=blocks(load_plan(bundle).blocks, measured.blocks),
            whys=explained_by(bundle),
            units=units(manifest.residency),
            classes=_classes(manifest.evaluation, manifest.classes),
            notes=manifest.notes,
            hazards=tuple(_hazard(hazard) for hazard in manifest.hazards),
            hardware=hardware(manifest, load_lock(bundle)),
            running=running(bundle),
            origin=origin(bundle),
        )
    )


def explained_by(bundle: Bundle) -> Whys:
    """Why each block is computed as it is. Its texts are as the bundle has them: see `cleaned`."""
    measured, scores = bundle.measurements, bundle.manifest.evaluation
    found = whys(measured.explained, measured.blocks, "" if scores is None else scores.unit)
    if measured.comparison is None or (used := measured.comparison.energy) is None:
        return found
    told = f"energy: {figures.joules(used.artifact)}, the file as given {figures.joules(used.baseline)}"
    return replace(found, notes=(*found.notes, f"{told}: {energy_note(measured.comparison)}"))


def _attempts(attempts: tuple[Attempt, ...], scores: Evaluation | None) -> tuple[AttemptRow, ...]:
    unit = "" if scores is None else scores.unit
    return tuple(
        AttemptRow(
            name=attempt.name,
            runtime=attempt.runtime,
            score="" if attempt.score is None else figures.score(attempt.score, unit),
            drop="" if attempt.drop is None else figures.signed(-attempt.drop, unit),
            size=figures.size(attempt.bytes),
            latency="" if attempt.latency_ms is None else figures.milliseconds(attempt.latency_ms.p50),
            speed="" if attempt.speed is None else figures.times(attempt.speed),
            memory="" if attempt.peak_memory_bytes is None else figures.size(attempt.peak_memory_bytes),
            energy="" if attempt.joules is None else figures.joules(attempt.joules),
            outcome=attempt.outcome,
            chosen=attempt.outcome == "chosen",
        )
        for attempt in attempts
    )


def _stage(stage: StageTime) -> StageRow:
    return StageRow(stage.name, figures.seconds(stage.seconds), stage.cached)


def _classes(scores: Evaluation | None, names: Sequence[str]) -> tuple[ClassRow, ...]:
    """The classes that lost most first, by name where one is known."""
    if scores is None:
        return ()
    sign = 1 if scores.higher_is_better else -1
    gains = {name: sign * (after - before) for name, (before, after) in scores.per_class.items()}
    return tuple(
        ClassRow(
            name=_class_name(name, names),
            before=figures.score(scores.per_class[name][0], scores.unit),
            after=figures.score(scores.per_class[name][1], scores.unit),
            change=figures.signed(gain, scores.unit),
            kind="good" if gain > 0 else "bad" if gain < 0 else "",
        )
        for name, gain in sorted(gains.items(), key=lambda item: item[1])
    )


def _class_name(key: str, names: Sequence[str]) -> str:
    """Classes are counted by number; nine digits number more of them than there are."""
    number = int(key) if key.isdecimal() and len(key) <= 9 else len(names)
    return f"{key} {names[number]}" if number < len(names) else key


def _hazard(hazard: KnownHazard) -> HazardRow:
    named = ", ".join(hazard.nodes[:_NODES_NAMED])
    more = len(hazard.nodes) - _NODES_NAMED
    return HazardRow(
        hazard.kind, hazard.severity, hazard.text, f"{named} and {more} more" if more > 0 else named
    )


ContentT = TypeVar("ContentT")


def cleaned(content: ContentT) -> ContentT:
    """``content`` with what does not print replaced in every text, as deep as it goes.

    Program text keeps its line ends: there a name is a literal, in which such characters are escaped already.
    """
    return _cleaned(content, keep="")


def _cleaned(content: ContentT, keep: str) -> ContentT:
    found: object = content
    if isinstance(content, str):
        found = printable(content, keep)
    elif isinstance(content, tuple):
        found = tuple(_cleaned(part, keep) for part in content)
    elif is_dataclass(content) and not isinstance(content, type):
        parts = {
            f.name: _cleaned(getattr(content, f.name), "\n" if f.name == "code" else keep)
            for f in fields(content)
        }
        found = replace(content, **parts)
    assert isinstance(found, type(content))
    return found
