"""Adaptive rounding: the integers of weights chosen by what they do to the network, not by what is nearest.

Two rungs, both fed with what the quantized graph has computed so far and aiming at what the float graph has:

layers   the products of every layer by itself (Nagel et al., ICML 2020; `quadratic.py`)
units    the values at the end of every residual unit, by gradient through all its layers (`reconstruct.py`)

Scales and zero points stay the plan's, every code is one of the two neighbours of the float weight, and a
unit keeps the codes that it came with unless others are better on samples that were held out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.data.dataset import Dataset
from deploy.errors import DataError
from deploy.graph.blocks import Block
from deploy.graph.cost import macs_of
from deploy.graph.edit import constant
from deploy.graph.qdq import data_digest
from deploy.progress import SILENT, Progress
from deploy.spec.plan import TensorPlan
from deploy.train.finetune import reproducible
from deploy.train.gram import PLACES, gram, layer_of
from deploy.train.loader import number
from deploy.train.quadratic import STEPS, solve
from deploy.train.reconstruct import Weight, reconstruct
from deploy.train.units import (
    Pieces,
    Quantized,
    Stop,
    Unit,
    batches,
    error,
    held_bytes,
    narrow_units,
    single_units,
    stored_constants,
    walk,
)

BATCH = 16
_HELD_OUT = 4
"""One batch of so many is held out."""
_SPEED = 6e9
"""Multiply-accumulates a second and thread, forwards and backwards, that the budget is planned with: how many
steps are taken must not depend on how busy the machine is."""
_MEMORY = 1 << 30
"""Bytes of inner values that are held for all samples; of larger ones fewer samples are taken."""
_LAYERS_SHARE = 0.5
"""Share of the time for layers, and again for relaxing them; what they leave over nobody takes."""
_FEWEST = 100
"""Steps in which a unit is reconstructed, at least."""

How = Literal["as given", "layers", "units"]


@dataclass(frozen=True)
class Rounding:
    """``samples`` are taken from the first, every fourth batch of them held out. ``seconds`` bound the whole
    by plan, and by the clock where the machine is slower than planned for; a unit is reconstructed in
    ``steps`` at most. Without ``layers`` or ``units`` that rung is left out. ``largest`` is the greatest
    magnitude of a code: 127, 64 for weights of 7 bits, 7 for 4 (types that hold less, less)."""

    largest: int = 127
    samples: int = 256
    seconds: float = 60.0
    steps: int = 600
    layers: bool = True
    units: bool = True
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class RoundedUnit:
    """``before`` and ``after`` are errors on held-out samples: mean square over that of the float values,
    summed over what leaves the unit. ``turned`` weights are rounded otherwise than they came."""

    id: str
    weights: tuple[str, ...]
    how: How
    before: float
    after: float
    turned: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class Rounded:
    """All codes, with the tensors of the plan whose digests follow from them. ``layers`` and ``units`` say
    what each rung won, on so many ``samples``, those held out included. ``complete`` is false where the
    clock ran out, so that the next run may differ."""

    tensors: dict[str, TensorPlan]
    codes: dict[str, np.ndarray]
    layers: tuple[RoundedUnit, ...]
    units: tuple[RoundedUnit, ...]
    samples: int
    seconds: float
    complete: bool

    @property
    def turned(self) -> int:
        """How many weights are rounded otherwise than they came."""
        return sum(unit.turned for unit in (*self.layers, *self.units))


def round_weights(
    model: ir.Model,
    blocks: Sequence[Block],
    tensors: Mapping[str, TensorPlan],
    codes: Mapping[str, np.ndarray],
    dataset: Dataset,
    settings: Rounding,
    progress: Progress = SILENT,
) -> Rounded:
    """Better integers for the weights of a quantized graph.

    ``model`` is the float graph that ``tensors`` and ``codes`` quantize. Weights that are read otherwise than
    by products, whose zero point is not 0 or whose graph has no gradient there stay as they are. Equal seed,
    threads and machine give equal codes, unless the clock ran out. Raises DataError where there are fewer
    than two batches of samples, UnsupportedError listing the nodes that torch has no kernel for.
    """
    begun = time.monotonic()
    with reproducible(settings.threads):
        work = _Work(model, blocks, tensors, codes, dataset, settings, begun + settings.seconds, progress)
        layers = work.layers(single_units(model, blocks, work.weights)) if settings.layers else ()
        left = settings.seconds - (time.monotonic() - begun) if settings.units else 0.0
        units = work.units(narrow_units(model, blocks, work.weights)) if left > 0 else ()
    found = {**codes, **{name: weight.integers() for name, weight in work.weights.items()}}
    changed = {
        name: plan.model_copy(update={"digest": data_digest(found[name])}) if name in work.weights else plan
        for name, plan in tensors.items()
    }
    samples = sum(len(next(iter(batch.values()))) for batch in work.feeds)
    return Rounded(changed, found, layers, units, samples, time.monotonic() - begun, not work.late)


class _Work:
    """What both rungs work on: the weights as they are decided so far, and the samples."""

    def __init__(
        self,
        model: ir.Model,
        blocks: Sequence[Block],
        tensors: Mapping[str, TensorPlan],
        codes: Mapping[str, np.ndarray],
        dataset: Dataset,
        settings: Rounding,
        deadline: float,
        progress: Progress,
    ) -> None:
        self.settings, self.deadline, self.progress = settings, deadline, progress
        self.pieces = Pieces(model)
        self.nodes = {node.name: node for node in model.graph}
        self.feeds = batches(model, dataset, settings.samples, BATCH)
        held = held_bytes(self.pieces, single_units(model, blocks, codes), self.feeds[0])
        self.feeds = self.feeds[: max(2, _MEMORY // max(held, 1))]
        if len(self.feeds) < 2:
            raise DataError(
                f"{dataset.origin}: rounding needs two batches, of {BATCH} samples or as the model has it",
                hint="give more calibration samples",
            )
        every = min(_HELD_OUT, len(self.feeds))
        self.held = [i for i in range(len(self.feeds)) if i % every == every - 1]
        self.seen = [i for i in range(len(self.feeds)) if i % every != every - 1]
        self.weights: dict[str, Weight] = {}
        for name, plan in tensors.items():
            array = constant(model.graph.initializers[name]) if name in codes else None
            if array is not None and plan.type != "int32" and not any(plan.zero_point) and not plan.bias_of:
                self.weights[name] = Weight.of(name, array, codes[name], plan, settings.largest)
        self.tensors = {name: plan for name, plan in tensors.items() if name not in codes}
        self.plan = Quantized(self.tensors, stored_constants(tensors, codes))
        self.late = False

    def layers(self, units: Sequence[Unit]) -> tuple[RoundedUnit, ...]:
        """Round layer by layer, relaxing where there is time for it."""
        work = [self._products(unit) for unit in units]
        whole, _ = self._affordable([gathered for gathered, _ in work], _LAYERS_SHARE)
        relaxed, _ = self._affordable([steps for _, steps in work], _LAYERS_SHARE)
        found, done = [], set[str]()
        for position, stop in enumerate(walk(self.pieces, units, self.plan, self.feeds)):
            self.progress.advance(position + 1, len(units))
            names = [name for name in stop.unit.weights if name not in done]
            done.update(names)
            if names and position in whole and not self._late():
                begun = time.monotonic()
                solved = {name: self._solved(stop, name, position, position in relaxed) for name in names}
                chosen = {name: codes for name, codes in solved.items() if codes is not None}
                if chosen:
                    found.append(self._judged(stop, chosen, "layers", 0, begun))
        return tuple(found)

    def _products(self, unit: Unit) -> tuple[float, float]:
        """What a layer costs in multiply-accumulates: Gram matrix and rounding in sequence; relaxing it."""
        gathered = relaxing = 0.0
        for layer in (layer_of(self.nodes[node], name) for name in unit.weights for node in unit.nodes):
            if layer is not None:
                groups, rows, length = layer.packed(self.weights[layer.weight].aim).shape
                square = groups * length**2
                gathered += square * (max(PLACES, 4 * length) + 3 * length + rows)
                relaxing += 2 * STEPS * square * rows
        return gathered, relaxing

    def _solved(self, stop: Stop, name: str, position: int, relax: bool) -> Tensor | None:
        """The codes with which the products of a layer change least; None where it is no such layer."""
        readers = [self.nodes[n] for n in stop.unit.nodes if name in _constants(self.nodes[n])]
        layer = layer_of(readers[0], name) if len(readers) == 1 else None
        if layer is None:
            return None
        node, weight = layer.node.name or "", self.weights[name]
        generator = torch.Generator().manual_seed(number(self.settings.seed, position))
        with torch.no_grad():
            given = [self._value(stop, layer.source, i, self.plan) for i in self.seen]
            given = [self.plan.read(layer.source, node, value) for value in given]
            exact = [self._value(stop, layer.source, i, None) for i in self.seen]
            form, missed = gram(layer, weight.floats, exact, given, generator)
        aim, low, high = (layer.packed(t) for t in (weight.aim, weight.low, weight.high))
        scale = layer.packed(weight.scale.expand_as(weight.aim))
        return layer.unpacked(solve(aim, low, high, form, missed / scale, relax=relax), weight.aim)

    def _value(self, stop: Stop, name: str, batch: int, plan: Quantized | None) -> Tensor:
        values = (stop.exact if plan is None else stop.given)[batch]
        if name in values:
            return values[name]
        return self.pieces.run(stop.steps, values, [name], plan)[name]

    def units(self, units: Sequence[Unit]) -> tuple[RoundedUnit, ...]:
        """Reconstruct unit by unit, all where the time suffices, else those that cost least of it."""
        batch = len(next(iter(self.feeds[0].values())))
        chosen, over = self._affordable(
            [3 * _FEWEST * self._macs(unit, batch) for unit in units], 1 - _LAYERS_SHARE
        )
        steps = int(min(self.settings.steps, _FEWEST * over))
        found, done = [], set[str]()
        for position, stop in enumerate(walk(self.pieces, units, self.plan, self.feeds)):
            self.progress.advance(position + 1, len(units))
            names = [name for name in stop.unit.weights if name not in done]
            done.update(names)
            if not names or position not in chosen or self._late():
                continue
            begun = time.monotonic()
            answer = reconstruct(
                self.pieces,
                stop,
                self.plan,
                [self.weights[name] for name in names],
                self.seen,
                steps,
                number(self.settings.seed, position),
                self.deadline,
            )
            self.late |= answer.late
            found.append(self._judged(stop, answer.codes, "units", answer.steps, begun))
        return tuple(found)

    def _affordable(self, work: Sequence[float], share: float) -> tuple[set[int], float]:
        """Which of these, the cheapest first, there is time for, and how often over."""
        allowed = share * self.settings.seconds * _SPEED * self.settings.threads
        chosen, spent = set[int](), 0.0
        for index in sorted(range(len(work)), key=lambda i: (work[i], i)):
            if spent + work[index] <= allowed:
                chosen.add(index)
                spent += work[index]
        return chosen, allowed / max(spent, 1.0)

    def _macs(self, unit: Unit, batch: int) -> float:
        return float(sum(macs_of(self.nodes[name], batch) or 0 for name in unit.nodes))

    def _late(self) -> bool:
        self.late |= time.monotonic() > self.deadline
        return self.late

    def _judged(
        self, stop: Stop, chosen: Mapping[str, Tensor], how: How, steps: int, begun: float
    ) -> RoundedUnit:
        """Take the codes where they are better on the samples held out."""
        kept = {name: self.weights[name].codes for name in chosen}
        before = self._error(stop)
        turned = sum(int((codes != kept[name]).sum()) for name, codes in chosen.items())
        self._put(chosen)
        after = self._error(stop)
        if not after < before:
            self._put(kept)
            how, after, turned = "as given", before, 0
        seconds = time.monotonic() - begun
        return RoundedUnit(stop.unit.id, tuple(chosen), how, before, after, turned, steps, seconds)

    def _put(self, codes: Mapping[str, Tensor]) -> None:
        for name, found in codes.items():
            self.weights[name] = replace(self.weights[name], codes=found)
            self.plan.constants[name] = self.weights[name].values()

    def _error(self, stop: Stop) -> float:
        with torch.no_grad():
            parts = [
                error(
                    self.pieces.run(stop.steps, stop.given[i], stop.leaving, self.plan), stop.targets[i]
                ).item()
                for i in self.held
            ]
        return float(np.mean(parts))


def _constants(node: ir.Node) -> set[str | None]:
    return {value.name for value in node.inputs if value is not None}
