"""A build, from the trained model to the verified bundle: the stages in their order.

    read -> clean -> data -> compress -> legalize -> hazards -> calibrate -> choose -> measure -> verify
    -> bundle

Each stage that takes time leaves its result in the content-addressed cache, so a second build with the same
model, data, settings and versions does nothing twice, and targets share what does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from deploy.adapter.profiles import target_name
from deploy.bundle.read import Bundle, load_bundle
from deploy.bundle.write import staged
from deploy.progress import SILENT, Progress
from deploy.spec.project import (
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
from deploy.spec.recipe import Preset, Recipe, Step, recipe_of
from deploy.stages import steps
from deploy.stages.assemble import assemble
from deploy.stages.compress import compress
from deploy.stages.energy import check_objective
from deploy.stages.foresee import foresee
from deploy.stages.job import Ingredients
from deploy.stages.legalize import legalize
from deploy.stages.preview import Preview, preview
from deploy.stages.recipe import check_targets, ready
from deploy.stages.record import Record, open_cache
from deploy.stages.replay import follow_lock, read_lock
from deploy.stages.request import Data, Request
from deploy.stages.target import find_target


def run(request: Request, progress: Progress = SILENT) -> Bundle:
    """Build one bundle, ``<out>/<target>``. A missed budget is a verdict in its manifest, not an exception.

    Raises the errors of deploy/errors.py; then no bundle was written and an older one still stands. Where a
    conversion failed ``<out>/repro`` holds a small model that shows it, and the hint names that.
    """
    record = Record(progress)
    target = find_target(request.target, request.runtime)
    check_objective(request)
    destination = Path(request.out) / request.target
    with staged(destination) as folder, open_cache(request.cache, progress) as cache:
        source = steps.read_source(request, cache, record)
        prepared = steps.clean(source, request, cache, record)
        asked, (request, followed) = request.precision, follow_lock(request, target, prepared)
        baseline = steps.baseline(source, prepared)
        del source  # with its weights: from here on they are mapped from the cache
        roles = steps.open_data(prepared, request, record)
        lock = read_lock(request, prepared)
        request = ready(request, prepared, target, roles, lock, progress)
        wish = replace(request, precision=asked)  # a lock names what it led to
        prepared = compress(prepared, target, roles, wish, lock, cache, record)
        prepared = legalize(followed, prepared, request.threads, cache, record)
        able = steps.check(followed, prepared, request, record)
        made_of = Ingredients(able, prepared, roles, request)
        foreseen = foresee(made_of, cache, record)
        histograms = steps.calibrate(made_of, cache, record)
        compiled, plan = steps.compile(made_of, baseline, histograms, cache, record)
        assemble(made_of, foreseen, compiled, plan, folder, record)
    return load_bundle(destination)


def dry_run(request: Request, progress: Progress = SILENT) -> Preview:
    """What `run` would do: nothing is searched, measured or written but the cache."""
    with open_cache(request.cache, progress) as cache:
        return preview(request, cache, Record(progress))


def build_all(request: Request, targets: Sequence[str], progress: Progress = SILENT) -> list[Bundle]:
    """Build the same request for several targets, one after the other. All target names are checked first."""
    targets = [target_name(target) for target in targets]
    check_targets(request.recipe, targets)
    for target in targets:
        find_target(target, request.runtime)
        check_objective(replace(request, target=target))
    return [run(replace(request, target=target), progress) for target in targets]


def build(
    source: str | Path,
    *,
    target: str,
    data: Data | None = None,
    validation: Data | None = None,
    train: Data | None = None,
    eval: Data | None = None,
    recipe: Recipe | Preset | Sequence[Step] = Recipe(),
    budget: Budget = Budget(),
    objective: Objective = "latency",
    tune: Tune = "quick",
    precision: PrecisionRequest = "auto",
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, InputSection] | None = None,
    io: IoSection = IoSection(),
    about: AboutSection = AboutSection(),
    metric: MetricSection = MetricSection(),
    labels: str = "y",
    groups: str = "group",
    classes: str | Path | Sequence[str] | None = None,
    observer: Observer = "mse",
    samples: int = 512,
    exclude: Sequence[str] = (),
    out: str | Path = "dist",
    seed: int = 0,
    threads: int | Literal["auto"] = 1,
    runtime: str | None = None,
    measure: bool = True,
    random_calibration: bool = False,
    cache: str | Path | None = None,
    lock: str | Path | None = None,
    pick: int | None = None,
    progress: Progress = SILENT,
) -> Bundle:
    """Compile ``source`` for ``target`` and write the bundle ``<out>/<target>``.

    ``source`` is an ONNX file, a ``.pt2`` program or ``package.module:function``, which makes a PyTorch model
    by running the user's code. ``data``, ``validation``, ``train`` and ``eval`` are paths of npz or npy files
    or image folders, ``python:`` references, or arrays by name with samples along the first axis, labels
    under ``labels`` and the numbers of groups (one patient, one recording) under ``groups``. ``recipe`` are
    compression steps, or the name of a ready one: "fast", "balanced" or "smallest". ``budget`` is in
    the metric's unit, milliseconds and bytes; within it ``objective`` is made best, with as much trying as
    ``tune`` says; with "auto" ``threads`` are as many as are fastest here. ``shapes`` pins free dimensions.
    ``io`` lets the artifact take raw pixels, and more; ``about`` is written into it. ``classes`` are
    the names of the classes, or a file of them. ``target`` may be a profile's file. Without ``data`` nothing
    is quantized. Where a device has several runtimes the best within the budget is taken, unless ``runtime``
    names one. ``pick`` builds that point of the front which the bundle at ``<out>/<target>`` holds.

        bundle = deploy.build("model.onnx", target="x86-cpu", data="calib.npz")
        bundle.manifest.verdict.status      # "met", "missed" or "float"

    Raises the subclasses of DeployError, each with a hint: ModelError, DataError, UnsupportedError (listing
    every node), ToolchainError, BackendError, VerificationError, UsageError.
    """
    return run(
        Request(
            source=source,
            target=target_name(target),
            data=data,
            validation=validation,
            train=train,
            eval=eval,
            recipe=recipe_of(recipe),
            budget=budget,
            objective=objective,
            tune=tune,
            precision=precision,
            shapes=shapes or {},
            inputs=inputs or {},
            io=io,
            about=about,
            metric=metric,
            labels=labels,
            groups=groups,
            classes=classes,
            observer=observer,
            samples=samples,
            exclude=tuple(exclude),
            out=out,
            seed=seed,
            threads=1 if threads == "auto" else threads,
            any_threads=threads == "auto",
            runtime=runtime,
            measure=measure,
            random_calibration=random_calibration,
            cache=None if cache is None else Path(cache),
            lock=None if lock is None else Path(lock),
            pick=pick,
        ),
        progress,
    )
