"""What the float graph gave on the calibration samples, kept while their ranges are found.

Where these samples choose, too, the float model need not run over them once more. It is the cleaned graph,
which was proved to compute what the file computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from deploy.adapter.batching import sample_count
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError
from deploy.execute.observe import Observed
from deploy.quantize.ranges import Histogram
from deploy.spec.tensors import TensorSpec

_FILE = "outputs.npz"
_LARGEST = 16 * 2**20
"""Bytes: what is larger is not kept, so that memory stays flat whatever the number of samples."""


@dataclass(frozen=True)
class Calibrated:
    """By graph the histograms of what may be quantized; the file of outputs, where they were kept."""

    histograms: Mapping[str, Mapping[str, Histogram]]
    outputs: Path | None = None


class Recorder:
    """Keeps the outputs ``names`` of what it sees, unless they are large or have no row for each sample."""

    def __init__(self, names: Sequence[str]) -> None:
        self._parts: dict[str, list[np.ndarray]] | None = {name: [] for name in names}
        self._bytes = 0

    def see(self, seen: Observed) -> None:
        """Keep what this batch gave."""
        if self._parts is None:
            return
        arrays = {name: seen.values[name] for name in self._parts}
        self._bytes += sum(array.nbytes for array in arrays.values())
        fit = all(array.ndim and len(array) == len(seen.batch.ids) for array in arrays.values())
        if not fit or self._bytes > _LARGEST:
            self._parts = None
            return
        for name, array in arrays.items():
            self._parts[name].append(array)

    def save(self, folder: Path) -> None:
        """Write what was kept into ``folder``, if anything was."""
        if self._parts is not None and all(self._parts.values()):
            arrays = {name: np.concatenate(parts) for name, parts in self._parts.items()}
            np.savez(folder / _FILE, allow_pickle=False, **arrays)


def outputs_in(folder: Path) -> Path | None:
    """The file that a recorder left in ``folder``."""
    path = folder / _FILE
    return path if path.is_file() else None


class Recorded:
    """A runner that gives what was recorded, sample after sample in the order of recording."""

    executed_by = "what was recorded while calibrating"

    def __init__(self, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        with np.load(path, allow_pickle=False) as stored:
            self._arrays = {spec.name: stored[spec.name] for spec in outputs}
        # Batches are cut as anybody likes, whatever the graph prescribes.
        self.inputs = tuple(
            spec.model_copy(update={"shape": ("samples", *spec.shape[1:])}) for spec in inputs
        )
        self.outputs = tuple(outputs)
        self._at = 0

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """The outputs of as many further samples as are fed. Raises BackendError where there are no more."""
        del want  # nothing inner was recorded
        begin, end = self._at, self._at + sample_count(feeds)
        if any(len(array) < end for array in self._arrays.values()):
            raise BackendError("fewer samples were recorded than are asked for", hint="report this")
        self._at = end
        return {name: array[begin:end] for name, array in self._arrays.items()}

    def close(self) -> None:
        self._arrays = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
