"""The plan in an artifact's file and its operations one by one, read and run in a child process.

The file may come from anybody, and is cut and opened here in ways for which runtimes are not made.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import numpy as np
from pydantic import ValidationError

from deploy.adapter.child import Allowance, Child, serve
from deploy.adapter.discover import find_backend
from deploy.adapter.message import Message
from deploy.adapter.protocol import Arrays, Divides, Piece, Splits, Stores
from deploy.errors import BackendError
from deploy.spec.artifact import Artifact, Options
from deploy.spec.plan import Plan

MODULE = "deploy.adapter.parts"
"""What the child runs."""

_MEMORY, _PER_FILE_BYTE, _PER_FED_BYTE = 4 * 2**30, 16, 64
_PER_WRITTEN_BYTE, _WRITTEN = 4, 64 * 2**20
"""Runtimes write what they make of a file before it is cut."""
_READING_S, _RUNNING_S = 120.0, 60.0


@dataclass(frozen=True)
class ForeignPiece:
    """Implements the Piece protocol."""

    node: str
    reads: tuple[str, ...]
    result: str
    number: int
    parts: ForeignParts

    def run(self, feeds: Arrays) -> np.ndarray:
        return self.parts.run(self.number, {name: feeds[name] for name in self.reads})


class ForeignParts:
    """An artifact in a child process. A context manager; the child ends with it.

    ``how`` says, once `pieces` was asked, what its parts are.
    """

    def __init__(self, artifact: Artifact, options: Options) -> None:
        self._size = sum((artifact.folder / name).stat().st_size for name in artifact.files)
        self._child = Child(MODULE, f"the {artifact.backend} artifact", "its reader")
        self._threads = options.threads
        self._asked = {
            "artifact": artifact.model_dump(mode="json"),
            "folder": str(artifact.folder.resolve()),
            "options": options.model_dump(mode="json"),
        }
        self.how = ""

    def read_plan(self) -> Plan:
        """As `Backend.read_plan`. Raises BackendError for a file that is damaged or holds no plan of ours."""
        answer = self._ask({"ask": "plan"})
        try:
            return Plan.model_validate_json(str(answer.said["plan"]))
        except ValidationError as e:
            raise BackendError(
                f"the artifact holds no plan: {e.errors()[0]['msg']}", hint="the file is damaged"
            ) from e

    def codes(self) -> Arrays:
        """The integers of constants by the names of their values; empty where the backend cannot say."""
        return self._ask({"ask": "codes"}).arrays

    def pieces(self, known: Collection[str]) -> list[ForeignPiece]:
        """The parts in the order in which they run; ``known`` are values that can be fed."""
        said = self._ask({"ask": "pieces", "known": sorted(known)}).said
        self.how = str(said["how"])
        listed = cast(list[tuple[str, list[str], str]], said["pieces"])
        return [
            ForeignPiece(str(node), tuple(map(str, reads)), str(result), number, self)
            for number, (node, reads, result) in enumerate(listed)
        ]

    def run(self, number: int, feeds: Arrays) -> np.ndarray:
        """The result of one part."""
        return self._ask({"ask": "run", "number": number}, feeds, _RUNNING_S).arrays["result"]

    def _ask(
        self, said: dict[str, object], arrays: Arrays | None = None, seconds: float = _READING_S
    ) -> Message:
        given = arrays or {}
        fed = sum(array.nbytes for array in given.values())
        allowed = Allowance(
            _MEMORY + _PER_FILE_BYTE * self._size + _PER_FED_BYTE * fed,
            seconds * self._threads,
            seconds,
            _WRITTEN + _PER_WRITTEN_BYTE * self._size,
        )
        return self._child.ask(Message({**self._asked, **said}, given), allowed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.close()


class _Reader:
    """What the child knows: the parts, once it was asked for them."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []

    def answer(self, question: Message) -> Message:
        said = question.said
        if said["ask"] == "run":
            piece = self._pieces[int(str(said["number"]))]
            return Message({}, {"result": piece.run(question.arrays)})
        artifact = Artifact.model_validate(said["artifact"])
        artifact = artifact.model_copy(update={"folder": Path(str(said["folder"]))})
        backend: object = find_backend(artifact.backend)
        if said["ask"] == "plan":
            return Message(
                {"plan": find_backend(artifact.backend).read_plan(artifact).model_dump_json(by_alias=True)}
            )
        if said["ask"] == "codes":
            return Message({}, backend.codes(artifact) if isinstance(backend, Stores) else {})
        options = find_backend(artifact.backend).options_type.model_validate(said["options"])
        known = frozenset(map(str, cast(list[str], said["known"])))
        if isinstance(backend, Divides):
            self._pieces = list(backend.pieces(artifact, options, known))
        else:
            assert isinstance(backend, Splits)
            self._pieces = list(backend.parts(artifact, options, known))
        listed = [(piece.node, piece.reads, piece.result) for piece in self._pieces]
        return Message({"pieces": listed, "how": backend.cut})


if __name__ == "__main__":
    serve(_Reader().answer)
