"""What a build is asked for: ``deploy.toml``, and the flags that override it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deploy.errors import UsageError

if TYPE_CHECKING:
    from deploy.spec.project import IoLayout, IoType, Objective, Observer, PrecisionRequest, Project, Tune
    from deploy.spec.recipe import Preset
    from deploy.stages.request import Request

FILE = "deploy.toml"
_PYTHON = "python:"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The command line of a build. None, or nothing in it: not said, so the file or the default decides."""

    model: Path | None = None
    targets: tuple[str, ...] = ()
    data: str | None = None
    validation: str | None = None
    train: str | None = None
    eval: str | None = None
    classes: str | None = None
    io_dtype: IoType | None = None
    io_layout: IoLayout | None = None
    max_drop: float | None = None
    max_latency: float | None = None
    max_size: int | None = None
    objective: Objective | None = None
    tune: Tune | None = None
    recipe: Preset | None = None
    metric: str | None = None
    out: Path | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    precision: PrecisionRequest | None = None
    exclude: tuple[str, ...] = ()
    observer: Observer | None = None
    samples: int | None = None
    threads: int | Literal["auto"] | None = None
    seed: int | None = None
    runtime: str | None = None
    measure: bool = True
    random_calibration: bool = False
    lock: Path | None = None
    pick: int | None = None
    cache: Path | None = None


def find_project(start: Path) -> Path | None:
    """The ``deploy.toml`` of this folder or the nearest one above it."""
    start = start.absolute()
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return folder / FILE
    return None


def read_project(path: Path) -> Project:
    """Raises UsageError naming line and key where the file is malformed."""
    from deploy.spec.document import parse_toml
    from deploy.spec.project import Project

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: cannot be read: {e}", hint="it has to be a text file in UTF-8") from e
    return parse_toml(Project, text, origin=path)


def requests(flags: Flags, here: Path) -> list[Request]:
    """One request for each target: the flags over ``deploy.toml`` over the defaults.

    Paths in the file start at its folder, paths on the command line at ``here``. With a model on the command
    line no file is read. Raises UsageError where there is no model or no target.
    """
    from deploy.spec.project import ModelSection, Project

    if flags.model is not None:
        return _requests(flags, Project(model=ModelSection(path=str(flags.model))), None)
    path = find_project(here)
    if path is None:
        raise UsageError(
            f"no model given, and no {FILE} in this folder or above it",
            hint="name a model: deploy build model.onnx --target x86-cpu; or write the file: "
            "deploy init model.onnx",
        )
    root = Path(os.path.relpath(path.parent, here))
    return _requests(flags, read_project(root / FILE), root)


def _requests(flags: Flags, project: Project, root: Path | None) -> list[Request]:
    from deploy.adapter.profiles import target_name
    from deploy.spec.recipe import recipe_of
    from deploy.stages.request import Request

    data, quantize, build = project.data, project.quantize, project.build
    targets = [target_name(word) for word in flags.targets] or [
        target_name(word, root or Path()) for word in build.targets
    ]
    if not targets:
        where = f" and none under [build] targets in {FILE}" if root is not None else ""
        raise UsageError(
            f"no target given{where}", hint="add --target x86-cpu; `deploy targets` lists all of them"
        )
    if flags.max_drop is not None and not math.isfinite(flags.max_drop):
        raise UsageError("--max-drop must be a number", hint="0.01 allows one point of accuracy")
    if flags.max_latency is not None and not 0 < flags.max_latency < math.inf:
        raise UsageError(
            f"--max-latency must be a number of milliseconds above 0, not {flags.max_latency:g}",
            hint="2.5 allows two and a half milliseconds for one inference; leave it out for no limit",
        )
    limits = {
        "max_drop": flags.max_drop,
        "max_latency_ms": flags.max_latency,
        "max_size_bytes": flags.max_size,
    }
    budget = project.budget.model_copy(update={name: v for name, v in limits.items() if v is not None})
    metric = project.metric
    if flags.metric is not None:
        metric = metric.model_copy(update={"name": flags.metric})
    said = {"dtype": flags.io_dtype, "layout": flags.io_layout}
    io = project.io.model_copy(update={name: value for name, value in said.items() if value is not None})
    threads = build.threads if flags.threads is None else flags.threads
    return [
        Request(
            source=project.model.path,
            target=target,
            data=_flag_path(flags.data, root) or data.calibration,
            validation=_flag_path(flags.validation, root) or data.validation,
            train=_flag_path(flags.train, root) or data.train,
            eval=_flag_path(flags.eval, root) or data.eval,
            recipe=recipe_of(flags.recipe or build.recipe or project.recipe),
            budget=budget,
            objective=flags.objective or build.objective,
            tune=flags.tune or build.tune,
            precision=flags.precision or quantize.precision,
            shapes={**project.model.shapes, **flags.shapes},
            inputs=project.input,
            io=io,
            about=project.about,
            metric=metric,
            labels=data.labels,
            groups=data.groups,
            classes=_flag_path(flags.classes, root) or data.classes,
            observer=flags.observer or quantize.observer,
            samples=quantize.samples if flags.samples is None else flags.samples,
            exclude=(*quantize.exclude, *(node for node in flags.exclude if node not in quantize.exclude)),
            out=flags.out or (root or Path()) / build.out,
            seed=build.seed if flags.seed is None else flags.seed,
            runtime=flags.runtime or build.runtime,
            threads=1 if threads == "auto" else threads,
            any_threads=threads == "auto",
            measure=flags.measure,
            random_calibration=flags.random_calibration,
            cache=flags.cache,
            lock=flags.lock,
            pick=flags.pick,
            root=root,
        )
        for target in dict.fromkeys(targets)
    ]


def _flag_path(value: str | None, root: Path | None) -> str | None:
    """A path from the command line as seen from ``root``, where the build looks it up."""
    if value is None or root is None or value.startswith(_PYTHON) or Path(value).is_absolute():
        return value
    return os.path.relpath(value, root)
