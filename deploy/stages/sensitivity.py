"""Sensitivity by block of a model on its samples: predicted, measured, kept by model, data and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from deploy.cache import Cache
from deploy.data.dataset import Dataset
from deploy.errors import ModelError, UsageError, missing_extra
from deploy.graph.blocks import partition
from deploy.quantize.calibrate import calibrate
from deploy.quantize.divergence import heads, measure_of
from deploy.quantize.fisher import scores
from deploy.quantize.one_block import measure
from deploy.quantize.perturb import PLAIN, Setting, treatable, values_to_observe
from deploy.quantize.ranges import Histogram, load_histograms, save_histograms
from deploy.spec.document import digest, parse, render
from deploy.spec.profile import Runtime
from deploy.spec.project import Observer
from deploy.spec.sensitivity import BlockSensitivity, Effect, Sensitivity, Treatment
from deploy.stages import steps
from deploy.stages.prepare import FloatGraph
from deploy.stages.record import Record
from deploy.stages.request import Request
from deploy.stages.target import find_target

SAMPLES = 128
"""Samples that the table is made from, unless somebody asks for another number."""
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)
_RANGES, _TABLE = "histograms.npz", "sensitivity.json"

Effects = Mapping[tuple[str, Treatment], Effect]


def table(request: Request, cache: Cache, record: Record, *, samples: int, quick: bool) -> Sensitivity:
    """The table of the model that was asked about, by the rules of the first runtime of its target if it has
    one. Raises what a build raises until it calibrates, and what `sensitivity` raises."""
    runtime = find_target(request.target, request.runtime).routes[0].runtime if request.target else PLAIN
    prepared = steps.clean(steps.read_source(request, cache, record), request, cache, record)
    if request.data is None:
        raise UsageError(
            "sensitivity is what is lost on samples, and there are none",
            hint="give --data samples.npz; labels are not needed",
        )
    dataset = steps.open_data(prepared, request, record).calibration
    assert dataset is not None
    return sensitivity(
        prepared.graph_for(runtime),
        dataset,
        cache,
        record,
        runtime=runtime,
        samples=samples,
        calibrated_on=request.samples,
        observer=request.observer,
        seed=request.seed,
        threads=request.threads,
        measured=not quick,
        scored=True if quick else None,
    )


def sensitivity(
    graph: FloatGraph,
    dataset: Dataset,
    cache: Cache,
    record: Record,
    *,
    runtime: Runtime = PLAIN,
    treatments: tuple[Treatment, ...] = TREATMENTS,
    samples: int = SAMPLES,
    calibrated_on: int = 512,
    observer: Observer = "mse",
    seed: int = 0,
    threads: int = 1,
    measured: bool = True,
    scored: bool | None = None,
) -> Sensitivity:
    """The effect of each treatment on each block, over the first ``samples`` samples.

    ``scored``: whether scores are predicted, which takes PyTorch; None where that is installed. Ranges come
    from the first ``calibrated_on`` samples. Raises ModelError where no block can be treated, ToolchainError
    where PyTorch is missing, DataError where values become NaN.
    """
    installed = find_spec("torch") is not None
    if scored and not installed:
        raise missing_extra("PyTorch", "torch")
    if scored is None and not installed:
        record.progress.warn("no scores: PyTorch is not installed; pip install 'deploy-compiler[torch]'")
    bare = Setting(graph.model, partition(graph.model), runtime)
    measure_ = measure_of(heads(graph.model))
    histograms = _ranges(graph, bare, dataset, calibrated_on, threads, cache, record)
    setting = Setting(graph.model, bare.blocks, runtime, histograms, observer)
    todo = list(treatable(setting, treatments))
    if not todo:
        raise ModelError(
            "no block of the model can be rounded, made sparse or pruned: it has no product of weights",
            hint="see `deploy inspect` for what it is made of",
        )
    total = min(samples, len(dataset))
    kinds = {block.id: block.kind for block, _ in todo}

    def fetched(stage: str, find: Callable[[], Effects], **more: object) -> Effects:
        key = cache.key(
            f"sensitivity {stage}",
            graph=graph.sha256,
            data=dataset.digest,
            runtime=digest(runtime),
            treatments=list(treatments),
            samples=[total, calibrated_on],
            observer=observer,
            threads=threads,
            **more,
        )

        def write(folder: Path) -> None:
            (folder / _TABLE).write_text(render(document(find())))

        with record.stage(stage) as running:
            folder, running.cached = cache.fetch(key, write)
            found = parse(Sensitivity, (folder / _TABLE).read_text(), origin=folder / _TABLE)
            running.outcome = f"{len(found.blocks)} blocks over {total} samples"
        return {(block.id, name): effect for block in found.blocks for name, effect in block.effects.items()}

    def document(effects: Effects) -> Sensitivity:
        return Sensitivity(
            graph_sha256=graph.sha256,
            data_sha256=dataset.digest,
            samples=total,
            seed=seed,
            rules=runtime.name,
            measure=measure_,
            treatments=treatments,
            blocks=tuple(
                BlockSensitivity(
                    id=id_, kind=kind, effects={t: e for (block, t), e in effects.items() if block == id_}
                )
                for id_, kind in kinds.items()
            ),
        )

    predicted: Effects = {}
    if scored or (scored is None and installed):
        predict = partial(_predicted, setting, dataset, treatments, total, seed, threads, record)
        predicted = fetched("score", predict, torch=version("torch"), seed=seed)
    if not measured:
        return document(predicted)
    lost = fetched("one block", partial(_measured, setting, dataset, treatments, total, threads, record))
    return document({key: _joined(effect, predicted.get(key)) for key, effect in lost.items()})


def _joined(measured: Effect, predicted: Effect | None) -> Effect:
    return measured.model_copy(update={"score": None if predicted is None else predicted.score})


def _predicted(
    setting: Setting,
    dataset: Dataset,
    treatments: tuple[Treatment, ...],
    samples: int,
    seed: int,
    threads: int,
    record: Record,
) -> Effects:
    found = scores(
        setting, dataset, treatments, samples=samples, seed=seed, threads=threads, progress=record.progress
    )
    return {key: Effect(score=score) for key, score in found.items()}


def _measured(
    setting: Setting,
    dataset: Dataset,
    treatments: tuple[Treatment, ...],
    samples: int,
    threads: int,
    record: Record,
) -> Effects:
    return measure(setting, dataset, treatments, samples=samples, threads=threads, progress=record.progress)


def _ranges(
    graph: FloatGraph,
    setting: Setting,
    dataset: Dataset,
    samples: int,
    threads: int,
    cache: Cache,
    record: Record,
) -> dict[str, Histogram]:
    """As a build finds them, and where it keeps them."""
    values = values_to_observe(setting)
    if not values:
        return {}
    key = cache.key(
        "calibrate",
        graph=graph.sha256,
        data=dataset.digest,
        samples=samples,
        values=values,
        threads=threads,
    )

    def write(folder: Path) -> None:
        found = calibrate(
            graph.model, dataset, values, samples=samples, threads=threads, progress=record.progress
        )
        save_histograms(found, folder / _RANGES)

    with record.stage("calibrate") as stage:
        folder, stage.cached = cache.fetch(key, write)
        stage.outcome = f"{len(values)} values over {min(samples, len(dataset))} samples"
    return load_histograms(folder / _RANGES)
