"""The steps that the pipeline calls, one for each line of it, each with its cache key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.adapter.discover import provider
from deploy.cache import Cache, scratch
from deploy.data.dataset import Dataset
from deploy.data.python_ref import code_digest
from deploy.frontend.onnx_file import Source, release
from deploy.graph.blocks import partition
from deploy.graph.summary import tensor_specs
from deploy.measure.host import host, physical_cores
from deploy.quantize.calibrate import calibrate as observe
from deploy.quantize.place import find_chains, observed_values
from deploy.quantize.ranges import Histogram, load_histograms, save_histograms
from deploy.spec.artifact import Artifact
from deploy.spec.document import digest
from deploy.spec.manifest import Lock
from deploy.spec.plan import Plan
from deploy.spec.project import WITHOUT_RANGES
from deploy.spec.tensors import TensorSpec
from deploy.stages.capture import open_source
from deploy.stages.compile import Compiled, compile_for, load_compiled
from deploy.stages.costs import Foresight, costs_of
from deploy.stages.job import Ingredients, check_request, open_job
from deploy.stages.prepare import FloatGraph, Prepared, load, prepare
from deploy.stages.record import Record
from deploy.stages.recorded import Calibrated, Recorder, outputs_in
from deploy.stages.replay import read_lock, warn_of_changes
from deploy.stages.repro import failures_saved, refusals_saved
from deploy.stages.request import Request, Roles, open_roles
from deploy.stages.target import Route, Target, able_to, able_to_run

_HISTOGRAMS = "histograms.npz"


@dataclass(frozen=True)
class Baseline:
    """The float model that an artifact has to match and beat, as a file that ONNX Runtime opens."""

    artifact: Artifact
    sha256: str


def read_source(request: Request, cache: Cache, record: Record) -> Source:
    """The model, checked; a PyTorch model captured as an ONNX file first."""
    with record.stage("read") as stage:
        opened = open_source(
            request.source,
            root=request.root,
            shapes=request.shapes,
            seed=request.seed,
            cache=cache,
            progress=record.progress,
        )
        stage.cached, stage.outcome = opened.cached, opened.outcome
    return opened.source


def clean(source: Source, request: Request, cache: Cache, record: Record) -> Prepared:
    """The graph that everything starts from."""
    sections = {
        name: section
        for name, section in request.inputs.items()
        if section.normalisation.folded or not request.io.asks_nothing
    }
    key = cache.key(
        "clean",
        source=[source.sha256, source.given_sha256, dict(source.made_by)],
        shapes={name: list(shape) for name, shape in request.shapes.items()},
        inputs={name: digest(section) for name, section in sections.items()},
        io=digest(request.io),
        seed=request.seed,
    )
    with record.stage("clean") as stage:
        folder, stage.cached = cache.fetch(
            key,
            lambda new: prepare(
                source,
                new,
                shapes=request.shapes,
                sections=sections,
                io=request.io,
                seed=request.seed,
                threads=request.threads,
            ),
        )
        release(source.model)
        prepared = load(folder)
        for note in prepared.facts.notes:
            record.progress.warn(note)
        before = sum(1 for _ in source.model.graph)
        stage.outcome = f"{before} nodes became {len(prepared.fused.graph)}"
    return prepared


def open_data(prepared: Prepared, request: Request, record: Record) -> Roles:
    """The data in their roles, fitted to the model's inputs."""
    with record.stage("data") as stage:
        roles = open_roles(
            request,
            prepared.facts.inputs,
            record.progress,
            quantized=bool(prepared.facts.imported),
            trial=prepared.trial,
            outputs=tensor_specs(prepared.fused.graph.outputs),
        )
        counts = [
            f"{len(dataset)} {name}"
            for name, dataset in (
                ("training", roles.train),
                ("calibration", roles.calibration),
                ("eval", roles.eval),
            )
            if dataset is not None
        ]
        stage.outcome = ", ".join(counts) or "none"
    return roles


def baseline(source: Source, prepared: Prepared) -> Baseline:
    """The file as given, or the cleaned graph where the artifact's interface is not the file's."""
    given, now = (tensor_specs(m.graph.inputs) for m in (source.model, prepared.clean))
    unchanged = _interface(given) == _interface(now) and prepared.facts.folded_inputs == ()
    path = source.path if source.path is not None and unchanged else prepared.clean_path
    artifact = Artifact(
        backend="ort",
        files=(path.name,),
        inputs=now,
        outputs=tensor_specs(prepared.clean.graph.outputs),
        folder=path.parent,
    )
    return Baseline(artifact, source.sha256 if unchanged else prepared.facts.clean_sha256)


def _interface(inputs: Sequence[TensorSpec]) -> list[tuple[str, str, tuple[int, ...]]]:
    """What one has to know to feed a model; a free size is a free size, whatever it is called."""
    return [(s.name, s.dtype, tuple(d if isinstance(d, int) else -1 for d in s.shape)) for s in inputs]


def check(target: Target, prepared: Prepared, request: Request, record: Record) -> Target:
    """The target with those of its runtimes that can meet the wish, before anything takes time.

    Raises UnsupportedError listing all nodes that the preferred one cannot run, UsageError for an excluded
    node or a metric that does not exist, and a precision that no runtime has.
    """
    check_request(request, prepared)
    able = able_to(target, request.precision, request.io)
    with refusals_saved(able, prepared, Path(request.out)):
        return able_to_run(able, prepared, record.progress)


