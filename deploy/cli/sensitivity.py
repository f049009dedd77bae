"""The table of sensitivity by block: in the terminal, as JSON, as a picture."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.cli.terminal import Cell, show_note, stages, write_facts, write_json, write_line, write_table
from deploy.errors import UsageError, missing_extra, printable

if TYPE_CHECKING:
    from deploy.spec.sensitivity import Effect, Sensitivity, Treatment
    from deploy.stages.request import Request

_SHOWN = 40
"""Blocks in the terminal; JSON and the picture have all of them."""
_LONGEST_NAME = 28
_PICTURED = ("int8", "int4", "2:4", "prune")
_BEARABLE, _BAD = 1e-3, 1e-1
"""Harm below the first hardly shows; above the second outputs are another network's."""


def inspect_sensitivity(
    request: Request, *, samples: int | None, quick: bool, picture: Path | None, json: bool
) -> None:
    """Find the table, draw it where that was asked for, show it."""
    from deploy.stages.record import Record, open_cache
    from deploy.stages.sensitivity import SAMPLES, table

    if picture is not None:
        require_picture(picture)
    with (
        stages(f"sensitivity of {request.source}", quiet=json) as progress,
        open_cache(request.cache, progress) as cache,
    ):
        found = table(request, cache, Record(progress), samples=samples or SAMPLES, quick=quick)
    if picture is not None:
        save_picture(found, picture)
    if json:
        write_json(found.model_dump(mode="json", by_alias=True))
        return
    write_line()
    show_table(found)
    if picture is not None:
        show_note(f"picture: {picture}")


def show_table(found: Sensitivity) -> None:
    """Blocks, the worst first; for each treatment what it costs, its signal over noise, its rank by score."""
    measured = any(e.measured for block in found.blocks for e in block.effects.values())
    classes = found.measure == "classes"
    what = "KL divergence of the outputs, in nats" if classes else "noise over signal of the outputs"
    said = [f"{what}, signal over noise in dB" if measured else f"predicted {what}"]
    if any(e.score is not None for block in found.blocks for e in block.effects.values()):
        said.append("#: rank by one backward pass" if measured else "for ranking only")
    write_line(("one block at a time is treated, all others stay float", "strong"))
    write_facts(
        [
            ("figures", "; ".join(said)),
            ("samples", str(found.samples)),
            ("rules", "of no runtime" if found.rules == "plain" else printable(found.rules)),
        ],
        indent=2,
    )
    write_line()
    ranks = {treatment: found.ranks(treatment) for treatment in found.treatments}
    rows: list[list[Cell]] = []
    worst = found.worst_first()
    for block in worst[:_SHOWN]:
        row: list[Cell] = [(_short(printable(block.id)), "name")]
        for treatment in found.treatments:
            effect = block.effects.get(treatment)
            row.append(_cell(effect, ranks[treatment].get(block.id)))
        rows.append(row)
    write_table(("block", *found.treatments), rows, right=range(1, 1 + len(found.treatments)))
    if len(worst) > _SHOWN:
        show_note(f"{len(worst) - _SHOWN} more blocks; --json lists all of them")


def _cell(effect: Effect | None, rank: int | None) -> Cell:
    if effect is None:
        return ("–", "quiet")
    if effect.ruined:
        return ("ruined", "bad")
    harm = effect.harm or 0.0
    ratio = "" if not effect.measured or effect.sqnr_db is None else f" {effect.sqnr_db:.0f}"
    place = "" if rank is None else f" #{rank}"
    style = "good" if harm < _BEARABLE else "bad" if harm > _BAD else "middling"
    exponent = re.sub(r"e([+-])0", r"e\1", f"{harm:.1e}")
    return (f"{exponent}{ratio}{place}", style if effect.measured else "")


def require_picture(path: Path) -> None:
    """Before anything takes time. Raises UsageError, ToolchainError."""
    from importlib.util import find_spec

    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--picture {path}: not a picture's name", hint="end it in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise UsageError(f"--picture {path}: there is no folder {path.parent}", hint="make it first")
    if find_spec("matplotlib") is None:
        raise missing_extra("matplotlib", "plots")


def save_picture(found: Sensitivity, path: Path) -> None:
    """What each treatment costs, block by block in graph order, on a logarithmic axis; equal tables give
    equal SVG files."""
    import matplotlib
    from matplotlib.figure import Figure

    chosen = [t for t in found.treatments if t in _PICTURED and any(t in b.effects for b in found.blocks)]
    with matplotlib.rc_context({"svg.hashsalt": "deploy", "font.size": 8}):
        width = min(24.0, max(6.0, 0.22 * len(found.blocks)))
        figure = Figure(figsize=(width, 4.5), layout="constrained")
        axes = figure.subplots()
        for treatment in chosen:
            points = _points(found, treatment)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=0.8, label=treatment)
        axes.set_yscale("log")
        names = [_plain(_short(block.id)) for block in found.blocks]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_ylabel("KL divergence, nats" if found.measure == "classes" else "noise over signal")
        axes.set_title(f"one block treated at a time, {found.samples} samples")
        axes.grid(axis="y", linewidth=0.3)
        axes.legend()
        metadata: dict[str, str | None] = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=150, metadata=metadata)


def _points(found: Sensitivity, treatment: Treatment) -> list[tuple[int, float]]:
    """Places and harms; what was ruined stands at the largest harm, what lost nothing is left out."""
    harms = [
        (index, block.effects[treatment].harm)
        for index, block in enumerate(found.blocks)
        if treatment in block.effects
    ]
    known = [harm for _, harm in harms if harm and math.isfinite(harm)]
    top = max(known, default=1.0)
    return [(index, min(harm, top)) for index, harm in harms if harm] or [(0, math.nan)]


def _short(name: str) -> str:
    """The end of a long name: that is where blocks of one network differ."""
    return name if len(name) <= _LONGEST_NAME else "…" + name[1 - _LONGEST_NAME :]


def _plain(name: str) -> str:
    """A name that matplotlib does not take for a formula."""
    return printable(name).replace("$", r"\$")
