"""The user's own code, named ``python:package.module:function``: a data set or a metric."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import itertools
import os
import shutil
import sys
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from deploy.data.source import ArraySource, Column, Source, check_column, nearest
from deploy.errors import DataError, DeployError, UsageError, missing_extra

PREFIX = "python:"
Sample = dict[str, np.ndarray]
_EXTRAS = {
    "torch": ("PyTorch", "torch"), "onnxscript": ("onnxscript", "torch"), "PIL": ("Pillow", "images"),
    "matplotlib": ("matplotlib", "plots"),
}  # fmt: skip
"""Modules that users' code may import too -> what they belong to, and the extra that brings it."""
_KEPT_LIMIT = 2 << 30
"""Bytes of samples that are kept in a temporary file, if a quarter of the free space is as much."""


def load_function(reference: str, root: Path | None) -> Callable[..., object]:
    """The function that ``python:package.module:function`` names; modules are found in ``root`` (the folder
    of deploy.toml, else the working folder) and among installed packages.

    Raises UsageError where the module or function is missing or the module fails while it is imported,
    ToolchainError where it imports what an extra of ours brings, such as PyTorch, and that is not installed.
    """
    module_name, _, name = reference.removeprefix(PREFIX).partition(":")
    if not module_name or not name:
        raise UsageError(
            f"'{reference}' does not name a function", hint="write it as python:package.module:function"
        )
    folder = str((root or Path.cwd()).resolve())
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise _missing(reference, module_name, e.name or str(e), folder) from e
    except DeployError:
        raise
    except Exception as e:  # the user's module may raise anything
        raise UsageError(
            f"{reference}: importing the module failed: {type(e).__name__}: {e}",
            hint=f"run: python -c 'import {module_name}'",
        ) from e
    finally:
        sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UsageError(
            f"{reference}: module '{module_name}' has no function '{name}'",
            hint=f"{nearest(name, known)}it has: {', '.join(known) or 'none'}",
        )
    loaded: Callable[..., object] = function
    return loaded


def _missing(reference: str, module: str, missing: str, folder: str) -> DeployError:
    """What is not there: a package that an extra of ours brings, the user's module, or what that imports."""
    extra = _EXTRAS.get(missing.partition(".")[0])
    if extra is not None:
        return missing_extra(*extra)
    if module == missing or module.startswith(f"{missing}."):
        return UsageError(
            f"{reference}: no module '{missing}' found from {folder}",
            hint="check the spelling; modules are looked up beside deploy.toml and among installed packages",
        )
    return UsageError(
        f"{reference}: module '{module}' imports '{missing}', which is not found from {folder}",
        hint="install it, or correct its name in the module",
    )


