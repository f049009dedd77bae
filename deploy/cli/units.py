"""What an accelerator of the device would compute of a model, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploy.bundle.report.content import IN_SIGHT, cleaned
from deploy.bundle.report.units import BLOCK_HEADER, Unit, units
from deploy.cli.terminal import Cell, write_facts, write_line, write_table

if TYPE_CHECKING:
    from deploy.spec.residency import Residency


def show_units(found: Sequence[Residency]) -> None:
    """Each accelerator under its name; nothing where the device has none."""
    for unit in cleaned(units(found)):
        write_line()
        write_line((unit.title, "strong"))
        show_unit(unit)


def show_unit(unit: Unit) -> None:
    """The sums, the rules that hold, and the blocks that they are about. The texts are clean."""
    for text in unit.sentences:
        write_line(text)
    if unit.rules:
        write_line()
        facts: list[tuple[str, Cell]] = []
        for rule in unit.rules:
            facts += [(rule.name, f"{rule.effect}: {rule.words}")]
            facts += [("", (f"said by {rule.said}: {rule.source}", "quiet"))]
        write_facts(facts)
    if unit.rows:
        write_line()
        lines: list[list[Cell]] = [
            [
                *((row.id, "name"), row.kind, (row.state, "good" if row.kept else "middling")),
                *(row.macs, (row.why, "quiet")),
            ]
            for row in unit.rows[:IN_SIGHT]
        ]
        write_table(BLOCK_HEADER, lines, right=(3,))
        if len(unit.rows) > IN_SIGHT:
            write_line((f"and {len(unit.rows) - IN_SIGHT} blocks more: --json has them", "quiet"))
