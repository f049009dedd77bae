"""The part of a build that depends on the target: choose, verify, measure, for one runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from deploy.bundle.read import ARTIFACT, PLAN, SELFTEST
from deploy.bundle.verify import verify, write_selftest
from deploy.bundle.write import copy_artifact
from deploy.data.interval import Drop
from deploy.errors import VerificationError
from deploy.quantize.decide import Decided, decide
from deploy.spec.artifact import Artifact
from deploy.spec.document import Frozen, parse, render
from deploy.spec.manifest import Choice, Evaluation, Outcome, Verification
from deploy.spec.measurement import Comparison
from deploy.spec.plan import Plan
from deploy.stages.contest import measured, why_not_measured
from deploy.stages.job import Job, Target
from deploy.stages.record import Record

_RESULT = "compiled.json"
STAGES = ("choose", "measure", "verify")
"""The stages whose results lie in one cache entry."""


class Compiled(Frozen):
    """Everything that was decided and found for one runtime; it lies in the cache beside the artifact."""

    artifact: Artifact
    options: dict[str, JsonValue]
    evaluation: Evaluation | None
    verification: Verification
    verdict: Outcome
    choices: tuple[Choice, ...]
    float_blocks: tuple[str, ...]
    comparison: Comparison | None
    why_not_measured: str = ""
    outcomes: dict[str, str] = {}


def compile_for(job: Job, folder: Path, record: Record) -> None:
    """Choose, measure and verify; leave artifact, plan, self-test and result in ``folder``.

    Raises UnsupportedError listing every node that the runtime cannot express, VerificationError where the
    artifact does not compute what was decided.
    """
    with record.stage("choose") as stage:
        decided = _chosen(job, record)
        stage.outcome = _precision_outcome(decided.candidate.plan, decided.drop)
    comparison, why_not = None, why_not_measured(job)
    if not why_not:
        with record.stage("measure") as stage:
            decided, comparison = measured(job, decided)
            stage.outcome = _speed_outcome(comparison)
    with record.stage("verify") as stage:
        feeds = job.selftest()
        verification, outputs = verify(decided.candidate, job.subject, feeds)
        if not verification.passed:
            raise _mismatch(job.target, verification)
        floor, by = verification.noise_floor, verification.executed_by
        stage.outcome = f"error {verification.error:.1e}, noise floor {floor:.1e}, by {by}"
    compiled = Compiled(
        artifact=decided.candidate.artifact,
        options=job.subject.options.model_dump(mode="json"),
        evaluation=_evaluation(job, decided.drop),
        verification=verification,
        verdict=_verdict(job, decided),
        choices=decided.choices,
        float_blocks=tuple(sorted(decided.float_blocks)),
        comparison=comparison,
        why_not_measured=why_not,
        outcomes={name: record.outcomes[name] for name in STAGES if name in record.outcomes},
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


def _chosen(job: Job, record: Record) -> Decided:
    decided = decide(
        job.subject,
        precision=job.request.precision,
        max_drop=job.request.budget.max_drop,
        calibration=job.roles.calibration,
        judge=job.scores(job.judge),
        accept=job.scores(job.accept),
        locked=None if job.lock is None else frozenset(job.lock.float_blocks),
        workdir=job.work,
        threads=job.request.threads,
        progress=record.progress,
    )
    return decided if job.lock is None else replace(decided, choices=job.lock.choices)


def _evaluation(job: Job, drop: Drop | None) -> Evaluation | None:
    """The chosen artifact's figures. The looks that a lock's choices have cost count for who replays them."""
    examiner = job.accept or job.judge
    if examiner is None or drop is None:
        return None
    found = examiner.evaluation(job.roles.judged_on, drop)
    return found if job.lock is None else found.model_copy(update={"looks": max(found.looks, job.lock.looks)})


def _speed_outcome(comparison: Comparison) -> str:
    lost = "".join(
        f"; {name} {ratio:.2f} times, so float" for name, ratio in comparison.tried.items() if ratio < 1
    )
    return f"{comparison.speedup:.2f} times the float speed{lost}"


def _precision_outcome(plan: Plan, drop: Drop | None) -> str:
    integer = sum(block.precision == "int8" for block in plan.blocks)
    scored = f", drop {drop.drop:+.4f} [{drop.low:+.4f}, {drop.high:+.4f}]" if drop is not None else ""
    return f"{integer} of {len(plan.blocks)} blocks INT8{scored}"


def _verdict(job: Job, decided: Decided) -> Outcome:
    roles, request = job.roles, job.request
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
