"""Forms of weights alone in the race: INT8 found while running, or weights of 8 and 4 bits in float products.

They need no ranges, and win where products are many or weights are large. The profile says what products were
measured to gain; that is a reason to build one and time it, no prediction. Where size is what is to be made
best, weights of 4 bits are tried wherever a runtime has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deploy.errors import BackendError, UnsupportedError, VerificationError
from deploy.graph.weights import large_weights
from deploy.quantize.candidate import Subject
from deploy.quantize.decide import decide_float
from deploy.quantize.forms import WeightForm, pays_weight_only, stored_share, with_form
from deploy.spec.project import Tune
from deploy.stages.entrants import Entrant
from deploy.stages.job import Job

_SMALLEST: tuple[WeightForm, ...] = ("w4",)
"""Those whose files may be smaller than integers throughout."""
_COUNT: Mapping[Tune, int] = {"off": 0, "quick": 1, "full": 3}
"""How many are built for each runtime, those that promise most first."""


def weights_alone(job: Job, subject: Subject) -> tuple[Entrant, ...]:
    """The entrants of a runtime in such forms; none where something else was asked for or nobody judges."""
    request = job.request
    free = request.precision == "auto" and job.lock is None and not subject.imported
    if not free or job.judge is None or subject.form is not None:
        return ()
    found = []
    for form in _promising(job, subject):
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


def _promising(job: Job, subject: Subject) -> list[WeightForm]:
    """Those that may win: the smallest where bytes choose, else what the profile says is faster."""
    graph, runtime = subject.graph, subject.runtime
    if job.request.objective == "size":
        able = [form for form in _SMALLEST if form in runtime.forms and large_weights(graph)]
        return [form for form in able if stored_share(graph, runtime, form) > 0]
    count = _COUNT[job.request.tune] if job.races else 0
    return list(pays_weight_only(graph, runtime))[:count]
