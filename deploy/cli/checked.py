"""Predicted against measured latency, drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from deploy.bundle.report import figures
from deploy.cli.terminal import Cell, show_note, write_line, write_table

if TYPE_CHECKING:
    from deploy.survey.check import Check, Row

_NEAR, _FAR = 0.2, 0.5
"""Errors that are good, and that are bad."""


def as_json(check: Check) -> dict[str, object]:
    """The comparison as plain values."""
    return {
        "model": check.model,
        "median_error": None if math.isnan(check.median_error) else check.median_error,
        "rows": [
            {
                "runtime": row.runtime,
                "precision": row.precision,
                "predicted_ms": row.prediction.ms,
                "interval_ms": list(row.prediction.interval),
                "measured_ms": row.measured,
                "quartiles_ms": list(row.quartiles),
                "error": row.error,
                "blocks": [
                    {"id": name, "predicted_ms": predicted, "measured_ms": measured}
                    for name, predicted, measured in row.blocks
                ],
            }
            for row in check.rows
        ],
        "skipped": list(check.skipped),
    }


def show_check(check: Check) -> None:
    """Whole builds first, then each build block by block."""
    rows: list[list[Cell]] = [
        [
            f"{row.runtime} {row.precision}",
            figures.milliseconds(row.prediction.ms),
            "{} to {}".format(*map(figures.digits, row.prediction.interval)),
            figures.milliseconds(row.measured),
            _error(row.error),
        ]
        for row in check.rows
    ]
    write_table(("", "predicted", "nine times of ten", "measured", "error"), rows, right=(1, 2, 3, 4))
    write_line()
    if check.rows:
        write_line(f"median error {100 * check.median_error:.0f} %")
    for row in check.rows:
        _show_blocks(row)
    for reason in check.skipped:
        show_note(reason)


def _show_blocks(row: Row) -> None:
    write_line()
    write_line((f"{row.runtime} {row.precision}", "strong"))
    rows: list[list[Cell]] = [
        [
            (name, "name"),
            figures.milliseconds(predicted),
            "" if measured is None else figures.milliseconds(measured),
            _error(predicted / measured - 1) if measured else "",
        ]
        for name, predicted, measured in row.blocks
    ]
    write_table(("block", "predicted", "measured", "error"), rows, right=(1, 2, 3))


def _error(error: float) -> Cell:
    kind = "good" if abs(error) <= _NEAR else "bad" if abs(error) > _FAR else "middling"
    return f"{100 * error:+.0f} %", kind
