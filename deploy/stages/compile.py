"""The part of a build that depends on the target: choose, verify, measure, for one runtime."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploy.adapter.batching import fixed_batch
from deploy.adapter.discover import find_backend
from deploy.adapter.protocol import Backend, Runner
from deploy.bundle.read import ARTIFACT, PLAN, SELFTEST
from deploy.bundle.verify import verify, write_selftest
from deploy.bundle.write import copy_artifact
from deploy.data.dataset import Dataset
from deploy.data.interval import Drop
from deploy.errors import UsageError, VerificationError
from deploy.execute.reference import Session
from deploy.graph.blocks import partition
from deploy.measure.host import host
from deploy.measure.latency import speedup
from deploy.quantize.candidate import Candidate, Subject, build_candidate
from deploy.quantize.decide import Decided, Judge, decide, decide_float
from deploy.quantize.place import find_chains
from deploy.quantize.ranges import Histogram
from deploy.spec.artifact import Artifact
from deploy.spec.document import Frozen, parse, render
from deploy.spec.manifest import Choice, Evaluation, Lock, Outcome, Verification
from deploy.spec.measurement import Comparison
from deploy.spec.plan import Plan
from deploy.spec.profile import Profile, Runtime
from deploy.spec.tensors import TensorSpec
from deploy.stages.baseline import Contender, Examiner, compare, race
from deploy.stages.prepare import Prepared
from deploy.stages.record import Record
from deploy.stages.request import Request, Roles

_RESULT = "compiled.json"
_SELFTEST_SAMPLES = 8
STAGES = ("choose", "measure", "verify")
"""The stages whose results lie in one cache entry."""


class Compiled(Frozen):
    """Everything that was decided and found for one runtime; it lies in the cache beside the artifact."""

    artifact: Artifact
    options: dict[str, bool | int | str]
    evaluation: Evaluation | None
    verification: Verification
    verdict: Outcome
    choices: tuple[Choice, ...]
    float_blocks: tuple[str, ...]
    comparison: Comparison | None
    why_not_measured: str = ""
    outcomes: dict[str, str] = {}
    executed_by: str


@dataclass(frozen=True)
class Target:
    """A device as it was asked for, the profile that it resolved to, and the runtime to build for."""

    name: str
    profile: Profile
    runtime: Runtime
    backend: Backend

    def stands_here(self) -> bool:
        """Whether this machine can stand in for the device, so that times taken here mean something."""
        here = host()
        return self.profile.arch == here.arch and set(self.profile.features) <= here.features


def compile_for(
    target: Target,
    prepared: Prepared,
    baseline: Artifact,
    roles: Roles,
    histograms: Mapping[str, Histogram],
    lock: Lock | None,
    request: Request,
    folder: Path,
    record: Record,
) -> None:
    """Choose, verify and measure; leave artifact, plan, self-test and result in ``folder``.

    Raises UnsupportedError listing every node that the runtime cannot express, VerificationError where the
    artifact does not compute what was decided.
    """
    subject = subject_for(target, prepared, histograms, request)
    judge, accept = _examiners(baseline, roles, request)
    with tempfile.TemporaryDirectory(prefix="deploy-build-") as scratch:
        work = Path(scratch)
        with record.stage("choose") as stage:
            decided = _decide(subject, roles, judge, accept, lock, request, work, record)
            if lock is not None:
                decided = replace(decided, choices=lock.choices)
            stage.outcome = _precision_outcome(decided.candidate.plan, decided.drop)
        comparison, why_not = None, _why_not_measured(target, request)
        if not why_not:
            with record.stage("measure") as stage:
                against = Contender(find_backend(baseline.backend), baseline, {"threads": request.threads})
                decided, comparison = _measured(
                    subject, decided, against, judge, accept, roles, lock, request, work
                )
                stage.outcome = f"{comparison.speedup:.2f} times the float speed"
        with record.stage("verify") as stage:
            feeds = _selftest_feeds(roles)
            verification, outputs = verify(decided.candidate, subject, feeds, subject.options)
            if not verification.passed:
                raise _mismatch(target, verification)
            floor = verification.noise_floor
            by = verification.executed_by
            stage.outcome = f"error {verification.error:.1e}, noise floor {floor:.1e}, by {by}"
        compiled = Compiled(
            artifact=decided.candidate.artifact,
            options=dict(subject.options),
            evaluation=_evaluation(accept or judge, decided.drop, roles, lock),
            verification=verification,
            verdict=_verdict(decided, roles, request),
            choices=decided.choices,
            float_blocks=tuple(sorted(decided.float_blocks)),
            comparison=comparison,
            why_not_measured=why_not,
            outcomes={name: record.outcomes[name] for name in STAGES if name in record.outcomes},
            executed_by=verification.executed_by,
        )
        copy_artifact(decided.candidate.artifact, folder / ARTIFACT)
    (folder / PLAN).write_text(render(decided.candidate.plan))
    write_selftest(folder / SELFTEST, feeds, outputs)
    (folder / _RESULT).write_text(render(compiled))


def load_compiled(folder: Path) -> tuple[Compiled, Plan]:
    """What :func:`compile_for` left in ``folder``."""
    compiled = parse(Compiled, (folder / _RESULT).read_text(), origin=folder / _RESULT)
    artifact = compiled.artifact.model_copy(update={"folder": folder / ARTIFACT})
    plan = parse(Plan, (folder / PLAN).read_text(), origin=folder / PLAN)
    return compiled.model_copy(update={"artifact": artifact}), plan


def subject_for(
    target: Target, prepared: Prepared, histograms: Mapping[str, Histogram], request: Request
) -> Subject:
    """What stays the same while candidates are tried. Raises UsageError for an unknown excluded node."""
    blocks = partition(prepared.fused)
    runtime = target.runtime
    if request.precision == "float":
        runtime = runtime.model_copy(update={"around": "float32"})
    unknown = sorted(set(request.exclude) - {name for block in blocks for name in block.nodes})
    if unknown:
        raise unknown_nodes(unknown, [name for block in blocks for name in block.nodes])
    return Subject(
        graph=prepared.fused,
        graph_sha256=prepared.facts.fused_sha256,
        target=target.name,
        runtime=runtime,
        backend=target.backend,
        options=target.backend.options(runtime, request.threads),
        blocks=blocks,
        chains=find_chains(prepared.fused, blocks, runtime),
        histograms=histograms,
        observer=request.observer,
        excluded=frozenset(request.exclude),
        imported=prepared.facts.imported,
    )


def _examiners(baseline: Artifact, roles: Roles, request: Request) -> tuple[Examiner | None, Examiner | None]:
    """Who judges while choosing, and who accepts; None for a role without data."""

    def opened() -> AbstractContextManager[Runner]:
        return Session(baseline.main, threads=request.threads)

    def examiner(dataset: Dataset | None) -> Examiner | None:
        return None if dataset is None else Examiner(dataset, opened, request.metric, request.root)

    return examiner(roles.validation), examiner(roles.eval)


def _decide(
    subject: Subject,
    roles: Roles,
    judge: Examiner | None,
    accept: Examiner | None,
    lock: Lock | None,
    request: Request,
    work: Path,
    record: Record,
) -> Decided:
    return decide(
        subject,
        precision=request.precision,
        max_drop=request.budget.max_drop,
        calibration=roles.calibration,
        judge=None if judge is None else _scores(subject, judge),
        accept=None if accept is None else _scores(subject, accept),
        locked=None if lock is None else frozenset(lock.float_blocks),
        workdir=work,
        threads=request.threads,
        progress=record.progress,
    )


def _scores(subject: Subject, examiner: Examiner) -> Judge:
    def score(candidate: Candidate) -> Drop:
        with subject.backend.open(candidate.artifact, subject.options) as runner:
            return examiner.examine(runner)

    return score


def _evaluation(
    examiner: Examiner | None, drop: Drop | None, roles: Roles, lock: Lock | None
) -> Evaluation | None:
    """The chosen artifact's figures. The looks that a lock's choices have cost count for who replays them."""
    if examiner is None or drop is None:
        return None
    found = examiner.evaluation(roles.judged_on, drop)
    return found if lock is None else found.model_copy(update={"looks": max(found.looks, lock.looks)})


def _measured(
    subject: Subject,
    decided: Decided,
    against: Contender,
    judge: Examiner | None,
    accept: Examiner | None,
    roles: Roles,
    lock: Lock | None,
    request: Request,
    work: Path,
) -> tuple[Decided, Comparison]:
    """Time the artifact against the file as given; where INT8 has to pay, against our own float build too."""

    def contender(artifact: Artifact) -> Contender:
        return Contender(subject.backend, artifact, subject.options)

    feeds = _one_inference(decided.candidate.artifact.inputs, roles)
    contenders = {"baseline": against, "artifact": contender(decided.candidate.artifact)}
    free = request.precision == "auto" and lock is None and not subject.imported
    must_pay = free and decided.candidate.plan.quantized
    if must_pay:
        plain = build_candidate(subject, frozenset(b.id for b in subject.blocks), work / "plain")
        contenders["float"] = contender(plain.artifact)
    times = race(contenders, feeds)
    chosen = "artifact"
    if must_pay:
        faster = min(("baseline", "float"), key=lambda name: times[name].summary().p50)
        ratio, _ = speedup(times[faster], times["artifact"])
        said = f"INT8 ran at {ratio:.2f} times the speed of float"
        if ratio < 1.0:
            decided, chosen = _float_instead(subject, judge, accept, decided, said, request, work), "float"
        else:
            kept = Choice(what="precision", chosen="int8", reason=said)
            decided = replace(decided, choices=(*decided.choices, kept))
    comparison = compare(
        (against, times["baseline"]),
        (contenders[chosen], times[chosen]),
        feeds,
        threads=request.threads,
        scratch=work / "memory",
    )
    return decided, comparison


def _why_not_measured(target: Target, request: Request) -> str:
    if not request.measure:
        return "measuring was switched off"
    if not target.stands_here():
        return f"this machine ({host().cpu}) cannot stand in for {target.profile.title}"
    return ""


def _float_instead(
    subject: Subject,
    judge: Examiner | None,
    accept: Examiner | None,
    decided: Decided,
    reason: str,
    request: Request,
    work: Path,
) -> Decided:
    plain = decide_float(
        subject,
        None if judge is None else _scores(subject, judge),
        None if accept is None else _scores(subject, accept),
        request.budget.max_drop,
        work,
        decided.sqnr,
    )
    slower = Choice(what="precision", chosen=subject.float_precision, reason=reason)
    return replace(plain, choices=(*decided.choices, slower))


def _one_inference(inputs: Sequence[TensorSpec], roles: Roles) -> dict[str, np.ndarray]:
    """Feeds for one run, batch 1 or what the artifact prescribes: a real sample where there is one."""
    batch = fixed_batch(inputs) or 1
    dataset = roles.calibration or roles.eval
    if dataset is not None and len(dataset) >= batch:
        return next(dataset.batches(batch)).feeds
    if fixed_batch(inputs) is not None:
        return dict(roles.trial)
    return {name: array[:1] if array.ndim else array for name, array in roles.trial.items()}


def _selftest_feeds(roles: Roles) -> dict[str, np.ndarray]:
    dataset = roles.calibration or roles.eval
    if dataset is None:
        return dict(roles.trial)
    return next(dataset.batches(min(_SELFTEST_SAMPLES, len(dataset)))).feeds


def _precision_outcome(plan: Plan, drop: Drop | None) -> str:
    integer = sum(block.precision == "int8" for block in plan.blocks)
    scored = f", drop {drop.drop:+.4f} [{drop.low:+.4f}, {drop.high:+.4f}]" if drop is not None else ""
    return f"{integer} of {len(plan.blocks)} blocks INT8{scored}"


def _verdict(decided: Decided, roles: Roles, request: Request) -> Outcome:
    reasons = [f"{c.what}: {c.chosen} ({c.reason})" for c in decided.choices]
    if roles.random:
        reasons.append("calibrated on random noise: the ranges do not fit real data")
    if decided.drop is not None and not decided.within_budget:
        worst = [b for b in decided.candidate.plan.blocks if b.precision == "int8" and b.sqnr_db is not None]
        blame = f", worst block {min(worst, key=lambda b: b.sqnr_db or 0).id}" if worst else ""
        missed = f"drop {decided.drop.drop:.4f} over the budget of {request.budget.max_drop:.4f}{blame}"
        return Outcome(status="missed", reasons=(missed, *reasons))
    if decided.candidate.plan.quantized:
        return Outcome(status="met", reasons=tuple(reasons))
    if request.precision in ("float", "fp16"):
        reasons.append(f"precision {request.precision} was asked for")
    elif roles.calibration is None:
        reasons.append("no calibration data were given")
    elif not decided.float_blocks:
        reasons.append("nothing in the graph has an integer kernel on this runtime")
    return Outcome(status="float", reasons=tuple(reasons))


def _mismatch(target: Target, verification: Verification) -> VerificationError:
    where = verification.first_divergence
    return VerificationError(
        f"the {target.runtime.name} artifact strays from its reference graph by {verification.error:.2g} "
        f"of the output's magnitude; {verification.tolerance:.2g} is allowed",
        hint=f"first diverging operation: {where}"
        if where
        else "only the outputs differ, no inner value does",
    )


def unknown_nodes(unknown: Sequence[str], known: Sequence[str]) -> UsageError:
    """The error for names given to --exclude that no node bears."""
    near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5)
    return UsageError(
        f"--exclude: no node is called '{unknown[0]}'",
        hint=f"did you mean {' or '.join(near)}?" if near else "`deploy inspect` lists the blocks and nodes",
    )
