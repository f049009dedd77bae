"""Which rungs of the accuracy ladder a build may climb, for whom, and with what."""

from __future__ import annotations

from deploy.quantize.candidate import Subject
from deploy.quantize.ladder import Ladder
from deploy.quantize.retrain import Retraining
from deploy.spec.ladder import ALL, CHEAP
from deploy.spec.project import WITHOUT_RANGES
from deploy.stages.by_table import may_win
from deploy.stages.job import Job
from deploy.stages.training import validated_by

_SECONDS = 60.0
"""What each rung that trains may take, by plan."""
_THREADS = 2
"""A fixed number, so that what is learned does not depend on the machine or on --threads."""


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
        patience=job.patience(subject),
    )


def _may_win(job: Job, subject: Subject) -> bool:
    """Whether the costs of kernels leave its runtime a chance against the others."""
    return any(other.runtime.name == subject.runtime.name for other in may_win(job, job.subjects))
