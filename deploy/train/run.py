"""A training under way: all that changes from batch to batch, and one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import cast

import onnx_ir as ir
import torch
from torch import Tensor, nn

from deploy.execute.module import GraphModule
from deploy.spec.finetune import Finetune
from deploy.spec.tensors import Layout
from deploy.train.answers import Answers
from deploy.train.augment import Augmented, augment, channels_last
from deploy.train.checkpoint import Checkpoint, Facts
from deploy.train.curve import Epoch, History, Point
from deploy.train.distill import Features, Teacher, soft_loss, temperature
from deploy.train.loader import Samples, number
from deploy.train.loss import Head, Task, Tensors
from deploy.train.optimize import Average, average, decaying, learning_rate, make_optimizer, set_rate
from deploy.train.score import tensors, wide

_POINTS = 400


@dataclass
class Position:
    """Where a run is, and what it noted on the way. Plain values, so that it goes into a checkpoint."""

    epoch: int = 0
    """Epochs that are finished, validation included."""
    batch: int = 0
    """Batches of the running epoch that are finished."""
    epoch_loss: float = 0.0
    point_loss: float = 0.0
    point_batches: int = 0
    best_epoch: int = 0
    best_score: float | None = None
    stale: int = 0
    """Epochs since the score was last better."""
    stopped: str = ""
    points: list[Point] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)


@dataclass(frozen=True)
class Lesson:
    """What is trained for: the loss on labels, and what teachers add to it."""

    heads: tuple[Head, ...]
    task: Task | None
    images: Mapping[str, Layout]
    teachers: tuple[Teacher, ...] = ()
    answers: Answers | None = None
    features: Features | None = None


class Run:
    """The module and everything that moves with it. ``total`` batches are ``per_epoch`` in each epoch.
    ``after_step`` is called when weights have moved."""

    def __init__(
        self,
        module: GraphModule,
        step: Finetune,
        lesson: Lesson,
        per_epoch: int,
        seed: int,
        device: torch.device,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.after_step = after_step
        self.module, self.step, self.lesson = module, step, lesson
        self.per_epoch, self.seed, self.device = per_epoch, seed, device
        self.total = step.epochs * per_epoch
        self.position = Position()
        self.weights: dict[str, nn.Parameter] = module.named_weights()
        self._adapters = dict(lesson.features.named_parameters()) if lesson.features is not None else {}
        trained = {**self.weights, **{f"adapter {n}": p for n, p in self._adapters.items()}}
        decayed = decaying(module.model) | {name for name in trained if name not in self.weights}
        self._trained = list(trained.values())
        self.optimizer = make_optimizer(trained, decayed, step)
        self.learned: dict[str, Tensor] = {**self.weights, **statistics(module)}
        self.average: Average | None = average(step.ema, self.learned)
        self.best = self.result()
        self._wanted = [
            name
            for name in dict.fromkeys(
                (*(h.read for h in lesson.heads), *(p.student for p in lesson.features.pairs))
                if lesson.features is not None
                else (h.read for h in lesson.heads)
            )
            if name not in module.program.outputs
        ]

    def result(self) -> dict[str, Tensor]:
        """Copies of what is learned so far: the average where there is one."""
        source: Mapping[str, Tensor] = self.learned if self.average is None else self.average.tensors
        return {name: tensor.detach().clone() for name, tensor in source.items()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The module holds the averages meanwhile, where there are any."""
        if self.average is None:
            yield
            return
        kept = {name: tensor.detach().clone() for name, tensor in self.learned.items()}
        self._set(self.average.tensors)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self.learned.items():
            tensor.copy_(values[name])

    def finite(self) -> bool:
        """Whether all that is learned is a number."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.learned.values())

    @property
    def done(self) -> int:
        """Batches behind us."""
        return self.position.epoch * self.per_epoch + self.position.batch

    @property
    def rate(self) -> float:
        """The learning rate of the next batch."""
        return learning_rate(self.step, self.done, self.total)

    def batch(self, samples: Samples) -> str:
        """Train on these samples and note the loss.

        Says what is wrong where the loss or the gradients' norm is not finite, "" otherwise; then nothing
        was changed but running statistics of batch norms.
        """
        place = self.position
        torch.manual_seed(number(self.seed, place.epoch, place.batch, 1))  # what the graph itself draws
        generator = torch.Generator().manual_seed(number(self.seed, place.epoch, place.batch))
        answers = self.lesson.answers
        changed = augment(
            tensors(samples.feeds, torch.device("cpu")),
            tensors(samples.targets, torch.device("cpu")),
            self.step.augment,
            self.lesson.images,
            generator,
            None if answers is None else answers.view(samples.rows, place.epoch),
        )
        rate = self.rate
        set_rate(self.optimizer, rate)
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(_moved(changed, self.lesson.images, self.device), samples)
        value = loss.item()
        if not math.isfinite(value):
            return f"the loss is {value}"
        loss.backward()  # type: ignore[no-untyped-call]  # torch declares it so
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self.step.clip or math.inf).item()
        if not math.isfinite(norm):
            return f"the loss is {value:.4g}, but the norm of its gradient {norm}"
        self.optimizer.step()
        self.after_step()
        if self.average is not None:
            self.average.update(self.learned)
        self._note(value, rate)
        return ""

    def _note(self, loss: float, rate: float) -> None:
        place = self.position
        place.batch += 1
        place.epoch_loss += loss
        place.point_loss += loss
        place.point_batches += 1
        stride = max(1, self.total // _POINTS)
        if self.done % stride == 0 or self.done == self.total:
            place.points.append(Point(self.done, place.point_loss / place.point_batches, rate))
            place.point_loss, place.point_batches = 0.0, 0

    def _loss(self, batch: Augmented, samples: Samples) -> Tensor:
        lesson, settings = self.lesson, self.step.distill
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.step.precision == "bf16"):
            results = self.module(batch.feeds, self._wanted)
        results = {name: wide(value) for name, value in results.items()}
        parts: list[Tensor] = []
        alpha = 1.0 if settings is None else settings.alpha
        if lesson.task is not None and alpha > 0:
            parts.append(alpha * blended(lesson.task, results, batch))
        if settings is None:
            return parts[0]
        taught, inner = self._taught(batch, samples)
        if alpha < 1:
            heat = temperature(settings, self.done / max(1, self.total - 1))
            soft = _soft(lesson.heads, results, taught, heat)
            if batch.blend is not None and lesson.answers is not None:
                place = batch.blend.partner.to(self.device)
                partners = [[answer[place] for answer in own] for own in taught]
                other = _soft(lesson.heads, results, partners, heat)
                soft = (1 - batch.blend.share) * soft + batch.blend.share * other
            parts.append((1 - alpha) * soft)
        if lesson.features is not None:
            parts.append(settings.feature_weight * lesson.features(results, inner))
        return torch.stack(parts).sum()

    def _taught(self, batch: Augmented, samples: Samples) -> tuple[list[list[Tensor]], Tensors]:
        """What each teacher says for each head, and inner values of the first."""
        lesson = self.lesson
        if lesson.answers is not None:
            return lesson.answers.of(samples.rows, self.position.epoch, self.device), {}
        taught: list[list[Tensor]] = []
        inner: dict[str, Tensor] = {}
        for index, teacher in enumerate(lesson.teachers):
            pairs = lesson.features.pairs if lesson.features is not None and index == 0 else ()
            found = teacher.run(batch.feeds, [pair.teacher for pair in pairs])
            taught.append([head.scores(found) for head in teacher.heads])
            inner |= {pair.teacher: found[pair.teacher] for pair in pairs}
        return taught, inner

    def checkpoint(self, key: dict[str, str]) -> Checkpoint:
        """All of it. Nothing random is kept, since every batch is seeded by its number."""
        found: dict[str, Tensor] = {f"learned/{name}": tensor for name, tensor in self.learned.items()}
        found |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        found |= {f"adapter/{name}": tensor for name, tensor in self._adapters.items()}
        if self.average is not None:
            found |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        for index, parameter in enumerate(self._trained):
            for word, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found[f"optimizer/{index}/{word}"] = value
        return Checkpoint(key, asdict(self.position), found)

    @torch.no_grad()
    def restore(self, kept: Checkpoint) -> None:
        """Go on where ``kept`` was."""
        facts = dict(kept.facts)
        facts["points"] = [Point(**p) for p in cast(list[dict[str, float]], facts["points"])]  # type: ignore[arg-type]
        facts["epochs"] = [Epoch(**e) for e in cast(list[Facts], facts["epochs"])]  # type: ignore[arg-type]
        self.position = Position(**facts)  # type: ignore[arg-type]  # written from one
        for name, value in kept.tensors.items():
            role, _, rest = name.partition("/")
            if role == "learned":
                self.learned[rest].copy_(value)
            elif role == "best":
                self.best[rest].copy_(value)
            elif role == "adapter":
                self._adapters[rest].copy_(value)
            elif role == "average" and self.average is not None:
                self.average.tensors[rest].copy_(value)
            elif role == "optimizer":
                index, _, word = rest.partition("/")
                parameter = self._trained[int(index)]
                own = value.clone() if word == "step" else value.to(parameter.device, copy=True)
                self.optimizer.state[parameter][word] = own

    def history(self, metric: str) -> History:
        """What was noted."""
        return History(tuple(self.position.points), tuple(self.position.epochs), metric)


def _moved(batch: Augmented, images: Mapping[str, Layout], device: torch.device) -> Augmented:
    return Augmented(
        {name: value.to(device) for name, value in channels_last(batch.feeds, images).items()},
        {name: value.to(device) for name, value in batch.targets.items()},
        batch.blend,
    )


def _soft(heads: Sequence[Head], results: Tensors, taught: Sequence[Sequence[Tensor]], heat: float) -> Tensor:
    """How far all heads are from what their teachers say."""
    parts = [
        soft_loss(head, head.scores(results), [own[index] for own in taught], heat)
        for index, head in enumerate(heads)
    ]
    return torch.stack(parts).sum()


def blended(task: Task, results: Tensors, batch: Augmented) -> Tensor:
    """The loss on a batch's labels; on both samples' labels, by their shares, where two were mixed."""
    own = task(results, batch.targets)
    if batch.blend is None:
        return own
    return (1 - batch.blend.share) * own + batch.blend.share * task(
        results, batch.blend.partners(batch.targets)
    )


def statistics_names(model: ir.Model) -> set[str]:
    """The running means and variances of batch norms."""
    found = (v for n in model.graph if n.op_type == "BatchNormalization" for v in n.inputs[3:5])
    return {
        v.name for v in found if v is not None and v.name is not None and v.name in model.graph.initializers
    }


def statistics(module: GraphModule) -> dict[str, Tensor]:
    """The same as tensors of the module, which training changes in place."""
    slots, template = module.program.slots, module.program.template
    return {name: cast(Tensor, template[slots[name]]) for name in sorted(statistics_names(module.model))}


def matches(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name is meant by one of the ``patterns`` of the shell's kind."""
    from fnmatch import fnmatchcase

    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)
