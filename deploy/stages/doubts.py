"""What clock and data could not tell: forms that may be as fast as the winner, a machine that was too busy,
a search that had no more time, samples too few for the budget."""

from __future__ import annotations

import math

from deploy.measure.latency import speedup
from deploy.stages.entrants import GIVEN, Entrant, Race
from deploy.stages.job import SEARCH_S, Job
from deploy.stages.limits import fits
from deploy.stages.pick import contenders

_BUSY = 0.3
"""Interquartile range over the median of a form's runs from which on the machine is called busy."""


def doubts(job: Job, winner: Entrant, held: Race) -> tuple[str, ...]:
    """In words, with the intervals; nothing where the race was clear, or there was none."""
    times = held.times
    if times is None or winner.name not in times:
        return ()
    found = []
    spread = max(times[name].summary().spread for name in (GIVEN, winner.name) if name in times)
    if spread > _BUSY:
        found.append(
            f"the machine was busy: half of the runs lie {spread:.0%} apart, so that smaller differences may "
            "be chance; build again on a quiet one"
        )
    for other in contenders(held):
        if other.name == winner.name or other.name not in times or not fits(job, other, held):
            continue
        ratio, (low, high) = speedup(times[winner.name], times[other.name])
        if low <= 1.0 < high:
            interval = f"95 %: {low:.2f} to {high:.2f}"
            found.append(
                f"{other.name} may be as fast: {ratio:.2f} times the speed of {winner.name} ({interval})"
            )
    return tuple(found)


def cut_short(job: Job) -> tuple[str, ...]:
    """In words, where the time for searching was over."""
    names = [name for name, patience in job.waited.items() if patience.lost]
    if not names:
        return ()
    tune = job.request.tune
    longer = "; --tune full searches longer" if tune == "quick" else ""
    ended = f"the search had {SEARCH_S[tune]:.0f} s and ended early for {', '.join(names)}"
    return (f"{ended}: forms that were not tried may be faster{longer}",)


def too_few(job: Job, winner: Entrant) -> tuple[str, ...]:
    """In words, where a single sample that is answered otherwise had blocks refused."""
    examiner, budget = job.judge or job.accept, job.request.budget.max_drop
    if examiner is None or not winner.decided.float_blocks or not 0 < budget < examiner.grain:
        return ()
    count, wanted = round(1 / examiner.grain), math.ceil(1 / budget)
    return (
        f"one of the {count} samples that choose is worth {examiner.grain:.4f} of {examiner.metric}, more "
        f"than the budget of {budget:.4f}: a single other answer refuses a form; give {wanted} samples or "
        "more, or a larger budget",
    )
