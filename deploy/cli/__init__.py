"""The command line. ``main`` is the ``deploy`` program: it turns what happens into messages and exit codes.

Nothing heavy is imported before a command needs it, so that ``deploy --help`` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from types import FrameType

from deploy.errors import DeployError

INTERRUPTED = 130
_PIPE_CLOSED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``deploy`` with these arguments (the process's own by default); returns the exit code.

    A DeployError becomes one message with its hint on stderr and its class's exit code; with ``--json`` also
    ``{"error": {...}}`` on stdout. Ctrl-C and SIGTERM end with 130, after everything unfinished was removed.
    A bug stays a traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)
    _survive_narrow_encodings()
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left (`deploy targets | head -1`): say nothing, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    finally:
        signal.signal(signal.SIGTERM, before)
    return code


def _run(words: list[str]) -> int:
    try:
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


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that no temporary folder stays behind."""
    raise KeyboardInterrupt


def _survive_narrow_encodings() -> None:
    """A terminal that cannot show a sign gets its escape, never a crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
