"""The recipe as a table: what each step won and cost, and what was undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploy.bundle.report import figures
from deploy.spec.ablation import Ablation, Figures, StepRecord
from deploy.spec.compression import Cluster, LowRank, Prune, Shrink, Sparsify
from deploy.spec.finetune import Finetune
from deploy.spec.recipe import Step


@dataclass(frozen=True)
class AblationRow:
    """A graph: the one before the recipe, or what a step left. Figures have what the step changed behind
    them, in brackets."""

    name: str
    score: str
    drop: str
    macs: str
    parameters: str
    size: str
    latency: str
    time: str
    outcome: str
    kept: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADER`."""
        return (
            *(self.name, self.score, self.drop, self.macs, self.parameters),
            *(self.size, self.latency, self.time, self.outcome),
        )


@dataclass(frozen=True)
class AblationTable:
    """``basis`` says where milliseconds are from, ``judged`` on what the scores were taken; ``worst`` the
    classes that lost most over the whole recipe."""

    rows: tuple[AblationRow, ...] = ()
    judged: str = ""
    basis: str = ""
    worst: str = ""
    notes: tuple[str, ...] = ()

    @property
    def legend(self) -> tuple[str, ...]:
        """What the table rests on, and what a preset left out."""
        said = (
            f"scores: {self.judged}" if self.judged else "",
            f"latency: {self.basis}" if self.basis else "",
            f"classes that lost most: {self.worst}" if self.worst else "",
            *self.notes,
        )
        return tuple(text for text in said if text)


HEADER = ("step", "score", "change", "MACs", "parameters", "weights", "latency", "took", "outcome")
RIGHT = range(1, 8)
"""Columns of numbers."""
_WORST = 3


def ablation(found: Ablation | None, notes: tuple[str, ...] = ()) -> AblationTable:
    """The table of a recipe; empty where there was none. ``notes`` are what a preset left out."""
    if found is None:
        return AblationTable(notes=notes)
    rows = [_row("before", found.before, None, found.unit)]
    now = start = found.before
    for record in found.steps:
        name = f"{record.number} {record.step.step}: {goal(record.step)}"
        row = _row(name, record.figures, now, found.unit, record)
        rows.append(row)
        if record.kept:
            now = record.figures
    judged = ""
    if found.metric:
        judged = f"{found.metric} on {figures.plural(found.samples, f'{found.role} sample')}"
    return AblationTable(tuple(rows), judged, found.basis, _worst(start, now, found), notes)


def _row(
    name: str, now: Figures, before: Figures | None, unit: str, record: StepRecord | None = None
) -> AblationRow:
    undone = "" if record is None else record.undone
    outcome = "" if record is None else f"undone: {undone}" if undone else record.told or "kept"
    if record is not None and record.softened and not undone and not isinstance(record.step, Finetune):
        outcome = f"{_softer(record)}; {outcome}"
    return AblationRow(
        name=name,
        score="" if now.score is None else figures.score(now.score, unit),
        drop="" if now.drop is None or before is None else figures.signed(0.0 - now.drop, unit),
        macs=_change(now.macs, None if before is None else before.macs, figures.count),
        parameters=_change(now.parameters, None if before is None else before.parameters, figures.count),
        size=_change(now.weight_bytes, None if before is None else before.weight_bytes, figures.size),
        latency="" if now.latency_ms is None else figures.milliseconds(now.latency_ms),
        time="" if record is None else figures.seconds(record.seconds),
        outcome=outcome,
        kept=not undone,
    )


def _softer(record: StepRecord) -> str:
    """By what, where that is not said by the step itself."""
    return f"softened to {record.share:.0%} of the goal" if record.share < 1 else "softened"


def _change(now: int | None, before: int | None, told: Callable[[int], str]) -> str:
    if now is None:
        return ""
    if before is None or not before or now == before:
        return told(now)
    percent = 100 * (now / before - 1)
    return f"{told(now)} ({percent:+.0f} %)".replace("-", "−")


def _worst(before: Figures, after: Figures, found: Ablation) -> str:
    """The classes that lost most, where the metric has classes."""
    sign = 1 if found.higher_is_better else -1
    losses = {
        name: sign * (value - after.per_class[name])
        for name, value in before.per_class.items()
        if name in after.per_class
    }
    worst = sorted((name for name in losses if losses[name] > 0), key=lambda name: -losses[name])[:_WORST]
    return ", ".join(f"{name} {figures.signed(-losses[name], found.unit)}" for name in worst)


def goal(step: Step) -> str:
    """What a step aims at, in a few words, as deploy.toml would say it.

    >>> goal(Prune(macs=0.3)), goal(Cluster(centres=32)), goal(Sparsify(tolerance=0.05))
    ('macs = 0.3', 'centres = 32', '2:4, tolerance = 0.05')
    >>> goal(Sparsify(protect=("conv1", "fc")))
    '2:4 but for 2 layers'
    """
    match step:
        case Prune():
            return f"{step.goal} = {_number(getattr(step, step.goal))}"
        case Shrink():
            return f"width = {_number(step.width)}"
        case Sparsify(sparsity=float(sparsity)):
            return f"sparsity = {_number(sparsity)}"
        case Sparsify():
            less = f" but for {figures.plural(len(step.protect), 'layer')}" if step.protect else ""
            return f"2:4{less}" + (f", tolerance = {_number(step.tolerance)}" if step.tolerance else "")
        case LowRank():
            return f"lost = {_number(step.lost)}"
        case Cluster():
            return f"centres = {step.centres}"
        case Finetune():
            return f"epochs = {step.epochs}"


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
