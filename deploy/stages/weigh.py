"""What an objective has to know beyond the clock: the score of float builds, and memory while running."""

from __future__ import annotations

from dataclasses import replace

from deploy.measure.memory import peak_memory
from deploy.quantize.decide import decide_float
from deploy.stages.entrants import Entrant, Race
from deploy.stages.job import Job
from deploy.stages.limits import fits
from deploy.stages.pick import BEST, contenders, fastest_of

_MOST_WEIGHED = 8
"""Forms that are run for their memory, each in a process of its own."""


def weigh(job: Job, held: Race) -> Race:
    """The race with what its objective asks for. Nothing where nothing was timed, or there is no choice."""
    objective = job.request.objective
    if held.times is None or objective == "latency" or len(tuple(contenders(held))) == 1:
        return held
    held = replace(held, floats=tuple(_scored(job, e) for e in held.floats))
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


def score_fastest_float(job: Job, held: Race) -> Race:
    """The race with the drop of its fastest float build, so that this can be compared with the others."""
    if not held.floats or held.times is None:
        return held
    fastest = fastest_of(held, held.floats)
    score = job.scores(fastest.subject, job.judge)
    if score is None or fastest.decided.drop is not None:
        return held
    drop = score(fastest.decided.candidate)
    within = drop.within(job.request.budget.max_drop)
    known = replace(fastest, decided=replace(fastest.decided, drop=drop, within_budget=within))
    return replace(held, floats=tuple(known if e is fastest else e for e in held.floats))


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
