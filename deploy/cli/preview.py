"""What a build would do, in words and as JSON."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from deploy.bundle.report import figures
from deploy.bundle.report.ablation import goal
from deploy.cli.terminal import Cell, write_facts, write_line, write_table
from deploy.cli.units import show_units

if TYPE_CHECKING:
    from deploy.stages.preview import Preview, RoutePreview


def preview_json(preview: Preview) -> dict[str, object]:
    """What ``deploy build --dry-run --json`` writes for one target."""
    return {
        "target": preview.target,
        "profile": preview.profile,
        "runtimes": [
            {
                "name": route.runtime,
                "blocks": [{"id": block, "precision": precision} for block, precision in route.precisions],
                "verdicts": [verdict.model_dump(mode="json") for verdict in route.verdicts],
                "residency": [found.model_dump(mode="json") for found in route.residency],
            }
            for route in preview.routes
        ],
        "recipe": [step.model_dump(mode="json") for step in preview.recipe.steps],
        "left_out": list(preview.recipe.notes),
        "data": list(preview.data),
    }


def show_preview(preview: Preview) -> None:
    """Whether and how the target can be built, then for each runtime what blocks start from."""
    able = any(route.able for route in preview.routes)
    headline: Cell = ("• would build", "middling") if able else ("✗ cannot be built", "bad")
    runtimes = ", ".join(route.runtime for route in preview.routes)
    write_line(headline, "  ", (preview.target, "strong"), (f"  {runtimes} as {preview.profile}", "quiet"))
    write_line()
    facts: list[tuple[str, Cell]] = [("blocks", str(preview.blocks))]
    facts += [(route.runtime, _planned(route)) for route in preview.routes]
    facts += [
        ("recipe", f"{number} {step.step}: {goal(step)}")
        for number, step in enumerate(preview.recipe.steps, 1)
    ]
    facts += [("", note) for note in preview.recipe.notes]
    facts += [("data", note) for note in preview.data]
    write_facts(facts, indent=2)
    rows: list[list[Cell]] = [
        [
            route.runtime,
            v.node,
            v.op,
            (v.support, "bad" if v.support == "unsupported" else "middling"),
            v.reason,
        ]
        for route in preview.routes
        for v in route.verdicts
    ]
    if rows:
        write_line()
        write_table(("runtime", "node", "operation", "support", "reason"), rows)
    show_units([found for route in preview.routes for found in route.residency])


def _planned(route: RoutePreview) -> str:
    counts = Counter(precision for _, precision in route.precisions)
    planned = ", ".join(figures.plural(number, f"{p} block") for p, number in counts.items())
    return planned if route.able else f"cannot: {planned}"
