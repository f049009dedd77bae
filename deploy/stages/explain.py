"""Why the winner is what it is, block by block."""

from __future__ import annotations

from deploy.quantize.explain import explain
from deploy.spec.explanation import Explained
from deploy.stages.entrants import Entrant, Race
from deploy.stages.job import Job


def explained(job: Job, held: Race, winner: Entrant) -> Explained:
    """What is known of each of the winner's blocks: with milliseconds where kernels of such a device were
    measured, else without any: what other devices lend is too rough for single blocks."""
    known = job.foresight.runtimes.get(winner.runtime)
    trials = [
        trial
        for entrant in (*held.entrants, *held.refused)
        if entrant.runtime == winner.runtime
        for trial in entrant.decided.trials
    ]
    return explain(
        winner.subject,
        winner.decided,
        known.costs if known is not None and known.alike else None,
        basis="" if known is None else known.basis,
        why_not=f"what kernels take on {job.target.profile.title} was not measured",
        trials=trials,
    )
