"""A package's runner under the names, types and shapes of the graph that it was written from.

Core ML takes identifiers for names, int32 for all integers and truth values, and no scalars. Pixels enter as
pictures in RGB, whatever order the graph wants its colours in. What a package keeps from one inference to the
next is fed and given all the same, so that a stateful package is compared with a graph that keeps nothing;
`step` leaves it where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from backends.coreml.notes import Notes, ours
from deploy.adapter.feeds import Feeding, require_fit
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError
from deploy.spec.artifact import Artifact
from deploy.spec.tensors import TensorSpec

States = dict[str, np.ndarray]
_TIE = 1e-2
"""By how much a probability that is the greatest may be less than another, after rounding to float16."""


class Inner(Protocol):
    """What runs a package under its own names: here or in a child process."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    executed_by: str
    notes: Notes | None

    def run(
        self, feeds: Arrays, want: Sequence[str] = (), state: States | None = None
    ) -> dict[str, np.ndarray]: ...

    def fresh_state(self) -> States: ...

    def close(self) -> None: ...


class Ends:
    """Implements the Runner protocol and Remembers. Raises BackendError for a package not of our writing.

    ``states`` are the inputs that the package keeps, with the outputs that they become.
    """

    def __init__(self, inner: Inner, artifact: Artifact) -> None:
        self._inner = inner
        self.executed_by = inner.executed_by
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self._values = artifact.values
        notes = ours(artifact.main.parent, inner.notes)
        self._specs = {spec.name: spec for spec in inner.inputs}
        self._own = {given: own for own, given in notes.ends.items() if own in self._specs}
        made = {spec.name for spec in inner.outputs}
        self._given = {given: own for own, given in notes.ends.items() if own in made}
        self._turned = frozenset(name for name, layout in notes.images.items() if layout == "NCHW")
        self._kept = {given: (own, result) for own, (given, result) in notes.states.items()}
        self.states: Mapping[str, str] = {given: result for given, (_, result) in self._kept.items()}
        self._scored = notes.scored
        self._require_same(artifact)
        self._others = [spec for spec in inner.outputs if spec.name not in notes.ends]
        self._feeding = Feeding(self.inputs)
        self._memory = self._fresh()

    def _require_same(self, artifact: Artifact) -> None:
        """Raises BackendError where what lies beside the program is not what the bundle was made of."""
        own = {own for own, _ in self._kept.values()}
        inputs, outputs = ({spec.name for spec in specs} for specs in (self.inputs, self.outputs))
        for what, said, there in (
            ("states", set(artifact.states.items()), set(self.states.items())),
            ("states", own, set(self._inner.fresh_state())),
            ("inputs", inputs, {*self._own, *self.states}),
            ("outputs", outputs, {*self._given, *self.states.values()}),
            ("classes", {self._scored} - {""}, {self._scored} & self._given.keys()),
        ):
            if said != there:
                raise BackendError(
                    f"{artifact.main.parent.name} has other {what} than its bundle says",
                    hint="copy the whole bundle again, or build it again",
                )

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        self._feeding.require_fit(feeds)
        memory = self._fresh()
        with np.errstate(over="ignore"):  # beyond float16 is infinite, as it is kept
            for name, (own, _) in self._kept.items():
                memory[own] = feeds[name].astype(np.float16).astype(memory[own].dtype)
        return self._through(feeds, want, memory)

    def step(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """As `run`, without feeds for what the package keeps, and after what was run before."""
        require_fit([spec for spec in self.inputs if spec.name not in self.states], feeds)
        return self._through(feeds, want, self._memory)

    def reset(self) -> None:
        """Forget what was run before: states are zeros."""
        self._memory = self._fresh()

    def _fresh(self) -> States:
        return self._inner.fresh_state() if self._kept else {}

    def _through(self, feeds: Arrays, want: Sequence[str], memory: States) -> dict[str, np.ndarray]:
        entered = {own: self._entered(self._specs[own], feeds[name]) for name, own in self._own.items()}
        inner = {name: self._values[name] for name in want if name in self._values}
        found = self._inner.run(entered, tuple(inner.values()), memory)
        results = {name: found[variable] for name, variable in inner.items() if variable in found}
        now = {result: memory[own] for own, result in self._kept.values()}
        for spec in self.outputs:
            array = now[spec.name] if spec.name in now else found[self._given[spec.name]]
            shape = array.shape if len(spec.shape) else ()
            results[spec.name] = array.reshape(shape).astype(spec.dtype)
        if self._scored:
            self._require_named(results[self._scored].reshape(-1), found)
        return results

    def _require_named(self, scores: np.ndarray, found: Arrays) -> None:
        """Raises BackendError where another class than the one of the greatest score is the likeliest."""
        chances = next((found[spec.name] for spec in self._others if spec.dtype != "string"), None)
        if chances is None or chances.size != scores.size or chances[scores.argmax()] + _TIE < chances.max():
            raise BackendError(
                f"the package's probabilities of classes do not follow its output '{self._scored}'",
                hint="build it again, and report the model if that does not help",
            )

    def _entered(self, spec: TensorSpec, array: np.ndarray) -> np.ndarray:
        """What is fed, as the package takes it: a picture, integers of 32 bits."""
        if spec.layout == "NHWC" and spec.name in self._turned:
            array = np.moveaxis(array, 1, -1)
        if spec.colours == "BGR":
            array = array[..., ::-1]
        if array.dtype == np.int64 and spec.dtype == "int32":
            bounds = np.iinfo(np.int32)
            return np.asarray(np.clip(array, bounds.min, bounds.max).astype(np.int32))
        return array.astype(spec.dtype, copy=False)

    def close(self) -> None:
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
