"""Packages that we did not write are read and evaluated in a child process with limits.

Reading is bounded as it is; but a small program may ask for any time (a loop that never ends) or memory (a
product of two long vectors). In a child that is one error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from backends.coreml.contents import read_contents
from backends.coreml.notes import notes_in
from backends.coreml.runner import CoreMLOptions, CoreMLRunner, States
from deploy.adapter.child import Reading, serve
from deploy.adapter.feeds import require_fit
from deploy.adapter.message import Message
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError
from deploy.spec.contents import FileContents
from deploy.spec.tensors import TensorSpec

READING = Reading("backends.coreml.child", "the interpreter", per_file_byte=16, per_fed_byte=512)
"""Weights of one bit become float32, and inner values are many times larger than the input."""
_STATE = "state of "
"""Before the names of states among the arrays: no name of a program has a space."""
_MOST_FILES = 4096


class ForeignRunner:
    """A package evaluated in a child process. Implements the Runner protocol."""

    def __init__(
        self,
        path: Path,
        options: CoreMLOptions,
        inputs: tuple[TensorSpec, ...] = (),
        outputs: tuple[TensorSpec, ...] = (),
        reading: Reading | None = None,
    ) -> None:
        self._path, self._threads, self._reading = path, options.threads, reading or READING
        self._size = package_size(path)
        self._child = self._reading.child(path)
        asked = {
            "ask": "open",
            "path": str(path.resolve()),
            "options": options.model_dump(mode="json"),
            "inputs": [spec.model_dump(mode="json") for spec in inputs],
            "outputs": [spec.model_dump(mode="json") for spec in outputs],
        }
        try:
            answer = self._child.ask(Message(asked), self._reading.to_open(self._size, self._threads))
            said, self._fresh = answer.said, dict(answer.arrays)
        except BaseException:
            self._child.close()
            raise
        self.executed_by = str(said["executed_by"])
        self.inputs, self.outputs = _specs(said, "inputs"), _specs(said, "outputs")
        self.classes, self.usual = _named(said)
        notes = said["notes"]
        self.notes = notes_in(notes if isinstance(notes, str) else None)

    def run(
        self, feeds: Arrays, want: Sequence[str] = (), state: States | None = None
    ) -> dict[str, np.ndarray]:
        """As `CoreMLRunner.run`."""
        require_fit(self.inputs, feeds)
        kept = {f"{_STATE}{name}": array for name, array in (state or {}).items()}
        fed = {**feeds, **kept}
        question = Message({"ask": "run", "want": list(want), "kept": state is not None}, fed)
        answer = self._child.ask(question, self._reading.to_run(self._size, fed.values(), self._threads))
        texts = answer.said.get("texts")
        found = dict(answer.arrays)
        for name in state or {}:
            assert state is not None
            state[name] = found.pop(f"{_STATE}{name}")
        if isinstance(texts, Mapping):
            for name, values in texts.items():
                found[str(name)] = np.array(values).reshape(found[str(name)].shape)
        return found

    def fresh_state(self) -> States:
        """As `CoreMLRunner.fresh_state`."""
        return {name: array.copy() for name, array in self._fresh.items()}

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
    """What a package holds. Raises BackendError where it is damaged, or takes too much to read."""
    return READING.contents(path, package_size(path))


def package_size(path: Path) -> int:
    """Bytes of a package's plain files. Raises BackendError where it is no folder or has too many."""
    if path.suffix.lower() == ".mlmodelc" and path.exists():
        raise BackendError(
            f"{path.name} is compiled for a device", hint="give the .mlpackage that it was compiled from"
        )
    if path.is_file():
        raise BackendError(
            f"{path.name} is a file, and programs are packages, which are folders",
            hint="convert the model again: ct.convert(model, convert_to='mlprogram') makes a .mlpackage",
        )
    if not path.is_dir():
        raise BackendError(f"{path}: no such package", hint="give a .mlpackage, or copy the bundle again")
    total = 0
    for number, file in enumerate(path.rglob("*")):
        if number >= _MOST_FILES:
            raise BackendError(
                f"{path.name} has more than {_MOST_FILES} files", hint="a package has three; it is none"
            )
        total += file.lstat().st_size if file.is_file() and not file.is_symlink() else 0
    return total


def _specs(said: Mapping[str, object], name: str) -> tuple[TensorSpec, ...]:
    listed = said[name]
    assert isinstance(listed, list)
    return tuple(TensorSpec.model_validate(spec) for spec in listed)


def _named(said: Mapping[str, object]) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    classes, usual = said["classes"], said["usual"]
    assert isinstance(classes, list) and isinstance(usual, dict)
    return tuple(map(str, classes)), {str(name): tuple(map(int, sizes)) for name, sizes in usual.items()}


class _Reader:
    """What the child knows: the runner, once a package was opened."""

    def __init__(self) -> None:
        self._runner: CoreMLRunner | None = None

    def answer(self, question: Message) -> Message:
        said = question.said
        if said["ask"] == "contents":
            return Message({"contents": read_contents(Path(str(said["path"]))).model_dump_json()})
        if said["ask"] == "open":
            options = CoreMLOptions.model_validate(said["options"])
            path = Path(str(said["path"]))
            self._runner = CoreMLRunner(path, options, _specs(said, "inputs"), _specs(said, "outputs"))
            return Message(
                {
                    "executed_by": self._runner.executed_by,
                    "inputs": [spec.model_dump(mode="json") for spec in self._runner.inputs],
                    "outputs": [spec.model_dump(mode="json") for spec in self._runner.outputs],
                    "classes": self._runner.classes,
                    "usual": self._runner.usual,
                    "notes": None if self._runner.notes is None else self._runner.notes.text(),
                },
                self._runner.fresh_state(),
            )
        assert self._runner is not None and isinstance(said["want"], list)
        feeds = {name: array for name, array in question.arrays.items() if not name.startswith(_STATE)}
        kept = {name.removeprefix(_STATE): a for name, a in question.arrays.items() if name not in feeds}
        found = self._runner.run(feeds, said["want"], kept if said["kept"] else None)
        found |= {f"{_STATE}{name}": array for name, array in kept.items()}
        texts = {name: array.reshape(-1).tolist() for name, array in found.items() if array.dtype.kind == "U"}
        plain = {name: np.zeros(a.shape, np.int8) if name in texts else a for name, a in found.items()}
        return Message({"texts": texts}, plain)


if __name__ == "__main__":
    serve(_Reader().answer)
