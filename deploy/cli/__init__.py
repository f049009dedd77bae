"""The command line. ``main`` is the ``deploy`` program: it turns what happens into messages and exit codes.

Nothing heavy is imported before a command needs it, so that ``deploy --help`` answers at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType

from deploy.adapter.later import collect_seldom, import_later
from deploy.errors import DeployError

INTERRUPTED = 130
_PIPE_CLOSED = 1
_LATER = 0.02
"""Seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``deploy`` with these arguments (the process's own by default); returns the exit code.

    A DeployError becomes one message with its hint on stderr and its class's exit code; with ``--json`` also
    ``{"error": {...}}`` on stdout. Ctrl-C and SIGTERM end with 130, after everything unfinished was removed.
    A bug stays a traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _survive_narrow_encodings()
    if arguments is None:
        collect_seldom()
    try:
        with _interruptible():
            code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left (`deploy targets | head -1`): say nothing, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    if arguments is None:
        gc.freeze()  # the process ends here, and Python would go through all that is left once more
    return code


def _run(words: list[str]) -> int:
    try:
        import_later()
        from deploy.cli.app import run

        code = run(words)
    except DeployError as e:
        from deploy.cli.terminal import show_error, write_json

        if "--json" in words:
            kind = type(e).__name__
            error = {"type": kind, "message": e.message, "hint": e.hint, "exit_code": e.exit_code}
            write_json({"error": error})
        show_error(e)
        return e.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        sys.stderr.write("interrupted\n")
    return code


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that no temporary folder stays; what is ignored stays ignored."""
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in (*numbers, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not in the middle of an import unless asked twice.

    Modules in C++ abort the whole process when an exception passes through their initialisation, so the
    alarm tries again a little later.
    """
    asked_before = number != signal.SIGALRM and signal.getitimer(signal.ITIMER_REAL)[0] > 0
    if _importing(frame) and not asked_before:
        signal.setitimer(signal.ITIMER_REAL, _LATER)
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _survive_narrow_encodings() -> None:
    """A terminal that cannot show a sign gets its escape, never a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
