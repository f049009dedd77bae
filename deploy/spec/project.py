"""``deploy.toml``: what a project builds, from which data, within which budget."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from deploy.spec.document import SCHEMA, Frozen, Given
from deploy.spec.ends import Ends, Sizes
from deploy.spec.recipe import Preset, Steps
from deploy.spec.tensors import Colours, Layout, Normalisation

Observer = Literal["minmax", "percentile", "mse", "kl"]
PrecisionRequest = Literal["auto", "float", "fp16", "bf16", "int8", "mixed", "w8a16", "dynamic", "w8", "w4"]

Objective = Literal["latency", "size", "memory", "energy", "accuracy"]
"""What is made best among the forms within the limits: milliseconds, bytes of the model's files, bytes of
memory while it runs, joules of an inference, or the score."""
Tune = Literal["off", "quick", "full"]
"""How much is tried: ``off`` chooses from what is known beforehand, ``quick`` times the few best and tries
options of the winner's runtime, ``full`` also trains roundings and weights and times all that may be worth
it."""

WITHOUT_RANGES: tuple[PrecisionRequest, ...] = ("float", "fp16", "bf16", "dynamic", "w8", "w4")
"""Requests for which no ranges of activations are found, so that no calibration data are needed."""


class ModelSection(Frozen):
    """The model: an ONNX file, a ``.pt2`` program or ``package.module:function``; ``shapes`` fixes sizes."""

    path: str
    shapes: dict[str, tuple[int, ...]] = {}


class DataSection(Frozen):
    """Paths of npz or npy files or image folders, or ``python:package.module:function``.

    ``classes`` is a text file with the name of one class in each line, in the order of their numbers.
    """

    calibration: str | None = None
    validation: str | None = None
    train: str | None = None
    eval: str | None = None
    labels: str = "y"
    groups: str = "group"
    classes: str | None = None


class InputSection(Given):
    """How raw data become the model's input. ``layout`` is that of the model as given, ``colours`` the order
    of its channels, in which ``normalisation`` has them too."""

    layout: Layout = "any"
    colours: Colours = "RGB"
    normalisation: Normalisation = Normalisation()


IoType = Literal["uint8", "int8"]
IoLayout = Literal["NHWC", "NCHW"]


class IoSection(Given):
    """What the artifact takes: pixels as they are (``int8``: the pixel less 128), channels first or last.

    ``inputs`` are those meant; without them every float input of rank 4 with 1 or 3 channels. Their
    normalisation becomes part of the graph. None leaves type or layout as the model has it. With ``outputs``
    those that are computed in INT8 are given so, with their scale and zero point; what scores, verifies and
    runs a bundle reads them as the numbers that they stand for.

    ``classifier`` (Core ML): the artifact gives the name of the likeliest class and the probabilities of all
    by name, beside its outputs. ``states`` (Core ML): it keeps what an output was for the next inference, in
    which it is an input, { input = "output" }, and has neither. ``sizes`` are those that a free size of an
    input may have where a runtime wants to know: one for each axis, [1, 3, "128..512", "128..224..512"] (the
    usual one between), or the shapes themselves, the usual one first; other runtimes take any.
    """

    dtype: IoType | None = None
    layout: IoLayout | None = None
    inputs: tuple[str, ...] = ()
    outputs: Literal["int8"] | None = None
    classifier: bool = False
    states: dict[str, str] = {}
    sizes: dict[str, Sizes] = {}

    @property
    def asks_nothing(self) -> bool:
        return self.dtype is None and self.layout is None

    @property
    def ends(self) -> Ends:
        """What the artifact's format has to have words for; the names of classes come from elsewhere."""
        return Ends(states=self.states, sizes=self.sizes)


class AboutSection(Frozen):
    """What stands about the model in the artifact's own file, where the format has a place for it."""

    author: str = ""
    license: str = ""
    version: str = ""
    description: str = ""


class MetricSection(Given):
    """``name`` of a built-in metric, or ``python:package.module:function``; ``output`` it looks at."""

    name: str = "auto"
    output: str | None = None
    ignore_label: int | None = None


class Budget(Given):
    """What a build may cost. ``max_drop`` is absolute in the metric's unit: 0.01 is one point of accuracy.

    ``max_latency_ms`` is of one inference at batch 1 where that can be timed, ``max_size_bytes`` of
    the artifact's model files.
    """

    max_drop: float = Field(default=0.01, ge=0)
    max_latency_ms: float | None = Field(default=None, gt=0)
    max_size_bytes: int | None = Field(default=None, gt=0)


class QuantizeSection(Frozen):
    """How blocks are quantized. ``exclude`` names nodes kept in float, ``samples`` caps calibration."""

    precision: PrecisionRequest = "auto"
    observer: Observer = "mse"
    exclude: tuple[str, ...] = ()
    samples: int = Field(default=512, ge=1)


def _threads(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and value is not True and 1 <= value <= 1024):
        return value
    raise ValueError('Input should be a whole number from 1 to 1024, or "auto"')


Threads = Annotated[int | Literal["auto"], BeforeValidator(_threads)]


class BuildSection(Frozen):
    """For which targets, and where to. ``threads`` run and measure: ``auto`` lets the artifact run with as
    many as are fastest here. Equal seeds give equal bundles. ``recipe`` names a ready one instead of steps
    under ``[[recipe]]``: what it does follows from model, data and target."""

    targets: tuple[str, ...] = ()
    objective: Objective = "latency"
    tune: Tune = "quick"
    recipe: Preset | None = None
    out: str = "dist"
    seed: int = Field(default=0, ge=0)
    threads: Threads = 1
    runtime: str | None = None


class Project(Frozen):
    """A whole ``deploy.toml``."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    model: ModelSection
    data: DataSection = DataSection()
    input: dict[str, InputSection] = {}
    io: IoSection = IoSection()
    about: AboutSection = AboutSection()
    metric: MetricSection = MetricSection()
    budget: Budget = Budget()
    quantize: QuantizeSection = QuantizeSection()
    build: BuildSection = BuildSection()
    recipe: Steps = ()

    @model_validator(mode="after")
    def _one_recipe(self) -> Project:
        if self.recipe and self.build.recipe is not None:
            raise ValueError("[build] recipe names one, and [[recipe]] says another step by step; keep one")
        return self
