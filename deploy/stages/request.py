"""What a build was asked for, and the data opened in their three roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from deploy.data.dataset import Dataset, open_dataset
from deploy.data.fit import check_settings
from deploy.data.images import class_names, read_classes
from deploy.data.python_ref import PREFIX
from deploy.errors import DataError, UsageError
from deploy.execute.compare import random_feeds
from deploy.frontend.source import factory_name
from deploy.progress import Progress
from deploy.spec.project import (
    WITHOUT_RANGES,
    AboutSection,
    Budget,
    InputSection,
    IoSection,
    MetricSection,
    Objective,
    Observer,
    PrecisionRequest,
    Tune,
)
from deploy.spec.recipe import Recipe
from deploy.spec.tensors import Normalisation, TensorSpec
from deploy.stages.baseline import Role
from deploy.stages.ends import check_classes
from deploy.stages.interface import fed_specs

Data = str | Path | Mapping[str, np.ndarray]
_RANDOM_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that one build for one target depends on. ``root`` is where relative data paths start.

    ``threads`` is how many everything runs with; with ``any_threads`` the artifact runs with as many as are
    fastest.

    ``classes`` are the names of the classes, or a file with one in each line. ``pick`` is the number of a
    point of the bundle that lies where this one goes.
    """

    source: str | Path
    target: str
    data: Data | None = None
    validation: Data | None = None
    train: Data | None = None
    eval: Data | None = None
    recipe: Recipe = field(default_factory=Recipe)
    budget: Budget = field(default_factory=Budget)
    objective: Objective = "latency"
    tune: Tune = "quick"
    precision: PrecisionRequest = "auto"
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    inputs: Mapping[str, InputSection] = field(default_factory=dict)
    io: IoSection = field(default_factory=IoSection)
    about: AboutSection = field(default_factory=AboutSection)
    metric: MetricSection = field(default_factory=MetricSection)
    labels: str = "y"
    groups: str = "group"
    classes: str | Path | Sequence[str] | None = None
    observer: Observer = "mse"
    samples: int = 512
    exclude: tuple[str, ...] = ()
    out: str | Path = "dist"
    seed: int = 0
    threads: int = 1
    any_threads: bool = False
    runtime: str | None = None
    measure: bool = True
    random_calibration: bool = False
    cache: Path | None = None
    lock: Path | None = None
    pick: int | None = None
    root: Path | None = None

    def __post_init__(self) -> None:
        """Raises UsageError: a caller in Python is told of a wrong setting as one at the command line is."""
        for name, value, allowed in (
            ("precision", self.precision, get_args(PrecisionRequest)),
            ("observer", self.observer, get_args(Observer)),
            ("objective", self.objective, get_args(Objective)),
            ("tune", self.tune, get_args(Tune)),
        ):
            if value not in allowed:
                raise UsageError(f"unknown {name} '{value}'", hint=f"one of {', '.join(allowed)}")
        for name, number, least, most in (
            ("threads", self.threads, 1, 1024),
            ("samples", self.samples, 1, 2**31),
            ("seed", self.seed, 0, 2**31),
            ("pick", 1 if self.pick is None else self.pick, 1, 2**31),
        ):
            if not isinstance(number, int) or not least <= number <= most:
                raise UsageError(
                    f"{name} must be a whole number from {least} to {most}, not {number}",
                    hint=f"leave {name} out for the default",
                )
        if self.pick is not None and self.lock is not None:
            raise UsageError(
                "both a lock and a point to pick were given", hint="a point is built as a lock is: drop one"
            )

    @property
    def normalisation(self) -> dict[str, Normalisation]:
        return {name: section.normalisation for name, section in self.inputs.items()}

    @property
    def source_path(self) -> Path:
        """The model file as seen from here; a function that makes the model is no path and stays as it is."""
        path = Path(self.source)
        stays = path.is_absolute() or self.root is None or factory_name(self.source) is not None
        return path if stays or self.root is None else self.root / path


@dataclass(frozen=True)
class Roles:
    """Calibration finds ranges, validation chooses, eval accepts, train teaches. ``random``: calibration is
    noise.

    ``trial`` is one batch of random inputs that the model takes, for where there are no data. ``classes`` are
    the names of the classes, where somebody gave them.
    """

    calibration: Dataset | None
    validation: Dataset | None
    eval: Dataset | None
    train: Dataset | None = None
    random: bool = False
    trial: Mapping[str, np.ndarray] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @property
    def judged_on(self) -> Role:
        """The role whose figures the manifest reports."""
        if self.eval is not None:
            return "eval"
        if self.validation is not self.calibration:
            return "validation"
        return "random" if self.random else "calibration"


