"""The part of a build that depends on the target: choose, measure, verify."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from deploy.adapter.protocol import Warns
from deploy.bundle.read import ARTIFACT, GRAPH, PLAN, SELFTEST
from deploy.bundle.verify import verify, write_selftest
from deploy.bundle.write import copy_artifact
from deploy.data.interval import Drop
from deploy.errors import VerificationError
from deploy.frontend.onnx_file import write as write_graph
from deploy.measure.latency import speedup
from deploy.spec.artifact import Artifact
from deploy.spec.document import Frozen, parse, render
from deploy.spec.explanation import Explained
from deploy.spec.ladder import RungName, RungRecord
from deploy.spec.manifest import Choice, Evaluation, KnownHazard, Outcome, Verification
from deploy.spec.measurement import Attempt, BlockTime, Comparison, Point
from deploy.spec.plan import Plan
from deploy.spec.project import WITHOUT_RANGES, PrecisionRequest
from deploy.spec.tensors import INTEGER, Precision
from deploy.stages.accept import settle
from deploy.stages.attempts import attempts, times_by_block
from deploy.stages.by_table import timed_alone
from deploy.stages.contest import enter, figures, hold_race
from deploy.stages.doubts import cut_short, doubts, too_few
from deploy.stages.entrants import GIVEN, Entrant, Race
from deploy.stages.explain import explained
from deploy.stages.front import front, runners_up
from deploy.stages.job import Job
from deploy.stages.limits import misses, unchecked
from deploy.stages.record import Record
from deploy.stages.threads import with_threads
from deploy.stages.tune import tuned
from deploy.stages.weigh import score_floats

_RESULT = "compiled.json"
STAGES = ("choose", "measure", "verify")
"""The stages whose results lie in one cache entry."""
_SPOKEN: dict[Precision, str] = {
    "int8": "INT8",
    "w8a16": "INT8 by INT16",
    "w8": "INT8 weights",
    "w4": "INT4 weights",
}


class Compiled(Frozen):
    """Everything that was decided and found for a target; it lies in the cache beside the artifact."""

    artifact: Artifact
    options: dict[str, JsonValue]
    evaluation: Evaluation | None
    verification: Verification
    verdict: Outcome
    choices: tuple[Choice, ...]
    float_blocks: tuple[str, ...]
    rungs: tuple[RungName, ...] = ()
    sparse_blocks: tuple[str, ...] = ()
    wide_blocks: tuple[str, ...] = ()
    precision: PrecisionRequest = "auto"
    ladder: tuple[RungRecord, ...] = ()
    comparison: Comparison | None
    why_not_measured: str = ""
    doubts: tuple[str, ...] = ()
    missed: dict[str, str] = {}
    attempts: tuple[Attempt, ...] = ()
    front: tuple[Point, ...] = ()
    blocks: tuple[BlockTime, ...] = ()
    explained: Explained = Explained()
    hazards: tuple[KnownHazard, ...] = ()
    outcomes: dict[str, str] = {}


def compile_for(job: Job, folder: Path, record: Record) -> None:
    """Choose, measure and verify; leave artifact, plan, self-test and result in ``folder``.

    Raises UnsupportedError listing every node that the runtime cannot express, VerificationError where the
    artifact does not compute what was decided.
    """
    job = with_threads(job)
    with record.stage("choose") as stage:
        held = Race(enter(job))
        stage.outcome = "; ".join(_precision_outcome(entrant, held) for entrant in held.entrants)
    why_not = job.why_not_measured
    if not why_not:
        with record.stage("measure") as stage:
            held = hold_race(job, (*held.entrants, *runners_up(job, held.entrants)))
            winner, held = tuned(job, *settle(job, held))
            clocked = timed_alone(job, winner, held)
            comparison = figures(job, winner, clocked)
            stage.outcome = _speed_outcome(winner, clocked)
    else:
        (winner, held), comparison = settle(job, hold_race(job, held.entrants)), None
        clocked = held
    with record.stage("verify") as stage:
        feeds = job.selftest()
        verification, outputs = verify(winner.decided.candidate, winner.subject, feeds)
        refused: set[str] = set()
        while not verification.passed:
            refused.add(winner.runtime)
            held = held.without(winner.runtime)
            if not held.entrants and len(refused) < len(job.subjects) and not job.races:
                held = Race(enter(job, refused))
            if not held.entrants:
                raise _mismatch(winner, verification)
            job.progress.warn(f"{winner.runtime} is left out: {_mismatch(winner, verification)}")
            winner, held = tuned(job, *settle(job, held))
            clocked = timed_alone(job, winner, held)
            comparison = None if clocked.times is None else figures(job, winner, clocked)
            verification, outputs = verify(winner.decided.candidate, winner.subject, feeds)
        floor, by = verification.noise_floor, verification.executed_by
        stage.outcome = f"error {verification.error:.1e}, noise floor {floor:.1e}, by {by}"
        if verification.operations:
            stage.outcome += f", {verification.operations} operations one by one"
    decided = winner.decided
    if held.times is not None:
        held = clocked = score_floats(job, held)
    compiled = Compiled(
        artifact=decided.candidate.artifact,
        options=winner.subject.options.model_dump(mode="json"),
        evaluation=_evaluation(job, decided.drop),
        verification=verification,
        verdict=_verdict(job, winner, clocked),
        choices=decided.choices,
        float_blocks=tuple(sorted(decided.float_blocks)),
        rungs=winner.subject.refinement.rungs,
        sparse_blocks=tuple(sorted(winner.subject.refinement.sparse)),
        wide_blocks=tuple(sorted(winner.subject.refinement.wide)),
        precision=winner.subject.form or job.request.precision,
        ladder=tuple(record for entrant in held.entrants for record in entrant.decided.rungs),
        comparison=comparison,
        why_not_measured=why_not,
        doubts=(*doubts(job, winner, held), *cut_short(job), *too_few(job, winner)),
        missed={miss.words: miss.told for miss in misses(job, winner, clocked) if miss.told},
        attempts=attempts(job, clocked, winner),
        front=front(job, held, winner),
        blocks=times_by_block(job, clocked, winner) if clocked.times and job.request.tune != "off" else (),
        explained=explained(job, held, winner),
        hazards=_hazards(winner),
        outcomes={name: record.outcomes[name] for name in STAGES if name in record.outcomes},
    )
    copy_artifact(decided.candidate.artifact, folder / ARTIFACT)
    refined = decided.subject.refinement
    if refined.rungs or refined.sparse:  # else the bundle's graph is the prepared one
        write_graph(decided.candidate.graph, folder / GRAPH)
    (folder / PLAN).write_text(render(decided.candidate.plan))
    write_selftest(folder / SELFTEST, feeds, outputs)
    (folder / _RESULT).write_text(render(compiled))


def load_compiled(folder: Path) -> tuple[Compiled, Plan]:
    """What `compile_for` left in ``folder``."""
    compiled = parse(Compiled, (folder / _RESULT).read_text(), origin=folder / _RESULT)
    artifact = compiled.artifact.model_copy(update={"folder": folder / ARTIFACT})
    plan = parse(Plan, (folder / PLAN).read_text(), origin=folder / PLAN)
    return compiled.model_copy(update={"artifact": artifact}), plan


def _hazards(winner: Entrant) -> tuple[KnownHazard, ...]:
    """What the runtime makes of the artifact that its owner should know."""
    backend = winner.subject.backend
    if not isinstance(backend, Warns):
        return ()
    return tuple(backend.hazards(winner.decided.candidate.artifact, winner.subject.options))


def _evaluation(job: Job, drop: Drop | None) -> Evaluation | None:
    """The chosen artifact's figures. The looks that a lock's choices have cost count for who replays them."""
    examiner = job.accept or job.judge
    if examiner is None or drop is None:
        return None
    found = examiner.evaluation(job.roles.judged_on, drop)
    return found if job.lock is None else found.model_copy(update={"looks": max(found.looks, job.lock.looks)})


def _speed_outcome(winner: Entrant, held: Race) -> str:
    """The winner's speed, and of the others those that might have won."""
    assert held.times is not None

    def against(name: str) -> float:
        assert held.times is not None
        return speedup(held.times[GIVEN], held.times[name])[0]

    said = f"{winner.name} {against(winner.name):.2f} times the speed of the file"
    decided = [e for e in held.entrants if e.name in held.times and not e.runner_up]
    others = [f"{e.name} {against(e.name):.2f}" for e in decided if e.name != winner.name]
    return said + (f" ({', '.join(others)})" if others else "")


