"""A package's runner under the names, types and shapes of the graph that it was written from.

Core ML takes identifiers for names, int32 for all integers and truth values, and no scalars.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np

from backends.coreml.notes import required_notes
from deploy.adapter.feeds import Feeding
from deploy.adapter.protocol import Arrays, Runner
from deploy.spec.artifact import Artifact
from deploy.spec.tensors import TensorSpec


class Ends:
    """Implements the Runner protocol. Raises BackendError for a package that is not of our writing."""

    def __init__(self, inner: Runner, artifact: Artifact) -> None:
        self._inner = inner
        self.executed_by = inner.executed_by
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self._values = artifact.values
        notes = required_notes(artifact.main.parent)
        self._own = {given: own for own, given in notes.ends.items() if own in _names(inner.inputs)}
        self._given = {given: own for own, given in notes.ends.items() if own in _names(inner.outputs)}
        self._types = {spec.name: spec.dtype for spec in inner.inputs}
        self._feeding = Feeding(self.inputs)

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        self._feeding.require_fit(feeds)
        entered = {
            self._own[spec.name]: _clipped(feeds[spec.name], self._types[self._own[spec.name]])
            for spec in self.inputs
        }
        inner = {name: self._values[name] for name in want if name in self._values}
        found = self._inner.run(entered, tuple(inner.values()))
        results = {name: found[variable] for name, variable in inner.items() if variable in found}
        for spec in self.outputs:
            array = found[self._given[spec.name]]
            shape = array.shape if len(spec.shape) else ()
            results[spec.name] = array.reshape(shape).astype(spec.dtype, copy=False)
        return results

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, value, trace)


def _names(specs: Sequence[TensorSpec]) -> set[str]:
    return {spec.name for spec in specs}


def _clipped(array: np.ndarray, dtype: str) -> np.ndarray:
    """Integers of 64 bits as those of 32 that a program takes."""
    if array.dtype == np.int64 and dtype == "int32":
        bounds = np.iinfo(np.int32)
        return np.asarray(np.clip(array, bounds.min, bounds.max).astype(np.int32))
    return array.astype(dtype, copy=False)
