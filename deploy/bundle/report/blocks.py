"""The blocks with their precision, time and noise: where the time of one inference goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.bundle.report import figures
from deploy.spec.measurement import BlockTime
from deploy.spec.plan import BlockPlan
from deploy.spec.tensors import Precision

OUTSIDE = ""
"""The id under which times stand that belong to no block."""


@dataclass(frozen=True)
class BlockRow:
    """One block. Times are milliseconds of one inference, None where the runtime does not say."""

    id: str
    nodes: int
    precision: Precision
    ms: float | None
    float_ms: float | None
    noise: str
    reason: str

    @property
    def time(self) -> str:
        return _fixed(self.ms)

    @property
    def float_time(self) -> str:
        return _fixed(self.float_ms)


def _fixed(ms: float | None) -> str:
    """With the decimals that a profiler tells apart, so that a column of them can be compared."""
    return "" if ms is None else f"{ms:.3f}" if ms < 100 else f"{ms:.1f}"


@dataclass(frozen=True)
class Total:
    """All blocks of one precision."""

    precision: Precision
    blocks: int
    time: str


@dataclass(frozen=True)
class Blocks:
    """``rows`` are sorted, the longest first, or the noisiest where no times are known; ``in_order`` as the
    graph has them. ``outside`` is what belongs to no block: changes of layout and copies."""

    rows: tuple[BlockRow, ...]
    in_order: tuple[BlockRow, ...]
    totals: tuple[Total, ...]
    outside: str
    timed: bool
    compared: bool

    @property
    def judged(self) -> bool:
        """Whether noise was measured of any: of float builds and forms of weights alone it is not."""
        return any(row.noise for row in self.rows)

    @property
    def order(self) -> str:
        """By what ``rows`` are sorted, as an adjective; empty where they stand as the graph has them."""
        return "longest" if self.timed else "noisiest" if self.judged else ""

    @property
    def longest(self) -> float:
        """Milliseconds of the longest bar."""
        return max((ms for row in self.rows for ms in (row.ms, row.float_ms) if ms is not None), default=0.0)

    @property
    def span(self) -> float:
        """Milliseconds of all blocks one after the other, of the slower of the two builds."""
        return max(self.total, self.float_total)

    @property
    def total(self) -> float:
        return sum(row.ms or 0.0 for row in self.rows)

    @property
    def float_total(self) -> float:
        return sum(row.float_ms or 0.0 for row in self.rows)


def blocks(plan: Sequence[BlockPlan], times: Sequence[BlockTime]) -> Blocks:
    """The plan's blocks joined with the times taken of them."""
    taken = {time.id: time for time in times}
    nothing = BlockTime(id=OUTSIDE)
    in_order = tuple(_row(block, taken.get(block.id, nothing)) for block in plan)
    timed = any(row.ms is not None for row in in_order)
    noise = {block.id: float("inf") if block.sqnr_db is None else block.sqnr_db for block in plan}
    rows = sorted(in_order, key=lambda row: -(row.ms or 0.0) if timed else noise[row.id])
    outside = taken.get(OUTSIDE, nothing).ms
    return Blocks(
        rows=tuple(rows),
        in_order=in_order,
        totals=_totals(in_order, timed),
        outside="" if outside is None else figures.milliseconds(outside),
        timed=timed,
        compared=any(row.float_ms is not None for row in in_order),
    )


def _row(block: BlockPlan, time: BlockTime) -> BlockRow:
    return BlockRow(
        id=block.id,
        nodes=len(block.nodes),
        precision=block.precision,
        ms=time.ms,
        float_ms=time.float_ms,
        noise="" if block.sqnr_db is None else f"{block.sqnr_db:.1f} dB",
        reason=block.reason,
    )


def _totals(rows: Sequence[BlockRow], timed: bool) -> tuple[Total, ...]:
    found = []
    for precision in sorted({row.precision for row in rows}, reverse=True):
        members = [row for row in rows if row.precision == precision]
        time = figures.milliseconds(sum(row.ms or 0.0 for row in members)) if timed else ""
        found.append(Total(precision, len(members), time))
    return tuple(sorted(found, key=lambda total: total.precision != "int8"))
