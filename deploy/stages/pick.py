"""Who wins the race. INT8 must pay: what is slower than the fastest float, by more than noise and in two
races, gives way to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deploy.measure.latency import Timing, speedup
from deploy.quantize.decide import decide_float
from deploy.spec.manifest import Choice
from deploy.stages.entrants import GIVEN, Entrant, Race
from deploy.stages.job import Job

SLOWER = "INT8 is slower here"
_NOISE = 0.97
"""A ratio of medians that could be noise, where its interval does not tell."""


def pick(job: Job, held: Race) -> Entrant:
    """The winner with its choices: the fastest that holds the budget, or the most accurate if none does."""
    winner = _fastest_in_budget(held)
    reasons: list[Choice] = []
    if held.floats and winner.integer:
        # Times stand in measurements.json: the choices must read the same when a build is repeated.
        reason = "not slower than float"
        if loses(held):
            plain = _best_float(job, held)
            if _median(held, plain.name) < _median(held, winner.name):
                winner, reason = plain, SLOWER
            else:
                reason = "slower than the file as given, but faster than any float build of it"
        reasons.append(Choice(what="precision", chosen=winner.precision, reason=reason))
    if len({e.runtime for e in held.entrants}) > 1:
        reasons.append(Choice(what="runtime", chosen=winner.runtime, reason="the fastest within the budget"))
    decided = winner.decided
    return replace(winner, decided=replace(decided, choices=(*decided.choices, *reasons)))


def _fastest_in_budget(held: Race) -> Entrant:
    """INT8 where any holds the budget, as it is smaller too. Of equally fast runtimes the preferred one."""
    able = [e for e in held.entrants if e.decided.within_budget]
    if not able:
        return min(held.entrants, key=lambda e: e.decided.drop.drop if e.decided.drop else 0.0)
    return _fastest(held, [e for e in able if e.integer] or able)


def _fastest(held: Race, among: Sequence[Entrant]) -> Entrant:
    """The first, unless another is faster by more than noise."""
    best = among[0]
    for other in among[1:]:
        if held.times is not None and _faster(held.times[other.name], held.times[best.name]):
            best = other
    return best


def _faster(timing: Timing, than: Timing) -> bool:
    """By more than noise."""
    _, (at_least, _) = speedup(than, timing)
    return at_least > 1.0


def loses(held: Race) -> bool:
    """Whether the best INT8 is slower than the fastest float by more than noise: by interval or by 3 %."""
    best = _fastest_in_budget(held)
    if not held.floats or not best.integer or held.times is None:
        return False
    ratio, (_, at_most) = speedup(held.times[_fastest_float(held)], held.times[best.name])
    return at_most < 1.0 or ratio < _NOISE


def _fastest_float(held: Race) -> str:
    return min((GIVEN, *(e.name for e in held.floats)), key=lambda name: _median(held, name))


def _median(held: Race, name: str) -> float:
    """Milliseconds."""
    assert held.times is not None
    return held.times[name].summary().p50


def _best_float(job: Job, held: Race) -> Entrant:
    """The fastest of our float builds that holds the budget, which a build in bfloat16 may not."""
    tried: list[Entrant] = []
    left = list(held.floats)
    while left:
        entrant = _fastest(held, left)
        left.remove(entrant)
        subject = entrant.subject
        decided = decide_float(
            subject,
            job.scores(subject, job.judge),
            job.scores(subject, job.accept),
            job.request.budget.max_drop,
            job.work / subject.runtime.name,
            entrant.decided.sqnr,
            SLOWER,
        )
        tried.append(Entrant(subject, decided, accepted=True))
        if decided.within_budget:
            return tried[-1]
    return min(tried, key=lambda e: e.decided.drop.drop if e.decided.drop else 0.0)
