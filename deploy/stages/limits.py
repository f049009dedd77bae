"""What a build may cost beside accuracy: milliseconds, bytes, the device's memory; who keeps to it, and by
how much the others miss.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.bundle.report.figures import milliseconds, size
from deploy.predict.kernels import UnknownSizeError
from deploy.predict.latency import Prediction, UnknownCostError
from deploy.quantize.candidate import Subject
from deploy.quantize.decide import Decided
from deploy.quantize.pays import forecast
from deploy.stages.entrants import Entrant, Race
from deploy.stages.job import Job
from deploy.stages.memory import shortages


@dataclass(frozen=True)
class Miss:
    """A limit that was not kept. ``words`` hold no measured number, as a manifest holds none; ``told`` is the
    same with one.

    ``excess`` is how much more was taken than allowed: 0.1 is a tenth more.
    """

    words: str
    excess: float
    told: str = ""


def misses(job: Job, entrant: Entrant, held: Race) -> tuple[Miss, ...]:
    """The limits but accuracy that a form does not keep, as far as they can be checked."""
    budget, artifact = job.request.budget, entrant.decided.candidate.artifact
    found = [Miss(words, 1.0) for words in shortages(job.target.profile.memory, artifact)]
    took, allowed = latency(job, entrant, held), budget.max_latency_ms
    if allowed is not None and took is not None and took > allowed:
        how = "median" if held.times is not None else "expected"
        found.append(
            Miss(
                f"slower than the limit of {milliseconds(allowed)}",
                took / allowed - 1,
                f"{milliseconds(took)} ({how}), {_over(took / allowed)} the limit of {milliseconds(allowed)}",
            )
        )
    weighs, most = artifact.size_bytes(), budget.max_size_bytes
    if most is not None and weighs > most:
        words = f"model files of {size(weighs)}, {_over(weighs / most)} the limit of {size(most)}"
        found.append(Miss(words, weighs / most - 1))
    return tuple(found)


def allowed(job: Job, decided: Decided) -> bool:
    """Whether a form may ship for all that it loses: it holds the budget, or loses no more than may be lost
    where the recipe has lost more than the budget already."""
    drop = decided.drop
    return decided.within_budget or drop is None or drop.within(job.allowance)


def fits(job: Job, entrant: Entrant, held: Race) -> bool:
    """Whether a form may ship for what it loses, and holds every limit that can be checked."""
    return allowed(job, entrant.decided) and not misses(job, entrant, held)


def excess(job: Job, entrant: Entrant, held: Race) -> tuple[float, float]:
    """How far a form is from what is allowed, accuracy first: points over what may be lost while choosing,
    shares over limits."""
    drop = entrant.decided.drop
    over = 0.0 if drop is None or allowed(job, entrant.decided) else drop.drop - job.allowance
    return over, sum(miss.excess for miss in misses(job, entrant, held))


def latency(job: Job, entrant: Entrant, held: Race) -> float | None:
    """Milliseconds of one inference: as timed, else as expected by what was measured of such a device."""
    if held.times is not None and entrant.name in held.times:
        return held.times[entrant.name].summary().p50
    found = expected(job, entrant.subject, entrant.decided.float_blocks)
    return None if found is None else found.ms


def expected(job: Job, subject: Subject, float_blocks: frozenset[str]) -> Prediction | None:
    """What a form would take by the costs of kernels measured on such a device; None without these.

    What other devices lend and data sheets say is too rough to choose or refuse by.
    """
    key = id(subject), float_blocks
    if key not in job.predicted:
        job.predicted[key] = subject, _predicted(job, subject, float_blocks)
    return job.predicted[key][1]


def _predicted(job: Job, subject: Subject, float_blocks: frozenset[str]) -> Prediction | None:
    known = job.foresight.runtimes.get(subject.runtime.name)
    if known is None or not known.alike or subject.form is not None:
        return None
    try:
        return forecast(subject, known.costs, float_blocks)
    except (UnknownCostError, UnknownSizeError):
        return None


def unchecked(job: Job, entrant: Entrant, held: Race) -> str:
    """Why the limit of latency rests on less than a clock; empty where it does not, or there is none."""
    allowed = job.request.budget.max_latency_ms
    if allowed is None or held.times is not None:
        return ""
    limit, why = f"the limit of {milliseconds(allowed)}", job.why_not_measured
    if latency(job, entrant, held) is not None:
        basis = job.foresight.runtimes[entrant.runtime].basis
        return f"{limit} was checked by prediction alone ({basis}): {why}"
    return f"{limit} was not checked: {why}, and no measurements of such a device are known"


def _over(ratio: float) -> str:
    """How far over a limit, in words.

    >>> _over(1.234), _over(3.0)
    ('23 % over', '3.00 times')
    """
    return f"{ratio:.2f} times" if ratio >= 2 else f"{max(100 * (ratio - 1), 0.1):.2g} % over"
