"""What a handful of samples show of a float graph's inner values: extremes and variances by channel.

Samples stream through in batches; of a value only a few numbers are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.data.dataset import Dataset
from deploy.execute.observe import observe
from deploy.execute.reference import open_graph
from deploy.graph.blocks import ACTIVATION
from deploy.graph.edit import constant_tensor, is_constant

SAMPLES = 8
"""How many samples are looked at before calibration."""

Run = Callable[[Sequence[str]], Iterator[Mapping[str, np.ndarray]]]
"""Runs the float graph once over the samples and gives the values named, a batch at a time."""

PASSES = ACTIVATION | {"BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"}
_AFFINE = frozenset(("Add", "Sub", "Mul", "Div"))


@dataclass(frozen=True)
class Samples:
    """``run`` over ``count`` of them; ``random``: they are noise, for want of data."""

    run: Run
    count: int
    random: bool = False

    def __str__(self) -> str:
        kind = "random input" if self.random else "sample"
        return f"{self.count} {kind}{'s' if self.count != 1 else ''}"


def of_data(model: ir.Model, dataset: Dataset, *, threads: int = 1, random: bool = False) -> Samples:
    """The first samples of ``dataset``."""
    count = min(SAMPLES, len(dataset))

    def run(values: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        for seen in observe(model, dataset, values, samples=count, threads=threads):
            yield seen.values

    return Samples(run, count, random)


def of_feeds(model: ir.Model, feeds: Mapping[str, np.ndarray], *, threads: int = 1) -> Samples:
    """One run on ``feeds``, the random inputs that the model was tried with."""

    def run(values: Sequence[str]) -> Iterator[Mapping[str, np.ndarray]]:
        with open_graph(model, threads=threads, expose=list(values)) as runner:
            results = runner.run(feeds, list(values))
            yield {name: results[name] for name in values}

    return Samples(run, max((len(a) for a in feeds.values() if a.ndim), default=1), random=True)


@dataclass
class Seen:
    """Extremes over everything, and by channel where an axis was given.

    ``lows``, ``highs``, ``sums`` and ``squares`` are by channel, ``numbers`` were seen in each.
    """

    low: float = math.inf
    high: float = -math.inf
    lows: np.ndarray | None = None
    highs: np.ndarray | None = None
    sums: np.ndarray | None = None
    squares: np.ndarray | None = None
    numbers: int = 0

    def add(self, values: np.ndarray, axis: int | None) -> None:
        """Count a batch; ``axis`` is that of the channels."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if math.isnan(low):
            low, high = -math.inf, math.inf
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not self.bounded:
            return
        if axis is None or not -values.ndim <= axis < values.ndim:
            return
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
        if self.lows is None or len(self.lows) != len(rows):  # a free size that changed is no channel
            self.lows, self.highs, self.numbers = rows.min(axis=1), rows.max(axis=1), 0
            self.sums, self.squares = np.zeros(len(rows)), np.zeros(len(rows))
        assert self.highs is not None and self.sums is not None and self.squares is not None
        np.minimum(self.lows, rows.min(axis=1), out=self.lows)
        np.maximum(self.highs, rows.max(axis=1), out=self.highs)
        self.sums += rows.sum(axis=1)
        self.squares += np.einsum("cn,cn->c", rows, rows)
        self.numbers += rows.shape[1]

    @property
    def bounded(self) -> bool:
        """Whether only finite numbers were seen, and any at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def endless(self) -> bool:
        """Whether an infinite number or none at all (NaN) was seen: no scale can cover that."""
        return not self.bounded and self.low <= self.high

    @property
    def width(self) -> float:
        """How far apart the extremes are, zero counted in: what codes have to cover."""
        return max(self.high, 0.0) - min(self.low, 0.0)

    @property
    def widths(self) -> np.ndarray:
        """The same for each channel; empty without channels."""
        if self.lows is None or self.highs is None:
            return np.zeros(0)
        return np.asarray(np.maximum(self.highs, 0.0) - np.minimum(self.lows, 0.0))

    @property
    def variance(self) -> float:
        """How much all numbers vary around their common mean; 0 where no axis was given."""
        if self.sums is None or self.squares is None or self.numbers == 0:
            return 0.0
        count = self.numbers * len(self.sums)
        return max(0.0, float(self.squares.sum() / count - (self.sums.sum() / count) ** 2))

    @property
    def variances(self) -> np.ndarray:
        """How much each channel varies around its own mean: what it tells apart; empty without channels."""
        if self.sums is None or self.squares is None or self.numbers == 0:
            return np.zeros(0)
        spread = self.squares / self.numbers - np.square(self.sums / self.numbers)
        return np.asarray(np.maximum(spread, 0.0))


def look(run: Run, wanted: Mapping[str, int | None]) -> dict[str, Seen]:
    """Everything about the values ``wanted``, name -> axis of the channels or None, in one pass."""
    found = {name: Seen() for name in wanted}
    if not wanted:
        return found
    for values in run(list(wanted)):
        for name, axis in wanted.items():
            if values[name].dtype.kind == "f":
                found[name].add(values[name], axis)
    return found


def channel_axis(value: ir.Value) -> int | None:
    """The axis of the features that a convolution or product made, through what keeps them apart."""
    node = value.producer()
    while node is not None:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            return 1
        if node.op_type == "MatMul":
            return -1 if len(node.inputs) > 1 and constant_tensor(node.inputs[1]) is not None else None
        data = [v for v in node.inputs if v is not None and not is_constant(v)]
        single = node.op_type in _AFFINE and len(data) == 1
        if not (node.op_type in PASSES or single or (node.op_type == "Add" and data)):
            return None
        node = data[0].producer()
    return None


def maker(value: ir.Value) -> ir.Node | None:
    """The convolution or product that alone makes ``value``, through what keeps channels apart."""
    node = value.producer()
    while node is not None and node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        data = [v for v in node.inputs if v is not None and not is_constant(v)]
        if len(data) != 1 or node.op_type not in PASSES | _AFFINE:
            return None
        node = data[0].producer()
    return node
