"""The forms among which one may choose: no other met on the way beats them in drop, latency and bytes.

The search scores candidates that it then leaves behind. Those that may be worth having are built once more
and timed with the others, since what a form takes is only known by the clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deploy.errors import BackendError, VerificationError
from deploy.quantize.candidate import Subject, build_candidate
from deploy.quantize.decide import BY_COSTS, SLOWER_SO, SPARSE, Decided
from deploy.quantize.trial import Trial, trial_of
from deploy.quantize.widen import WIDE, widened
from deploy.spec.manifest import Choice
from deploy.spec.measurement import Point
from deploy.stages.attempts import form_name
from deploy.stages.entrants import Entrant, Race
from deploy.stages.job import Job
from deploy.stages.limits import expected, latency
from deploy.stages.pick import contenders

_QUICK = 4
"""Candidates of the search that are timed in a quick build."""
_HELD_BYTES = 256e6
"""Model files that these may have together: all of them are open while they are timed."""
_SAME_MS, _SAME_BYTES = 1.02, 1.01
"""Forms that differ by less are one to whoever chooses."""


def runners_up(job: Job, entrants: Sequence[Entrant]) -> tuple[Entrant, ...]:
    """Candidates that the search left behind, to be timed: a few, or all where ``tune`` is full.

    Of those that no other beats the ones whose drop is nearest to the budget.
    """
    tune, searched = job.request.tune, job.request.precision in ("auto", "mixed") and job.lock is None
    if tune == "off" or not searched or job.why_not_measured:
        return ()
    built: list[Entrant] = []
    size = 0
    for entrant, trial in _left_behind(job, entrants):
        size += trial.bytes
        if size > _HELD_BYTES or (tune == "quick" and len(built) == _QUICK):
            break
        try:
            one = _runner_up(job, entrant, trial, len(built))
        except (BackendError, VerificationError) as e:
            job.progress.note(f"{entrant.runtime}: a candidate is not timed: {e.message}")
            continue
        if all(one.name != other.name for other in built):
            built.append(one)
    return tuple(built)


def _left_behind(job: Job, entrants: Sequence[Entrant]) -> list[tuple[Entrant, Trial]]:
    """Trials that may be worth timing, the best first."""
    decided = [(e, e.decided.trials[-1]) for e in entrants if e.decided.trials]
    known = {_key(e, trial) for e, trial in decided}
    found: list[tuple[Entrant, Trial]] = []
    for entrant, trial in _earlier(entrants):
        if _key(entrant, trial) not in known and trial.rungs == entrant.subject.refinement.rungs:
            known.add(_key(entrant, trial))
            found.append((entrant, trial))
    forms = [_Form(e, t, *_expected_ms(job, e, t)) for e, t in (*decided, *found)]
    kept = [f for f in forms[len(decided) :] if not any(_beats_unseen(other, f) for other in forms)]
    budget = job.request.budget.max_drop
    return [(f.entrant, f.trial) for f in sorted(kept, key=lambda f: abs(f.drop - budget))]


def _earlier(entrants: Sequence[Entrant]) -> Iterator[tuple[Entrant, Trial]]:
    """What the search scored on the way to each, with the 2:4 zeros that it has: only such can be predicted
    and built by its subject."""
    for entrant in entrants:
        for trial in entrant.decided.trials[:-1]:
            scored = trial.drop is not None and not math.isnan(trial.drop.drop)
            if scored and trial.sparse_blocks == entrant.subject.refinement.sparse:
                yield entrant, trial


def _subject(entrant: Entrant, trial: Trial) -> Subject:
    """The entrant's, its blocks as wide as they were tried."""
    return widened(entrant.subject, trial.wide_blocks)


def _key(entrant: Entrant, trial: Trial) -> object:
    blocks = trial.float_blocks, trial.sparse_blocks, trial.wide_blocks
    return entrant.runtime, entrant.subject.form, trial.rungs, blocks


def _runner_up(job: Job, entrant: Entrant, trial: Trial, number: int) -> Entrant:
    """The candidate of a trial built once more, as a lock would build it."""
    subject, given = _subject(entrant, trial), entrant.decided
    able = subject.int8_blocks()
    reason = BY_COSTS if entrant.mixed else "tried on the way, and timed with the others"
    choice = Choice(
        what="INT8 blocks", chosen=f"{len(able) - len(trial.float_blocks)} of {len(able)}", reason=reason
    )
    candidate = build_candidate(
        subject,
        trial.float_blocks,
        job.work / entrant.runtime / f"runner-up-{number}",
        sqnr=given.sqnr,
        reasons=dict.fromkeys(trial.float_blocks, SLOWER_SO if entrant.mixed else ""),
    )
    assert trial.drop is not None
    decided = Decided(
        subject=subject,
        candidate=candidate,
        float_blocks=trial.float_blocks,
        drop=trial.drop,
        within_budget=trial.drop.within(job.request.budget.max_drop),
        choices=(*(c for c in given.choices if c.what in ("accuracy", SPARSE, WIDE)), choice),
        sqnr=given.sqnr,
        trials=(trial,),
    )
    return Entrant(decided, mixed=entrant.mixed, runner_up=True)


