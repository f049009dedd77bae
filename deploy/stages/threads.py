"""The number of threads as part of the choice: for the file as given, and for each form that races it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deploy.adapter.protocol import Variant
from deploy.bundle.report.figures import plural
from deploy.measure.host import physical_cores
from deploy.quantize.candidate import Subject
from deploy.spec.artifact import Options
from deploy.spec.project import Tune
from deploy.stages.entrants import Entrant, under
from deploy.stages.heat import SECONDS, fastest, heat
from deploy.stages.job import Job

_SHARE = 0.2
"""Of the seconds that settings may take, for one form's number of threads."""


def thread_counts(tune: Tune) -> tuple[int, ...]:
    """The numbers of threads that are tried where none was asked for."""
    most = physical_cores()
    if tune == "off":
        return (1,)
    if tune == "quick":
        return tuple(sorted({1, most}))
    return tuple(sorted({most, *(1 << i for i in range(most.bit_length()))}))


def with_threads(job: Job) -> Job:
    """Where the number of threads is left to us: as many for all as the file as given likes best.

    So nobody is compared with a baseline that would be faster otherwise. Elsewhere the job as it is.
    """
    counts = _open(job)
    if job.why_not_measured or not counts:
        return job
    runs = {plural(count, "thread"): replace(job, threads=count).given() for count in counts}
    times = heat(runs, job.one_inference(job.baseline), SECONDS[job.request.tune] * _SHARE)
    best = fastest(times) or plural(1, "thread")
    job.progress.note(f"the file as given is fastest with {best}")
    count = runs[best].options.threads
    subjects = job.subjects if job.lock is not None and job.lock.options else _threaded(job.subjects, count)
    return replace(job, subjects=subjects, threads=count)


def _threaded(subjects: Sequence[Subject], count: int) -> tuple[Subject, ...]:
    return tuple(replace(s, options=s.options.model_copy(update={"threads": count})) for s in subjects)


def each_at_its_best(job: Job, entrants: Sequence[Entrant]) -> tuple[Entrant, ...]:
    """Each with the number of threads that it likes best, where that is left to us.

    With the baseline's number for all, one runtime's form for two threads may win over another's that is
    faster than both with one.
    """
    counts = () if job.lock is not None else _open(job)
    return tuple(_at_its_best(job, entrant, counts) if counts else entrant for entrant in entrants)


def _at_its_best(job: Job, entrant: Entrant, counts: Sequence[int]) -> Entrant:
    first, now = entrant.contender(), entrant.subject.options
    others = other_counts(now, counts)
    runs = {name: replace(first, options=options) for name, options in others.items()}
    feeds = job.one_inference(entrant.decided.candidate.artifact)
    times = heat({plural(now.threads, "thread"): first, **runs}, feeds, SECONDS[job.request.tune] * _SHARE)
    best = fastest(times)
    return entrant if best is None else under(entrant, Variant(best, others[best]))


def other_counts(options: Options, counts: Sequence[int]) -> dict[str, Options]:
    """The options with those of these numbers of threads that they do not have, by how these are called."""
    return {
        plural(count, "thread"): options.model_copy(update={"threads": count})
        for count in counts
        if count != options.threads
    }


def _open(job: Job) -> tuple[int, ...]:
    """The numbers that are left to choose from; none where one was asked for."""
    counts = thread_counts(job.request.tune)
    return counts if job.request.any_threads and len(counts) > 1 else ()