def _takes_pixels(spec: TensorSpec) -> bool:
    """Whether what is fed reaches the model as it is, and that is floats."""
    as_it_is = spec.normalisation is None or spec.normalisation.identity
    return as_it_is and (spec.raw or spec.dtype.startswith("float"))


def _classes(request: Request, outputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The names given, else those of the first folder of class folders among the data, if they fit.

    Raises DataError where names were given and no output has so many classes.
    """
    sizes = {spec.shape[-1] for spec in outputs if len(spec.shape) > 1 and spec.dtype.startswith("float")}
    if request.classes is not None:
        where = "classes"
        if isinstance(request.classes, str | Path):
            where = str(Path(request.root or "", request.classes))
            names = read_classes(Path(where))
        else:
            names = tuple(request.classes)
        if sizes and all(isinstance(size, int) for size in sizes) and len(names) not in sizes:
            raise DataError(
                f"{where}: {len(names)} class names, but the model's outputs are "
                + ", ".join(map(str, outputs)),
                hint="one name for each class, in the order of their numbers",
            )
        return names
    for data in (request.eval, request.validation, request.data):
        if isinstance(data, str | Path) and not str(data).startswith(PREFIX):
            folder = Path(request.root or "", data)
            names = class_names(folder) if folder.is_dir() else ()
            if names:
                return names if len(names) in sizes else ()
    return ()


def _sized(spec: TensorSpec, trial: np.ndarray | None) -> TensorSpec:
    """Free dimensions behind the first take the sizes that the model was tried with."""
    if trial is None:
        return spec
    return spec.model_copy(update={"shape": (*spec.shape[:1], *trial.shape[1:])})


def open_roles(
    request: Request,
    inputs: Sequence[TensorSpec],
    progress: Progress,
    *,
    quantized: bool = False,
    trial: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[TensorSpec] = (),
) -> Roles:
    """Open the data that were given; a model that came ``quantized`` needs none for its ranges.

    ``inputs`` are the prepared graph's; what deploy.toml says of the others is added to them here.
    Without validation data the calibration samples choose as well: ranges have too few degrees of freedom to
    overfit a budget. Raises DataError where data do not fit the model, UsageError for contradictory roles.
    """

    def opened(data: Data | None) -> Dataset | None:
        if data is None:
            return None
        return open_dataset(
            data,
            inputs,
            labels=request.labels,
            groups=request.groups,
            root=request.root,
        )

    check_settings(inputs, request.normalisation)
    inputs = fed_specs(inputs, request.inputs)
    classes = _classes(request, outputs)
    if request.io.classifier:
        check_classes(classes, outputs)
    calibration, random = opened(request.data), False
    raw = [spec.name for spec in inputs if _takes_pixels(spec)]
    if raw and isinstance(request.data, str | Path) and Path(request.root or "", request.data).is_dir():
        progress.warn(
            f"pixels go in as 0 to 255; where the model wants others, deploy.toml says so: [input.{raw[0]}]"
        )
    if calibration is None and request.random_calibration:
        progress.warn("calibrating on random noise: ranges will not fit real data")
        sized = [_sized(spec, (trial or {}).get(spec.name)) for spec in inputs]
        parts = [random_feeds(sized, request.seed + i, batch=1) for i in range(_RANDOM_SAMPLES)]
        noise = {spec.name: np.concatenate([p[spec.name] for p in parts]) for spec in inputs}
        calibration, random = open_dataset(noise, inputs), True
    elif calibration is None and not quantized and request.precision not in WITHOUT_RANGES:
        progress.warn(
            "no calibration data: a float build (give --data, or --random-calibration to use noise)"
        )
    elif calibration is not None and request.random_calibration:
        raise UsageError("both calibration data and --random-calibration were given", hint="drop one of them")
    validation = opened(request.validation)
    if validation is None:
        validation = calibration
    return Roles(
        calibration=calibration,
        validation=validation,
        eval=opened(request.eval),
        train=opened(request.train),
        random=random,
        trial=trial or {},
        classes=classes,
    )
