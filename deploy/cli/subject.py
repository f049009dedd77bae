"""What ``deploy run`` feeds: a bundle, or a file in a runtime's own format, whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deploy.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from deploy.adapter.protocol import Opens, Runner
    from deploy.spec.tensors import TensorSpec

_MOST_NOISE = 2 * 2**30
"""Bytes of all inputs, if every number had eight."""


@dataclass(frozen=True)
class Subject:
    """``inputs`` are those that are fed; ``states`` stay from one sample to the next. ``title`` is shown for
    what computes, ``usual`` are sizes that the file names for inputs that allow others, too."""

    kind: Literal["bundle", "file"]
    path: Path
    title: str
    inputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...]
    open: Callable[[], AbstractContextManager[Runner]]
    states: tuple[str, ...] = ()
    deferred: bool = False
    usual: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def noise(self, count: int) -> dict[str, np.ndarray]:
        """Samples of noise, the same ones each time; free sizes are the file's usual ones, else 32.

        Raises DataError for sizes that take more than `_MOST_NOISE`: a file may say any.
        """
        import numpy as np

        from deploy.execute.compare import random_feeds

        specs = [spec.model_copy(update={"shape": self._sizes(spec)}) for spec in self.inputs]
        made = 0
        for spec in specs:
            sizes = [n if isinstance(n, int) else 32 for n in spec.shape]
            made += 8 * count * math.prod(sizes)
            if min(sizes, default=0) < 0 or made > _MOST_NOISE:
                raise DataError(
                    f"{count} samples of noise for {spec} are too many", hint="feed samples of your own"
                )
        parts = [random_feeds(specs, seed, batch=1) for seed in range(count)]
        return {
            spec.name: np.concatenate([part[spec.name] for part in parts])
            if spec.shape
            else parts[0][spec.name]
            for spec in specs
        }

    def _sizes(self, spec: TensorSpec) -> tuple[int | str, ...]:
        usual = self.usual.get(spec.name, ())
        if len(usual) != len(spec.shape):
            return spec.shape
        return tuple(n if isinstance(n, int) else u for n, u in zip(spec.shape, usual, strict=True))


@contextmanager
def subject_at(path: Path) -> Iterator[Subject]:
    """Raises UsageError for what is no bundle, BackendError for a file that cannot be run."""
    opener = opener_of(path)
    if opener is None:
        yield _bundle(path)
        return
    with opener.open_file(path) as runner:
        states = tuple(getattr(runner, "states", ()))
        yield Subject(
            "file", path, runner.executed_by, runner.inputs, runner.classes,
            lambda: nullcontext(runner), states=states, usual=runner.usual,
        )  # fmt: skip


def opener_of(path: Path) -> Opens | None:
    """The backend that runs files of such a name, None where none does."""
    from deploy.adapter.discover import find_inspector
    from deploy.adapter.protocol import Opens

    found = find_inspector(path.suffix) if path.suffix else None
    return found if isinstance(found, Opens) else None


def _bundle(path: Path) -> Subject:
    from deploy.bundle.read import load_bundle, open_bundle

    manifest = load_bundle(path).manifest
    states = manifest.artifact.states
    inputs = tuple(spec for spec in manifest.artifact.inputs if spec.name not in states)
    return Subject(
        "bundle", path, manifest.target, inputs, manifest.classes, lambda: open_bundle(path),
        states=tuple(states), deferred=manifest.deferred,
    )  # fmt: skip
