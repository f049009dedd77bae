"""Files that we did not write are read by LiteRT in a child process, which they may crash instead of us."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from backends.tflite.contents import read_contents
from backends.tflite.runner import TFLiteOptions, TFLiteRunner
from deploy.adapter.child import Reading, serve
from deploy.adapter.feeds import require_fit
from deploy.adapter.message import Message
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError
from deploy.spec.artifact import Artifact
from deploy.spec.contents import FileContents
from deploy.spec.tensors import TensorSpec

READING = Reading("backends.tflite.child", "LiteRT", per_file_byte=8, per_fed_byte=256)
"""Weights are copied and packed, and inner values are many times larger than the input."""

_LARGEST = 2**31
"""Bytes that a .tflite file can have."""
_COPY = "copy the bundle again, or do not use it"


class ForeignRunner:
    """A file opened by LiteRT in a child process. Implements the Runner protocol."""

    def __init__(self, artifact: Artifact, options: TFLiteOptions) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self._file, self._threads = artifact.main, options.threads
        self._size = _size(artifact.main)
        self._child = READING.child(artifact.main)
        asked = {
            "ask": "open",
            "artifact": artifact.model_dump(mode="json"),
            "folder": str(artifact.folder.resolve()),
            "options": options.model_dump(mode="json"),
        }
        try:
            answer = self._child.ask(Message(asked), READING.to_open(self._size, self._threads))
        except BaseException:
            self._child.close()
            raise
        self.executed_by = str(answer.said["executed_by"])

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """As `TFLiteRunner.run`, and what comes back has the shapes that the artifact says."""
        require_fit(self.inputs, feeds)
        question = Message({"ask": "run", "want": list(want)}, feeds)
        allowed = READING.to_run(self._size, feeds.values(), self._threads)
        found = dict(self._child.ask(question, allowed).arrays)
        for spec in self.outputs:
            _require(spec, found.get(spec.name), self._file)
        return found

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def contents(path: Path) -> FileContents:
    """What a file holds. Raises BackendError where it is damaged, too large or crashes LiteRT."""
    return READING.contents(path, _size(path))


def _size(path: Path) -> int:
    """Raises BackendError for what is no file, or is too large for one."""
    if not path.is_file():
        raise BackendError(f"{path}: no such file", hint=_COPY)
    size = path.stat().st_size
    if size > _LARGEST:
        raise BackendError(
            f"{path.name} has {size / 2**30:.1f} GB, and a .tflite file holds 2 at most",
            hint="it is none, or keeps its weights behind the network, which is not read yet",
        )
    return size


def _require(spec: TensorSpec, array: np.ndarray | None, file: Path) -> None:
    """Raises BackendError where an output is not what the artifact says."""
    fits = (
        array is not None
        and array.dtype.name == spec.dtype
        and array.ndim == len(spec.shape)
        and all(isinstance(d, str) or d == n for d, n in zip(spec.shape, array.shape, strict=True))
    )
    if not fits:
        got = "is missing" if array is None else f"came as {array.dtype}{list(array.shape)}"
        raise BackendError(f"{file.name}: output '{spec.name}' {got}, but the bundle says {spec}", hint=_COPY)


class _Reader:
    """What the child knows: the runner, once a file was opened."""

    def __init__(self) -> None:
        self._runner: TFLiteRunner | None = None

    def answer(self, question: Message) -> Message:
        said = question.said
        if said["ask"] == "contents":
            found = read_contents(Path(str(said["path"])), int(str(said["size"])))
            return Message({"contents": found.model_dump_json()})
        if said["ask"] == "open":
            artifact = Artifact.model_validate(said["artifact"])
            artifact = artifact.model_copy(update={"folder": Path(str(said["folder"]))})
            options = TFLiteOptions.model_validate(said["options"])
            self._runner = TFLiteRunner(
                artifact.main, artifact.inputs, artifact.outputs, artifact.values, options
            )
            return Message({"executed_by": self._runner.executed_by})
        assert self._runner is not None and isinstance(said["want"], list)
        return Message({}, self._runner.run(question.arrays, said["want"]))


if __name__ == "__main__":
    serve(_Reader().answer)
