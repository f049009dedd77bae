"""Options that several commands share, said once."""

from __future__ import annotations

import logging
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from deploy.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout, nothing else.")]
Verbose = Annotated[
    int,
    typer.Option("--verbose", "-v", count=True, show_default=False, help="Say more; twice: for debugging."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="DIR", envvar="DEPLOY_CACHE", help="Where results are kept for the next build."
    ),
]


@dataclass(frozen=True)
class Loudness:
    """What was said of it before the command: ``deploy -v build``."""

    verbose: int = 0
    quiet: bool = False


def settle(context: typer.Context, verbose: int, quiet: bool) -> bool:
    """Join ``-v`` and ``-q`` before and after the command; returns whether to stay silent."""
    before = context.obj if isinstance(context.obj, Loudness) else Loudness()
    quiet = quiet or before.quiet
    verbose += before.verbose
    logger = logging.getLogger("deploy")
    logger.setLevel(
        logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    )
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.addHandler(_Stderr())
    return quiet


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at that moment, so that lines appear above a live display."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{record.levelname.lower()}: {record.getMessage()}\n")


def parse_shapes(words: list[str] | None) -> dict[str, tuple[int, ...]]:
    """Sizes by input. Raises UsageError.

    >>> parse_shapes(["x=1,3,224,224"])
    {'x': (1, 3, 224, 224)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for word in words or ():
        name, equals, sizes = word.rpartition("=")
        parts = sizes.split(",")
        if not equals or not name or not all(part.strip().isdecimal() for part in parts):
            raise UsageError(f"--shape '{word}' is not NAME=SIZES", hint="write it as x=1,3,224,224")
        if name in shapes:
            raise UsageError(f"--shape is given twice for input '{name}'", hint="keep one of them")
        shapes[name] = tuple(int(part) for part in parts)
    return shapes


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(word: str) -> int:
    """Bytes. Raises UsageError.

    >>> parse_size("426kB"), parse_size("1.5 MiB")
    (426000, 1572864)
    """
    number = word.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = word[len(number) :].lower()
    try:
        size = float(number) * _UNITS[unit]
    except (ValueError, KeyError):
        size = 0.0
    if not 1 <= size < 2**63:
        raise UsageError(f"--max-size '{word}' is no size", hint="write it as 426kB, 1.5MB or in bytes")
    return int(size)


def parse_threads(word: str) -> int | Literal["auto"]:
    """How many threads. Raises UsageError.

    >>> parse_threads("4"), parse_threads("auto")
    (4, 'auto')
    """
    if word == "auto":
        return "auto"
    if not word.isdecimal() or not 1 <= int(word) <= 1024:
        raise UsageError(
            f"--threads '{word}' is no number of threads",
            hint="a whole number from 1 to 1024, or auto for as many as are fastest here",
        )
    return int(word)


def target_names() -> Iterator[str]:
    """Names and aliases of our own profiles, read without checking them: completion has to be quick."""
    package = Path(__file__).parents[1]
    for folder in (package / "_profiles", package.parent / "profiles"):
        for path in sorted(folder.glob("*.toml")):
            yield path.stem
            with suppress(tomllib.TOMLDecodeError):  # told when the profile is used, not on the Tab key
                yield from tomllib.loads(path.read_text(encoding="utf-8")).get("aliases", ())


def complete_target(incomplete: str) -> list[str]:
    """What a shell may put behind ``--target``."""
    return [name for name in target_names() if name.startswith(incomplete)]
