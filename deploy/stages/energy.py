"""Energy as an objective: whether it can be known here, and the joules of those who may win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from deploy.errors import ToolchainError, UsageError
from deploy.measure.energy import Counter, EnergyPlan, energies, find_counters
from deploy.measure.host import host
from deploy.measure.latency import ratio_by_round
from deploy.spec.measurement import Energy
from deploy.spec.project import Tune
from deploy.stages.entrants import GIVEN, Entrant, Race
from deploy.stages.job import Job
from deploy.stages.request import Request
from deploy.stages.target import find_target

_PLANS: Mapping[Tune, EnergyPlan] = {
    "off": EnergyPlan(),
    "quick": EnergyPlan(),
    "full": EnergyPlan(rounds=24, seconds=120.0),
}


def check_objective(request: Request) -> None:
    """Before anything is built: whether what is to be made best can be known. A replay chooses nothing.

    Raises UsageError where nothing of the target runs here or measuring is switched off, ToolchainError where
    this machine has no counter of joules or keeps it to itself.
    """
    if request.objective != "energy" or request.lock is not None or request.pick is not None:
        return
    if not request.measure:
        raise UsageError(
            "energy cannot be made least where nothing is measured",
            hint="leave --no-measure out, or give another --objective",
        )
    target = find_target(request.target, request.runtime)
    if not target.stands_here():
        raise UsageError(
            f"energy cannot be made least for {target.profile.title}: this machine ({host().cpu}) cannot "
            "stand in for it, so its joules cannot be counted",
            hint="build on such a machine, or give another --objective",
        )
    find_counters()


def metered(job: Job, held: Race, able: Sequence[Entrant]) -> Race:
    """The race with the joules of those who are ``able`` to win and of the file as given: all anew where one
    of them is new, since only what ran in turn can be compared."""
    if all(e.name in held.energy for e in able):
        return held
    return replace(held, energy=_used(job, able, find_counters()))


def energy_of(job: Job, winner: Entrant, held: Race) -> Energy | None:
    """The winner's joules beside those of the file as given. None where energy is not the objective, or a
    replay runs where it cannot be counted."""
    if job.request.objective != "energy":
        return None
    try:
        counters = find_counters()
    except ToolchainError as e:
        if job.lock is None:
            raise
        job.progress.note(f"energy is not told: {e.message}")
        return None
    used = held.energy if winner.name in held.energy else _used(job, [winner], counters)
    saving, interval = ratio_by_round(used[GIVEN], used[winner.name])
    return Energy(
        baseline=float(np.median(used[GIVEN])),
        artifact=float(np.median(used[winner.name])),
        saving=saving,
        interval=interval,
        counters=tuple(counter.name for counter in counters),
    )


def _used(job: Job, entrants: Sequence[Entrant], counters: Sequence[Counter]) -> dict[str, np.ndarray]:
    """Joules by round of the file as given and of each of these, all open in this process."""
    contenders = {GIVEN: job.given(), **{e.name: e.contender() for e in entrants}}
    feeds = job.one_inference(entrants[0].decided.candidate.artifact)
    with ExitStack() as stack:
        runners = {name: stack.enter_context(who.open()) for name, who in contenders.items()}
        return energies(runners, feeds, counters, _PLANS[job.request.tune])
