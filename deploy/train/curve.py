"""The training curve: loss, validation score and learning rate as a picture, CSV and JSON."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from deploy.errors import UsageError, missing_extra

_GROWN, _GROWN_AT_ONCE = 2.0, 10.0
"""A loss so many times a mean of batches, or one alone, did not only fluctuate."""


@dataclass(frozen=True)
class Point:
    """The mean ``loss`` over the batches up to ``batch`` (since the last point), and the rate at its end."""

    batch: int
    loss: float
    lr: float


@dataclass(frozen=True)
class Epoch:
    """One epoch, from 1; 0 is the graph as it came, without a loss. ``score`` is the validation metric."""

    epoch: int
    batch: int
    loss: float | None
    score: float | None


@dataclass(frozen=True)
class History:
    """What happened. ``points`` are at most about 400, evenly spread over the batches."""

    points: tuple[Point, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    metric: str = ""

    @property
    def grown(self) -> str:
        """What to say where the loss ended far above where it began; empty where it did not.

        The last twentieth of the batches is compared with the first one and, as that may be ruined already,
        with the first point, which is more by chance. A loss that begins at nothing, or below, says nothing.
        """
        if not self.points:
            return ""
        share = -(-len(self.points) // 20)
        begin, end = (fmean(p.loss for p in part) for part in (self.points[:share], self.points[-share:]))
        for first, times in ((begin, _GROWN), (self.points[0].loss, _GROWN_AT_ONCE)):
            if 0 < times * first < end:
                return f"the training loss grew from {first:.3g} to {end:.3g}"
        return ""


def save_json(history: History, path: Path) -> None:
    """Write all of it."""
    path.write_text(json.dumps(asdict(history), indent=1) + "\n", encoding="utf-8")


def load_json(path: Path) -> History:
    """Read what `save_json` wrote. Raises UsageError where it is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return History(
            tuple(Point(**point) for point in found["points"]),
            tuple(Epoch(**epoch) for epoch in found["epochs"]),
            found["metric"],
        )
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{path}: is no history of a training: {e}", hint="train again to write it") from e


def save_csv(history: History, path: Path) -> None:
    """One row for each point and epoch, in order; cells without a value stay empty."""
    rows: list[tuple[int, int, list[object]]] = [
        (point.batch, 0, [point.batch, "", point.loss, point.lr, ""]) for point in history.points
    ]
    rows += [
        (
            e.batch,
            1,
            [e.batch, e.epoch, "" if e.loss is None else e.loss, "", "" if e.score is None else e.score],
        )
        for e in history.epochs
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["batch", "epoch", "loss", "lr", history.metric or "score"])
        writer.writerows(row for _, _, row in sorted(rows, key=lambda r: r[:2]))


def save_picture(history: History, path: Path) -> None:
    """Draw it as SVG or PNG, by the file's suffix; equal histories give equal SVG files.

    Raises ToolchainError where matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as e:
        raise missing_extra("matplotlib", "plots") from e

    with matplotlib.rc_context({"svg.hashsalt": "deploy", "font.size": 9}):
        figure = Figure(figsize=(7, 5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        batches = [point.batch for point in history.points]
        above.plot(batches, [point.loss for point in history.points], color="tab:blue", label="loss")
        above.set_ylabel("loss", color="tab:blue")
        scored = [(e.batch, e.score) for e in history.epochs if e.score is not None]
        if scored:
            right = above.twinx()
            right.plot(*zip(*scored, strict=True), color="tab:orange", marker="o", markersize=3)
            right.set_ylabel(history.metric, color="tab:orange")
        below.plot(batches, [point.lr for point in history.points], color="tab:gray")
        below.set_ylabel("learning rate")
        below.set_xlabel("batch")
        metadata: dict[str, str | None] = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata)
