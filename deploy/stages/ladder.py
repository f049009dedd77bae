"""Which rungs of the accuracy ladder a build may climb, for whom, and with what."""

from __future__ import annotations

from deploy.predict.kernels import UnknownSizeError
from deploy.predict.latency import predict
from deploy.quantize.candidate import Subject
from deploy.quantize.ladder import Ladder
from deploy.quantize.retrain import Retraining
from deploy.spec.ladder import ALL, CHEAP
from deploy.spec.project import WITHOUT_RANGES
from deploy.stages.compress import validated_by
from deploy.stages.job import Job

_SECONDS = 60.0
"""What each rung that trains may take, by plan."""
_THREADS = 2
"""A fixed number, so that what is learned does not depend on the machine or on --threads."""
_HOPELESS = 1.5
"""A runtime that is predicted to take so many times what the fastest one takes is not worth the climb."""


def ladder_for(job: Job, subject: Subject) -> Ladder | None:
    """The ladder for a runtime; None where nothing is to be climbed.

    ``off`` climbs nothing, ``quick`` what needs no training, and neither what cannot win; a lock climbs what
    its build did.
    """
    request, calibration = job.request, job.roles.calibration
    able = (
        subject.runtime.quant is not None and not subject.imported and request.precision not in WITHOUT_RANGES
    )
    if calibration is None or not able:
        return None
    if job.lock is None and (request.tune == "off" or not _may_win(job, subject)):
        return None
    validation = job.roles.validation
    return Ladder(
        rungs=CHEAP if request.tune == "quick" else ALL,
        dataset=calibration,
        samples=request.samples,
        threads=request.threads,
        training=Retraining(
            seconds=_SECONDS,
            train=job.roles.train,
            validation=validation if validation is not calibration else None,
            metric=validated_by(request),
            root=request.root,
            seed=request.seed,
            threads=_THREADS,
            progress=job.progress,
        ),
        progress=job.progress,
    )


def _may_win(job: Job, subject: Subject) -> bool:
    """Whether the costs of kernels leave it a chance against the other runtimes, INT8 throughout."""
    times = {other.runtime.name: _predicted(job, other) for other in job.subjects}
    mine = times[subject.runtime.name]
    known = [ms for ms in times.values() if ms is not None]
    return mine is None or mine <= _HOPELESS * min(known)


def _predicted(job: Job, subject: Subject) -> float | None:
    """Milliseconds; None where they are not known."""
    known = job.foresight.runtimes.get(subject.runtime.name)
    if known is None or subject.runtime.quant is None or not subject.histograms:
        return None
    try:
        return predict(subject.graph, subject.quantized(()), subject.runtime, known.costs).ms
    except (LookupError, UnknownSizeError):
        return None
