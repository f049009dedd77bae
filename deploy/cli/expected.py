"""What a model would take on a target, drawn, for the commands that look before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.cli.terminal import Cell
    from deploy.stages.expected import Expectation


def expect(
    model: Path, target: str, shapes: Mapping[str, tuple[int, ...]], cache: Path | None
) -> Expectation:
    """As the first stages of a build do, from whose cache it comes. Raises what these raise."""
    from deploy.progress import SILENT
    from deploy.stages.expected import expected
    from deploy.stages.record import Record, open_cache
    from deploy.stages.request import Request

    request = Request(source=model, target=target, shapes=shapes, cache=cache)
    with open_cache(cache, SILENT) as store:
        return expected(request, Record(SILENT), store)


def expected_json(found: Expectation) -> dict[str, object]:
    """The predictions as plain values."""
    return {
        "target": found.target,
        "rows": [
            {
                "runtime": row.runtime,
                "form": row.form,
                "ms": row.prediction.ms,
                "interval_ms": None if row.least else list(row.prediction.interval),
                "least": row.least,
                "integer_blocks": row.integer_blocks,
                "blocks": row.blocks,
                "basis": row.basis,
            }
            for row in found.rows
        ],
        "notes": list(found.notes),
        "residency": [
            {"runtime": runtime, **told.model_dump(mode="json")} for runtime, told in found.residency
        ],
    }


def show_expected(found: Expectation) -> None:
    """A row for each form, and under the table where the figures are from."""
    from deploy.bundle.report import figures
    from deploy.cli.terminal import write_line, write_table
    from deploy.cli.units import show_units

    write_line()
    if found.rows:
        write_line((f"latency on {found.target}, predicted", "strong"), ("  one sample", "quiet"))
        rows: list[list[Cell]] = [
            [
                f"{row.runtime} {row.form}",
                f"{'at least ' if row.least else ''}{figures.milliseconds(row.prediction.ms)}",
                "unknown" if row.least else _between(row.prediction.interval),
                f"{row.integer_blocks} of {row.blocks}",
            ]
            for row in found.rows
        ]
        write_table(("", "predicted", "nine times of ten", "integer blocks"), rows, right=(1, 2, 3))
        for basis in dict.fromkeys(row.basis for row in found.rows):
            write_line((f"{', '.join(_runtimes(found, basis))}: {basis}", "quiet"))
    for note in found.notes:
        write_line((note, "quiet"))
    show_units([told for _, told in found.residency])


def _between(interval: tuple[float, float]) -> str:
    from deploy.bundle.report import figures

    return "{} to {}".format(*map(figures.digits, interval))


def _runtimes(found: Expectation, basis: str) -> list[str]:
    return list(dict.fromkeys(row.runtime for row in found.rows if row.basis == basis))
