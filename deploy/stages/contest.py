"""Which form of the model ships: on which runtime, and INT8 or float.

All that may win are timed in turn with the file as given and with our own float builds. INT8 must pay: what
is slower than the fastest float, by more than noise and in two races, gives way to it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.adapter.discover import find_backend
from deploy.errors import BackendError, UnsupportedError, VerificationError
from deploy.measure.latency import Timing, speedup
from deploy.predict.kernels import UnknownSizeError
from deploy.quantize.candidate import Subject, build_candidate
from deploy.quantize.decide import BY_COSTS, SLOWER_SO, Decided, decide, decide_float, decide_mixed
from deploy.spec.manifest import Choice, Lock
from deploy.spec.measurement import Comparison
from deploy.spec.tensors import Precision
from deploy.stages.baseline import Contender, compare, race
from deploy.stages.job import Job

GIVEN = "as given"
"""The name of the baseline among the contenders."""

_SLOWER = "INT8 is slower here"
_NOISE = 0.97
"""A ratio of medians that could be noise, where its interval does not tell."""


@dataclass(frozen=True)
class Entrant:
    """A form of the model that may ship: what was decided for one runtime.

    ``mixed``: by the costs of its blocks, else by accuracy alone. ``accepted``: eval data were asked.
    """

    subject: Subject
    decided: Decided
    mixed: bool = False
    accepted: bool = False

    @property
    def runtime(self) -> str:
        return self.subject.runtime.name

    @property
    def integer(self) -> bool:
        return self.decided.candidate.plan.quantized

    @property
    def precision(self) -> Precision:
        if self.subject.form is not None:
            return self.subject.form
        return self.subject.integer_precision if self.integer else self.subject.float_precision

    @property
    def name(self) -> str:
        return f"{self.runtime} {'mixed' if self.mixed else self.precision}"

    def contender(self) -> Contender:
        return Contender(self.subject.backend, self.decided.candidate.artifact, self.subject.options)


@dataclass(frozen=True)
class Race:
    """Who may win, preferred runtimes first; the float builds that INT8 has to beat; times where there are.

    ``times`` holds the baseline under `GIVEN` and everybody else by name. ``refused`` are mixtures that eval
    data did not allow, with what they said of them.
    """

    entrants: tuple[Entrant, ...]
    floats: tuple[Entrant, ...] = ()
    times: Mapping[str, Timing] | None = None
    refused: tuple[Entrant, ...] = ()

    def without(self, runtime: str) -> Race:
        """The race as if that runtime had not been there."""
        return replace(
            self,
            entrants=tuple(e for e in self.entrants if e.runtime != runtime),
            floats=tuple(e for e in self.floats if e.runtime != runtime),
        )


def enter(job: Job, left_out: Collection[str] = ()) -> tuple[Entrant, ...]:
    """What is decided for each runtime but those ``left_out``: by accuracy alone, and beside that the mixture
    which is fastest by what is known of its kernels' costs.

    A runtime whose toolchain fails, or writes another plan, is left out with a warning, unless it is the last
    one. Where nothing is measured there is nothing to tell runtimes apart by: the preferred one that can be
    built enters alone.
    """
    entrants: list[Entrant] = []
    subjects = [subject for subject in job.subjects if subject.runtime.name not in left_out]
    for subject in subjects:
        try:
            entrants.append(decided_for(job, subject, ask=job.waits_for_no_race))
        except (BackendError, UnsupportedError, VerificationError) as e:
            if not entrants and subject is subjects[-1]:
                raise
            job.progress.warn(f"{subject.runtime.name} is left out: {e.message}")
        if entrants and job.why_not_measured:
            break
    return tuple(one for entrant in entrants for one in (entrant, *_mixed(job, entrant)))


def _mixed(job: Job, entrant: Entrant) -> tuple[Entrant, ...]:
    """The mixture to race with what accuracy alone decided.

    None where nothing is timed, a precision or a lock was asked for, or costs are not known.
    """
    subject = entrant.subject
    known = job.foresight.runtimes.get(entrant.runtime)
    free = job.request.precision in ("auto", "mixed") and job.lock is None and not subject.imported
    if known is None or not free or job.why_not_measured or not subject.histograms:
        return ()
    try:
        decided = decide_mixed(
            subject,
            known.costs,
            entrant.decided,
            judge=job.scores(subject, job.judge),
            max_drop=job.request.budget.max_drop,
            workdir=job.work / subject.runtime.name,
            progress=job.progress,
        )
    except (LookupError, UnknownSizeError, BackendError, VerificationError) as e:
        job.progress.note(f"{entrant.runtime}: no mixture by cost: {e}")
        return ()
    return () if decided is None else (Entrant(subject, decided, mixed=True),)


def decided_for(job: Job, subject: Subject, *, ask: bool, start: int = 0) -> Entrant:
    """What accuracy decides for a runtime, at least ``start`` blocks float; ``ask`` eval data, too."""
    decided = decide(
        subject,
        precision=job.request.precision,
        max_drop=job.request.budget.max_drop,
        calibration=job.roles.calibration,
        judge=job.scores(subject, job.judge),
        accept=job.scores(subject, job.accept) if ask else None,
        start=start,
        locked=None if job.lock is None else frozenset(job.lock.float_blocks),
        why_float=_why_float(job.lock),
        workdir=job.work / subject.runtime.name,
        threads=job.request.threads,
        progress=job.progress,
    )
    if job.lock is not None:
        decided = replace(decided, choices=job.lock.choices)
    return Entrant(subject, decided, accepted=ask)


def _why_float(lock: Lock | None) -> str:
    """Why blocks of a locked build are float, where the clock or the costs of kernels said so."""
    said = set() if lock is None else {choice.reason for choice in lock.choices}
    return _SLOWER if _SLOWER in said else SLOWER_SO if BY_COSTS in said else ""


def hold_race(job: Job, entrants: Sequence[Entrant]) -> Race:
    """Time them all, the baseline and where INT8 has to pay our float builds too; again where INT8 loses.

    A precision or a lock that was asked for is not overruled, nor is a model that came quantized.
    """
    free = job.request.precision == "auto" and job.lock is None
    must_pay = free and any(e.integer and not e.subject.imported for e in entrants)
    floats = tuple(_float_build(job, e) for e in entrants if not e.mixed) if must_pay else ()
    ort = find_backend(job.baseline.backend)
    contenders = {
        GIVEN: Contender(ort, job.baseline, ort.options_type(threads=job.request.threads)),
        **{e.name: e.contender() for e in (*entrants, *floats)},
    }
    feeds = job.one_inference(entrants[0].decided.candidate.artifact)
    held = Race(tuple(entrants), floats, race(contenders, feeds))
    if _loses(held):  # one session in a few is unlucky with its memory: who loses once may run again
        held = replace(held, times=race(contenders, feeds))
    return held


def _float_build(job: Job, entrant: Entrant) -> Entrant:
    """The same runtime without INT8. It is not scored: whether it may ship is asked when it wins."""
    if not entrant.integer:
        return entrant
    subject = entrant.subject
    everything = frozenset(block.id for block in subject.blocks)
    plain = build_candidate(subject, everything, job.work / subject.runtime.name / "plain")
    decided = Decided(plain, frozenset(subject.int8_blocks()), None, True, (), entrant.decided.sqnr)
    return Entrant(subject, decided)


def pick(job: Job, held: Race) -> Entrant:
    """The winner with its choices: the fastest that holds the budget, or the most accurate if none does."""
    winner = _fastest_in_budget(held)
    reasons: list[Choice] = []
    if held.floats and winner.integer:
        # Times stand in measurements.json: the choices must read the same when a build is repeated.
        reason = "not slower than float"
        if _loses(held):
            plain = _best_float(job, held)
            if _median(held, plain.name) < _median(held, winner.name):
                winner, reason = plain, _SLOWER
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


def _loses(held: Race) -> bool:
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
            _SLOWER,
        )
        tried.append(Entrant(subject, decided, accepted=True))
        if decided.within_budget:
            return tried[-1]
    return min(tried, key=lambda e: e.decided.drop.drop if e.decided.drop else 0.0)


def figures(job: Job, winner: Entrant, held: Race) -> Comparison:
    """The winner against the file as given: times of the race, and peak memory in a child process each."""
    assert held.times is not None
    ort = find_backend(job.baseline.backend)
    given = Contender(ort, job.baseline, ort.options_type(threads=job.request.threads))
    return compare(
        (given, held.times[GIVEN]),
        (winner.contender(), held.times[winner.name]),
        job.one_inference(winner.decided.candidate.artifact),
        threads=job.request.threads,
        scratch=job.work / "memory",
    )
