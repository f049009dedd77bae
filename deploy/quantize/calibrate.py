"""Runs the float graph over calibration data and keeps a histogram of every value that may be quantized."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from deploy.data.dataset import Dataset
from deploy.errors import DataError
from deploy.execute.observe import Observed, observe
from deploy.progress import SILENT, Progress
from deploy.quantize.ranges import Histogram

_MOST_PER_SAMPLE = 8192
"""Values counted per sample and tensor. Extremes are always taken over all of them."""


def calibrate(
    model: ir.Model,
    dataset: Dataset,
    values: Sequence[str],
    *,
    samples: int,
    threads: int = 1,
    progress: Progress = SILENT,
    see: Callable[[Observed], None] | None = None,
) -> dict[str, Histogram]:
    """Histograms of ``values`` over the first ``samples`` samples of ``dataset``.

    Samples stream through in batches that keep the observed arrays under 16 MB, so peak memory does not
    depend on how many there are. ``see`` is shown every batch, with the outputs. A value that becomes
    infinite has an unbounded histogram. Raises DataError where one becomes NaN.
    """
    histograms = {name: Histogram() for name in values}
    if not values:
        return histograms
    total = min(samples, len(dataset))
    for seen in observe(model, dataset, values, samples=total, threads=threads):
        if see is not None:
            see(seen)
        count = len(seen.batch.ids)
        for name in values:
            _count(histograms[name], name, seen.values.pop(name), count, seen.first)
        progress.advance(seen.first + count, total)
    return histograms


def _count(histogram: Histogram, name: str, array: np.ndarray, samples: int, first: int) -> None:
    if array.size == 0:
        return
    low, high = float(array.min()), float(array.max())
    if math.isnan(low):
        raise DataError(
            f"value '{name}' becomes NaN on calibration samples {first} to {first + samples - 1}",
            hint="check the normalisation of the data ([input.<name>] in deploy.toml) and the model",
        )
    if math.isinf(low) or math.isinf(high):
        histogram.low, histogram.high = min(histogram.low, low), max(histogram.high, high)
        return
    rows = array.reshape(samples if array.size % samples == 0 else 1, -1)
    # An odd stride is coprime to the powers of two that channel counts and sizes are made of.
    stride = max(1, -(-rows.shape[1] // _MOST_PER_SAMPLE)) | 1
    histogram.add(np.ascontiguousarray(rows[:, ::stride], np.float32), low, high)
