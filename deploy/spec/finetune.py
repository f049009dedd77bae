"""The step ``finetune``: how a graph is trained on, by its own labels, by a teacher, or by both."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from deploy.spec.document import Given

Optimizer = Literal["sgd", "adamw"]
ScheduleKind = Literal["constant", "cosine", "onecycle"]
TrainingPrecision = Literal["float", "bf16"]

LOSSES = ("auto", "cross_entropy", "mse")
"""Losses by name; besides these ``python:package.module:function``."""

_ONE_CYCLE_RISE = 0.3
_RISE = 0.05


class Augment(Given):
    """What is done to training images at random; nothing unless it is said.

    ``crop``: the image is moved by up to so many pixels, its border repeated where it left. ``flip``: half
    of the images are mirrored left to right. ``brightness``: shifted by up to so many standard deviations
    of the image; ``contrast`` and ``saturation``: stretched by up to so much about the image's mean, or
    about each pixel's grey. ``mixup`` and ``cutmix``: the alpha of the Beta distribution by which two
    samples are blended, or by which a rectangle of one is put into the other, and their labels with them;
    where both are given each batch takes one of them.
    """

    crop: int = Field(default=0, ge=0)
    flip: bool = False
    brightness: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    saturation: float = Field(default=0.0, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)

    @property
    def identity(self) -> bool:
        """Whether images stay what they are."""
        return self == Augment()


class FeaturePair(Given):
    """An inner value of the student that is to become like one of the teacher, by their names."""

    student: str
    teacher: str


class Distill(Given):
    """A loss of alpha * labels + (1 - alpha) * T^2 * KL(teacher || student) (Hinton et al. 2015).

    ``temperature`` goes in a straight line to ``temperature_end`` where that is given. ``teachers`` are
    sources; several are an ensemble, whose probabilities are averaged; without any the model as it was
    before the recipe teaches. ``features`` are inner values that are to be matched, weighted by
    ``feature_weight``.

    ``views``: teachers are asked beforehand about so many moved and mirrored views of each image, and epochs
    take these in turn, so that a large teacher costs its time once; 0 asks them anew about every batch. What
    else changes images comes after that, and where two are mixed, so are their answers.
    """

    alpha: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    temperature_end: float | None = Field(default=None, gt=0)
    teachers: tuple[str, ...] = ()
    features: tuple[FeaturePair, ...] = ()
    feature_weight: float = Field(default=1.0, gt=0)
    views: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _asked_beforehand(self) -> Distill:
        if self.views and self.features:
            raise ValueError("views are asked about beforehand, inner values cannot be; set views = 0")
        return self


class Finetune(Given):
    """Train the graph on. ``lr`` is the highest learning rate; without batch norm much more than the default
    tends to diverge. ``warmup`` is the share of all batches in which it rises: 0.05, and 0.3 for
    ``onecycle``, unless said. ``clip`` is the largest norm of all gradients together, 0 for none; ``ema`` the
    decay of a moving average of the weights, 0 for none, and where there is one it is the result.

    ``loss``: by the labels' type, a name, or ``python:package.module:function``, called with (outputs,
    targets), both name -> tensor. Labels equal to ``ignore_label`` do not count. ``precision = "bf16"``
    computes in bfloat16 where torch holds that safe. ``batch_norm = "keep"`` leaves running statistics as
    they are; "insert" puts it back behind every convolution first, which buys learning rates ten times
    higher, not accuracy. ``early_stop`` is the number of epochs without a better validation score after which
    training ends, 0 for never. ``trainable`` are patterns of weight names (``layer4.*``); all others stay as
    they are, bit for bit.
    """

    step: Literal["finetune"] = "finetune"
    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=64, ge=1)
    optimizer: Optimizer = "sgd"
    lr: float = Field(default=1e-3, gt=0)
    schedule: ScheduleKind = "cosine"
    warmup: float | None = Field(default=None, ge=0, lt=1)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=1e-4, ge=0)
    clip: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    precision: TrainingPrecision = "float"
    loss: str = "auto"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    ignore_label: int | None = None
    batch_norm: Literal["train", "keep", "insert"] = "train"
    early_stop: int = Field(default=0, ge=0)
    trainable: tuple[str, ...] = ("*",)
    augment: Augment = Augment()
    distill: Distill | None = None

    @property
    def rise(self) -> float:
        """The share of all batches in which the learning rate rises."""
        if self.warmup is not None:
            return self.warmup
        return {"constant": 0.0, "cosine": _RISE, "onecycle": _ONE_CYCLE_RISE}[self.schedule]

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        if name not in LOSSES and not name.startswith("python:"):
            raise ValueError(
                f"no loss is called '{name}'; there are {', '.join(LOSSES)} and "
                "python:package.module:function"
            )
        return name

    @field_validator("trainable")
    @classmethod
    def _something_learns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if not patterns:
            raise ValueError("name at least one pattern of weights to train; '*' are all")
        return patterns

    @model_validator(mode="after")
    def _goes_together(self) -> Finetune:
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set nesterov = false")
        if self.label_smoothing and self.loss not in ("auto", "cross_entropy"):
            raise ValueError(f"label_smoothing means nothing to loss '{self.loss}'")
        return self
