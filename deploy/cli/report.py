"""``deploy report``: everything that is known of a bundle, in the terminal, as Markdown or as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.errors import UsageError

Form = Literal["terminal", "markdown", "html"]


def report(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that `deploy build` wrote.")],
    form: Annotated[
        Form | None,
        typer.Option("--format", help="By default terminal, or what the ending of -o says."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write .md or .html there instead of showing it."
        ),
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show only why each block is INT8 or float, in milliseconds and points."
        ),
    ] = False,
) -> None:
    """Show a bundle's report: verdict, figures, blocks, classes, hazards, hardware, how to run it, origin."""
    from deploy.bundle.read import load_bundle
    from deploy.bundle.report.content import report as content
    from deploy.cli.terminal import write_line, write_text

    form = form or _by_ending(output)
    if output is not None and form == "terminal":
        raise UsageError(f"{output}: a file is written as markdown or html", hint="add --format markdown")
    if explain and form != "terminal":
        raise UsageError(
            f"--explain is shown in the terminal, and {form} has it in any case", hint="leave it out"
        )
    loaded = load_bundle(bundle)
    if explain:
        from deploy.cli.explained import show_explained

        show_explained(loaded)
        return
    found = content(loaded)
    if form == "terminal":
        from deploy.cli.full_report import show_report

        show_report(loaded, found)
        return
    if form == "markdown":
        from deploy.bundle.report.markdown import markdown

        text = markdown(found)
    else:
        from deploy.bundle.report.page import html

        text = html(found)
    if output is None:
        write_text(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as e:
        raise UsageError(
            f"{output}: cannot be written: {e.strerror}", hint="choose another place with -o"
        ) from e
    write_line(("✓ ", "good"), str(output))


def _by_ending(output: Path | None) -> Form:
    endings: dict[str, Form] = {".md": "markdown", ".html": "html", ".htm": "html"}
    return "terminal" if output is None else endings.get(output.suffix.lower(), "terminal")
