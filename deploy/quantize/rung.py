"""What a rung of the accuracy ladder hands back: its result, and place by place what it won and cost.

Places are judged where they are. Whether the network as a whole won is what `output_noise` says, without
labels: a rung whose places all won may still be one to leave out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch, run_samples
from deploy.data.dataset import Dataset, at_once
from deploy.execute.reference import open_graph

_BATCH = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One change: where, what was done, and the noise there before and after, as a share of the signal's
    power. Both are ``nan`` where nothing was measured, as where a place was passed over and why."""

    place: str
    what: str
    before: float = math.nan
    after: float = math.nan

    @property
    def gain(self) -> float:
        """Decibels won; infinite where nothing is left of the noise, 0 where nothing was measured."""
        if not self.before > 0:
            return 0.0
        return math.inf if self.after == 0 else 10 * math.log10(self.before / self.after)


@dataclass(frozen=True)
class Rung(Generic[T]):
    """What one rung made. ``passes``: samples it ran, over those of one calibration pass of as many samples
    as it was given; 0 for what is computed from the weights and known ranges alone."""

    name: str
    result: T
    steps: tuple[Step, ...]
    passes: float

    @property
    def changed(self) -> bool:
        """Whether anything was changed at all."""
        return any(step.gain != 0 for step in self.steps)


def output_noise(
    model: ir.Model, quantized: ir.Model, dataset: Dataset, *, samples: int, threads: int = 1
) -> float:
    """Noise over signal of the outputs of ``quantized``, the mean over those that ``model`` has as floats.

    Raises BackendError where one of them does not run.
    """
    names = [v.name or "" for v in model.graph.outputs if v.dtype == ir.DataType.FLOAT]
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    with open_graph(model, threads=threads) as exact, open_graph(quantized, threads=threads) as other:
        size = fixed_batch(exact.inputs) or at_once(dataset, _BATCH)
        for batch in dataset.batches(size, limit=samples):
            want, got = (run_samples(runner, batch.feeds, size) for runner in (exact, other))
            for name in names:
                signal[name] += float(np.square(want[name], dtype=np.float64).sum())
                noise[name] += float(np.square(want[name] - got[name], dtype=np.float64).sum())
    return float(np.mean([noise[name] / max(signal[name], 1e-30) for name in names])) if names else 0.0
