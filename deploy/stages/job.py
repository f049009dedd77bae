"""One compilation: a target, a graph, the data, and who judges; what stays the same while it runs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from deploy.adapter.batching import fixed_batch
from deploy.adapter.discover import find_backend
from deploy.adapter.protocol import Runner, Yields
from deploy.data.dataset import Dataset
from deploy.data.interval import Drop
from deploy.data.metrics import make_metric
from deploy.errors import UsageError
from deploy.execute.reference import YIELDING, Session
from deploy.graph.blocks import partition
from deploy.graph.ends import joined
from deploy.graph.origin import written_out
from deploy.graph.summary import tensor_specs
from deploy.measure.host import host
from deploy.predict.latency import Prediction
from deploy.progress import Progress
from deploy.quantize.candidate import Candidate, Subject
from deploy.quantize.decide import Decided
from deploy.quantize.forms import WeightForm, mixes_samples, stored_share, with_form
from deploy.quantize.patience import Patience
from deploy.quantize.place import find_chains
from deploy.quantize.ranges import Histogram
from deploy.quantize.sparse import SparseWeights
from deploy.quantize.trial import Judge
from deploy.spec.artifact import Artifact, Description
from deploy.spec.manifest import Lock
from deploy.spec.profile import Runtime
from deploy.spec.project import Tune
from deploy.stages.baseline import Contender, Examiner
from deploy.stages.costs import NOTHING_KNOWN, Foresight
from deploy.stages.ends import check_states
from deploy.stages.interface import fed_specs
from deploy.stages.prepare import Prepared
from deploy.stages.recorded import Calibrated, Recorded
from deploy.stages.request import Request, Roles
from deploy.stages.settings import as_locked
from deploy.stages.target import Route, Target

_SELFTEST_SAMPLES = 8
_TOO_FEW = 1 / 3
"""Part of the weights that another runtime stores in a form, below which one does not take part."""
SEARCH_S: dict[Tune, float] = {"off": math.inf, "quick": 120.0, "full": 1080.0}
"""What the searches for what the budget allows may take, beside what each is at when its time is over: for
each part of three runtimes 13 seconds, and two minutes, in which both rungs that train are begun."""
_PARTS = 3
"""Of a runtime's search: the accuracy ladder, accuracy alone, costs."""
_SCORING_THREADS = 2
"""For accuracy only: a fixed number, so that a score does not depend on the machine or on --threads."""


@dataclass(frozen=True)
class Ingredients:
    """What a build is made of."""

    target: Target
    prepared: Prepared
    roles: Roles
    request: Request


