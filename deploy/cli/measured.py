"""What was measured of a machine, drawn: a table for each runtime, the machine's figures, what to doubt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.adapter.overlays import TOO_NOISY, Kept
from deploy.bundle.report import figures
from deploy.cli.terminal import Cell, show_warning, write_facts, write_line, write_table
from deploy.errors import printable
from deploy.survey.table import ClassRow, class_rows, most_unsteady

if TYPE_CHECKING:
    from deploy.spec.overlay import Overlay, RuntimeCosts
    from deploy.spec.profile import Figure
    from deploy.spec.tensors import Precision

_TITLES: dict[str, str] = {"int8": "INT8"}
_KINDS = {"pays": "good", "slower": "bad", "could not be measured": "quiet"}


def as_json(overlay: Overlay) -> object:
    """The overlay as plain values."""
    return overlay.model_dump(mode="json", by_alias=True)


def classes_json(overlay: Overlay) -> dict[str, list[dict[str, object]]]:
    """The rows of the tables, by runtime."""
    return {runtime.name: [asdict(row) for row in class_rows(runtime)] for runtime in overlay.runtime}


def noise_warnings(overlay: Overlay) -> list[str]:
    """What to say of an overlay from a busy machine: how noisy, which classes most, between which times."""
    if overlay.noise <= TOO_NOISY:
        return []
    worst = [
        f"{u.runtime} {u.op} {u.precision}: spread {u.spread:.2f}; {u.worst.shape or 'one point'} takes "
        f"{figures.milliseconds(u.worst.ms)}, half of its runs between {figures.digits(u.interval[0])} and "
        f"{figures.milliseconds(u.interval[1])}"
        for u in most_unsteady(overlay)
    ]
    return [
        f"the machine was busy while it was measured: the median spread is {overlay.noise:.2f}, above "
        f"{TOO_NOISY:g} predictions are guesses; end what else runs and measure again with --fresh",
        *worst,
    ]


def warn(texts: Iterable[str], *, quiet: bool) -> None:
    """Each as a warning, unless nothing but errors is to be said."""
    if not quiet:
        for text in texts:
            show_warning(text)


def show_overlay(overlay: Overlay, paths: Sequence[Path]) -> None:
    """The machine, a table for each runtime, the machine's figures."""
    machine = overlay.machine
    about = f"{f'{machine.cpu}, ' if machine.device else ''}{machine.arch}, "
    about += figures.plural(machine.cores, "core")
    write_line((printable(machine.device or machine.cpu), "strong"), ("  " + printable(about), "quiet"))
    when = f"{overlay.date}, {'quick, ' if overlay.quick else ''}{figures.seconds(overlay.seconds)}"
    noisy = overlay.noise > TOO_NOISY
    facts: list[tuple[str, Cell]] = [
        ("measured", f"{when}, by the rules of {printable(overlay.profile)}"),
        ("spread", (f"{overlay.noise:.2f}, {'too busy to be believed' if noisy else 'calm'}",
                    "bad" if noisy else "")),
        ("features", printable(", ".join(machine.features)) or "none that matter"),
    ]  # fmt: skip
    facts += [("file" if index == 0 else "", str(path)) for index, path in enumerate(paths)]
    write_facts(facts, indent=2)
    for runtime in overlay.runtime:
        _show_runtime(runtime)
    if overlay.facts:
        write_line()
        write_line(("machine", "strong"))
        write_facts([(printable(key), _value(fact)) for key, fact in overlay.facts.items()], indent=2)


def show_kept(kept: Sequence[Kept]) -> None:
    """Measurements that are here besides, of other machines or out of date, a line each."""
    if not kept:
        return
    write_line()
    write_line(("also kept", "strong"), ("  (--show --of NAME)", "quiet"))
    rows = [
        (
            printable(k.overlay.machine.device or k.overlay.machine.cpu),
            f"{k.overlay.date}, {printable(_versions(k.overlay))}{', quick' if k.overlay.quick else ''}",
        )
        for k in kept
    ]
    write_facts(rows, indent=2)


def _show_runtime(runtime: RuntimeCosts) -> None:
    rows = class_rows(runtime)
    failed = sum(row.failed for row in rows)
    write_line()
    write_line(
        (f"runtime {printable(runtime.name)}", "strong"),
        f"  {printable(runtime.version)}, {figures.plural(runtime.threads, 'thread')}, "
        f"{figures.plural(len(runtime.cost), 'point')}",
        (f", {failed} that could not be measured" if failed else "", "quiet"),
    )
    precisions = list(dict.fromkeys(precision for row in rows for precision in row.speeds))
    others = [precision for precision in precisions if any(precision in row.gains for row in rows)]
    header = [
        "",
        "points",
        *(_title(p) for p in precisions),
        *(f"{_title(p)} gains" for p in others),
        "verdict on INT8",
    ]
    table: list[list[Cell]] = [
        [
            (row.op, "name"),
            str(row.points),
            *(_speed(row, precision) for precision in precisions),
            *(figures.times(row.gains[p]) if p in row.gains else "" for p in others),
            (row.int8, _KINDS.get(row.int8, "middling" if row.int8 else "")),
        ]
        for row in rows
    ]
    write_table(header, table, right=range(1, len(header) - 1))


def _title(precision: Precision) -> str:
    return _TITLES.get(precision, precision)


def _speed(row: ClassRow, precision: Precision) -> str:
    return f"{figures.digits(row.speeds[precision])} {row.unit}" if precision in row.speeds else ""


def _versions(overlay: Overlay) -> str:
    return ", ".join(f"{runtime.name} {runtime.version}" for runtime in overlay.runtime)


def _value(fact: Figure) -> str:
    if isinstance(fact.value, bool):
        return "yes" if fact.value else "no"
    return printable(f"{fact.value} {fact.unit}".rstrip())
