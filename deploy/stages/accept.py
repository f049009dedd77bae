"""Eval data accept or refuse the winner, and see nothing but winners.

A race is held among what validation data allowed. Its winner is shown to the eval data. If they refuse it,
the next one is, or where accuracy alone had chosen it the same runtime higher up the accuracy ladder, or with
twice as many float blocks. The manifest counts the looks.
"""

from __future__ import annotations

from dataclasses import replace

from deploy.quantize.ladder import NO_TIME, climb
from deploy.stages.contest import decided_for, hold_race
from deploy.stages.entrants import Entrant, Race
from deploy.stages.job import Job
from deploy.stages.ladder import ladder_for
from deploy.stages.pick import pick
from deploy.stages.settings import in_float32, reopened
from deploy.stages.weigh import weigh


def settle(job: Job, held: Race) -> tuple[Entrant, Race]:
    """The winner that eval data accept, with the race as it stands then; the most accurate if there is none.

    A precision that was asked for is not overruled: it is judged all the same.
    """
    while True:
        held = weigh(job, held)
        winner = pick(job, held)
        if job.accept is None or winner.accepted:
            return winner, held
        winner = _judged(job, winner)
        drop = winner.decided.drop
        assert drop is not None
        if drop.within(job.allowance) or not _may_change(job, winner):
            return winner, held
        said = f"eval data: {winner.name} drops {drop.drop:+.4f}, over the budget"
        job.progress.note(f"{said} of {job.request.budget.max_drop:.4f}")
        if not _lossy(winner):
            if (left := _without(job, held, winner)) is None:
                return winner, held
            held = left
            continue
        if not winner.first:
            others = tuple(e for e in held.entrants if e.name != winner.name)
            refused = (*held.refused, winner)
            held = replace(held, entrants=others or (_by_accuracy(job, winner),), refused=refused)
            continue
        again = _higher(job, winner) or decided_for(job, winner.subject, ask=True, start=_more(winner))
        places = {e.name: e for e in held.entrants} | {winner.name: again}
        entrants = tuple(e for e in places.values() if e is again or e.name != again.name)
        held = replace(hold_race(job, entrants), refused=held.refused)


def _without(job: Job, held: Race, refused: Entrant) -> Race | None:
    """The race without floats of a narrow type; where it leaves nothing, with what the same runtime makes in
    float32. None where it cannot."""
    entrants, floats = (
        tuple(e for e in forms if e.name != refused.name) for forms in (held.entrants, held.floats)
    )
    if entrants or floats:
        return replace(held, entrants=entrants or floats, floats=floats, refused=(*held.refused, refused))
    wide = in_float32(refused.subject)
    if wide is None:
        return None
    again = decided_for(job, reopened(refused.subject, wide), ask=True)
    return replace(hold_race(job, (again,)), refused=held.refused)


def _by_accuracy(job: Job, refused: Entrant) -> Entrant:
    """What accuracy alone decides for the runtime of a mixture that nothing else was tried beside."""
    sparse, subject = refused.subject.refinement.sparse, refused.subject
    if sparse:  # then from the beginning: its zeros may be what eval data refused
        subject = next(s for s in job.subjects if s.runtime.name == refused.runtime)
    found = decided_for(job, subject, ask=False)
    if sparse or found.decided.float_blocks != refused.decided.float_blocks:
        return found
    return decided_for(job, subject, ask=True, start=_more(refused))


def _higher(job: Job, winner: Entrant) -> Entrant | None:
    """What the rest of the accuracy ladder makes of it, judged by eval data; None where that wins nothing."""
    tried = [record.name for record in winner.decided.rungs if record.why != NO_TIME]
    subject = winner.subject
    ladder = ladder_for(job, subject)
    stands = () if ladder is None else tuple(climb(ladder.above(tried), subject))
    if not any(stand.record.kept for stand in stands):
        return None
    count = len(winner.decided.float_blocks)
    again = decided_for(job, stands[-1].subject, ask=True, start=count, climbs=False)
    records = (*winner.decided.rungs, *(stand.record for stand in stands))
    return replace(again, decided=replace(again.decided, rungs=records))


def _judged(job: Job, winner: Entrant) -> Entrant:
    """The winner with what eval data say of it."""
    score = job.scores(winner.subject, job.accept)
    assert score is not None
    drop = score(winner.decided.candidate)
    within = drop.within(job.request.budget.max_drop)
    return replace(winner, accepted=True, decided=replace(winner.decided, drop=drop, within_budget=within))


def _may_change(job: Job, winner: Entrant) -> bool:
    guarded = job.request.precision in ("auto", "mixed") and job.lock is None
    narrow = winner.subject.float_precision != "float"
    return guarded and (narrow or _lossy(winner)) and not winner.subject.imported


def _lossy(winner: Entrant) -> bool:
    """Whether it loses by more than the type of its floats."""
    return winner.integer or bool(winner.subject.refinement.sparse)


def _more(winner: Entrant) -> int:
    """How many blocks must be float next: twice as many as now, one at least."""
    count = len(winner.decided.float_blocks)
    return max(count + 1, 2 * count)
