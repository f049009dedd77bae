"""What was tried on the way and where the time goes, for the report; nothing is decided by it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from deploy.measure.blocks import block_times
from deploy.measure.latency import speedup
from deploy.quantize.trial import Trial, trial_of
from deploy.spec.measurement import Attempt, BlockTime
from deploy.spec.plan import Plan
from deploy.spec.project import Objective
from deploy.spec.tensors import Precision
from deploy.stages.entrants import GIVEN, Entrant, Race
from deploy.stages.job import Job
from deploy.stages.limits import allowed, misses

_SMALLEST_FIRST: tuple[Precision, ...] = ("w4", "int8", "fp8", "w8a16", "dynamic", "w8", "fp16", "bf16")
_AROUND: tuple[Precision, ...] = ("float", "fp16", "bf16")


def attempts(job: Job, held: Race, winner: Entrant) -> tuple[Attempt, ...]:
    """The baseline, then each runtime's float build and the candidates in the order of the search."""
    listed = [
        _timed(
            Attempt(
                name=GIVEN,
                runtime=job.baseline.backend,
                bytes=job.baseline.size_bytes(),
                score=None if job.judge is None else job.judge.score_of(0.0),
                drop=None if job.judge is None else 0.0,
                outcome="the baseline",
            ),
            held,
            GIVEN,
        )
    ]
    for entrant in held.floats:
        if entrant not in held.entrants:
            candidate = entrant.decided.candidate
            won = entrant.name == winner.name
            told = winner if won and job.judge is None else entrant  # what those say who choose
            drop = told.decided.drop
            trial = trial_of(candidate, entrant.subject, entrant.decided.float_blocks, drop)
            listed.append(_timed(_attempt(job, entrant, trial, "chosen" if won else ""), held, entrant.name))
    again = {_key(e, e.decided.trials[-1]): e for e in held.entrants if e.runner_up}
    for entrant in held.entrants:
        if entrant.runner_up:  # told in its place among the trials
            continue
        *before, last = entrant.decided.trials
        for trial in before:
            one = again.pop(_key(entrant, trial), None)
            if one is None:
                listed.append(_attempt(job, entrant, trial, _missed(job, trial)))
            else:
                listed.append(
                    _timed(_attempt(job, one, trial, _outcome(job, held, one, winner)), held, one.name)
                )
        listed.append(
            _timed(_attempt(job, entrant, last, _outcome(job, held, entrant, winner)), held, entrant.name)
        )
    for entrant in again.values():  # those on whose way they were tried have left
        trial, outcome = entrant.decided.trials[-1], _outcome(job, held, entrant, winner)
        listed.append(_timed(_attempt(job, entrant, trial, outcome), held, entrant.name))
    for entrant in held.refused:
        drop = entrant.decided.drop
        lost = "" if drop is None else f": drop {drop.drop:+.4f}"
        outcome = f"refused by eval data{lost}"
        listed.append(_timed(_attempt(job, entrant, entrant.decided.trials[-1], outcome), held, entrant.name))
    return (*listed, *held.tuned)


def attempt_of(job: Job, entrant: Entrant, outcome: str) -> Attempt:
    """An entrant as it is, without times."""
    decided = entrant.decided
    plan, size = decided.candidate.plan, decided.candidate.artifact.size_bytes()
    drop = decided.trials[-1].drop if decided.trials else decided.drop
    return _attempt(job, entrant, Trial(plan, size, drop), outcome)


def times_by_block(job: Job, held: Race, winner: Entrant) -> tuple[BlockTime, ...]:
    """Milliseconds of each block in the artifact and in its runtime's float build, where that was timed."""
    feeds = job.one_inference(winner.decided.candidate.artifact)

    def by_block(entrant: Entrant) -> dict[str, float]:
        candidate, subject = entrant.decided.candidate, entrant.subject
        return block_times(
            candidate.qdq, subject.blocks, subject.backend, candidate.artifact, winner.subject.options, feeds
        )

    plain = next((e for e in held.floats if e.runtime == winner.runtime), None)
    after = by_block(winner)
    before = {} if plain is None else by_block(plain) if winner.integer else after
    if not after:
        return ()
    return tuple(
        BlockTime(id=block.id, float_ms=before.get(block.id), ms=after.get(block.id))
        for block in winner.subject.blocks
    )


def _key(entrant: Entrant, trial: Trial) -> object:
    """What tells candidates apart."""
    return entrant.runtime, trial.float_blocks, trial.rungs, trial.sparse_blocks, trial.wide_blocks


def _attempt(job: Job, entrant: Entrant, trial: Trial, outcome: str) -> Attempt:
    drop = None if trial.drop is None else trial.drop.drop
    return Attempt(
        name=form_name(trial.plan),
        runtime=entrant.runtime,
        precision=_counts(trial.plan),
        bytes=trial.bytes,
        score=None if job.judge is None else job.judge.score_of(drop),
        drop=drop,
        outcome=outcome,
    )


def form_name(plan: Plan) -> str:
    """``int8``, ``int8 in 17 of 22 blocks``, ``int8 in 17 of 22 blocks, w8a16 in 4``, ``int8, 2:4 in 9``."""
    counts = _counts(plan)
    chosen = main_precision(plan)
    whole = len(counts) <= 1 or chosen not in counts or chosen in _AROUND
    name = chosen if whole else f"{chosen} in {counts[chosen]} of {len(plan.blocks)} blocks"
    if chosen == "int8" and "w8a16" in counts:
        name += f", w8a16 in {counts['w8a16']}"
    sparse = sum(block.sparsity is not None for block in plan.blocks)
    return f"{name}, 2:4 in {sparse}" if sparse else name


def main_precision(plan: Plan) -> Precision:
    """The smallest that any block computes in."""
    present = _counts(plan)
    return next((p for p in _SMALLEST_FIRST if p in present), next(iter(present), "float"))


def _counts(plan: Plan) -> dict[Precision, int]:
    return dict(Counter(block.precision for block in plan.blocks))


_LESS: dict[Objective, str] = {
    "latency": "slower",
    "size": "larger or slower",
    "memory": "takes more memory or time",
    "energy": "takes more energy or time",
    "accuracy": "less accurate or slower",
}


def _outcome(job: Job, held: Race, entrant: Entrant, winner: Entrant) -> str:
    if entrant.name == winner.name:
        return "chosen"
    if not allowed(job, entrant.decided):
        return "over the budget"
    missed = misses(job, entrant, held)
    if missed:
        return "over the limits"
    return f"{_LESS[job.request.objective]} than {winner.name}"


def _missed(job: Job, trial: Trial) -> str:
    over = trial.drop is not None and not trial.drop.within(job.request.budget.max_drop)
    return "over the budget" if over else ""


def _timed(attempt: Attempt, held: Race, name: str) -> Attempt:
    if held.times is None or name not in held.times:
        return attempt
    ratio, _ = speedup(held.times[GIVEN], held.times[name])
    found = {
        "latency_ms": held.times[name].summary(),
        "speed": round(ratio, 4),
        "peak_memory_bytes": held.memory.get(name),
        "joules": float(np.median(held.energy[name])) if name in held.energy else None,
    }
    return attempt.model_copy(update=found)
