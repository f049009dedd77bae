"""What an objective has to know beyond the clock: scores of float builds, memory and joules while running."""

from __future__ import annotations

from dataclasses import replace

from deploy.measure.memory import peak_memory
from deploy.quantize.decide import decide_float
from deploy.stages.energy import metered
from deploy.stages.entrants import Entrant, Race
from deploy.stages.job import Job
from deploy.stages.limits import fits
from deploy.stages.pick import BEST, contenders, fastest_of

_MOST_WEIGHED = 8
"""Forms that are run for their memory, each in a process of its own, or for their energy."""


def weigh(job: Job, held: Race) -> Race:
    """The race with what its objective asks for. Nothing where there is no choice, or nothing was timed and
    that would need it."""
    objective = job.request.objective
    timed = held.times is not None or job.by_weight
    if not timed or objective == "latency" or len(tuple(contenders(held))) == 1:
        return held
    held = replace(held, floats=tuple(_scored(job, e) for e in held.floats))
    if objective == "energy":
        return metered(job, held, [e for e in contenders(held) if fits(job, e, held)][:_MOST_WEIGHED])
    if objective != "memory":
        return held
    able = [e for e in contenders(held) if fits(job, e, held) and e.name not in held.memory]
    able = able[: max(0, _MOST_WEIGHED - len(held.memory))]
    weighed = dict(held.memory)
    for pair in (able[i : i + 2] for i in range(0, len(able), 2)):  # not all at once: each takes its memory
        asked = {e.name: (e.decided.candidate.artifact, e.subject.options) for e in pair}
        feeds = job.one_inference(pair[0].decided.candidate.artifact)
        weighed |= peak_memory(asked, feeds, job.work / "weighed")
    return replace(held, memory=weighed)


def score_floats(job: Job, held: Race) -> Race:
    """The race with the drop of its best float builds, so that these can be compared with the others.

    The fastest, and the fastest in full precision, which loses nothing; all of them where ``tune`` is full.
    """
    if not held.floats or held.times is None:
        return held
    full = [e for e in held.floats if e.precision == "float"]
    best = [fastest_of(held, among) for among in (held.floats, full) if among]
    known: list[Entrant] = []
    for entrant in held.floats:
        wanted = job.request.tune == "full" or any(entrant is one for one in best)
        score = job.scores(entrant.subject, job.judge) if wanted else None
        if score is not None and entrant.decided.drop is None:
            drop = score(entrant.decided.candidate)
            within = drop.within(job.request.budget.max_drop)
            entrant = replace(entrant, decided=replace(entrant.decided, drop=drop, within_budget=within))
        known.append(entrant)
    return replace(held, floats=tuple(known))


def _scored(job: Job, entrant: Entrant) -> Entrant:
    """A float build with its drop on the data that choose, and the reason by which it may win."""
    if entrant.decided.drop is not None:
        return entrant
    subject = entrant.subject
    decided = decide_float(
        subject,
        job.scores(subject, job.judge),
        None,
        job.request.budget.max_drop,
        job.work / subject.runtime.name / "scored",
        entrant.decided.sqnr,
        BEST[job.request.objective],
    )
    return replace(entrant, decided=decided)
