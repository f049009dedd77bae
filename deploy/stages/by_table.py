"""Choices from the table alone: runtimes and mixtures by what their kernels take, with nothing raced.

So it is where ``tune`` is off, and where nothing can be timed. Only costs that were measured on such a device
are gone by: what data sheets say, or other devices lend, is too rough to tell forms apart. Without them the
preferred runtime is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.errors import BackendError
from deploy.measure.latency import TimingPlan
from deploy.predict.kernels import UnknownSizeError
from deploy.predict.latency import CostSource
from deploy.quantize.candidate import Subject
from deploy.quantize.decide import BY_COSTS, SLOWER_SO, decide_float
from deploy.quantize.knapsack import fastest
from deploy.quantize.pays import problem_of
from deploy.spec.manifest import Choice
from deploy.spec.project import WITHOUT_RANGES
from deploy.spec.tensors import INTEGER
from deploy.stages.baseline import race
from deploy.stages.entrants import GIVEN, Entrant, Race
from deploy.stages.job import Job
from deploy.stages.limits import allowed, expected

FASTEST = "the fastest by the costs of kernels"
_AS_FAST = 0.97
"""Of the time of integers what float may take at most to go before them, as they are smaller."""
_HOPELESS = 1.5
"""A runtime that is predicted to take so many times what the fastest one takes does not race."""
_BRIEFLY = TimingPlan(seconds=0.05, slice_s=0.002)
"""A dozen rounds: enough for the record."""

Decide = Callable[[Subject, bool], tuple[Entrant, ...]]
"""What may ship of one runtime; nothing where it fails, an error where it was the last that is left."""


def entered(job: Job, subjects: Sequence[Subject], decide: Decide) -> tuple[Entrant, ...]:
    """The runtime that is fastest within the budget by the table, its best form first.

    A runtime is only decided where it could still win: with its fastest form, accuracy aside, it must be
    faster than what was decided before, if that holds the budget.
    """
    least = {subject.runtime.name: bound(job, subject) for subject in subjects}
    order = sorted(subjects, key=lambda s: or_never(least[s.runtime.name]))  # stable: preferred ones first
    best: _Ranked | None = None
    for subject in order:
        if best is not None and best.holds and or_never(least[subject.runtime.name]) >= best.ms:
            break
        found = decide(subject, best is None and subject is order[-1])
        if found:
            ranked = _ranked(job, found)
            best = ranked if best is None or ranked.rank < best.rank else best
    assert best is not None
    if len(subjects) == 1 or least[best.entrants[0].runtime] is None:
        return best.entrants
    choice = Choice(what="runtime", chosen=best.entrants[0].runtime, reason=FASTEST)
    return tuple(_chosen(entrant, choice) for entrant in best.entrants)


def bound(job: Job, subject: Subject) -> float | None:
    """The milliseconds of the fastest form that may be asked of a runtime, whatever it does to accuracy; None
    where kernels of such a device were not measured."""
    if id(subject) not in job.bounds:
        job.bounds[id(subject)] = subject, _bound(job, subject)
    return job.bounds[id(subject)][1]


def _bound(job: Job, subject: Subject) -> float | None:
    known = job.foresight.runtimes.get(subject.runtime.name)
    if known is None or not known.alike:
        return None
    try:
        found = expected(job, subject, _fastest_blocks(job, subject, known.costs))
    except (LookupError, UnknownSizeError, BackendError):
        return None
    if found is None:
        return None
    zeros = subject.runtime.sparsity_gain if chosen_freely(job, subject) else 1.0  # no block may gain more
    return found.ms / zeros


def integers_pay(job: Job, subject: Subject) -> bool:
    """Whether by the table any block is worth integers or 2:4 zeros; True where the table cannot tell."""
    if subject.runtime.sparsity_gain > 1:
        return True
    try:
        floats = _fastest_blocks(job, subject, job.foresight.runtimes[subject.runtime.name].costs)
    except (LookupError, UnknownSizeError, BackendError):
        return True
    return not floats >= frozenset(subject.int8_blocks())


def may_win(job: Job, subjects: Sequence[Subject]) -> list[Subject]:
    """Those of ``subjects`` that are worth building for a race: all but those whose fastest form is predicted
    to take 1.5 times what the fastest of all takes. Two at least, if there are two."""
    least = {subject.runtime.name: bound(job, subject) for subject in subjects}
    known = sorted(ms for ms in least.values() if ms is not None)
    if len(known) < 2:
        return list(subjects)
    second = known[1] if len(known) == len(subjects) else known[0]  # who is not known takes part
    allowed = max(_HOPELESS * known[0], second)
    return [s for s in subjects if (ms := least[s.runtime.name]) is None or ms <= allowed]


def chosen_freely(job: Job, subject: Subject) -> bool:
    """Whether float and integers are a choice: not where a precision or a lock was asked for."""
    free = job.request.precision in ("auto", "mixed") and job.lock is None and not subject.imported
    return free and bool(subject.histograms)


def timed_alone(job: Job, winner: Entrant, held: Race) -> Race:
    """``held`` with the times of the winner and the file as given, where no race took any: for the record,
    nothing is chosen by them."""
    if held.times is not None or job.why_not_measured:
        return held
    contenders = {GIVEN: job.given(), winner.name: winner.contender()}
    feeds = job.one_inference(winner.decided.candidate.artifact)
    return replace(held, times=race(contenders, feeds, _BRIEFLY))


@dataclass(frozen=True)
class _Ranked:
    """What may ship of one runtime, the best first; whether that holds the budget, and what it is expected to
    take."""

    entrants: tuple[Entrant, ...]
    holds: bool
    ms: float

    @property
    def rank(self) -> tuple[bool, float]:
        return not self.holds, self.ms


def _fastest_blocks(job: Job, subject: Subject, costs: CostSource) -> frozenset[str]:
    """The float blocks of the fastest form."""
    able = frozenset(subject.int8_blocks())
    if not able or job.request.precision in WITHOUT_RANGES or not (subject.histograms or subject.imported):
        return frozenset(block.id for block in subject.blocks)
    if not chosen_freely(job, subject):
        return frozenset() if job.lock is None else frozenset(job.lock.float_blocks)
    chosen = fastest(problem_of(subject, costs, {}))
    return frozenset(block for block in able if chosen[block] not in INTEGER)


def _ranked(job: Job, found: Sequence[Entrant]) -> _Ranked:
    """Forms of one runtime by what they are expected to take, those over the budget last."""

    def ms(entrant: Entrant) -> float:
        took = expected(job, entrant.subject, entrant.decided.float_blocks)
        return math.inf if took is None else took.ms

    ordered = sorted(found, key=lambda e: (not allowed(job, e.decided), ms(e)))
    first = ordered[0]
    holds = allowed(job, first.decided)
    if job.request.precision == "auto" and job.request.objective == "latency" and first.integer:
        plain = _plain(job, first, ms(first) if holds else math.inf)
        if plain is not None:
            return _Ranked((plain,), True, ms(plain))
    return _Ranked(tuple(ordered), holds, ms(first))


def _plain(job: Job, instead_of: Entrant, ms: float) -> Entrant | None:
    """The float build of the same runtime where it is faster by the table and keeps the budget."""
    subject = next(s for s in job.subjects if s.runtime.name == instead_of.runtime)
    everything = frozenset(block.id for block in subject.blocks)
    took = expected(job, subject, everything)
    if took is None or not chosen_freely(job, subject) or took.ms >= _AS_FAST * ms:
        return None
    entrant = in_floats(job, subject, instead_of.decided.sqnr, SLOWER_SO)
    return entrant if allowed(job, entrant.decided) else None


def in_floats(job: Job, subject: Subject, sqnr: Mapping[str, float], why: str = "") -> Entrant:
    """The float build of a runtime where the table has nothing faster within the budget; ``why`` its blocks
    are float, accuracy if empty."""
    decided = decide_float(
        subject,
        job.scores(subject, job.judge),
        None,
        job.request.budget.max_drop,
        job.work / subject.runtime.name,
        sqnr,
        why,
    )
    return _chosen(
        Entrant(decided), Choice(what="precision", chosen=subject.float_precision, reason=BY_COSTS)
    )


def _chosen(entrant: Entrant, choice: Choice) -> Entrant:
    decided = entrant.decided
    return replace(entrant, decided=replace(decided, choices=(*decided.choices, choice)))


def or_never(ms: float | None) -> float:
    """What is not known counts as never done."""
    return math.inf if ms is None else ms
