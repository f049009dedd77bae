"""The whole report of a bundle in the terminal, in the order of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploy.bundle.report.content import IN_SIGHT, Report, weighings
from deploy.bundle.report.figures import plural
from deploy.bundle.report.ladder import HEADER, RIGHT, RungRow
from deploy.bundle.report.markdown import bar
from deploy.cli.explained import show_whys
from deploy.cli.result import show_result, write_all, write_files
from deploy.cli.terminal import Cell, write_facts, write_line, write_table, write_text
from deploy.cli.units import show_unit

if TYPE_CHECKING:
    from deploy.bundle.read import Bundle
    from deploy.bundle.report.blocks import Blocks


def show_report(bundle: Bundle, content: Report) -> None:
    """Everything that ``content`` says of ``bundle``, on stdout."""
    show_result(bundle)
    if content.attempts:
        _title("what was tried")
        _attempts(content)
    if content.rungs:
        _title("the accuracy ladder")
        _rungs(content.rungs)
    _title("blocks")
    _blocks(content.blocks)
    if content.whys.known:
        _title("why")
        show_whys(content.whys)
    for unit in content.units:
        _title(unit.title)
        show_unit(unit)
    if content.classes:
        _title("classes")
        shown = content.classes[:IN_SIGHT]
        lines: list[list[Cell]] = [[r.name, r.before, r.after, (r.change, r.kind)] for r in shown]
        write_table(("class", "float", "artifact", "change"), lines, right=(1, 2, 3))
        _more(content.classes, "classes")
    _title("hazards")
    _hazards(content)
    _title("hardware facts used")
    _hardware(content)
    _title("how to run it")
    _running(content)
    _title("origin")
    write_facts([("digest", content.origin.digest)])
    write_all([*content.origin.facts, *content.origin.toolchain])
    for command in content.origin.commands:
        write_line()
        write_line((f"to {command.what}", "quiet"))
        write_text(f"{command.code}\n")
    if content.stages:
        write_line()
        stages: list[list[Cell]] = [
            [s.name, s.time, ("cached" if s.cached else "", "quiet")] for s in content.stages
        ]
        write_table(("stage", "time", ""), stages, right=(1,))
    write_line()
    write_files(content.origin.files)


def _rungs(rows: Sequence[RungRow]) -> None:
    lines: list[list[Cell]] = [
        [*row.cells[:-1], (row.outcome, "good" if row.kept else "quiet")] for row in rows
    ]
    write_table(HEADER, lines, right=tuple(RIGHT))


def _title(text: str) -> None:
    write_line()
    write_line((text, "strong"))
    write_line()


def _more(rows: Sequence[object], what: str) -> None:
    if len(rows) > IN_SIGHT:
        write_line((f"and {len(rows) - IN_SIGHT} {what} more: --format html or markdown", "quiet"))


def _attempts(content: Report) -> None:
    weighed = weighings(content.attempts)
    lines: list[list[Cell]] = [
        [
            (row.name, "strong" if row.chosen else ""),
            row.runtime,
            row.score,
            row.drop,
            row.size,
            row.latency,
            row.speed,
            *(cells[i] for _, cells in weighed),
            (row.outcome, "good" if row.chosen else "quiet"),
        ]
        for i, row in enumerate(content.attempts)
    ]
    header = ("form", "runtime", "score", "change", "file", "p50", "speed")
    write_table((*header, *(head for head, _ in weighed), ""), lines, right=range(2, 7 + len(weighed)))


def _blocks(blocks: Blocks) -> None:
    for total in blocks.totals:
        time = f", {total.time}" if total.time else ""
        write_line(f"{total.precision}: {plural(total.blocks, 'block')}{time}")
    if blocks.outside:
        write_line(f"outside all blocks: {blocks.outside}")
    write_line()
    lines: list[list[Cell]] = [
        [
            *((row.id, "name"), row.precision, row.noise, row.float_time, row.time),
            *(bar(row, blocks.longest), (row.reason, "quiet")),
        ]
        for row in blocks.rows[:IN_SIGHT]
    ]
    header = ("block", "precision", "signal/noise", "float ms", "ms", "", "")
    told = blocks.judged, blocks.timed and blocks.compared, blocks.timed, blocks.timed
    kept = [0, 1, *(i + 2 for i, known in enumerate(told) if known)]
    kept += [6] if any(row.reason for row in blocks.rows) else []
    write_table(
        [header[i] for i in kept],
        [[line[i] for i in kept] for line in lines],
        right=[kept.index(i) for i in (2, 3, 4) if i in kept],
    )
    _more(blocks.rows, "blocks")


def _hazards(content: Report) -> None:
    for note in content.notes:
        write_line(note)
    rows: list[tuple[str, Cell]] = []
    for hazard in content.hazards:
        rows += [(hazard.kind, (hazard.nodes, "middling" if hazard.severity == "warning" else "name"))]
        rows += [("", hazard.text)]
    if rows:
        write_facts(rows)
    elif not content.notes:
        write_line(("✓ ", "good"), "none was seen in this model")


def _hardware(content: Report) -> None:
    found = content.hardware
    write_line(found.title, (f" ({found.caveat})" if found.caveat else "", "bad"))
    for group in found.groups:
        write_line()
        lines: list[list[Cell]] = [
            [fact.name, (fact.value, "quiet" if fact.unknown else ""), (fact.source, "quiet")]
            for fact in group.facts
        ]
        if group.source:
            write_table((group.name, ""), [line[:2] for line in lines])
            write_line((group.source, "quiet"))
        else:
            write_table((group.name, "", "source"), lines)
    for note in found.notes:
        write_line()
        write_line(note)


def _running(content: Report) -> None:
    running = content.running
    if running.note:
        write_line(running.note)
        write_line()
    rows: list[list[Cell]] = [
        [kind, (port.name, "name"), port.type, port.shape, port.layout, port.normalisation]
        for kind, ports in (("input", running.inputs), ("output", running.outputs))
        for port in ports
    ]
    write_table(("", "name", "type", "shape", "layout", "raw numbers x become"), rows)
    for snippet in running.snippets:
        write_line()
        write_line((snippet.language, "strong"), (f"  {snippet.file}", "quiet"))
        write_text(snippet.code)
