"""Everything that is drawn. The only file that imports rich.

What a command found goes to stdout, what happens meanwhile to stderr. The commands hand over plain text and
say what it is (``good``, ``bad``, ``quiet``); how that looks is decided here.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deploy.bundle.report import figures
from deploy.errors import DeployError, message_text
from deploy.progress import SILENT, Progress

_STYLES = {
    "": "",
    "good": "green",
    "bad": "red",
    "middling": "yellow",
    "strong": "bold",
    "quiet": "dim",
    "name": "cyan",
}
Cell = str | tuple[str, str]
"""Text, or text with what it is."""

_STAGE_WIDTH = 14
_TIME_WIDTH = 8
_PIPE_WIDTH = 4096
_ENOUGH, _SOON_S = 3, 2.0
"""So many steps and seconds of a stage tell how long the rest takes."""
_MINUTES_S = 100
_FILLING = re.compile(r" +((?:\x1b\[[\d;]*m)*)$", re.MULTILINE)
"""Blanks at the end of a line, before whatever ends its colour."""


def write_json(value: object) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(text: str) -> None:
    """Text of several lines on stdout, exactly as it is: programs, documents."""
    sys.stdout.write(text)


def write_line(*parts: Cell, wrap: bool = True) -> None:
    """One line on stdout. Without ``wrap`` it is left to the terminal, so that an address stays whole."""
    _print(Text.assemble(*(_text(part) for part in parts)), wrap=wrap)


def write_facts(rows: Sequence[tuple[str, Cell]], *, indent: int = 0) -> None:
    """Names and values in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style=_STYLES["quiet"])
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, _text(value))
    _print(Padding(grid, (0, 0, 0, indent), expand=False))


def write_table(header: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Sequence[int] = ()) -> None:
    """A table with a rule under its header; the columns numbered in ``right`` are aligned there."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for index, title in enumerate(header):
        table.add_column(
            Text(title, style="bold"), justify="right" if index in right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    _print(table)


def show_error(error: DeployError) -> None:
    """What went wrong and what to do next, on stderr."""
    _say("error", "bad", error.message)
    if error.hint:
        _say("hint", "name", error.hint)


def show_note(text: str) -> None:
    """Something to know, on stderr, so that stdout stays what was asked for."""
    _say("note", "quiet", text)


def show_warning(text: str) -> None:
    """Something to act on, on stderr."""
    _say("warning", "middling", text)


@contextmanager
def stages(title: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Draws the stages of a build while the block runs: live on a terminal, as plain lines elsewhere."""
    console = _console(stderr=True)
    if quiet:
        yield SILENT
        return
    console.print(Text(title, style="bold"))
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines()
    else:
        drawing = _Drawing(console)
        with Live(get_renderable=drawing.running, console=console, refresh_per_second=5, transient=True):
            try:
                yield drawing
            except BaseException:
                drawing.stop()
                raise


class _Lines:
    """``stage  0.42 s  outcome``, one line when it has ended: for logs and pipes."""

    def start(self, stage: str) -> None: ...

    def advance(self, done: int, total: int) -> None: ...

    def finish(self, stage: str, seconds: float, cached: bool, outcome: str) -> None:
        ending = f"{outcome} (cached)" if cached and outcome else "cached" if cached else outcome
        line = f"{stage:<{_STAGE_WIDTH}}{figures.seconds(seconds):>{_TIME_WIDTH}}  {ending}"
        sys.stderr.write(line.rstrip() + "\n")
        sys.stderr.flush()

    def note(self, text: str) -> None:
        show_note(text)

    def warn(self, text: str) -> None:
        show_warning(text)


class _Drawing:
    """Stages that ended stay as lines; below them the running one turns, with its time and how far it is."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spinner = Spinner("dots", style="cyan")
        self._stage: str | None = None
        self._started = 0.0
        self._done, self._total = 0, 0
        self._first: tuple[int, float] | None = None
        """How much was done when the stage first said so, and when that was: some go on from a kill."""

    def start(self, stage: str) -> None:
        self._stage, self._started = stage, time.perf_counter()
        self._done, self._total = 0, 0
        self._first = None

    def advance(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if self._first is None:
            self._first = done, time.perf_counter()

    def finish(self, stage: str, seconds: float, cached: bool, outcome: str) -> None:
        self._stage = None
        took = ("cached", "quiet") if cached else figures.seconds(seconds)
        self._console.print(_stage_line(("✓", "good"), stage, took, outcome))

    def note(self, text: str) -> None:
        _say("note", "quiet", text, self._console)

    def warn(self, text: str) -> None:
        _say("warning", "middling", text, self._console)

    def stop(self) -> None:
        """The running stage did not end well."""
        if self._stage is not None:
            took = figures.seconds(time.perf_counter() - self._started)
            self._console.print(_stage_line(("✗", "bad"), self._stage, took, ""))
            self._stage = None

    def running(self) -> RenderableType:
        if self._stage is None:
            return Text()
        line = Table.grid(padding=(0, 1))
        for _ in range(2):
            line.add_column(no_wrap=True)
        line.add_column(width=_TIME_WIDTH, justify="right")
        cells: list[RenderableType] = [
            self._spinner,
            Text(f"{self._stage:<{_STAGE_WIDTH}}"),
            Text(figures.seconds(time.perf_counter() - self._started), style="dim"),
        ]
        if self._total > 1:
            cells += [
                ProgressBar(self._total, self._done, width=24),
                Text(f"{self._done} of {self._total}{self._left()}", style="dim"),
            ]
        line.add_row(*cells)
        return line

    def _left(self) -> str:
        """The time that the stage will still take if it goes on as it did; empty while nobody can tell."""
        first, since = self._first or (0, 0.0)
        took, gone = time.perf_counter() - since, self._done - first
        if self._first is None or gone < _ENOUGH or took < _SOON_S:
            return ""
        left = took / gone * (self._total - self._done)
        return f", {left / 60:.0f} min left" if left >= _MINUTES_S else f", {left:.0f} s left"


def _stage_line(mark: Cell, stage: str, took: Cell, outcome: str) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True, min_width=_STAGE_WIDTH)
    line.add_column(no_wrap=True, width=_TIME_WIDTH, justify="right")
    line.add_column(overflow="fold", style=_STYLES["quiet"])
    line.add_row(_text(mark), stage, _text(took), " " + outcome)
    return line


def _say(word: str, kind: str, text: str, console: Console | None = None) -> None:
    """``word: text`` on stderr; on a terminal further lines stand under the first."""
    console = console or _console(stderr=True)
    text = message_text(text)
    head = Text(f"{word}: ", style=_STYLES[kind])
    if not console.is_terminal:
        console.print(head + Text(text), soft_wrap=True)
        return
    grid = Table.grid()
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(head, Text(text))
    console.print(grid)


def _print(renderable: RenderableType, *, wrap: bool = True) -> None:
    """On stdout, without the blanks that fill columns; a pipe or file gets lines as long as they are."""
    console = _console()
    with console.capture() as drawn:
        console.print(renderable, soft_wrap=not wrap)
    sys.stdout.write(_FILLING.sub(r"\1", drawn.get()))


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def _text(cell: Cell) -> Text:
    return Text(cell) if isinstance(cell, str) else Text(cell[0], style=_STYLES[cell[1]])