def _precision_outcome(entrant: Entrant, held: Race) -> str:
    plan, drop = entrant.decided.candidate.plan, entrant.decided.drop
    word = entrant.subject.form or entrant.subject.integer_precision
    count = sum(block.precision == word for block in plan.blocks)
    chosen = f"{count} of {len(plan.blocks)} blocks {_SPOKEN.get(word, word)}"
    if word != "w8a16" and (wide := sum(block.precision == "w8a16" for block in plan.blocks)):
        chosen += f", {wide} {_SPOKEN['w8a16']}"
    scored = "" if drop is None else f", drop {drop.drop:+.4f}"
    if len(held.entrants) > 1:
        return f"{entrant.runtime} {'mixed ' if entrant.mixed else ''}{chosen}{scored}"
    interval = "" if drop is None else f" [{drop.low:+.4f}, {drop.high:+.4f}]"
    return f"{chosen}{scored}{interval}"


def _verdict(job: Job, winner: Entrant, held: Race) -> Outcome:
    roles, request, decided = job.roles, job.request, winner.decided
    reasons = [f"{c.what}: {c.chosen} ({c.reason})" for c in decided.choices]
    if roles.random:
        reasons.append("calibrated on random noise: the ranges do not fit real data")
    doubt = unchecked(job, winner, held)
    reasons += [doubt] if doubt else []
    missed = [miss.words for miss in misses(job, winner, held)]
    if decided.drop is not None and not decided.within_budget:
        blocks = decided.candidate.plan.blocks
        worst = [b for b in blocks if b.precision in INTEGER and b.sqnr_db is not None]
        blame = f", worst block {min(worst, key=lambda b: b.sqnr_db or 0).id}" if worst else ""
        if job.lost > request.budget.max_drop:
            blame = f", {job.lost:.4f} of it by the recipe"
        over = f"drop {decided.drop.drop:.4f} over the budget of {request.budget.max_drop:.4f}{blame}"
        missed = [over, *missed]
    if missed:
        return Outcome(status="missed", reasons=(*missed, *reasons))
    chosen = any(choice.what == "precision" for choice in decided.choices)  # by an earlier build, then
    if request.precision in WITHOUT_RANGES and not chosen:
        reasons.append(f"precision {request.precision} was asked for")
    elif not decided.candidate.plan.quantized and roles.calibration is None:
        reasons.append("no calibration data were given")
    elif not decided.candidate.plan.quantized and not decided.float_blocks:
        reasons.append("nothing in the graph has an integer kernel on this runtime")
    if decided.candidate.plan.quantized:
        return Outcome(status="met", reasons=tuple(reasons))
    return Outcome(status="float", reasons=tuple(reasons))


def _mismatch(winner: Entrant, verification: Verification) -> VerificationError:
    where = verification.first_divergence
    return VerificationError(
        f"the {winner.runtime} artifact strays from its reference graph by {verification.error:.2g} "
        f"of the output's magnitude; {verification.tolerance:.2g} is allowed",
        hint=f"first diverging operation: {where}"
        if where
        else "only the outputs differ, no inner value does",
    )
