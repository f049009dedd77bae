"""The report as one HTML file that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploy.bundle.read import Bundle
from deploy.bundle.report.blocks import BlockRow
from deploy.bundle.report.content import IN_SIGHT, Report, report, weighings
from deploy.bundle.report.explained import HEADER, RIGHT
from deploy.bundle.report.units import BLOCK_HEADER, RULE_HEADER
from deploy.errors import BackendError

if TYPE_CHECKING:
    import jinja2

PAGE = "report.html"
_TEMPLATES = Path(__file__).with_name("templates")


def write_page(bundle: Bundle) -> None:
    """Write ``report.html`` into the bundle's folder. Raises UsageError, BackendError."""
    (bundle.folder / PAGE).write_text(html(report(bundle)), encoding="utf-8")


def html(content: Report) -> str:
    """The page. Every text is escaped by the template engine. Raises BackendError where that fails."""
    import jinja2

    from deploy.bundle.report.compiled import loader

    templates, compiled = loader(_TEMPLATES)
    environment = jinja2.Environment(
        loader=templates,
        bytecode_cache=compiled,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        return _template(environment).render(
            report=content,
            in_sight=IN_SIGHT,
            weighed=weighings(content.attempts),
            strips=strips(content),
            why_header=HEADER,
            why_right=RIGHT,
            unit_blocks=BLOCK_HEADER,
            unit_rules=RULE_HEADER,
            precisions=[total.precision for total in content.blocks.totals],
        )
    except jinja2.TemplateError as e:
        raise BackendError(f"the report cannot be written: {e}", hint="report this as a bug") from e


def _template(environment: jinja2.Environment) -> jinja2.Template:
    return environment.get_template("report.html.j2")


def strips(content: Report) -> dict[str, list[tuple[BlockRow, float, float]]]:
    """Each build as one strip of blocks in the graph's order: block, start and width.

    The slower of the two is 1,000 wide. Empty where nothing was timed.
    """
    found: dict[str, list[tuple[BlockRow, float, float]]] = {}
    blocks = content.blocks
    if not blocks.timed or not blocks.span:
        return found
    for name, known in (("float", blocks.compared), ("artifact", True)):
        at, parts = 0.0, []
        for row in blocks.in_order if known else ():
            ms = (row.float_ms if name == "float" else row.ms) or 0.0
            width = 1000 * ms / blocks.span
            if width > 0:
                parts.append((row, round(at, 2), round(width, 2)))
            at += width
        if parts:
            found[name] = parts
    return found
