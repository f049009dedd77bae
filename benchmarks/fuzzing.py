"""What the fuzzers of file formats share: damage to bytes, a child that is asked, the loop and its report.

Each says with what it begins, how it changes it, and what it asks; here that is done for so many minutes and
counted. Allowed are an answer and a `DeployError`.
"""

from __future__ import annotations

import argparse
import collections
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

from deploy.adapter.child import Allowance, Child, Reading
from deploy.adapter.message import Message
from deploy.errors import DeployError

Change = Callable[[bytearray, np.random.Generator], None]
Outcome = tuple[str, bool]
"""What came of a question, and whether the child ended."""

T = TypeVar("T")
ANSWERED: Outcome = ("an answer", False)
_SHOWN = 30


def flip(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 7))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def changed(content: bytes, changes: tuple[Change, ...], rng: np.random.Generator, least: int) -> bytes:
    """The content after a few of the changes, not shorter than ``least``."""
    data = bytearray(content)
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        changes[int(rng.integers(len(changes)))](data, rng)
        data += bytes(max(0, least - len(data)))
    return bytes(data)


def kind_of(error: DeployError) -> str:
    """The error without what is the file's own."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|[\d.]+", "…", error.message)
    return f"{type(error).__name__}: {' '.join(text.split())[:100]}"


class Asked:
    """A child that answers for one file after the other, until one of them ends it.

    One that is reused answers for most of them: starting one takes longer than reading a small file.
    """

    def __init__(self, reading: Reading, allowed: Allowance) -> None:
        self._reading, self._allowed = reading, allowed
        self._child: Child | None = None

    def ask(self, question: Message) -> Outcome:
        if self._child is None:
            self._child = self._reading.child(Path("the file"))
        try:
            self._child.ask(question, self._allowed)
        except DeployError as e:
            ended = self._child.ended
            if ended:
                self.close()
            return kind_of(e), ended
        return ANSWERED

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child = None


@dataclass
class Tally:
    """What came of all files. ``wrong`` broke the promise."""

    seen: collections.Counter[str] = field(default_factory=collections.Counter)
    count: int = 0
    ended: int = 0
    wrong: int = 0
    slowest: float = 0.0


def arguments(doc: str, what: str) -> argparse.Namespace:
    """The words of the command line; ``what`` are the files that may be given."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(what, nargs="*", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for what broke the promise or ended a child")
    return parser.parse_args()


def in_turn(iterators: Iterable[Iterator[T]]) -> Iterator[T]:
    """One of each, again and again."""
    listed = list(iterators)
    while True:
        for iterator in listed:
            yield next(iterator)


def fuzz(
    mutants: Iterator[T],
    tried: Callable[[T, Tally], list[Outcome]],
    kept: Callable[[T, str], None] | None,
    broken: Callable[[str], bool],
    minutes: float,
) -> int:
    """Try mutants for so many minutes, say what came of them, and return the exit code.

    ``kept`` stores one under a number; ``broken`` outcomes break the promise, as every exception does that is
    no outcome.
    """
    tally, started = Tally(), time.perf_counter()
    before = psutil.Process().memory_info().rss
    for mutant in mutants:
        began = time.perf_counter()
        if began - started > 60 * minutes:
            break
        tally.count += 1
        try:
            found = tried(mutant, tally)
        except Exception as e:  # noqa: BLE001  # this is what is looked for
            found = [(f"{type(e).__name__}: {e}", True)]
            bad = True
        else:
            bad = any(broken(text) for text, _ in found)
        tally.slowest = max(tally.slowest, time.perf_counter() - began)
        tally.seen.update(text for text, _ in found)
        ended = any(end for _, end in found)
        tally.ended += ended
        tally.wrong += bad
        if bad:
            print(f"number {tally.count}: {found}", flush=True)
        if kept is not None and (ended or bad):
            kept(mutant, str(tally.count))
    _report(tally, time.perf_counter() - started, psutil.Process().memory_info().rss - before)
    return 1 if tally.wrong else 0


def _report(tally: Tally, seconds: float, grown: int) -> None:
    for text, number in tally.seen.most_common(_SHOWN):
        print(f"{number:8d}  {text}")
    print(f"{max(0, len(tally.seen) - _SHOWN):8d}  kinds more")
    print(
        f"{tally.count} files in {seconds:.0f} s, {tally.ended} ended a child, "
        f"{tally.wrong} broke the promise; slowest {tally.slowest:.1f} s; we grew by {grown / 2**20:.0f} MiB"
    )
