"""Batch norm put back before training, with statistics from data, and the proof that nothing changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import run_samples
from deploy.data.dataset import Dataset
from deploy.errors import VerificationError
from deploy.execute.compare import largest_error
from deploy.execute.observe import observe
from deploy.execute.reference import open_graph
from deploy.graph.batchnorm import Moments, foldable, reinsert
from deploy.graph.shapes import infer
from deploy.train.run import matches

SAMPLES = 512
_SAMPLES_COMPARED = 64
ALLOWED = 5e-5
"""Largest change of an output, relative to its largest magnitude."""


@dataclass(frozen=True)
class Normalised:
    """``model`` with ``count`` batch norms more, and by how much any output moved."""

    model: ir.Model
    count: int
    change: float


def normalise(
    model: ir.Model, dataset: Dataset, *, trainable: Sequence[str] = ("*",), threads: int = 1
) -> Normalised:
    """Put batch norm behind every convolution that has none, with the statistics of ``dataset``.

    Only those whose weight one of the patterns ``trainable`` means: what is not trained stays bit for bit.

    The statistics have to be those of the data trained on, augmentation aside: other data give batches that
    disagree with them, and what was learned is lost in the first steps. Raises VerificationError where the
    graph would compute something else.
    """
    values = foldable(model, matches(trainable))
    if not values:
        return Normalised(model, 0, 0.0)
    wider = infer(reinsert(model, measure(model, dataset, values, threads=threads)))
    feeds = next(dataset.batches(min(len(dataset), _SAMPLES_COMPARED))).feeds
    with open_graph(model, optimised=False, threads=threads) as session:
        want = run_samples(session, feeds, _SAMPLES_COMPARED)
    with open_graph(wider, optimised=False, threads=threads) as session:
        change = largest_error(want, run_samples(session, feeds, _SAMPLES_COMPARED))
    if not change <= ALLOWED:
        raise VerificationError(
            f"batch norm put back changes an output by {change:.2g} of its magnitude; {ALLOWED:g} is allowed",
            hint='train without it: batch_norm = "train" in the recipe\'s step',
        )
    return Normalised(wider, len(values), change)


def measure(
    model: ir.Model, dataset: Dataset, values: list[str], *, samples: int = SAMPLES, threads: int = 1
) -> dict[str, Moments]:
    """Mean and variance per channel (axis 1) of each value, over samples and positions, with flat memory.

    Batches are joined as in Chan, Golub and LeVeque (1979), which loses no digits.
    """
    counts = dict.fromkeys(values, 0)
    means: dict[str, np.ndarray] = {}
    squares: dict[str, np.ndarray] = {}
    total = min(samples, len(dataset))
    for seen in observe(model, dataset, values, samples=total, threads=threads):
        for name in values:
            array = seen.values.pop(name).astype(np.float64)
            axes = (0, *range(2, array.ndim))
            number = array.size // array.shape[1]
            mean = array.mean(axes)
            square = ((array - mean.reshape(1, -1, *[1] * (array.ndim - 2))) ** 2).sum(axes)
            before = counts[name]
            if before == 0:
                means[name], squares[name] = mean, square
            else:
                apart = mean - means[name]
                squares[name] += square + apart**2 * before * number / (before + number)
                means[name] += apart * number / (before + number)
            counts[name] = before + number
    return {name: Moments(means[name], squares[name] / counts[name]) for name in values}
