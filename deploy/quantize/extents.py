"""Extremes and magnitudes of values channel by channel, over samples that stream by."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.data.dataset import Dataset
from deploy.execute.observe import observe
from deploy.quantize.channels import Channels

_FIRST, _BINS = 4 * (127 - 20), 160
"""Magnitudes are counted in quarters of octaves from 2^-20 to 2^20: by the exponent and the two first bits of
the mantissa of a float32, which costs nothing to read."""
_ROWS = 4096
"""Positions counted per batch and value. Extremes and squares are always taken over all of them."""
MAGNITUDES = 2.0 ** (np.arange(_BINS) // 4 - 20.0) * (1.125 + np.arange(_BINS) % 4 / 4)
"""What the bins stand for."""


@dataclass(frozen=True)
class Extent:
    """Of one value, by channel, for every other batch of samples (first axis: two halves): the smallest and
    the largest that was seen, and the share of values in each bin of magnitude (last axis); over all of them
    the mean square."""

    least: np.ndarray
    most: np.ndarray
    shares: np.ndarray
    power: np.ndarray

    @property
    def low(self) -> np.ndarray:
        """As codes have to cover it: with zero."""
        return np.asarray(np.minimum(self.least, 0.0))

    @property
    def high(self) -> np.ndarray:
        return np.asarray(np.maximum(self.most, 0.0))


class _Counting:
    """What is known so far of a value with so many channels."""

    def __init__(self, channels: int) -> None:
        self.least, self.most = np.full((2, channels), np.inf), np.full((2, channels), -np.inf)
        self.bins, self.square = np.zeros((2, channels, _BINS)), np.zeros(channels)
        self.seen, self.counted = 0, np.zeros((2, 1, 1))

    def add(self, rows: np.ndarray, half: int) -> None:
        """Count float32 values, channels last."""
        self.least[half] = np.minimum(self.least[half], rows.min(axis=0))
        self.most[half] = np.maximum(self.most[half], rows.max(axis=0))
        self.square += np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
        self.seen += len(rows)
        part = np.abs(rows[:: max(1, len(rows) // _ROWS) | 1], dtype=np.float32)
        index = (np.ascontiguousarray(part).view(np.int32) >> 21) - _FIRST
        index = np.clip(index, 0, _BINS - 1) + np.arange(part.shape[1]) * _BINS
        shape = self.bins.shape[1:]
        self.bins[half] += np.bincount(index.ravel(), minlength=shape[0] * shape[1]).reshape(shape)
        self.counted[half] += len(part)

    def extent(self) -> Extent | None:
        """None where something was infinite or NaN. With a single batch both halves are the same."""
        if self.counted[1] == 0:
            for a in (self.least, self.most, self.bins, self.counted):
                a[1] = a[0]
        if not (np.isfinite(self.least).all() and np.isfinite(self.most).all()):
            return None
        return Extent(self.least, self.most, self.bins / self.counted, self.square / self.seen)


def extents(
    model: ir.Model,
    channels: Channels,
    values: Collection[str],
    dataset: Dataset,
    *,
    samples: int,
    threads: int = 1,
) -> dict[str, Extent]:
    """What ``values`` are by the axes along which their channels are numbered, those in one row; without
    values that become infinite or NaN."""
    found: dict[str, _Counting] = {}
    if not values:
        return {}
    for number, batch in enumerate(observe(model, dataset, list(values), samples=samples, threads=threads)):
        for name in values:
            array, ids = batch.values.pop(name), channels.values[name]
            kept = tuple(i for i in range(array.ndim) if ids.shape[i] > 1)
            rows = np.moveaxis(array, kept, range(-len(kept), 0)) if kept else array
            rows = rows.reshape(-1, ids.size)
            found.setdefault(name, _Counting(ids.size)).add(rows, number % 2)
    extents_ = {name: counting.extent() for name, counting in found.items()}
    return {name: extent for name, extent in extents_.items() if extent is not None}