def calibrate(made_of: Ingredients, cache: Cache, record: Record) -> Calibrated:
    """Histograms of what may be quantized, and what the graph gave; nothing without data, rules or a wish for
    INT8."""
    target, prepared, roles, request = made_of.target, made_of.prepared, made_of.roles, made_of.request
    wanted = request.precision not in WITHOUT_RANGES and not prepared.facts.imported
    if roles.calibration is None or not wanted:
        return Calibrated({})
    dataset = roles.calibration
    graphs = _observed(target, prepared)
    if not graphs:
        return Calibrated({})

    def write(graph: FloatGraph, values: Sequence[str], folder: Path) -> None:
        recorder = Recorder([value.name or "" for value in graph.model.graph.outputs])
        found = observe(
            graph.model,
            dataset,
            values,
            samples=request.samples,
            threads=request.threads,
            progress=record.progress,
            see=recorder.see,
        )
        save_histograms(found, folder / _HISTOGRAMS)
        recorder.save(folder)
        histograms[graph.sha256] = found

    histograms: dict[str, dict[str, Histogram]] = {}
    outputs: Path | None = None
    with record.stage("calibrate") as stage:
        stage.cached = True
        for graph, values in graphs:
            key = cache.key(
                "calibrate",
                graph=graph.sha256,
                data=dataset.digest,
                samples=request.samples,
                values=values,
                threads=request.threads,
            )
            folder, cached = cache.fetch(key, partial(write, graph, values))
            stage.cached &= cached
            if graph.sha256 not in histograms:
                histograms[graph.sha256] = load_histograms(folder / _HISTOGRAMS)
            outputs = outputs or outputs_in(folder)
        count = sum(len(values) for _, values in graphs)
        stage.outcome = f"{count} values over {min(request.samples, len(dataset))} samples"
    return Calibrated(histograms, outputs)


def _observed(target: Target, prepared: Prepared) -> list[tuple[FloatGraph, list[str]]]:
    """The graphs that are run to find ranges, each with the values that any of its runtimes may quantize.

    What two graphs share is seen twice: the ranges of a runtime's graph do not depend on who else there is.
    """
    graphs: dict[str, FloatGraph] = {}
    values: dict[str, dict[str, None]] = {}
    for route in target.routes:
        if route.runtime.quant is not None:
            graph = prepared.graph_for(route.runtime)
            chains = find_chains(graph.model, partition(graph.model), route.runtime)
            graphs[graph.sha256] = graph
            observed = observed_values(graph.model, chains, route.runtime)
            values.setdefault(graph.sha256, {}).update(dict.fromkeys(observed))
    return [(graphs[digest_], list(found)) for digest_, found in values.items() if found]


def compile(
    made_of: Ingredients,
    against: Baseline,
    calibrated: Calibrated,
    cache: Cache,
    record: Record,
) -> tuple[Compiled, Plan]:
    """Choose, measure and verify for the target."""
    target, prepared, roles, request = made_of.target, made_of.prepared, made_of.roles, made_of.request
    lock = read_lock(request, prepared)
    warn_of_changes(lock, made_of, record.progress)
    foresight = _foreseen(target, request, lock, record)
    key = cache.key(
        "compile",
        costs=foresight.key,
        graphs=[prepared.graph_for(route.runtime).sha256 for route in target.routes],
        baseline=against.sha256,
        profile=digest(target.profile),
        routes=[_identity(route) for route in target.routes],
        target=target.name,
        data=[_digest(d) for d in (roles.calibration, roles.validation, roles.eval)],
        random=roles.random,
        precision=request.precision,
        io=digest(request.io),
        about=digest(request.about),
        budget=digest(request.budget),
        objective=request.objective,
        tune=request.tune,
        train=_digest(roles.train),
        inputs={name: digest(section) for name, section in request.inputs.items()},
        classes=list(roles.classes),
        source=[prepared.facts.source.name, prepared.facts.source.sha256],
        metric=digest(request.metric),
        metric_code=code_digest(request.metric.name, request.root),
        observer=request.observer,
        samples=request.samples,
        exclude=sorted(request.exclude),
        threads=request.threads,
        any_threads=physical_cores() if request.any_threads else 0,
        seed=request.seed,
        measure=request.measure,
        lock=None if lock is None else digest(lock),
        host=[host().cpu, sorted(host().features)],
    )

    def write_into(new: Path) -> None:
        with scratch("build") as work:
            job = open_job(made_of, against.artifact, calibrated, lock, work, record.progress, foresight)
            with failures_saved(job, Path(request.out)):
                compile_for(job, new, record)

    folder, cached = cache.fetch(key, write_into)
    compiled, plan = load_compiled(folder)
    for name, outcome in compiled.outcomes.items() if cached else ():
        with record.stage(name) as stage:
            stage.cached, stage.outcome = True, outcome
    return compiled, plan


def _foreseen(target: Target, request: Request, lock: Lock | None, record: Record) -> Foresight:
    """What is known of costs: blocks and runtimes are chosen by them, limits checked where no clock can, and
    every choice explained. What of it does not fit is told where something is chosen by it."""
    found = costs_of(target, request.threads)
    timed, limited = request.measure and target.stands_here(), request.budget.max_latency_ms is not None
    chooses = timed and lock is None and request.precision in ("auto", "mixed")
    for note in found.notes if chooses or limited else ():
        record.progress.note(note)
    return found


def _identity(route: Route) -> list[str]:
    """What a runtime's results depend on besides the profile."""
    return [route.runtime.name, provider(route.backend.name), route.backend.available().version or ""]


def _digest(dataset: Dataset | None) -> str | None:
    return None if dataset is None else dataset.digest
