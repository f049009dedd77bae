"""The noise that quantization adds to what layers compute, expected from ranges and weights by channel.

Rounding costs step^2 / 12 a value, clipping the square of what is cut off; errors of channels are taken to be
independent of each other and of the signal. Good enough to compare two ways to scale the same channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant
from deploy.quantize.channels import FIXED, Channels, Slot, as_rows
from deploy.quantize.extents import MAGNITUDES, Extent
from deploy.quantize.place import Placement
from deploy.spec.profile import QuantRules

_LIMITS = np.array([1.0, 0.93, 0.86, 0.8, 0.7, 0.6, 0.5, 0.35, 0.25])
"""What is tried of a range, where the observer clips."""


@dataclass(frozen=True)
class Tensor:
    """A quantized value, or several that share parameters. ``low``, ``high`` and ``shares`` of its channels
    have the two halves of the samples first, see `Extent`; ``gain`` is by how much each channel's noise is
    amplified behind."""

    ids: np.ndarray
    low: np.ndarray
    high: np.ndarray
    shares: np.ndarray
    magnitudes: np.ndarray
    gain: np.ndarray

    def noise(self, factors: np.ndarray, levels: int, symmetric: bool, clips: bool) -> float:
        """Power of the amplified noise. The range is found on one half and judged on the other: what one half
        exceeded the other's extremes by is cut off."""
        by = factors[np.maximum(self.ids, 0)]
        magnitudes = self.magnitudes[None, :] / by[:, None]
        gain = np.square(by) * self.gain
        total = 0.0
        for here, there in ((0, 1), (1, 0)):
            low, high = float((self.low[here] / by).min()), float((self.high[here] / by).max())
            beyond = self.most(there) / by
            best = least = np.inf
            for limit in max(-low, high) * (_LIMITS if clips else _LIMITS[:1]):
                bottom, up = max(low, -limit), min(high, limit)
                width = (2 * max(-bottom, up) if symmetric else up - bottom) / levels
                # Far below a step all that can be lost is the value itself.
                error = np.minimum(np.square(magnitudes), width**2 / 12)
                error += np.square(np.maximum(np.minimum(magnitudes, beyond[:, None]) - limit, 0.0))
                seen = float((self.shares[here] * error).sum())
                if seen < least:
                    least, best = seen, float(((self.shares[there] * error).sum(axis=1) * gain).sum())
            total += best / 2
        return total

    def most(self, half: int) -> np.ndarray:
        """The largest magnitude of each channel."""
        return np.asarray(np.maximum(-self.low[half], self.high[half]))


@dataclass(frozen=True)
class Layer:
    """A reading layer as a matrix: entry (p, i) has row p of the outputs and reads channel ``ids[p, i]``."""

    name: str
    ids: np.ndarray
    outputs: np.ndarray
    peak: np.ndarray
    square: np.ndarray
    power: np.ndarray
    taps: int
    single: bool
    signal: float


@dataclass(frozen=True)
class Noise:
    """The expected noise that one group of channels is answerable for; see the head of this file."""

    tensors: Sequence[Tensor]
    reading: Sequence[Layer]
    layers: Sequence[Layer]
    levels: int
    limit: int
    symmetric: bool
    clips: bool

    def total(self, factors: np.ndarray) -> float:
        """J: noise over signal, summed over the layers."""
        noise = 0.0
        for tensor in self.tensors:
            noise += tensor.noise(factors, self.levels, self.symmetric, self.clips)
        for layer in self.layers:
            by, rows = factors[layer.ids], factors[layer.outputs]
            width = (layer.peak * by).max(axis=1) / self.limit
            if layer.single:
                width = (width / rows).max() * rows
            read = (layer.power / np.square(by)).sum(axis=1)
            noise += float((np.square(width) * read).sum()) * layer.taps / 12 / layer.signal
        return noise


def tensors_of(
    channels: Channels, placement: Placement, seen: Mapping[str, Extent], layers: Sequence[Layer]
) -> list[Tensor]:
    """The quantized values among ``seen``, each group that shares parameters as one."""
    members: dict[str, list[str]] = {}
    for name, group in placement.groups.items():
        if name in seen:
            members.setdefault(group, []).append(name)
    amplified = np.zeros(channels.count)
    for layer in layers:
        amplified += np.bincount(layer.ids.ravel(), layer.square.ravel(), channels.count) / layer.signal
    amplified[FIXED] = 0.0
    found = []
    for names in members.values():
        here = [seen[name] for name in names]
        shares = np.concatenate([e.shares for e in here], axis=1)
        used = np.flatnonzero(shares.any(axis=(0, 1)))
        ids = np.concatenate([channels.values[name].ravel() for name in names])
        numbers = np.maximum(ids, 0)
        found.append(
            Tensor(
                ids,
                np.concatenate([e.low for e in here], axis=1),
                np.concatenate([e.high for e in here], axis=1),
                shares[:, :, used],
                MAGNITUDES[used],
                amplified[numbers] / np.bincount(numbers)[numbers],
            )
        )
    return found


def layers_of(
    model: ir.Model, channels: Channels, placement: Placement, rules: QuantRules, seen: Mapping[str, Extent]
) -> list[Layer]:
    """The layers with quantized weights whose input is among ``seen``, in graph order."""
    sides: dict[str, dict[int, Slot]] = {}
    for slot in channels.slots:
        if slot.index == 1 and slot.role == "layer":
            sides.setdefault(slot.node.name or "", {})[slot.power] = slot
    heads = {head.name for uses in placement.weights.values() for head, _ in uses}
    found = []
    for node in model.graph:
        source = node.inputs[0].name if node.inputs and node.inputs[0] is not None else None
        if node.name not in heads or node.name not in sides or source is None or source not in seen:
            continue
        made, read = sides[node.name][-1], sides[node.name][1]
        weight = constant(node.inputs[1])
        assert weight is not None
        power = _powers_like(read.ids, channels.values[source].ravel(), seen[source].power)
        arrays = [np.broadcast_to(a, weight.shape) for a in (read.ids, made.ids, power)]
        rows = [as_rows(node, np.asarray(a)) for a in (*arrays, weight.astype(np.float64))]
        ids, outputs, power, matrix = (r[:, :, 0] if i < 3 else r for i, r in enumerate(rows))
        square = np.square(matrix).sum(axis=2)
        signal = float((square * power).sum())
        if signal <= 0:
            continue
        single = not rules.per_channel or node.op_type in rules.per_tensor
        peak = np.abs(matrix).max(axis=2)
        found.append(
            Layer(
                node.name,
                np.maximum(ids, 0),
                np.maximum(outputs[:, 0], 0),
                peak,
                square,
                power,
                matrix.shape[2],
                single,
                signal,
            )
        )
    return found


def _powers_like(read: np.ndarray, ids: np.ndarray, power: np.ndarray) -> np.ndarray:
    """The mean square of each entry of ``read``, by number. Channels of one number get their mean."""
    size = int(max(ids.max(), read.max())) + 2
    total, count = np.bincount(ids + 1, power, size), np.bincount(ids + 1, minlength=size)
    return np.asarray((total / np.maximum(count, 1))[read + 1])
