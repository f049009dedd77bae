"""An overlay as one picture: by class of kernels throughput against size, by runtime and precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import UsageError, missing_extra
from deploy.spec.overlay import Cost, KernelClass, Overlay
from deploy.spec.tensors import Precision
from deploy.survey.table import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Of runtimes; told apart with any kind of sight (Okabe and Ito 2008), on the light ground that is drawn."""
_GROUND, _INK, _GRID = "#ffffff", "#24292f", "#d8dee4"
_STYLES: dict[Precision, tuple[str, str]] = {
    "float": ("-", "o"),
    "int8": ("--", "s"),
    "bf16": ("-.", "^"),
    "fp16": ("-.", "v"),
    "fp8": (":", "D"),
}
_OTHER = (":", "x")
_BYTES: dict[Precision, int] = {"float": 4, "bf16": 2, "fp16": 2}
"""Of a value; one where it is not said."""
_BETWEEN: tuple[KernelClass, ...] = ("convert", "entry")
"""What stands between two forms has values of both."""
_COLUMNS = 4
_SUFFIXES = (".png", ".svg", ".pdf")
_NAMES: dict[KernelClass, str] = {
    "conv": "convolution",
    "pointwise": "1×1 convolution",
    "depthwise": "depthwise convolution",
    "grouped": "grouped convolution",
    "transposed": "transposed convolution",
    "stem": "first convolution",
    "gemm": "product with weights",
    "batched": "product of activations",
    "hard": "hard sigmoid, hard swish",
    "move": "copies",
    "recurrent": "recurrent layer",
    "gru": "GRU, reset first",
    "convert": "change of format",
    "entry": "inputs and outputs",
}


def save_picture(overlay: Overlay, path: Path) -> None:
    """Draw it as PNG, SVG or PDF, by the file's suffix; equal overlays give equal SVG files.

    The ground is drawn, so that the picture is legible on light and dark pages. What has no size (a graph's
    overhead) is left out. Raises ToolchainError where matplotlib is not installed, UsageError where the file
    cannot be written or nothing is there to draw.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(
            f"{path}: no kind of picture is called '{path.suffix}'", hint=f"one of {', '.join(_SUFFIXES)}"
        )
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as e:
        raise missing_extra("matplotlib", "plots") from e

    drawn = _classes(overlay)
    if not drawn:
        raise UsageError("the overlay has no points to draw", hint="measure with: deploy profile")
    columns = min(_COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    with matplotlib.rc_context({
        "svg.hashsalt": "deploy", "font.size": 9, "text.color": _INK, "axes.labelcolor": _INK,
        "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.facecolor": _GROUND,
        "figure.facecolor": _GROUND,
    }):  # fmt: skip
        figure = Figure(figsize=(3.1 * columns, 2.4 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, (op, costs) in zip(axes, drawn.items(), strict=False):
            _draw(axis, overlay, op, _Scale.of(op, costs))
        for axis in axes[len(drawn) :]:
            axis.set_axis_off()
        lines = [line for axis in axes for line in axis.get_lines()]
        shown = {str(line.get_label()): line for line in lines if line.get_linestyle() != "None"}
        figure.legend(
            handles=[shown[label] for label in sorted(shown)],
            loc="outside lower center",
            ncols=min(6, len(shown)),
            frameon=False,
            handlelength=3.5,
        )
        versions = ", ".join(f"{r.name} {r.version}" for r in overlay.runtime)
        threads = max(r.threads for r in overlay.runtime)
        figure.suptitle(
            f"{_plain(overlay.machine.device or overlay.machine.cpu)}, {_plain(versions)}, "
            f"{threads} {'thread' if threads == 1 else 'threads'}, {overlay.date}"
        )
        metadata: dict[str, str | None] = {"Date": None} if path.suffix.lower() == ".svg" else {}
        try:
            figure.savefig(path, metadata=metadata, dpi=150)
        except OSError as e:
            raise UsageError(
                f"{path}: cannot be written: {e.strerror}", hint="name a file in a folder that is there"
            ) from e


def _classes(overlay: Overlay) -> dict[KernelClass, list[Cost]]:
    """The classes that have sizes, in the order in which they were measured, with their points."""
    found: dict[KernelClass, list[Cost]] = {}
    for runtime in overlay.runtime:
        for cost in runtime.cost:
            found.setdefault(cost.op, []).append(cost)
    return {op: costs for op, costs in found.items() if unit_of(costs) != "ms"}


@dataclass(frozen=True)
class _Scale:
    """What a class is drawn over, and in what: the same amount of work for each precision, so that the higher
    of two lines is the faster one."""

    size: str
    speed: str
    amount: Callable[[Cost], float]
    work: float
    """How much of what is told in ``speed`` one of ``amount`` is."""

    @classmethod
    def of(cls, op: KernelClass, costs: list[Cost]) -> _Scale:
        if unit_of(costs) == "GOP/s":
            return cls("multiply-accumulates", "10⁹ operations / s", lambda c: c.macs, 2)
        if op in _BETWEEN:
            return cls("bytes", "GB / s", lambda c: c.bytes, 1)
        return cls("values", "10⁹ values / s", lambda c: c.bytes / _BYTES.get(c.precision, 1), 1)


def _draw(axis: Axes, overlay: Overlay, op: KernelClass, scale: _Scale) -> None:
    """One class: its points, and a line for each runtime and precision through the fastest at each size."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for index, runtime in enumerate(overlay.runtime):
        costs = [c for c in runtime.cost if c.op == op and c.ms > 0 and scale.amount(c) > 0]
        for precision in dict.fromkeys(cost.precision for cost in costs):
            points = [
                (scale.amount(c), scale.work * scale.amount(c) / c.ms / 1e6)
                for c in costs
                if c.precision == precision
            ]
            line, marker = _STYLES.get(precision, _OTHER)
            colour = _COLOURS[index % len(_COLOURS)]
            face = _GROUND if precision == "int8" else colour
            label = _plain(f"{runtime.name} {'INT8' if precision == 'int8' else precision}")
            (dots,) = axis.plot(*zip(*points, strict=True), marker=marker, linestyle="", alpha=0.55)
            (best,) = axis.plot(
                *zip(*_fastest(points), strict=True),
                marker=marker,
                linestyle=line,
                linewidth=1.2,
                label=label,
            )
            for drawn in (dots, best):
                drawn.set(color=colour, markersize=3.5, markerfacecolor=face)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for one in (axis.xaxis, axis.yaxis):
        one.set_minor_formatter(NullFormatter())
    axis.set_title(_NAMES.get(op, op), fontsize=9, loc="left")
    axis.set_xlabel(scale.size, fontsize=8)
    axis.set_ylabel(scale.speed, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(visible=True, which="major", color=_GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _fastest(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the points whose sizes share a half of a decade the fastest: shapes of like size may differ much."""
    best: dict[int, tuple[float, float]] = {}
    for size, speed in points:
        share = math.floor(2 * math.log10(size))
        if share not in best or speed > best[share][1]:
            best[share] = size, speed
    return sorted(best.values())


def _plain(text: str) -> str:
    """Without what matplotlib would read as a formula."""
    return text.replace("$", r"\$")
