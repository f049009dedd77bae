"""A package that no bundle describes, as anybody's program sees it: sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from backends.coreml.child import ForeignRunner
from backends.coreml.runner import CLASSES, CoreMLOptions
from deploy.adapter.protocol import Arrays
from deploy.spec.tensors import Normalisation, TensorSpec


class FileRunner:
    """Implements OpenedFile and Remembers. Raises BackendError for what cannot be evaluated.

    Pictures are taken as pixels in RGB, channels last. A classifier's class and probabilities, which Core ML
    gives without an axis of samples, get one.
    """

    def __init__(self, path: Path, options: CoreMLOptions) -> None:
        self._inner = ForeignRunner(path, options)
        self.executed_by = self._inner.executed_by
        self.classes, self.usual = self._inner.classes, self._inner.usual
        self._alone = tuple(spec.name for spec in self._inner.outputs if spec.shape in ((), (CLASSES,)))
        self.inputs = tuple(_pixels(spec) for spec in self._inner.inputs)
        self.outputs = tuple(
            spec.model_copy(update={"shape": (1, *spec.shape)}) if spec.name in self._alone else spec
            for spec in self._inner.outputs
        )
        self.states: Mapping[str, str] = {name: name for name in self._inner.fresh_state()}
        self._memory = self._inner.fresh_state()

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """As the Runner protocol says; a package with states begins anew."""
        return self._through(feeds, want, self._inner.fresh_state())

    def step(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """As `run`, after the steps before."""
        return self._through(feeds, want, self._memory)

    def reset(self) -> None:
        """States become zeros again."""
        self._memory = self._inner.fresh_state()

    def _through(
        self, feeds: Arrays, want: Sequence[str], memory: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        found = self._inner.run(feeds, want, memory)
        return found | {name: found[name][None] for name in self._alone}

    def close(self) -> None:
        """End the child."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pixels(spec: TensorSpec) -> TensorSpec:
    """Of a picture: bytes are fed, which the package normalises, and in RGB, which it turns itself."""
    if spec.layout != "NHWC":
        return spec
    return spec.model_copy(update={"colours": "RGB", "normalisation": Normalisation(folded=True)})