@dataclass(frozen=True)
class Job:
    """``subjects`` are the graph for each runtime that may win, preferred ones first.

    ``judge`` scores on validation data while choosing, ``accept`` on eval data; None without such data.
    ``baseline`` is the float model that an artifact has to match and beat; ``work`` a scratch folder.
    """

    target: Target
    subjects: tuple[Subject, ...]
    request: Request
    roles: Roles
    baseline: Artifact
    lock: Lock | None
    judge: Examiner | None
    accept: Examiner | None
    work: Path
    progress: Progress
    foresight: Foresight = NOTHING_KNOWN
    """What is known of the costs of kernels, by runtime."""
    predicted: dict[tuple[int, frozenset[str]], tuple[Subject, Prediction | None]] = field(
        default_factory=dict
    )
    """What forms would take, as far as it was asked for: by subject (kept, so that its id stays its own) and
    float blocks."""
    bounds: dict[int, tuple[Subject, float | None]] = field(default_factory=dict)
    """The milliseconds of the fastest form of a subject, in the same way."""
    noise: dict[int, tuple[Subject, Mapping[str, float]]] = field(default_factory=dict)
    """The signal-to-noise ratio by block of a subject, in the same way."""
    sparse: dict[int, tuple[Subject, SparseWeights]] = field(default_factory=dict)
    """The 2:4 zeros that blocks of a subject may have, in the same way."""
    floats: dict[int, Decided] = field(default_factory=dict)
    """What was said of float builds that could win, by subject, which each of them keeps."""
    lost: float = 0.0
    """What the recipe lost of the metric, on the data that judge."""
    threads: int | None = None
    """With how many the file as given is timed; None: with as many as were asked for."""
    waited: dict[str, Patience] = field(default_factory=dict)
    """How long the search of each runtime may go on, by its name, as far as that was asked for."""

    @property
    def allowance(self) -> float:
        """What a form may lose while choosing: the budget; where the recipe has lost more than that already,
        as much again beyond it, since no precision wins that back."""
        budget = self.request.budget.max_drop
        return budget if self.lost <= budget else self.lost + budget

    def given(self) -> Contender:
        """The file as given, as it is timed."""
        ort = find_backend(self.baseline.backend)
        threads = self.threads or self.request.threads
        return Contender(ort, self.baseline, ort.options_type(threads=threads))

    @property
    def why_not_measured(self) -> str:
        """The reason why times taken here would mean nothing; empty where they do."""
        if not self.request.measure:
            return "measuring was switched off"
        if not self.target.stands_here():
            return f"this machine ({host().cpu}) cannot stand in for {self.target.profile.title}"
        return ""

    @property
    def races(self) -> bool:
        """Whether the clock chooses: where it means anything, and ``tune`` lets it."""
        return self.request.tune != "off" and not self.why_not_measured

    @property
    def by_weight(self) -> bool:
        """Whether bytes or points choose, which can be told of every runtime and form without a clock."""
        return self.request.objective in ("size", "accuracy") and self.judge is not None and self.lock is None

    def patience(self, subject: Subject) -> Patience:
        """How long the search of its runtime may go on: without end where the clock does not choose, so that
        nothing depends on it."""
        timed = self.races and self.lock is None
        seconds = SEARCH_S[self.request.tune] / (_PARTS * len(self.subjects)) if timed else math.inf
        return self.waited.setdefault(subject.runtime.name, Patience(seconds))

    @property
    def waits_for_no_race(self) -> bool:
        """Whether eval data are asked while choosing.

        So it is where no race picks one to ask them about, or where they are all that can choose.
        """
        return not self.races or self.judge is None or self.lock is not None

    def scores(self, subject: Subject, examiner: Examiner | None) -> Judge | None:
        """A function by which ``examiner`` scores a candidate for the runtime of ``subject``."""
        if examiner is None:
            return None
        options = subject.options.model_copy(update={"threads": _SCORING_THREADS})
        if isinstance(subject.backend, Yields):
            options = subject.backend.yielding(options)

        def score(candidate: Candidate) -> Drop:
            with subject.backend.open(candidate.artifact, options) as runner:
                if mixes_samples(subject.runtime, subject.form):
                    return examiner.examine(runner, alone=True)
                return examiner.examine(runner)

        return score

    def one_inference(self, artifact: Artifact) -> dict[str, np.ndarray]:
        """Feeds for one run, batch 1 or what the artifact prescribes: a real sample where there is one."""
        prescribed = fixed_batch(artifact.inputs)
        batch = prescribed or 1
        dataset = self.roles.calibration or self.roles.eval
        if dataset is not None and len(dataset) >= batch:
            return next(dataset.batches(batch)).feeds
        if prescribed is not None:
            return dict(self.roles.trial)
        return {name: array[:1] if array.ndim else array for name, array in self.roles.trial.items()}

    def selftest(self) -> dict[str, np.ndarray]:
        """Feeds for the self-test: the first real samples where there are some."""
        dataset = self.roles.calibration or self.roles.eval
        if dataset is None:
            return dict(self.roles.trial)
        return next(dataset.batches(min(_SELFTEST_SAMPLES, len(dataset)))).feeds


def open_job(
    made_of: Ingredients,
    baseline: Artifact,
    calibrated: Calibrated,
    lock: Lock | None,
    work: Path,
    progress: Progress,
    foresight: Foresight = NOTHING_KNOWN,
) -> Job:
    """Everything that choosing, measuring and verifying need."""
    roles, request, target = made_of.roles, made_of.request, made_of.target

    def opened() -> AbstractContextManager[Runner]:
        return Session(baseline.main, threads=_SCORING_THREADS, settings=YIELDING)

    def recorded(outputs: Path) -> AbstractContextManager[Runner]:
        return Recorded(outputs, baseline.inputs, baseline.outputs)

    parts = joined(made_of.prepared.fused)

    def examiner(dataset: Dataset | None) -> Examiner | None:
        if dataset is None:
            return None
        known = dataset is roles.calibration and len(dataset) <= request.samples
        opener = partial(recorded, calibrated.outputs) if known and calibrated.outputs else opened
        return Examiner(dataset, opener, request.metric, request.root, parts)

    subjects = tuple(
        as_locked(
            subject_for(target, route, made_of.prepared, calibrated.histograms, request, roles.classes), lock
        )
        for route in target.routes
    )
    lost = _lost(made_of.prepared)
    if lost > (budget := request.budget.max_drop):
        progress.note(
            f"the recipe lost {lost:.4f}, over the budget of {budget:.4f}: what is chosen loses no more than "
            "that again"
        )
    return Job(
        target=target,
        subjects=_that_store(subjects, progress),
        request=request,
        roles=roles,
        baseline=baseline,
        lock=lock,
        judge=examiner(roles.validation),
        accept=examiner(roles.eval),
        work=work,
        progress=progress,
        foresight=foresight,
        lost=lost,
    )


