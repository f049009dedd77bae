"""From what the user handed in to a `Source`: ONNX files are read, PyTorch models captured first.

PyTorch runs in a child process (`torch_child.py`), and what it wrote is compared with the model that it was
made from. A ``.pt2`` file is not trusted: its members are admitted by name, and the child that loads it has a
clean environment and limits. A function of the user's runs as the user's own code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from deploy import errors
from deploy.adapter.child import clean_environment
from deploy.cache import Cache, scratch
from deploy.errors import BackendError, DeployError, ModelError, missing_extra
from deploy.execute.compare import HALF_TOLERANCE, TOLERANCE, relative_error
from deploy.execute.reference import Session
from deploy.frontend.onnx_file import Source, read
from deploy.frontend.source import factory_name, is_exported_program
from deploy.frontend.torch_archive import check_archive
from deploy.progress import Progress
from deploy.spec.document import Frozen, parse, render
from deploy.stages.torch_child import CAPTURES, ONNX, TRIALS

logger = logging.getLogger(__name__)

_FACTS = "capture.json"
_MEMORY_BYTES, _MEMORY_PER_BYTE = 8 * 2**30, 8
_SECONDS, _SECONDS_PER_BYTE = 600.0, 1e-7
_REPEATABLE = {"PYTHONHASHSEED": "0"}
"""The order of sets decides some names that PyTorch gives."""


class Captured(Frozen):
    """What came of a capture. ``error``: how far the file is from the model, None where it does not run."""

    error: float | None


@dataclass(frozen=True)
class Opened:
    """The model, what to say of it, and whether capturing it was done before."""

    source: Source
    outcome: str
    cached: bool = False


def open_source(
    given: str | Path,
    *,
    root: Path | None,
    shapes: Mapping[str, Sequence[int]],
    seed: int,
    cache: Cache,
    progress: Progress,
) -> Opened:
    """Read an ONNX file, or capture a ``.pt2`` file or what ``package.module:function`` returns.

    Files and modules are looked up in ``root``, else in the working folder. ``shapes`` are the sizes of the
    inputs where a function returns a model alone. Raises ModelError, UnsupportedError, UsageError, and
    ToolchainError where PyTorch is missing.
    """
    reference = factory_name(given)
    path = Path(root or "", given)
    if reference is None and not is_exported_program(path):
        source = read(path)
        return Opened(source, f"{source.name}, operator set {source.opset}, {source.bytes / 1e6:.3g} MB")
    versions = _versions()
    name = reference or path.stem
    if reference is None:
        check_archive(path)
        child = _Child(str(path), path.resolve(), root, shapes, seed, progress)
    else:
        child = _Child(reference, None, root, shapes, seed, progress)
    with child:
        sha256 = _file_digest(path) if reference is None else child.program()
        key = cache.key("capture", source=sha256, versions=versions, seed=seed)

        def capture(folder: Path) -> None:
            child.export(folder)
            facts = Captured(error=_compare(child.name, folder))
            (folder / _FACTS).write_text(render(facts))

        folder, cached = cache.fetch(key, capture)
    facts = parse(Captured, (folder / _FACTS).read_text(), origin=folder / _FACTS)
    source = replace(read(folder / ONNX), name=name, given_sha256=sha256, made_by=versions)
    apart = (
        "ONNX Runtime cannot run it" if facts.error is None else f"{facts.error:.1g} from PyTorch's outputs"
    )
    outcome = f"{name}, PyTorch {versions['torch']}, {source.bytes / 1e6:.3g} MB, {apart}"
    return Opened(source, outcome, cached)


def _versions() -> dict[str, str]:
    """What captures: PyTorch and its exporter. Raises ToolchainError where one is missing."""
    found = {}
    for package, called in CAPTURES.items():
        try:
            found[package] = version(package)
        except PackageNotFoundError as e:
            raise missing_extra(called, "torch") from e
    return found


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(name: str, folder: Path) -> float | None:
    """How far the file is from PyTorch's outputs, which are then dropped; None where it does not run, which
    `prepare` tells better. Raises ModelError where it computes something else."""
    worst = 0.0
    try:
        with Session(folder / ONNX, optimised=False, threads=2) as session:
            for path in sorted(folder.glob(TRIALS.format("*"))):
                with np.load(path, allow_pickle=False) as trial:
                    feeds = {key.removeprefix("input/"): trial[key] for key in trial.files if key[0] == "i"}
                    got = session.run(feeds)
                    for position, output in enumerate(session.outputs):
                        error = relative_error(trial[f"output/{position}"], got[output.name])
                        if error > _allowed(session):
                            raise ModelError(
                                f"{name}: the ONNX file that PyTorch makes of it computes something else: "
                                f"output '{output.name}' differs by {error:.2g} of its magnitude",
                                hint="this is an error of PyTorch's exporter: replace operations until it is "
                                "gone, or hand in an ONNX file made in another way",
                            )
                        worst = max(worst, error)
                path.unlink()
    except BackendError as e:
        logger.info("%s: not compared with PyTorch: %s", name, e.message)
        return None
    return worst


def _allowed(session: Session) -> float:
    half = any(spec.dtype == "float16" for spec in (*session.inputs, *session.outputs))
    return HALF_TOLERANCE if half else TOLERANCE


class _Child:
    """The process that has PyTorch, started when it is first asked for something.

    ``path`` is a file that is not trusted; without it ``name`` is the user's own function.
    """

    def __init__(
        self,
        name: str,
        path: Path | None,
        root: Path | None,
        shapes: Mapping[str, Sequence[int]],
        seed: int,
        progress: Progress,
    ) -> None:
        self.name, self._path, self._root, self._progress = name, path, root, progress
        self._shapes, self._seed = {key: list(sizes) for key, sizes in shapes.items()}, seed
        self._resources = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._timed_out = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    def program(self) -> str:
        """Load or make the program; its digest (empty for a file). Raises what the child answers."""
        said = self._answer()
        return str(said["digest"])

    def export(self, folder: Path) -> None:
        """Write the ONNX file and the trials into ``folder``."""
        if self._process is None:
            self.program()
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is an answer that says why
            self._process.stdin.write(f"{folder.resolve()}\n")
            self._process.stdin.flush()
        self._answer()

    def _answer(self) -> dict[str, object]:
        process = self._started()
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise self._died(process.wait())
        said: dict[str, object] = json.loads(line)
        for kind, text in said.get("notes", []):  # type: ignore[attr-defined]  # pairs, as the child writes them
            (self._progress.warn if kind == "warn" else self._progress.note)(text)
        if "error" in said:
            kind_of_error: type[DeployError] = getattr(errors, str(said["error"]))
            raise kind_of_error(str(said["message"]), hint=str(said["hint"]))
        return said

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None:
            return self._process
        work = self._resources.enter_context(scratch("torch"))
        self._errors = self._resources.enter_context((work / "stderr").open("w+", errors="replace"))
        size = 0 if self._path is None else self._path.stat().st_size
        request = {
            "name": self.name,
            "path": None if self._path is None else str(self._path),
            "root": str((self._root or Path.cwd()).resolve()),
            "shapes": self._shapes,
            "seed": self._seed,
            "parent": os.getpid(),
            "memory": _MEMORY_BYTES + _MEMORY_PER_BYTE * size,
        }
        process = subprocess.Popen(
            # -P: what lies in the working folder is not imported, were it called torch or json.
            [sys.executable, "-P", "-m", "deploy.stages.torch_child", json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=None if self._path is None else work,
            env={**(os.environ if self._path is None else _clean_environment(work)), **_REPEATABLE},
        )
        self._process = self._resources.enter_context(process)  # waits for its end and closes its pipes
        self._resources.callback(process.kill)  # before that
        if self._path is not None:
            timer = threading.Timer(_SECONDS + _SECONDS_PER_BYTE * size, self._end)
            timer.daemon = True
            timer.start()
            self._resources.callback(timer.cancel)
        return process

    def _end(self) -> None:
        self._timed_out = True
        if self._process is not None:
            self._process.kill()

    def _died(self, status: int) -> ModelError:
        if self._timed_out:
            return ModelError(
                f"{self.name}: loading and exporting it took longer than its size justifies",
                hint="export it to ONNX where it was made",
            )
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        logger.info("PyTorch's process said:\n%s", "\n".join(lines[-50:]))
        said = f": {lines[-1][:300]}" if lines else ""
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return ModelError(
            f"{self.name}: the process that runs PyTorch ended early ({how}){said}",
            hint="try it in PyTorch itself; -v says more" if self._path is None else "export it again",
        )


def _clean_environment(work: Path) -> dict[str, str]:
    """For a file that is not trusted: no pickles but plain tensors."""
    return {
        **clean_environment(work),
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(work),
    }
