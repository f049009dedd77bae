"""The rungs of the accuracy ladder as a table: what each won and cost, runtime by runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.bundle.report import figures
from deploy.spec.ladder import RungName, RungRecord

SPOKEN: dict[RungName, str] = {
    "ranges": "ranges chosen by error",
    "equalize": "channels equalized",
    "smooth": "outliers moved into weights",
    "correct": "biases corrected",
    "split": "shared scales split",
    "round": "weights rounded anew",
    "train": "trained while quantized",
    "wide": "activations of 16 bits",
}


@dataclass(frozen=True)
class RungRow:
    """One rung that was tried for one runtime."""

    runtime: str
    name: str
    places: str
    gain: str
    drop: str
    time: str
    outcome: str
    kept: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `HEADER`."""
        return self.runtime, self.name, self.places, self.gain, self.drop, self.time, self.outcome


HEADER = ("runtime", "rung", "places", "won", "drop then", "took", "outcome")
RIGHT = range(2, 6)
"""Columns of numbers."""


def rungs(records: Sequence[RungRecord], unit: str) -> tuple[RungRow, ...]:
    """The rows in the order in which they were climbed; ``unit`` is the metric's."""
    return tuple(_row(record, unit) for record in records)


def _row(record: RungRecord, unit: str) -> RungRow:
    return RungRow(
        runtime=record.runtime,
        name=SPOKEN[record.name],
        places=str(record.places) if record.places else "",
        gain=f"{record.gain_db:+.1f} dB".replace("-", "−") if record.places else "",
        drop="" if record.drop is None else figures.difference(record.drop, unit),
        time=f"{record.seconds:.1f} s",
        outcome="kept" if record.kept else record.why or "left out: under 0.5 dB",
        kept=record.kept,
    )
