"""Keeps the time of every stage, tells the progress, and opens the cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.cache import Cache, default_root, drop_leftovers, scratch
from deploy.progress import Progress
from deploy.spec.manifest import StageTime


@dataclass
class Stage:
    """The running stage; ``outcome`` says in a few words what came out."""

    outcome: str = ""
    cached: bool = False


@dataclass
class Record:
    """The stages of one build, in order."""

    progress: Progress
    times: list[StageTime] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    """What came out of each stage, in a few words."""
    said: list[str] = field(default_factory=list)
    """The same in order: a recipe may have a stage twice."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run a stage: its time counts until the block ends, and is lost if the block raises."""
        self.progress.start(name)
        stage = Stage()
        begin = time.perf_counter()
        yield stage
        seconds = time.perf_counter() - begin
        self.times.append(StageTime(name=name, seconds=round(seconds, 3), cached=stage.cached))
        self.outcomes[name] = stage.outcome
        self.said.append(stage.outcome)
        self.progress.finish(name, seconds, stage.cached, stage.outcome)

    def log(self) -> str:
        """One line a stage, for build.log."""
        return "".join(
            f"{t.name:<10} {t.seconds:8.2f} s  {'cached  ' if t.cached else ''}{said}\n"
            for t, said in zip(self.times, self.said, strict=True)
        )


@contextmanager
def open_cache(root: Path | None, progress: Progress) -> Iterator[Cache]:
    """The cache at ``root`` or in the user's cache folder; one for this build alone where that fails.

    It is trimmed when the build is over. What builds that were killed left among temporary files goes first.
    """
    drop_leftovers()
    wanted = root or default_root()
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            pass
    except OSError as e:
        progress.warn(f"the cache {wanted} cannot be written ({e.strerror}); this build keeps nothing")
        with scratch("cache") as folder:
            yield Cache(folder)
    else:
        cache = Cache(wanted)
        yield cache
        cache.trim()
