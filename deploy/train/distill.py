"""Teachers: frozen graphs whose outputs, and inner values, a graph is trained to give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy.errors import DeployError, ModelError, UsageError
from deploy.execute.module import GraphModule
from deploy.spec.finetune import Distill, TrainingPrecision
from deploy.train.loss import Head, Tensors, scores_before
from deploy.train.score import wide


@dataclass(frozen=True)
class Teacher:
    """One frozen graph. ``inputs`` are its input names, in the order of the student's; ``heads`` its outputs,
    in the order of the student's heads. It computes in ``precision``."""

    module: GraphModule
    inputs: dict[str, str]
    heads: tuple[Head, ...]
    precision: TrainingPrecision = "float"

    def run(self, feeds: Tensors, want: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs and inner values for the student's ``feeds``, without gradients."""
        names = dict.fromkeys((*(head.read for head in self.heads), *want))
        wanted = [name for name in names if name not in self.module.program.outputs]
        device = next(iter(feeds.values())).device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
            found: dict[str, Tensor] = self.module({o: feeds[n] for o, n in self.inputs.items()}, wanted)
        return {name: wide(value) for name, value in found.items()}

    def scores(self, feeds: Tensors) -> list[Tensor]:
        """What `Head.scores` reads, one tensor for each head."""
        found = self.run(feeds)
        return [head.scores(found) for head in self.heads]


def open_teacher(
    model: ir.Model,
    place: int,
    student: Sequence[Head],
    inputs: Sequence[str],
    feeds: Tensors,
    results: Tensors,
    precision: TrainingPrecision = "float",
) -> Teacher:
    """``model`` as teacher number ``place`` (from 1) of a student with these ``heads`` and ``inputs``.

    It is run once on ``feeds``, for which the student gave ``results``. Raises ModelError where its inputs
    or outputs do not fit, UnsupportedError where it holds operations without a kernel.
    """
    who = f"teacher {place}"
    module = GraphModule(model, trainable=lambda _: False).eval()
    own_inputs, own_outputs = module.program.inputs, module.program.outputs
    if len(own_inputs) == len(inputs) == 1:
        fed = {own_inputs[0]: inputs[0]}
    else:
        missing = [name for name in own_inputs if name not in inputs]
        if missing:
            raise _unfit(who, f"takes an input '{missing[0]}', the model has {', '.join(inputs)}")
        fed = {name: name for name in own_inputs}
    values = {value.name or "": value for value in model.graph.outputs}
    heads = []
    for head in student:
        name = head.output
        if name not in values:
            if len(student) > 1 or len(own_outputs) > 1:
                raise _unfit(who, f"has no output '{name}', only {', '.join(own_outputs)}")
            name = own_outputs[0]
        read, probabilities = scores_before(values[name]) if head.kind != "values" else (name, False)
        heads.append(replace(head, output=name, read=read, probabilities=probabilities))
    module = module.to(next(iter(feeds.values())).device)._apply(torch.clone)  # see score.tensors
    teacher = Teacher(module, fed, tuple(heads), precision)
    try:
        found = teacher.run(feeds)
    except DeployError as e:
        raise _unfit(who, f"cannot run on what the model is fed with: {e.message}") from e
    for own, head in zip(teacher.heads, student, strict=True):
        wanted, given = head.scores(results).shape, own.scores(found).shape
        if wanted != given:
            if head.kind == "classes" and wanted[1] != given[1]:
                raise _unfit(who, f"knows {given[1]} classes, output '{head.output}' has {wanted[1]}")
            raise _unfit(
                who, f"gives {list(given)} for {wanted[0]} samples, output '{head.output}' {list(wanted)}"
            )
    return teacher


def _unfit(who: str, why: str) -> ModelError:
    return ModelError(
        f"[recipe] distill: {who} {why}",
        hint="a teacher takes the model's inputs and gives outputs of the same shapes",
    )


def temperature(settings: Distill, share: float) -> float:
    """The temperature when ``share`` of the training is done."""
    end = settings.temperature if settings.temperature_end is None else settings.temperature_end
    return settings.temperature + (end - settings.temperature) * share


def soft_loss(head: Head, scores: Tensor, taught: Sequence[Tensor], heat: float) -> Tensor:
    """How far the student's ``scores`` are from the mean of its teachers', at temperature ``heat``.

    heat^2 * KL(teacher || student) of classes, a mean over samples and positions; the same of a yes and no
    for each class; the mean squared error of other numbers.
    """
    if head.kind == "values":
        return functional.mse_loss(scores, torch.stack(list(taught)).mean(0).to(scores.dtype))
    if head.kind == "each":
        chance = torch.stack([torch.sigmoid(t.to(scores.dtype) / heat) for t in taught]).mean(0)
        cross = functional.binary_cross_entropy_with_logits(scores / heat, chance)
        return heat**2 * (cross - functional.binary_cross_entropy(chance, chance))
    chance = torch.stack([torch.softmax(t.to(scores.dtype) / heat, 1) for t in taught]).mean(0)
    own = torch.log_softmax(scores / heat, 1)
    divergence = functional.kl_div(own, chance, reduction="sum") / (scores.numel() / scores.shape[1])
    return heat**2 * divergence


class Features(nn.Module):
    """The distance between inner values of student and teacher: squared, in units of the teacher's mean
    square. Where they differ in channels (axis 1 of rank 4, else the last), a linear map from the student's
    to the teacher's is learned beside and thrown away after training (Romero et al. 2015)."""

    def __init__(self, settings: Distill, student: Tensors, teacher: Tensors) -> None:
        """``student`` and ``teacher`` are values by name for the same samples. Raises ModelError where their
        shapes differ in more than channels."""
        super().__init__()
        self.pairs = settings.features
        self.maps = nn.ModuleDict()
        for index, pair in enumerate(self.pairs):
            own, wanted = student[pair.student], teacher[pair.teacher]
            axis = _channels(own)
            rest = [size for i, size in enumerate(own.shape) if i != axis % own.ndim]
            if own.ndim != wanted.ndim or rest != [
                s for i, s in enumerate(wanted.shape) if i != axis % own.ndim
            ]:
                raise ModelError(
                    f"[recipe] distill: '{pair.student}' has shape {list(own.shape)}, the teacher's "
                    f"'{pair.teacher}' {list(wanted.shape)}",
                    hint="only channels may differ; name values of the same height and width",
                )
            if own.shape[axis] != wanted.shape[axis]:
                self.maps[str(index)] = nn.Linear(own.shape[axis], wanted.shape[axis], bias=False)

    def forward(self, student: Tensors, teacher: Tensors) -> Tensor:
        parts = []
        for index, pair in enumerate(self.pairs):
            own, wanted = student[pair.student], teacher[pair.teacher].float()
            if str(index) in self.maps:
                axis = _channels(own)
                own = self.maps[str(index)](own.movedim(axis, -1)).movedim(-1, axis)
            parts.append(functional.mse_loss(own.float(), wanted) / wanted.square().mean().clamp_min(1e-12))
        return torch.stack(parts).sum()


def _channels(value: Tensor) -> int:
    return 1 if value.ndim == 4 else -1


def require_values(module: GraphModule, names: Sequence[str], whose: str) -> None:
    """Raises UsageError where a value to match does not exist."""
    missing = [name for name in names if name not in module.program.slots]
    if missing:
        raise UsageError(
            f"[recipe] distill: {whose} has no value '{missing[0]}'",
            hint="`deploy inspect` lists nodes and the values between them",
        )


def require_one_answer(results: Mapping[str, Tensor], count: int) -> None:
    """Raises ModelError where an output does not have one row for each sample."""
    for name, value in results.items():
        if value.ndim == 0 or len(value) != count:
            raise ModelError(
                f"output '{name}' has shape {list(value.shape)} for {count} samples",
                hint="training needs a graph whose batch is free, one row of every output for each sample",
            )