def _lost(prepared: Prepared) -> float:
    """By the last step of the recipe that was kept; 0 without one, and where nothing tells."""
    kept = [step for step in prepared.ablation.steps if step.kept] if prepared.ablation else []
    return (kept[-1].figures.drop or 0.0) if kept else 0.0


def _that_store(subjects: tuple[Subject, ...], progress: Progress) -> tuple[Subject, ...]:
    """Without those that store next to nothing in the form asked for, where others store most of the weights:
    being small is what it is for, and what is left float may well be faster."""
    shares = {
        s.runtime.name: stored_share(s.graph, s.runtime, s.form) for s in subjects if s.form is not None
    }
    most = max(shares.values(), default=0.0)
    for name, share in shares.items():
        if share < _TOO_FEW * most:
            progress.note(f"{name} is left out: it has that form for {share:.0%} of the weights only")
    return tuple(s for s in subjects if shares.get(s.runtime.name, 1.0) >= _TOO_FEW * most)


def subject_for(
    target: Target,
    route: Route,
    prepared: Prepared,
    histograms: Mapping[str, Mapping[str, Histogram]],
    request: Request,
    classes: tuple[str, ...] = (),
) -> Subject:
    """What stays the same while candidates are tried."""
    runtime = route.runtime
    graph = prepared.graph_for(runtime)
    blocks = partition(graph.model)
    if request.precision == "float":
        runtime = runtime.model_copy(update={"around": "float32"})
    form = _weight_form(request, runtime)
    runtime = with_form(runtime, form)
    if request.io.classifier:
        runtime = runtime.model_copy(update={"asked": runtime.asked.model_copy(update={"classes": classes})})
    return Subject(
        graph=graph.model,
        graph_sha256=graph.sha256,
        target=target.name,
        runtime=runtime,
        backend=route.backend,
        options=route.backend.options(runtime, request.threads),
        blocks=blocks,
        chains=find_chains(graph.model, blocks, runtime),
        histograms=histograms.get(graph.sha256, {}),
        observer=request.observer,
        excluded=written_out(graph.model, request.exclude),
        imported=prepared.facts.imported,
        form=form,
        description=_description(target, prepared, request, classes),
    )


def _description(
    target: Target, prepared: Prepared, request: Request, classes: tuple[str, ...]
) -> Description:
    """Nothing in it changes from run to run: artifacts are equal where what they are made of is."""
    source, about = prepared.facts.source, request.about
    return Description(
        name=source.name,
        text=about.description or f"compiled for {target.profile.title} by deploy",
        version=about.version or source.sha256[:12],
        author=about.author,
        license=about.license,
        facts={"built_by": f"deploy-compiler {version('deploy-compiler')}", "source_sha256": source.sha256},
        inputs=fed_specs(prepared.facts.inputs, request.inputs),
        outputs=tensor_specs(prepared.fused.graph.outputs),
        classes=classes,
    )


def _weight_form(request: Request, runtime: Runtime) -> WeightForm | None:
    """How weights are to be stored; a runtime that computes in float16 stores them so anyway."""
    match request.precision:
        case "fp16" if runtime.float_precision != "fp16":
            return "fp16"
        case "dynamic" | "w8" | "w4":
            return request.precision
    return None


def check_request(request: Request, prepared: Prepared) -> None:
    """Raises UsageError for a state, an excluded node or a metric that does not exist."""
    if request.metric.name != "auto":
        make_metric(request.metric.name, ignore_label=request.metric.ignore_label, root=request.root)
    graphs = (prepared.fused, *(own.model for own in prepared.own.values()))
    known = list(dict.fromkeys(node.name or "" for model in graphs for node in model.graph))
    check_states(request.io.states, prepared.facts.inputs, tensor_specs(prepared.fused.graph.outputs))
    unknown = sorted(set(request.exclude) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5)
        raise UsageError(
            f"--exclude: no node is called '{unknown[0]}'",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else "plan.json of a bundle lists the nodes of every block",
        )
