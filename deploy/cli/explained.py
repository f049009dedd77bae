"""Why each block of a bundle is computed as it is: in the terminal and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.cli.terminal import Cell, write_line, write_table

if TYPE_CHECKING:
    from deploy.bundle.read import Bundle
    from deploy.bundle.report.explained import Whys


def show_explained(bundle: Bundle) -> None:
    """Every block with what it takes in either form, what it costs, and why; then what that rests on."""
    from deploy.bundle.report.content import cleaned, explained_by
    from deploy.cli.units import show_units

    show_whys(cleaned(explained_by(bundle)))
    show_units(bundle.manifest.residency)


def show_whys(found: Whys) -> None:
    """The same, of texts that are clean."""
    from deploy.bundle.report.explained import HEADER, RIGHT

    if not found.rows:
        write_line("nothing is recorded of how the blocks were chosen: build the bundle again")
        return
    lines: list[list[Cell]] = []
    for row in found.rows:
        styled: list[Cell] = [(row.id, "name"), *row.cells[1:-1], (row.reason, "quiet")]
        lines.append([styled[i] for i in found.kept])
    write_table(
        [HEADER[i] for i in found.kept], lines, right=[found.kept.index(i) for i in RIGHT if i in found.kept]
    )
    for note in found.notes:
        write_line((note, "quiet"))


def with_explanations(found: dict[str, object], bundle: Bundle, wanted: bool) -> dict[str, object]:
    """The object of a build with ``explanation`` and ``residency`` where that is wanted: as they lie in
    measurements.json and in the manifest."""
    if not wanted:
        return found
    explanation = bundle.measurements.explained.model_dump(mode="json")
    residency = [told.model_dump(mode="json") for told in bundle.manifest.residency]
    return {**found, "explanation": explanation, "residency": residency}
