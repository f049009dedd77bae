"""How long work tells what it is doing. The command line draws it; a library caller may stay silent."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class Progress(Protocol):
    """Receives what happens during a build, in order, from one thread."""

    def start(self, stage: str) -> None:
        """A stage begins."""

    def advance(self, done: int, total: int) -> None:
        """The running stage has finished ``done`` of ``total`` units."""

    def finish(self, stage: str, seconds: float, cached: bool, outcome: str) -> None:
        """A stage ended after ``seconds``; ``outcome`` says in a few words what came out."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def warn(self, text: str) -> None:
        """Something the user should act on."""


class Silent:
    """Draws nothing; warnings still reach the log."""

    def start(self, stage: str) -> None: ...

    def advance(self, done: int, total: int) -> None: ...

    def finish(self, stage: str, seconds: float, cached: bool, outcome: str) -> None: ...

    def note(self, text: str) -> None:
        logging.getLogger("deploy").info(text)

    def warn(self, text: str) -> None:
        logging.getLogger("deploy").warning(text)


SILENT = Silent()


@contextmanager
def stdout_silenced() -> Iterator[None]:
    """HiGHS prints when it repairs a solution, whatever its options say: not among what a command found."""
    sys.stdout.flush()
    c = ctypes.CDLL(None) if sys.platform != "win32" else ctypes.cdll.msvcrt
    kept = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            c.fflush(None)
            os.dup2(kept, 1)
            os.close(kept)
