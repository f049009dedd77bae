"""What a survey has measured so far, on disk point by point: one that was killed goes on where it stopped.

A journal is a file of JSON lines below the data folder, named by everything that its points depend on. Each
line reaches the disk before the next point is measured; a line that was torn by the kill is dropped. It goes
when the survey ends well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from pydantic import Field, ValidationError

from deploy.adapter.overlays import Runs
from deploy.cache import Cache
from deploy.errors import UsageError
from deploy.progress import Progress
from deploy.spec.document import Frozen, digest
from deploy.spec.overlay import Cost, Failure, Machine

_FILE, _OWNER = "points.jsonl", "owner"
_LARGEST = 64 * 2**20
"""Bytes of a journal that are read at most."""
_STALE_S = 24 * 3600
"""A survey that stopped longer ago than this begins anew: the machine may be in another state."""

Results = tuple[Cost | Failure, ...]


class Line(Frozen):
    """One point of one runtime: all that it gave, and the seconds that it took."""

    runtime: str
    point: str
    costs: tuple[Cost, ...] = ()
    failures: tuple[Failure, ...] = ()
    seconds: float = Field(default=0, ge=0)


class Journal:
    """The points measured so far, by runtime and name of the point; some gave nothing."""

    def __init__(self, file: BinaryIO, lines: Sequence[Line]) -> None:
        self._file = file
        self._done: dict[tuple[str, str], Results] = {}
        self.seconds = 0.0
        """What measuring took, in this survey and in those that it goes on from."""
        for line in lines:
            self._note(line)

    @property
    def done(self) -> Mapping[tuple[str, str], Results]:
        """Results by (runtime, point)."""
        return self._done

    def add(self, runtime: str, point: str, results: Sequence[Cost | Failure], seconds: float = 0) -> None:
        """Keep what a point gave, maybe nothing. On the disk when this returns. Raises UsageError."""
        line = Line(
            runtime=runtime,
            point=point,
            costs=tuple(r for r in results if isinstance(r, Cost)),
            failures=tuple(r for r in results if isinstance(r, Failure)),
            seconds=seconds,
        )
        try:
            self._file.write(line.model_dump_json(exclude_defaults=True).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as e:
            raise _unwritable(Path(self._file.name), e) from e
        self._note(line)

    def _note(self, line: Line) -> None:
        self._done[line.runtime, line.point] = (*line.costs, *line.failures)
        self.seconds += line.seconds


@contextmanager
def journal(
    machine: Machine,
    runtimes: Sequence[Runs],
    points: Sequence[str],
    *,
    quick: bool,
    data_root: Path,
    progress: Progress,
    fresh: bool = False,
) -> Iterator[Journal]:
    """The journal of the survey that measures these ``points`` of these ``runtimes``; ``fresh`` begins anew.

    It is removed where the block ends well, and stays where it does not: keep the overlay inside the block.
    Raises UsageError where another survey of this machine runs, or the folder cannot be written.
    """
    who = machine.model_copy(update={"cores": 1})
    store = Cache(data_root)
    key = store.key(
        "survey",
        machine=who.model_dump(mode="json"),
        runtimes=[[r.name, r.version, r.threads, dict(r.settings), r.runner] for r in runtimes],
        points=list(points),
        quick=quick,
    )
    with ExitStack() as stack:
        try:
            _drop_stale(data_root, store.unfinished(key), progress)
            stack.enter_context(_only_survey(store, digest(who)))
            path = stack.enter_context(store.alone(key, lambda: None)) / _FILE
            if fresh:
                path.unlink(missing_ok=True)
            lines = _read(path)
            if lines:
                share = f"{len(lines)} of {len(points) * len(runtimes)} points"
                when = datetime.fromtimestamp(path.stat().st_mtime).strftime("%H:%M")
                progress.note(f"goes on from a survey that stopped at {when}: {share} are measured")
            file = stack.enter_context(path.open("ab"))
        except OSError as e:
            raise _unwritable(data_root, e) from e
        found = Journal(file, lines)
        try:
            yield found
        finally:
            if not found.done:
                path.unlink(missing_ok=True)


@contextmanager
def _only_survey(store: Cache, key: str) -> Iterator[None]:
    """Two surveys at once would measure each other: the second is refused."""

    def busy() -> None:
        path = store.unfinished(key) / _OWNER
        owner = path.read_text(encoding="utf-8")[:20] if path.is_file() else ""
        raise UsageError(
            f"another survey of this machine is running{f' (process {owner})' if owner.isdigit() else ''}",
            hint="two at once would measure each other: wait until it is through, or end it",
        )

    with store.alone(key, busy) as folder:
        (folder / _OWNER).write_text(str(os.getpid()), encoding="utf-8")
        try:
            yield
        finally:
            (folder / _OWNER).unlink(missing_ok=True)


def _read(path: Path) -> list[Line]:
    """The whole lines of a journal; what follows the last of them is cut off the file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        raw = file.read(_LARGEST)
    lines, end = [], 0
    for text in raw.splitlines(keepends=True):
        if not text.endswith(b"\n"):
            break
        try:
            lines.append(Line.model_validate_json(text))
        except ValidationError:
            break
        end += len(text)
    os.truncate(path, end)
    return lines


def _drop_stale(data_root: Path, own: Path, progress: Progress) -> None:
    """Remove journals of surveys that nobody went on with for a day."""
    for path in Cache(data_root).unfinished("").glob(f"*/{_FILE}"):
        with suppress(FileNotFoundError):  # another survey may have ended, or be dropping it too
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
                if path.parent == own:
                    progress.note("a survey that stopped more than a day ago is begun anew")


def _unwritable(place: Path, error: OSError) -> UsageError:
    return UsageError(
        f"{error.filename or place}: cannot be written: {error.strerror}",
        hint="name a folder for measurements that can be written: DEPLOY_DATA",
    )
