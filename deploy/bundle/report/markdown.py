"""The report as Markdown, in tables as GitHub draws them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from deploy.bundle.report import ablation, figures, ladder
from deploy.bundle.report.blocks import BlockRow, Blocks
from deploy.bundle.report.content import IN_SIGHT, ClassRow, Report, weighings
from deploy.bundle.report.explained import HEADER, RIGHT, Whys
from deploy.bundle.report.summary import Fact
from deploy.bundle.report.units import BLOCK_HEADER, RULE_HEADER, Unit

_SPECIAL = re.compile(
    r"([\\`*_{}\[\]<>#|~&$@]|^[-+=]|(?<=^www)\.|(?<=\Wwww)\.|:(?=//)|(?<=^\d)[.)](?=\s|$)|(?<=^\d\d)[.)](?=\s|$))",
    re.I,
)
"""What is markup anywhere, what is so at the start of a line, and what makes a link of an address."""

_RUNS = re.compile(r"`+")
_BAR = 24
"""Characters of the longest bar."""


def markdown(content: Report) -> str:
    """The whole report. Every text of the bundle is escaped: none becomes markup, a link or a tag."""
    return "\n".join(_lines(content)) + "\n"


def escaped(text: str) -> str:
    """``text`` as Markdown that reads as ``text``, whatever it holds."""
    return _SPECIAL.sub(r"\\\1", text)


def _lines(content: Report) -> Iterator[str]:
    yield f"# {escaped(content.title)} for {escaped(content.target)}"
    opening, _, rest = content.sentence.partition(":")
    yield from ("", f"**{escaped(opening)}:**{escaped(rest)}", "")
    yield from (f"- {escaped(reason)}" for reason in content.reasons)
    yield from ("", "## Float and artifact", "")
    rows = [(row.name, row.before, row.after, row.change) for row in content.rows]
    yield from _table(("", "float", "artifact", "change"), rows, right=(1, 2))
    yield from ("", *_facts(content.context))
    if content.attempts:
        yield from ("", "## What was tried", "")
        weighed = weighings(content.attempts)
        header = ("form", "runtime", "score", "change", "file", "p50", "speed")
        yield from _table(
            (*header, *(head for head, _ in weighed), "outcome"),
            [
                (
                    *(a.name, a.runtime, a.score, a.drop, a.size, a.latency, a.speed),
                    *(cells[i] for _, cells in weighed),
                    a.outcome,
                )
                for i, a in enumerate(content.attempts)
            ],
            right=range(2, 7 + len(weighed)),
        )
    yield from _compression(content)
    yield from _rungs(content)
    yield from _front(content)
    yield from _blocks(content.blocks)
    yield from _whys(content.whys)
    for unit in content.units:
        yield from _unit(unit)
    if content.classes:
        yield from ("", "## Classes", "", *_classes(content.classes[:IN_SIGHT]))
        yield from _folded(content.classes, "classes", _classes(content.classes[IN_SIGHT:]))
    yield from ("", "## Hazards", "", *_hazards(content))
    yield from _hardware(content)
    yield from _running(content)
    yield from _origin(content)


def _compression(content: Report) -> Iterator[str]:
    found = content.ablation
    if not found.rows and not found.notes:
        return
    yield from ("", "## Compression", "")
    if found.rows:
        yield from _table(ablation.HEADER, [row.cells for row in found.rows], right=ablation.RIGHT)
        yield ""
    yield from (f"- {escaped(text)}" for text in found.legend)


def _rungs(content: Report) -> Iterator[str]:
    if content.rungs:
        yield from ("", "## The accuracy ladder", "")
        yield from _table(ladder.HEADER, [row.cells for row in content.rungs], right=ladder.RIGHT)


def _front(content: Report) -> Iterator[str]:
    if content.front.points:
        yield from ("", "## What could be had", "")
        yield from _table(
            ("point", "form", "runtime", "score", "change", "file", "p50", ""),
            [
                (
                    p.number,
                    p.name,
                    p.runtime,
                    p.score,
                    p.drop,
                    p.size,
                    p.latency,
                    "chosen" if p.chosen else "",
                )
                for p in content.front.points
            ],
            right=(3, 4, 5, 6),
        )


def _blocks(blocks: Blocks) -> Iterator[str]:
    yield from ("", "## Blocks", "")
    for total in blocks.totals:
        time = f", {total.time}" if total.time else ""
        yield f"- {total.precision}: {figures.plural(total.blocks, 'block')}{escaped(time)}"
    if blocks.outside:
        yield f"- outside all blocks: {escaped(blocks.outside)}"
    yield from ("", *_block_table(blocks, blocks.rows[:IN_SIGHT]))
    yield from _folded(blocks.rows, "blocks", _block_table(blocks, blocks.rows[IN_SIGHT:]))


def _block_table(blocks: Blocks, rows: Sequence[BlockRow]) -> Iterator[str]:
    header = ["block", "precision", "signal/noise", "float ms", "ms", "", "why"]
    cells = [
        [row.id, row.precision, row.noise, row.float_time, row.time, bar(row, blocks.longest), row.reason]
        for row in rows
    ]
    hidden = {2: not blocks.judged, 3: not blocks.compared, 4: not blocks.timed, 5: not blocks.timed}
    kept = [i for i in range(len(header)) if not hidden.get(i)]
    right = [kept.index(i) for i in (2, 3, 4) if i in kept]
    yield from _table([header[i] for i in kept], [[line[i] for i in kept] for line in cells], right=right)


def _whys(found: Whys) -> Iterator[str]:
    if not found.known:
        return
    yield from (
        "",
        "## Why",
        "",
        "<details>",
        f"<summary>{figures.plural(len(found.rows), 'block')}</summary>",
        "",
    )
    right = [found.kept.index(i) for i in RIGHT if i in found.kept]
    rows = [[row.cells[i] for i in found.kept] for row in found.rows]
    yield from _table([HEADER[i] for i in found.kept], rows, right=right)
    yield from ("", *(f"- {escaped(note)}" for note in found.notes), "", "</details>")


def _unit(unit: Unit) -> Iterator[str]:
    yield from ("", f"## {escaped(unit.title)}", "", *(f"- {escaped(text)}" for text in unit.sentences))
    if unit.rules:
        yield from ("", *_table(RULE_HEADER, [rule.cells for rule in unit.rules]))
    if unit.rows:
        cells = [row.cells for row in unit.rows]
        yield from ("", *_table(BLOCK_HEADER, cells[:IN_SIGHT], right=(3,)))
        yield from _folded(unit.rows, "blocks", _table(BLOCK_HEADER, cells[IN_SIGHT:], right=(3,)))


def bar(row: BlockRow, longest: float) -> str:
    """Its time as full characters, what the float build takes beyond that as light ones."""
    if not longest or row.ms is None:
        return ""
    full = round(_BAR * row.ms / longest)
    return "█" * full + "░" * (round(_BAR * (row.float_ms or 0.0) / longest) - full)


def _classes(rows: Iterable[ClassRow]) -> Iterator[str]:
    lines = [(row.name, row.before, row.after, row.change) for row in rows]
    yield from _table(("class", "float", "artifact", "change"), lines, right=(1, 2, 3))


def _folded(rows: Sequence[object], what: str, lines: Iterable[str]) -> Iterator[str]:
    if len(rows) > IN_SIGHT:
        yield from ("", "<details>", f"<summary>The other {len(rows) - IN_SIGHT} {what}</summary>", "")
        yield from (*lines, "", "</details>")


def _hazards(content: Report) -> Iterator[str]:
    yield from (f"- {escaped(note)}" for note in content.notes)
    for hazard in content.hazards:
        kind = f"**{escaped(hazard.kind)}**{' (warning)' if hazard.severity == 'warning' else ''}"
        yield f"- {kind}: {escaped(hazard.text)} ({escaped(hazard.nodes)})"
    if not content.notes and not content.hazards:
        yield "None was seen in this model."


def _hardware(content: Report) -> Iterator[str]:
    found = content.hardware
    caveat = f" ({found.caveat})" if found.caveat else ""
    yield from ("", "## Hardware facts used", "", escaped(found.title + caveat))
    for group in found.groups:
        yield from ("", f"### {escaped(group.name)}", "")
        rows = [(fact.name, fact.value, fact.source) for fact in group.facts]
        if group.source:
            yield from _table(("fact", "value"), [row[:2] for row in rows])
            yield from ("", f"Source: {escaped(group.source)}")
        else:
            yield from _table(("fact", "value", "source"), rows)
    if found.notes:
        yield from ("", "### notes", "", *(f"- {escaped(note)}" for note in found.notes))


def _running(content: Report) -> Iterator[str]:
    running = content.running
    yield from ("", "## How to run it", "")
    if running.note:
        yield from (escaped(running.note), "")
    ports = [("input", port) for port in running.inputs] + [("output", port) for port in running.outputs]
    yield from _table(
        ("", "name", "type", "shape", "layout", "raw numbers x become"),
        [(kind, port.name, port.type, port.shape, port.layout, port.normalisation) for kind, port in ports],
    )
    for snippet in running.snippets:
        yield from ("", f"### {snippet.language}: {escaped(snippet.file)}", "")
        yield from _code(snippet.code, snippet.file.rpartition(".")[2])
    if not running.snippets:
        yield from (
            "",
            "No program is known for this runtime\\. `deploy run` runs it where deploy is installed\\.",
        )


def _origin(content: Report) -> Iterator[str]:
    found = content.origin
    yield from ("", "## Origin", "", f"- digest: `{found.digest}`", *_facts(found.facts))
    for command in found.commands:
        yield from ("", f"To {escaped(command.what)}:", "", *_code(command.code, "sh"))
    yield from ("", "### Made with", "", *_facts(found.toolchain))
    if content.stages:
        yield from ("", "### Time that the build took", "")
        rows = [(stage.name, stage.time, "cached" if stage.cached else "") for stage in content.stages]
        yield from _table(("stage", "time", ""), rows, right=(1,))
    yield from ("", "### Files", "")
    files = [(file.name, file.size or "missing", file.sha256) for file in found.files]
    yield from _table(("file", "size", "SHA-256"), files, right=(1,))


def _facts(facts: Iterable[Fact]) -> Iterator[str]:
    return (f"- {escaped(fact.name)}: {escaped(fact.value)}" for fact in facts)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "|".join("--:" if i in right else "---" for i in range(len(header))) + "|"
    yield from ("| " + " | ".join(escaped(cell) for cell in row) + " |" for row in rows)


def _code(code: str, language: str) -> tuple[str, ...]:
    """Fenced by more backticks than stand in it anywhere."""
    fence = "`" * max(3, *(len(run) + 1 for run in _RUNS.findall(code)), 3)
    return (f"{fence}{language}", code.rstrip("\n"), fence)
