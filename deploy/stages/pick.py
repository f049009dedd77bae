"""Who wins the race: what the objective asks for, among the forms that keep the budget and the limits.

Where latency is the objective INT8 must pay: what is slower than the fastest float, by more than noise and in
two races, gives way to it. Where no form keeps everything, the one nearest to it wins, accuracy first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from deploy.measure.latency import Timing, quiet_speedup, ratio_by_round, speedup, steadier
from deploy.quantize.decide import BY_COSTS, SLOWER_SO, Decided, decide_float
from deploy.spec.manifest import Choice, Lock
from deploy.spec.project import Objective
from deploy.spec.tensors import INTEGER
from deploy.stages.entrants import GIVEN, Entrant, Race
from deploy.stages.job import Job
from deploy.stages.limits import allowed, excess, fits

SLOWER = "INT8 is slower here"
BEST: dict[Objective, str] = {
    "latency": "the fastest within the budget",
    "size": "the smallest within the limits",
    "memory": "the least memory within the limits",
    "energy": "the least energy within the limits",
    "accuracy": "the most accurate within the limits",
}
"""Why a form won. A replay knows a float build by it."""
PICKED = "asked for with --pick"
NEAREST = "no form keeps the limits: this one is nearest to them"
_BUT_SLOWER = ", though slower than float"
_NOISE = 0.99
"""A ratio of medians that could be noise, where its interval does not tell."""
_QUIET = 0.97
"""And one over the few rounds in which the machine was quiet."""
_ALIKE: dict[Objective, float] = {"size": 1.01, "memory": 1.03, "accuracy": 1.0}
"""How much more than the least is as good: formats differ by names and notes, peaks by chance. Joules come
with an interval."""


def pick(job: Job, held: Race) -> Entrant:
    """The winner with its choices."""
    winner, why = _fastest_form(job, held) if job.request.objective == "latency" else _best_form(job, held)
    reasons: list[Choice] = []
    if why:  # times stand in measurements.json: the choices must read the same when a build is repeated
        reasons.append(Choice(what="precision", chosen=winner.precision, reason=why))
    if len({e.runtime for e in held.entrants}) > 1:
        reason = NEAREST if why == NEAREST else BEST[job.request.objective]
        reasons.append(Choice(what="runtime", chosen=winner.runtime, reason=reason))
    decided = winner.decided
    return replace(winner, decided=replace(decided, choices=(*decided.choices, *reasons)))


def why_float(lock: Lock | None) -> str:
    """Why blocks of a locked build are float, where the clock, costs or an objective said so."""
    for choice in () if lock is None else lock.choices:
        if choice.reason == BY_COSTS:
            return SLOWER_SO
        if choice.reason == PICKED:
            return PICKED
        if choice.what == "precision" and choice.chosen not in INTEGER and choice.reason in _REASONS:
            return choice.reason
    return ""


_REASONS = (SLOWER, *BEST.values())


def _fastest_form(job: Job, held: Race) -> tuple[Entrant, str]:
    """INT8 where any keeps the limits and pays, as it is smaller too. Of equally fast runtimes the preferred
    one."""
    best = _fastest_fitting(job, held)
    if best is None:
        return _nearest(job, held)
    if not held.floats or not best.integer:
        return best, ""
    if not loses(job, held):
        return best, "not slower than float"
    plain = _best_float(job, held)
    if plain is None:
        return best, "slower than float, which does not keep the limits"
    if _median(held, plain.name) < _median(held, best.name) or _slower_when_quiet(held, best, plain.name):
        return plain, SLOWER
    return best, "slower than the file as given, but faster than any float build of it"


def _fastest_fitting(job: Job, held: Race) -> Entrant | None:
    able = [e for e in held.entrants if fits(job, e, held)]
    return fastest_of(held, [e for e in able if e.integer] or able) if able else None


def _best_form(job: Job, held: Race) -> tuple[Entrant, str]:
    """What takes least of what the objective means; of those that are as good the fastest."""
    objective = job.request.objective
    everybody = tuple(contenders(held))
    able = [e for e in everybody if fits(job, e, held)]
    if not able:
        return _nearest(job, held)
    costs = _costs(objective, held)
    weighed = [e for e in able if e.name in costs]
    if not weighed:
        found = fastest_of(held, able)
        why = job.why_not_measured or "so it is where nothing is raced"
        return found, "" if job.lock is not None else f"{objective} was not measured: {why}"
    best = fastest_of(held, _as_good(objective, held, weighed, costs))
    if len(everybody) == 1 or (not best.integer and any(e is best for e in held.entrants)):
        return best, ""  # nothing else there, or float as accuracy alone had it
    slower = best.integer and held.floats and held.times is not None and _slower_than_float(held, best)
    return best, BEST[objective] + (_BUT_SLOWER if slower else "")


def _as_good(
    objective: Objective, held: Race, weighed: Sequence[Entrant], costs: Mapping[str, float]
) -> list[Entrant]:
    """Those who may take as little as the one who takes least."""
    least = min(weighed, key=lambda e: costs[e.name]).name
    if objective == "energy":
        used = held.energy
        return [e for e in weighed if ratio_by_round(used[e.name], used[least])[1][0] <= 1.0]
    return [e for e in weighed if costs[e.name] <= costs[least] * _ALIKE[objective]]


def contenders(held: Race) -> Iterator[Entrant]:
    """Everybody once: where a runtime has no INT8 its entrant is its float build."""
    yield from held.entrants
    yield from (e for e in held.floats if all(e.name != other.name for other in held.entrants))


def _costs(objective: Objective, held: Race) -> dict[str, float]:
    """By name what the objective makes least, of those of whom it is known."""
    found: dict[str, float] = {}
    for entrant in contenders(held):
        drop = entrant.decided.drop
        if objective == "size":
            found[entrant.name] = entrant.decided.candidate.artifact.size_bytes()
        elif objective == "accuracy":  # a gain is luck, and counts as nothing lost
            found[entrant.name] = 0.0 if drop is None else max(drop.drop, 0.0)
        elif objective == "memory" and entrant.name in held.memory:
            found[entrant.name] = held.memory[entrant.name]
        elif objective == "energy" and entrant.name in held.energy:
            found[entrant.name] = float(np.median(held.energy[entrant.name]))
    return found


def _nearest(job: Job, held: Race) -> tuple[Entrant, str]:
    """A float build that keeps everything where INT8 does not, else the form that misses least, the fastest
    of those that miss alike."""
    plain = _best_float(job, held)
    if plain is not None:
        return plain, SLOWER
    entrants = held.entrants
    far = [
        tuple(math.inf if math.isnan(x) else x for x in excess(job, entrant, held)) for entrant in entrants
    ]
    best = fastest_of(held, [e for e, so in zip(entrants, far, strict=True) if so == min(far)])
    return best, "" if len(entrants) == 1 else NEAREST


def fastest_of(held: Race, among: Sequence[Entrant]) -> Entrant:
    """The first, unless another is faster by more than noise, or steadier where that cannot be told."""
    best = among[0]
    for other in among[1:]:
        if held.times is not None and _faster(held.times[other.name], held.times[best.name]):
            best = other
    return best


def _faster(timing: Timing, than: Timing) -> bool:
    """By more than noise; in the mean where medians are alike."""
    _, (at_least, at_most) = speedup(than, timing)
    return at_least > 1.0 or (at_most >= 1.0 and steadier(than, timing))


def loses(job: Job, held: Race) -> bool:
    """Whether the INT8 that would win is slower than the fastest float by more than noise."""
    if not held.floats or held.times is None or job.request.objective != "latency":
        return False
    best = _fastest_fitting(job, held)
    return best is not None and best.integer and _slower_than_float(held, best)


def _slower_than_float(held: Race, best: Entrant) -> bool:
    """By its interval, by 1 %, or by 3 % while the machine was quiet, the file as given counted in."""
    assert held.times is not None
    fastest = min((GIVEN, *(e.name for e in held.floats)), key=lambda name: _median(held, name))
    ratio, (_, at_most) = speedup(held.times[fastest], held.times[best.name])
    return at_most < 1.0 or ratio < _NOISE or _slower_when_quiet(held, best, fastest)


def _slower_when_quiet(held: Race, best: Entrant, plain: str) -> bool:
    """Whether a float build is faster while nobody else is at work: what a neighbour slows down more is no
    worse for a device of its own."""
    assert held.times is not None
    return quiet_speedup(held.times[plain], held.times[best.name]) < _QUIET


def _median(held: Race, name: str) -> float:
    """Milliseconds."""
    assert held.times is not None
    return held.times[name].summary().p50


def _best_float(job: Job, held: Race) -> Entrant | None:
    """The fastest of our float builds that keeps the limits and the budget, which one in bfloat16 may not."""
    left = [e for e in held.floats if fits(job, e, held)]
    while left:
        entrant = fastest_of(held, left)
        left.remove(entrant)
        decided = _judged_float(job, entrant)
        if allowed(job, decided):
            return Entrant(decided, accepted=True)
    return None


def _judged_float(job: Job, entrant: Entrant) -> Decided:
    """A float build as those say who judge and accept, who are asked once however often it could win."""
    subject = entrant.subject
    if id(subject) not in job.floats:
        decided = decide_float(
            subject,
            job.scores(subject, job.judge),
            job.scores(subject, job.accept),
            job.request.budget.max_drop,
            job.work / subject.runtime.name,
            entrant.decided.sqnr,
            SLOWER,
        )
        job.floats[id(subject)] = decided
    return job.floats[id(subject)]
