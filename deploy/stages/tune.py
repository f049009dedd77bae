"""Settings of the winner's runtime, and its threads once more with these, tried for a few seconds.

Other settings must be faster by more than noise and in two races, the second with everything opened anew,
since one session in a few is lucky with its memory. Ties keep what the profile says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.adapter.protocol import Variant
from deploy.measure.latency import Timing, speedup
from deploy.quantize.candidate import Subject
from deploy.spec.manifest import Choice
from deploy.spec.measurement import Attempt
from deploy.stages.attempts import attempt_of
from deploy.stages.baseline import Contender, race
from deploy.stages.entrants import GIVEN, Entrant, Race, under
from deploy.stages.heat import SECONDS, WORTH, fastest, heat
from deploy.stages.job import Job
from deploy.stages.limits import allowed
from deploy.stages.pick import contenders
from deploy.stages.settings import variants_of
from deploy.stages.threads import other_counts, thread_counts

_HELD_BYTES = 512e6
"""Model files that variants may have together: all are open at once, each with its own copy."""
_BEFORE = "as before"
FASTEST = "the fastest of those tried"


@dataclass(frozen=True)
class _Tuning:
    """What was tried of the winner, and how long each took."""

    winner: Entrant
    variants: Mapping[str, Variant]
    times: Mapping[str, Timing]

    def changed(self, name: str) -> Entrant:
        """The winner under other settings."""
        return under(self.winner, self.variants[name])


def tuned(job: Job, winner: Entrant, held: Race) -> tuple[Entrant, Race]:
    """The winner with the threads and settings that are fastest, and the race with its times under these.

    As they were where nothing was timed, nothing is to be tried, or a lock says what to take.
    """
    seconds = SECONDS[job.request.tune]
    other_aim = job.request.objective in ("memory", "energy")  # it was weighed under the settings as they are
    if held.times is None or not seconds or job.lock is not None or other_aim:
        return winner, held
    tuning = _tried(job, winner, seconds)
    better = fastest(tuning.times)
    changed = None if better is None else _allowed(job, tuning, better)
    confirmed = None if changed is None else _raced_again(job, winner, changed, held)
    rows = [
        _row(
            job,
            tuning,
            held,
            name,
            changed if name == better else None,
            _outcome(name, better, changed, confirmed),
        )
        for name in tuning.variants
    ]
    held = replace(held, tuned=(*held.tuned, *rows))
    if better is not None and changed is not None and confirmed is not None:
        held = replace(_exchanged(held, winner, changed), times=confirmed)
        if better_settings := _settings(better):
            changed = _choosing(changed, "settings", better_settings)
        winner = changed
    if job.request.any_threads:
        winner = _choosing(winner, "threads", str(winner.subject.options.threads))
    return winner, held


def _tried(job: Job, winner: Entrant, seconds: float) -> _Tuning:
    """The winner's variants in a race in which the slow half leaves."""
    counts = thread_counts(job.request.tune) if job.request.any_threads else ()
    subject, artifact = winner.subject, winner.decided.candidate.artifact
    guarded = job.request.precision in ("auto", "mixed", "int8") and allowed(job, winner.decided)
    variants = {v.name: v for v in _variants(subject, counts) if v.around is None or guarded}
    most = max(1, int(_HELD_BYTES // artifact.size_bytes()))
    runs = {
        name: Contender(subject.backend, artifact, v.options) for name, v in list(variants.items())[:most]
    }
    feeds = job.one_inference(artifact)
    times = heat({_BEFORE: winner.contender(), **runs}, feeds, seconds) if runs else {}
    return _Tuning(winner, {name: v for name, v in variants.items() if name in times}, times)


def _variants(subject: Subject, counts: Sequence[int]) -> list[Variant]:
    """Other numbers of threads first, then other settings with as many as now, then both."""
    others = other_counts(subject.options, counts)
    plain = [Variant(name, options) for name, options in others.items()]
    both = [
        replace(v, name=f"{name}, {v.name}")
        for name, options in others.items()
        for v in variants_of(subject, options.threads)
    ]
    return [*plain, *variants_of(subject, subject.options.threads), *both]


def _allowed(job: Job, tuning: _Tuning, name: str) -> Entrant | None:
    """The winner under other settings; where they change results, only if it holds the budget so."""
    changed = tuning.changed(name)
    if tuning.variants[name].around is None:
        return changed
    decided = changed.decided
    drops = {
        examiner: score(decided.candidate)
        for examiner, asked in (("judge", job.judge), ("accept", job.accept if changed.accepted else None))
        if (score := job.scores(changed.subject, asked)) is not None
    }
    if not all(drop.within(job.allowance) for drop in drops.values()):
        return None
    drop = drops.get("accept", drops.get("judge", decided.drop))
    *before, last = decided.trials
    trials = (*before, replace(last, plan=decided.candidate.plan, drop=drops.get("judge", last.drop)))
    return replace(changed, decided=replace(decided, drop=drop, trials=trials))


def _raced_again(job: Job, winner: Entrant, changed: Entrant, held: Race) -> dict[str, Timing] | None:
    """The race with everything opened anew and the winner under other settings; None if it is not faster."""
    runs = {
        GIVEN: job.given(),
        **{e.name: e.contender() for e in (*contenders(held), *held.refused) if e.name != winner.name},
        _BEFORE: winner.contender(),
        changed.name: changed.contender(),  # floats in another type have another name, which one may have
    }
    times = race(runs, job.one_inference(winner.decided.candidate.artifact))
    before = times.pop(_BEFORE)
    ratio, (least, _) = speedup(before, times[changed.name])
    return times if ratio > WORTH and least > 1.0 else None


def _exchanged(held: Race, winner: Entrant, changed: Entrant) -> Race:
    """The race with the winner under other settings, in place of who was the same as it is now, too."""

    def each(entrants: tuple[Entrant, ...]) -> tuple[Entrant, ...]:
        left = (e for e in entrants if e.name == winner.name or e.name != changed.name)
        return tuple(changed if e.name == winner.name else e for e in left)

    return replace(held, entrants=each(held.entrants), floats=each(held.floats))


def _choosing(winner: Entrant, what: str, chosen: str) -> Entrant:
    decided = winner.decided
    choice = Choice(what=what, chosen=chosen, reason=FASTEST)
    return replace(winner, decided=replace(decided, choices=(*decided.choices, choice)))


def _settings(name: str) -> str:
    """What of a variant's name is not its threads."""
    threads, _, others = name.partition(", ")
    return others if threads.endswith(("thread", "threads")) else name


def _outcome(
    name: str, better: str | None, changed: Entrant | None, confirmed: Mapping[str, Timing] | None
) -> str:
    if name != better:
        return "not faster" if better is None else f"slower than {better}"
    if changed is None:
        return "over the budget"
    return "not faster when timed again" if confirmed is None else "chosen"


def _row(job: Job, tuning: _Tuning, held: Race, name: str, scored: Entrant | None, outcome: str) -> Attempt:
    """A variant among what was tried, its speed by way of the winner's as before."""
    assert held.times is not None
    times, winner = tuning.times, tuning.winner
    ratio, _ = speedup(times[_BEFORE], times[name])
    of_winner, _ = speedup(held.times[GIVEN], held.times[winner.name])
    row = attempt_of(job, scored or tuning.changed(name), outcome)
    unscored = tuning.variants[name].around is not None and scored is None
    return row.model_copy(
        update={
            **({"score": None, "drop": None} if unscored else {}),
            "name": f"{row.name}, {name}",
            "latency_ms": times[name].summary(),
            "speed": round(of_winner * ratio, 4),
        }
    )
