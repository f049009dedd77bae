"""What is left after channels were removed, trained to make what the whole graph makes. No labels are used.

    loss = divergence of the answers + mean over layers of |v - v'|^2 / |v'|^2

v' are the whole graph's values where a layer's result is complete (a residual sum), on the channels that are
left: many numbers for each sample, so a few hundred samples do not soon run out (FitNets, Romero et al. 2015;
block by block: Li et al., "BRECQ" 2021). Images are moved and mirrored at random, and blended in every other
step, since the whole graph says what is right for any (Beyer et al., arXiv:2106.05237). Every tensor learns
at a rate relative to its own size, as the ranges of inputs demand (You et al., "LARS" 2017). Statistics of
batch norms stay as they are, and so do zeros of sparse weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from torch import Tensor

from deploy.compress.channel_budget import divergence
from deploy.compress.channel_fit import Kept, narrowed
from deploy.compress.channel_order import Feeds
from deploy.compress.layers import goal
from deploy.execute.module import GraphModule
from deploy.graph.edit import constant
from deploy.graph.summary import tensor_specs
from deploy.progress import SILENT, Progress
from deploy.spec.finetune import Augment, Finetune
from deploy.spec.tensors import Layout
from deploy.train.augment import augment, image_inputs
from deploy.train.gram import layer_of
from deploy.train.loader import number
from deploy.train.loss import heads
from deploy.train.weights import with_weights
from deploy.train.zeros import keep_zeros

_WARM = 0.05
_CLIP = 1.0
_SMALLEST = 1e-2
"""What stands for the size of a tensor of zeros."""
_LOOKS = 4
"""How often the batches held out are asked, at most one of which is the last step."""


@dataclass(frozen=True)
class Tuning:
    """``steps`` of Adam, each on one of the batches given. ``rate`` is the share of its own size (root mean
    square) by which a tensor changes in a step, at first; ``weight`` that of inner values against answers.
    ``views`` are the random changes of images, blended in every other step only; where there are inputs that
    are none nothing is blended, and they stay as they are."""

    steps: int = 200
    rate: float = 2e-3
    weight: float = 1.0
    views: Augment = field(default_factory=lambda: Augment(crop=2, flip=True, mixup=1.0))
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """``before`` and ``after`` are the divergence of the answers on the batches held out."""

    graph: ir.Model
    before: float
    after: float


def tune(
    dense: ir.Model,
    thin: ir.Model,
    kept: Kept,
    learn: Feeds,
    judge: Feeds,
    settings: Tuning | None = None,
    progress: Progress = SILENT,
) -> Tuned:
    """A copy of ``thin``, which is ``dense`` without channels, trained on the batches ``learn``.

    Of what it was at the beginning and now and then the best on ``judge`` is taken. Raises UnsupportedError
    listing nodes that torch has no kernel for, UsageError where no output is a float.
    """
    settings = settings or Tuning()
    lesson = _Lesson(dense, thin, kept, learn[0])
    student = lesson.student
    weights = student.named_weights()
    keep_zeros(weights)
    groups = [
        {"params": [w], "size": float(w.detach().square().mean().sqrt()) or _SMALLEST}
        for w in weights.values()
    ]
    optimizer = torch.optim.Adam(groups, lr=settings.rate)
    images = image_inputs(tensor_specs(thin.graph.inputs), Augment())
    blended = views_of(settings.views, images, learn[0])
    single = blended.model_copy(update={"mixup": 0.0, "cutmix": 0.0})
    right = [lesson.exact(batch) for batch in judge]
    before = best = lesson.harm(judge, right)
    found = {name: w.detach().clone() for name, w in weights.items()}
    order: list[int] = []
    for step in range(settings.steps):
        generator = torch.Generator().manual_seed(number(settings.seed, step))
        order = order or torch.randperm(len(learn), generator=generator).tolist()
        views = blended if step % 2 else single
        batch = augment(dict(learn[order.pop()]), {}, views, images, generator).feeds
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * group["size"] * _course(step, settings.steps)
        loss = lesson.loss(batch, settings.weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares it so
        torch.nn.utils.clip_grad_norm_(weights.values(), _CLIP)
        optimizer.step()
        progress.advance(step + 1, settings.steps)
        if (step + 1) * _LOOKS // settings.steps > step * _LOOKS // settings.steps:
            now = lesson.harm(judge, right)
            if now < best:
                best, found = now, {name: w.detach().clone() for name, w in weights.items()}
    return Tuned(with_weights(thin, found), before, best)


def views_of(views: Augment, images: Mapping[str, Layout], batch: Mapping[str, Tensor]) -> Augment:
    """What is done to batches like this one: integers, and images beside other inputs, are not blended."""
    if not images:
        return Augment()
    blends = len(images) == len(batch) and all(value.is_floating_point() for value in batch.values())
    return views if blends else views.model_copy(update={"mixup": 0.0, "cutmix": 0.0})


def _course(step: int, steps: int) -> float:
    """The learning rate's share: up, then down along a cosine."""
    done = step / steps
    return min(1.0, (step + 1) / max(1.0, _WARM * steps)) * 0.5 * (1 + math.cos(math.pi * done))


class _Lesson:
    """Teacher and student, and the values that they are compared by."""

    def __init__(self, dense: ir.Model, thin: ir.Model, kept: Kept, batch: Mapping[str, Tensor]) -> None:
        self.teacher = GraphModule(dense, trainable=lambda _: False)
        self.student = GraphModule(thin)
        known = self.teacher.program.slots
        self._inner = [name for name in completed(thin) if name in known]
        self._kept = kept
        with torch.no_grad():
            outputs = self.student(batch, self._inner)
            whole = self.teacher(batch, self._inner)
        self._inner = [n for n in self._inner if narrowed(whole[n], kept, n).shape == outputs[n].shape]
        shapes = {name: tuple(outputs[name].shape) for name in self.student.program.outputs}
        self._heads = heads(thin, shapes, {}, Finetune())
        self._want = list(dict.fromkeys([*(head.read for head in self._heads), *self._inner]))

    def exact(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the teacher has, on the channels that are left."""
        with torch.no_grad():
            found = self.teacher(batch, self._want)
        return {name: narrowed(found[name], self._kept, name) for name in self._want}

    def loss(self, batch: Mapping[str, Tensor], weight: float) -> Tensor:
        wanted, found = self.exact(batch), self.student(batch, self._want)
        parts = [
            (found[name] - wanted[name]).square().mean() / wanted[name].square().mean().clamp_min(1e-12)
            for name in self._inner
        ]
        inner = torch.stack(parts).mean() if parts else torch.zeros(())
        return self._apart(found, wanted) + weight * inner

    def harm(self, judge: Feeds, right: Sequence[Mapping[str, Tensor]]) -> float:
        """The divergence of the answers."""
        with torch.no_grad():
            parts = [
                float(self._apart(self.student(batch, self._want), wanted))
                for batch, wanted in zip(judge, right, strict=True)
            ]
        return sum(parts) / len(parts)

    def _apart(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        scores, exact = ([head.scores(values) for head in self._heads] for values in (found, wanted))
        return divergence(self._heads, scores, exact)


def completed(model: ir.Model) -> list[str]:
    """The values at which the results of layers are complete, in graph order."""
    inside = {node.name or "" for node in model.graph}
    found: dict[str, None] = {}
    for node in model.graph:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if constant(weight) is not None and weight is not None and layer_of(node, weight.name or ""):
            found[goal(node, inside).value] = None
    return list(found)