def front(job: Job, held: Race, winner: Entrant) -> tuple[Point, ...]:
    """What is worth choosing from, numbered from the fastest on; the winner is always there."""
    forms = list(_forms(job, held, winner))
    if any(form.ms is not None for form in forms):
        forms = [form for form in forms if form.ms is not None or form.chosen]
    ordered = sorted(undominated(forms), key=lambda f: (_figures(f)[0], f.bytes, -f.drop))
    return tuple(_point(job, form, number) for number, form in enumerate(ordered, 1))


@dataclass(frozen=True)
class _Form:
    """One form on its way to a point: milliseconds where they are known, timed or ``predicted``."""

    entrant: Entrant
    trial: Trial
    ms: float | None
    predicted: bool
    chosen: bool = False

    @property
    def drop(self) -> float:
        """What it loses, 0 where nothing could be scored. A gain is luck, and counts as nothing lost."""
        drop = self.trial.drop
        return 0.0 if drop is None else math.inf if math.isnan(drop.drop) else max(0.0, drop.drop)

    @property
    def bytes(self) -> int:
        return self.trial.bytes


def _forms(job: Job, held: Race, winner: Entrant) -> Iterator[_Form]:
    seen: set[object] = set()
    for entrant in contenders(held):
        chosen = entrant.name == winner.name
        trial = _own_trial(winner if chosen and entrant.decided.drop is None else entrant)
        unscored = job.judge is not None and trial.drop is None
        if unscored and not chosen:
            continue
        seen.add(_key(entrant, trial))
        yield _Form(entrant, trial, latency(job, entrant, held), held.times is None, chosen)
    for entrant, trial in _earlier(held.entrants):
        if _key(entrant, trial) not in seen:
            seen.add(_key(entrant, trial))
            yield _Form(entrant, trial, *_beside(job, held, entrant, trial))


def _own_trial(entrant: Entrant) -> Trial:
    """What was scored of an entrant on the data that choose."""
    decided = entrant.decided
    if decided.trials:
        return decided.trials[-1]
    return trial_of(decided.candidate, entrant.subject, decided.float_blocks, decided.drop)


def _beside(job: Job, held: Race, entrant: Entrant, trial: Trial) -> tuple[float | None, bool]:
    """Milliseconds of a trial that was not timed, in the proportion predicted to its runtime's entrant."""
    ms, known = latency(job, entrant, held), expected(job, entrant.subject, entrant.decided.float_blocks)
    own, _ = _expected_ms(job, entrant, trial)
    return (None if ms is None or own is None or known is None else ms * own / known.ms), True


def _expected_ms(job: Job, entrant: Entrant, trial: Trial) -> tuple[float | None, bool]:
    found = expected(job, _subject(entrant, trial), trial.float_blocks)
    return (None if found is None else found.ms), True


def _beats_unseen(one: _Form, other: _Form) -> bool:
    """Whether timing ``other`` can bring nothing new. Runtimes whose costs are not known are not compared."""
    if one is other or (
        (one.ms is None or other.ms is None) and one.entrant.runtime != other.entrant.runtime
    ):
        return False
    return dominates(one, other)


def dominates(one: _Form, other: _Form) -> bool:
    """Whether ``one`` is as good in everything and better in something."""
    ours, theirs = _figures(one), _figures(other)
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def _figures(form: _Form) -> tuple[float, float, float]:
    """Milliseconds, drop, bytes. What is not known of its time is no reason to leave others out."""
    return math.inf if form.ms is None else form.ms, form.drop, float(form.bytes)


def undominated(forms: Sequence[_Form]) -> list[_Form]:
    """The Pareto front, of forms that are all but equal the first; the chosen one whatever it is."""
    best = [f for f in forms if f.chosen or not any(dominates(other, f) for other in forms)]
    kept: list[_Form] = []
    for form in sorted(best, key=lambda f: (not f.chosen, *_figures(f))):
        if not any(_as_good(other, form) for other in kept):
            kept.append(form)
    return kept


def _as_good(one: _Form, other: _Form) -> bool:
    """Whether nobody would take ``other`` instead of ``one``."""
    (ms, drop, size), (other_ms, other_drop, other_size) = _figures(one), _figures(other)
    return ms <= other_ms * _SAME_MS and drop <= other_drop and size <= other_size * _SAME_BYTES


def _point(job: Job, form: _Form, number: int) -> Point:
    trial = form.trial
    drop = None if trial.drop is None or math.isnan(trial.drop.drop) else trial.drop.drop
    return Point(
        number=number,
        form=form_name(trial.plan),
        runtime=form.entrant.runtime,
        precision=form.entrant.subject.form or job.request.precision,
        float_blocks=tuple(sorted(trial.float_blocks)),
        rungs=trial.rungs,
        sparse_blocks=tuple(sorted(trial.sparse_blocks)),
        wide_blocks=tuple(sorted(trial.wide_blocks)),
        options=form.entrant.subject.options.model_dump(mode="json"),
        mixed=form.entrant.mixed,
        score=None if job.judge is None else job.judge.score_of(drop),
        drop=drop,
        bytes=trial.bytes,
        latency_ms=form.ms,
        predicted=form.ms is not None and form.predicted,
        chosen=form.chosen,
    )


def carried(points: Sequence[Point], number: int) -> tuple[Point, ...]:
    """The front of an earlier build with another point chosen: what was found of the others still holds."""
    return tuple(point.model_copy(update={"chosen": point.number == number}) for point in points)