@dataclass(frozen=True)
class SampleStream:
    """Samples that the user's code makes one after the other, anew for every pass.

    Type, shape, number and content were noted in a first pass; a later pass that differs is an error, since
    two models are compared sample by sample.
    """

    origin: str
    restart: Callable[[], Iterator[Sample]]
    columns: Mapping[str, Column]
    hashes: Mapping[str, str]
    checks: np.ndarray

    def rows(self, names: Sequence[str], selected: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        samples = enumerate(self.restart())
        for start in range(0, len(selected), size):
            block = [self._next(samples, int(i)) for i in selected[start : start + size]]
            yield {name: np.stack([sample[name] for sample in block]) for name in names}

    def digest(self, names: Sequence[str]) -> str:
        return _joint_digest(self.hashes, names)

    def _next(self, samples: Iterator[tuple[int, Sample]], position: int) -> Sample:
        for i, sample in samples:
            if i == position:
                if _check(sample) != self.checks[i]:
                    break
                return sample
        raise DataError(
            f"{self.origin}: sample {position} is not the one of the first pass",
            hint="give the same samples in the same order each time: no shuffling, no random augmentation",
        )


@dataclass(frozen=True)
class KeptSamples:
    """Samples that the user's code made in one pass, kept in a temporary file: one record for each."""

    origin: str
    columns: Mapping[str, Column]
    hashes: Mapping[str, str]
    file: IO[bytes]

    def rows(self, names: Sequence[str], selected: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        length = sum(column.row_bytes for column in self.columns.values())
        for start in range(0, len(selected), size):
            index = selected[start : start + size]
            records = [os.pread(self.file.fileno(), length, int(row) * length) for row in index]
            yield {name: self._stacked(name, records) for name in names}

    def digest(self, names: Sequence[str]) -> str:
        return _joint_digest(self.hashes, names)

    def _stacked(self, name: str, records: Sequence[bytes]) -> np.ndarray:
        before = itertools.takewhile(lambda other: other != name, self.columns)
        start, column = sum(self.columns[other].row_bytes for other in before), self.columns[name]
        packed = b"".join(record[start : start + column.row_bytes] for record in records)
        return np.frombuffer(packed, column.dtype).reshape(len(records), *column.shape[1:])


def open_python(reference: str, inputs: Sequence[str], labels: str, root: Path | None) -> Source:
    """Data made by the user's function, which is called once and returns one of

    - a dictionary of arrays, named as in an ``.npz`` file;
    - samples that can be iterated again and again (a list, a torch Dataset);
    - a function that starts a fresh iterator over samples. A generator function may itself be named.

    A sample is (feeds, targets) or feeds alone, without the sample axis: feeds is an array, or a dictionary
    by input name; targets a number, an array, or a dictionary by name. Raises DataError where the function
    fails or returns anything else.
    """
    function = load_function(reference, root)
    restart: Callable[[], object]
    if inspect.isgeneratorfunction(function):
        restart = function
    else:
        made = _guarded(reference, function)
        if isinstance(made, Mapping):
            return ArraySource(reference, {str(k): np.asarray(v) for k, v in made.items()})
        restart = _restart(reference, made)

    def fresh() -> Iterator[Sample]:
        return _samples(reference, restart, inputs, labels)

    return _first_pass(reference, fresh)


def _restart(reference: str, made: object) -> Callable[[], object]:
    """How to iterate again over what the user's function returned."""
    if isinstance(made, Iterable) and not isinstance(made, Iterator | str | bytes):
        return lambda: made
    if callable(made):
        return made
    if isinstance(made, Iterator):
        raise DataError(
            f"{reference} returned an iterator, which can be read only once",
            hint="return a list or a function that makes the iterator, or name a generator function itself",
        )
    if hasattr(made, "__getitem__") and hasattr(made, "__len__"):
        return lambda: (made[i] for i in range(len(made)))
    raise DataError(
        f"{reference} returned {type(made).__name__}, expected samples",
        hint="return a dictionary of arrays, a list of (feeds, targets), or a function that iterates",
    )


def _guarded(reference: str, function: Callable[[], object]) -> object:
    try:
        return function()
    except DeployError:
        raise
    except Exception as e:  # the user's code may raise anything
        raise DataError(
            f"{reference} failed: {type(e).__name__}: {e}", hint="call the function by itself to find out why"
        ) from e


def _samples(
    reference: str, restart: Callable[[], object], inputs: Sequence[str], labels: str
) -> Iterator[Sample]:
    made = _guarded(reference, restart)
    if not isinstance(made, Iterable):
        raise DataError(
            f"{reference} gave {type(made).__name__}, expected an iterator over samples",
            hint="return a list of (feeds, targets), or a function that iterates over them",
        )
    iterator, end = iter(made), object()
    position = 0
    while (item := _guarded(reference, lambda: next(iterator, end))) is not end:
        yield _named(reference, position, item, inputs, labels)
        position += 1


def _named(reference: str, position: int, item: object, inputs: Sequence[str], labels: str) -> Sample:
    """One sample's arrays by name, labels under ``labels`` or ``<labels>.<name>``."""
    pair = isinstance(item, tuple | list) and len(item) == 2
    feeds, targets = item if pair and isinstance(item, tuple | list) else (item, None)
    if not isinstance(feeds, Mapping):
        if len(inputs) > 1:
            raise DataError(
                f"{reference}: sample {position} has one array, but the model has {len(inputs)} inputs",
                hint=f"give a dictionary by input name: {', '.join(inputs)}",
            )
        feeds = {inputs[0]: feeds}
    sample = {str(name): np.asarray(value) for name, value in feeds.items()}
    if isinstance(targets, Mapping):
        sample |= {f"{labels}.{name}": np.asarray(value) for name, value in targets.items()}
    elif targets is not None:
        sample[labels] = np.asarray(targets)
    return sample


def _joint_digest(hashes: Mapping[str, str], names: Sequence[str]) -> str:
    return hashlib.sha256("".join(hashes[name] for name in names).encode()).hexdigest()


def _first_pass(reference: str, fresh: Callable[[], Iterator[Sample]]) -> SampleStream | KeptSamples:
    """Note what the samples are, and keep them in a temporary file, so that the user's code runs once; where
    they are too many for that it runs again for every pass."""
    with ExitStack() as stack:
        store = stack.enter_context(tempfile.TemporaryFile(prefix="deploy-samples-", buffering=0))
        noted, complete = _noted(reference, fresh, store)
        if not complete:
            return noted
        kept = KeptSamples(reference, noted.columns, noted.hashes, store)
        weakref.finalize(kept, stack.pop_all().close)
        return kept


def _noted(
    reference: str, fresh: Callable[[], Iterator[Sample]], store: IO[bytes]
) -> tuple[SampleStream, bool]:
    """The samples, and whether all of them went into ``store``; each must have the names, types and shapes
    of the first."""
    room = min(_KEPT_LIMIT, shutil.disk_usage(tempfile.gettempdir()).free // 4)
    form: dict[str, Column] = {}
    hashers: dict[str, hashlib._Hash] = {}
    checks: list[int] = []
    for position, sample in enumerate(fresh()):
        found = {name: Column(array.dtype, array.shape) for name, array in sample.items()}
        if not position:
            form = found
            hashers = {name: hashlib.sha256(f"{name}:{form[name]};".encode()) for name in form}
            for name, column in form.items():
                check_column(reference, name, Column(column.dtype, (1, *column.shape)))
        elif found != form:
            raise DataError(
                f"{reference}: sample {position} is {_told(found)}, the first was {_told(form)}",
                hint="every sample needs the same names, types and shapes: pad or resize",
            )
        for name, array in sample.items():
            hashers[name].update(np.ascontiguousarray(array).tobytes())
        checks.append(_check(sample))
        room = _stored(store, [sample[name] for name in form], room)
    if not checks:
        raise DataError(f"{reference}: gave no samples", hint="give at least one sample")
    columns = {name: Column(c.dtype, (len(checks), *c.shape)) for name, c in form.items()}
    hashes = {name: hasher.hexdigest() for name, hasher in hashers.items()}
    return SampleStream(reference, fresh, columns, hashes, np.array(checks, dtype=np.uint32)), room >= 0


def _stored(store: IO[bytes], arrays: Sequence[np.ndarray], room: int) -> int:
    """The bytes that are left of ``room`` after the sample; below 0 where it did not fit, and ever after."""
    record = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    if room < len(record):
        return -1
    try:
        return room - len(record) if store.write(record) == len(record) else -1
    except OSError:
        return -1


def _check(sample: Sample) -> int:
    value = 0
    for name in sorted(sample):
        value = zlib.crc32(np.ascontiguousarray(sample[name]).tobytes(), value)
    return value


def _told(form: Mapping[str, Column]) -> str:
    return ", ".join(f"{name} {column.dtype}{list(column.shape)}" for name, column in form.items())


def code_digest(reference: str, root: Path | None) -> str:
    """SHA-256 (hex) of the file that holds the user's function; empty for a built-in name.

    It stands for the code in cache keys. What that file imports is not followed.
    """
    if not reference.startswith(PREFIX):
        return ""
    path = inspect.getsourcefile(load_function(reference, root))
    return "" if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()
