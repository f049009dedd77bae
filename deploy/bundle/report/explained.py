"""Why each block is computed as it is, as a table: milliseconds and points against the other form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.bundle.report import figures
from deploy.spec.explanation import Explained, Explanation
from deploy.spec.measurement import BlockTime


@dataclass(frozen=True)
class Why:
    """One block. ``instead`` is what the whole would take more in its other form; ``profiled`` what the
    runtime's profiler took of the float build and of the artifact."""

    id: str
    precision: str
    float_ms: str
    integer_ms: str
    changes: str
    instead: str
    profiled: str
    noise: str
    points: str
    reason: str

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADER`."""
        return (
            self.id, self.precision, self.float_ms, self.integer_ms, self.changes, self.instead,
            self.profiled, self.noise, self.points, self.reason,
        )  # fmt: skip


HEADER = (
    "block", "chosen", "float ms", "INT8 ms", "borders ms", "instead ms", "profiled", "noise", "points",
    "why",
)  # fmt: skip
RIGHT = range(2, 9)
"""Columns of numbers."""


@dataclass(frozen=True)
class Whys:
    """All blocks in the graph's order, and ``notes`` on what the figures are made of."""

    rows: tuple[Why, ...]
    notes: tuple[str, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        """The columns that say something of any block."""
        return tuple(i for i in range(len(HEADER)) if i < 2 or any(row.cells[i] for row in self.rows))

    @property
    def figures(self) -> tuple[int, ...]:
        """Of these columns those of figures and forms: what is neither the block's name nor a sentence."""
        return tuple(i for i in self.kept if 0 < i < len(HEADER) - 1)

    @property
    def known(self) -> bool:
        """Whether there is any number."""
        return any(i in RIGHT for i in self.kept)


def whys(explained: Explained, times: Sequence[BlockTime], unit: str) -> Whys:
    """The explanations beside the times that a profiler took; ``unit`` is the metric's."""
    taken = {time.id: time for time in times}
    rows = tuple(_row(block, taken.get(block.id), unit) for block in explained.blocks)
    return Whys(rows, tuple(_notes(explained, rows)))


def _row(block: Explanation, time: BlockTime | None, unit: str) -> Why:
    return Why(
        id=block.id,
        precision=block.precision,
        float_ms=_ms(block.float_ms),
        integer_ms=_ms(block.integer_ms),
        changes=_ms(block.changes_ms),
        instead="" if block.instead_ms is None else _signed(block.instead_ms),
        profiled=_profiled(time),
        noise="" if block.noise is None else _percent(block.noise),
        points="" if block.points is None else figures.difference(block.points, unit),
        reason=block.reason,
    )


def _notes(explained: Explained, rows: Sequence[Why]) -> list[str]:
    notes = []
    if explained.basis:
        whole = ""
        if explained.predicted_ms is not None:
            whole = f"; the whole artifact {figures.milliseconds(explained.predicted_ms)}"
        notes.append(
            f"float, INT8 and borders (changes of form) are by the costs of kernels, {explained.basis}{whole}"
        )
        notes.append("instead: what the whole would take more, were this block alone in the other form")
    elif explained.why_not:
        notes.append(f"no milliseconds by the costs of kernels: {explained.why_not}")
    if any(row.profiled for row in rows):
        notes.append(
            "profiled: milliseconds in the float build and in the artifact, by the runtime's own profiler"
        )
    if any(row.noise for row in rows):
        notes.append("noise: the block's share of what all blocks make where all that can be are INT8")
    if any(row.points for row in rows):
        notes.append("points: that share of the drop that was measured of the whole, not measured by block")
    return notes


def _ms(value: float | None) -> str:
    """With the decimals that tell small kernels apart, so that a column can be compared."""
    if value is None:
        return ""
    return f"{value:.4f}" if value < 1 else f"{value:.3f}" if value < 100 else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{_ms(abs(value))}"


def _profiled(time: BlockTime | None) -> str:
    if time is None or time.ms is None:
        return ""
    return _ms(time.ms) if time.float_ms is None else f"{_ms(time.float_ms)} → {_ms(time.ms)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
