"""Forms of weights alone in the race: INT8 found while running, or weights of 8 and 4 bits in float products.

They need no ranges, and win where products are many or weights are large. The profile says what products were
measured to gain; that is a reason to build one and time it, no prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deploy.errors import BackendError, UnsupportedError, VerificationError
from deploy.quantize.candidate import Subject
from deploy.quantize.decide import decide_float
from deploy.quantize.forms import pays_weight_only, with_form
from deploy.spec.project import Tune
from deploy.stages.entrants import Entrant
from deploy.stages.job import Job

_COUNT: Mapping[Tune, int] = {"off": 0, "quick": 1, "full": 3}
"""How many are built for each runtime, those that promise most first."""


def weights_alone(job: Job, subject: Subject) -> tuple[Entrant, ...]:
    """The entrants of a runtime in such forms; none where something else was asked for or nobody judges."""
    request = job.request
    free = request.precision == "auto" and job.lock is None and not subject.imported
    if not free or not job.races or job.judge is None or subject.form is not None:
        return ()
    found = []
    for form in list(pays_weight_only(subject.graph, subject.runtime))[: _COUNT[request.tune]]:
        runtime = with_form(subject.runtime, form)
        options = subject.backend.options(runtime, request.threads)
        own = replace(subject, form=form, runtime=runtime, options=options)
        try:
            decided = decide_float(
                own,
                job.scores(own, job.judge),
                None,
                request.budget.max_drop,
                job.work / subject.runtime.name / form,
            )
        except (BackendError, UnsupportedError, VerificationError) as e:
            job.progress.note(f"{subject.runtime.name} {form} is left out: {e.message}")
            continue
        found.append(Entrant(decided, stored=True))
    return tuple(found)
