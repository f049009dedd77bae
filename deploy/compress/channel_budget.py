"""What losing channels does to the answers, measured level by level, so that a budget can be shared out.

Harm is how far the answers move from those of the graph as it came: KL divergence for classes, the mean
squared error in units of their power for other numbers. It is measured, not estimated: estimates from
gradients cut most where errors are alike everywhere in space and so add up in a pooling behind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.compress.channel_order import Feeds, Level
from deploy.execute.module import GraphModule
from deploy.graph.groups import Groups
from deploy.graph.masked import masked
from deploy.spec.finetune import Finetune
from deploy.train.distill import soft_loss
from deploy.train.loss import Head, heads
from deploy.train.units import Pieces, Quantized


def answers(model: ir.Model, feeds: Feeds) -> tuple[tuple[Head, ...], list[list[Tensor]]]:
    """What the outputs of ``model`` are, and for every batch the scores of each."""
    module = GraphModule(model, trainable=lambda _: False)
    with torch.no_grad():
        first = module(feeds[0])
        found = heads(model, {name: tuple(value.shape) for name, value in first.items()}, {}, Finetune())
        read = list(dict.fromkeys(head.read for head in found))
        scores = [
            [head.scores(results) for head in found] for results in (module(b, want=read) for b in feeds)
        ]
    return found, scores


def divergence(found: Sequence[Head], scores: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """How far answers are from those ``wanted``, summed over outputs."""
    parts = []
    for head, own, exact in zip(found, scores, wanted, strict=True):
        loss = soft_loss(head, own, [exact], 1.0)
        parts.append(loss / exact.square().mean().clamp_min(1e-12) if head.kind == "values" else loss)
    return torch.stack(parts).sum()


class Harm:
    """Measures what changes of ``model`` do to its answers on ``feeds``; ``wanted`` are the right ones, its
    own if not said otherwise. Sizes of batches must be equal."""

    def __init__(self, model: ir.Model, feeds: Feeds, wanted: list[list[Tensor]] | None = None) -> None:
        self._model, self._feeds = model, feeds
        self._pieces = Pieces(model)
        self._heads, own = answers(model, feeds)
        self._wanted = own if wanted is None else wanted
        self.floor = float(np.mean([self._of(s, w) for s, w in zip(own, self._wanted, strict=True)]))
        """The harm of the graph unchanged."""

    def levels(self, levels: Sequence[Level]) -> list[float]:
        """The harm of every level of one family."""
        if not levels:
            return []
        steps = self._pieces.program.steps
        constants = set(self._pieces.program.constants)
        slots = {slot: name for name, slot in self._pieces.program.slots.items()}
        changed = {name for level in levels for name in level.weights}
        start = next(i for i, s in enumerate(steps) if any(slots.get(r) in changed for r in s.reads))
        front, behind = steps[:start], steps[start:]
        later = set(self._pieces.makes(behind))
        early = [head.read for head in self._heads if head.read not in later]
        needed = [n for n in dict.fromkeys([*self._pieces.reads(behind), *early]) if n not in constants]
        harm = np.zeros(len(levels))
        with torch.no_grad():
            for batch, wanted in zip(self._feeds, self._wanted, strict=True):
                there = [name for name in needed if name in batch]
                values = {name: batch[name] for name in there}
                if front:
                    fed = {name: batch[name] for name in self._pieces.reads(front)}
                    values |= self._pieces.run(front, fed, [n for n in needed if n not in there])
                for i, level in enumerate(levels):
                    plan = Quantized({}, dict(level.weights))
                    want = [head.read for head in self._heads]
                    found = self._pieces.run(behind, values, want, plan)
                    harm[i] += self._of([head.scores(found) for head in self._heads], wanted)
        return [float(h) for h in harm / len(self._feeds)]

    def without(self, groups: Groups, removed: Sequence[int]) -> float:
        """The harm of removing these atoms, nothing made up for."""
        return self.of(masked(self._model, groups, removed))

    def of(self, model: ir.Model) -> float:
        """The harm of ``model`` in place of the graph."""
        _, found = answers(model, self._feeds)
        return float(np.mean([self._of(s, w) for s, w in zip(found, self._wanted, strict=True)]))

    def _of(self, scores: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
        return float(divergence(self._heads, scores, wanted))
