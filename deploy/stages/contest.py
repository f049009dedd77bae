"""INT8 must pay: the artifact timed in turn with the file as given and with our own float build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from deploy.adapter.discover import find_backend
from deploy.measure.host import host
from deploy.measure.latency import Timing, speedup
from deploy.quantize.candidate import build_candidate
from deploy.quantize.decide import Decided, decide_float
from deploy.spec.artifact import Artifact
from deploy.spec.manifest import Choice
from deploy.spec.measurement import Comparison
from deploy.stages.baseline import Contender, compare, race
from deploy.stages.job import Job

_NOISE = 0.97
"""A ratio of medians that could be noise, where its interval does not tell."""


def why_not_measured(job: Job) -> str:
    """The reason why times taken here would mean nothing; empty where they do."""
    if not job.request.measure:
        return "measuring was switched off"
    if not job.target.stands_here():
        return f"this machine ({host().cpu}) cannot stand in for {job.target.profile.title}"
    return ""


def measured(job: Job, decided: Decided) -> tuple[Decided, Comparison]:
    """The figures of the race, and what was decided: float, where INT8 is slower than the faster float.

    Slower means twice, and by more than noise: the interval of the ratio, or the ratio by 3 %, below 1.

    A precision or a lock that was asked for is not overruled, nor is a model that came quantized.
    """
    request, subject = job.request, job.subject
    feeds = job.one_inference(decided.candidate.artifact)
    ort = find_backend(job.baseline.backend)
    contenders = {
        "baseline": Contender(ort, job.baseline, ort.options_type(threads=request.threads)),
        "artifact": _contender(job, decided.candidate.artifact),
    }
    free = request.precision == "auto" and job.lock is None and not subject.imported
    must_pay = free and decided.candidate.plan.quantized
    if must_pay:
        plain = build_candidate(subject, frozenset(b.id for b in subject.blocks), job.work / "plain")
        contenders["float"] = _contender(job, plain.artifact)
    times = race(contenders, feeds)
    tried: dict[str, float] = {}
    chosen = "artifact"
    if must_pay:
        tried["int8"], slower = _against_the_faster(times)
        if slower:  # one session in a few is unlucky with its memory: who loses once may run again
            times = race(contenders, feeds)
            tried["int8"], slower = _against_the_faster(times)
        # Times stand in measurements.json: the choices must read the same when a build is repeated.
        if slower:
            decided, chosen = _float_instead(job, decided), "float"
        else:
            kept = Choice(what="precision", chosen="int8", reason="not slower than float")
            decided = replace(decided, choices=(*decided.choices, kept))
    comparison = compare(
        (contenders["baseline"], times["baseline"]),
        (contenders[chosen], times[chosen]),
        feeds,
        threads=request.threads,
        scratch=job.work / "memory",
    )
    return decided, comparison.model_copy(update={"tried": tried})


def _against_the_faster(times: Mapping[str, Timing]) -> tuple[float, bool]:
    """The artifact's speed in multiples of the faster float, and whether it is slower than that."""
    faster = min(("baseline", "float"), key=lambda name: times[name].summary().p50)
    ratio, (_, at_most) = speedup(times[faster], times["artifact"])
    return ratio, at_most < 1.0 or ratio < _NOISE


def _contender(job: Job, artifact: Artifact) -> Contender:
    return Contender(job.subject.backend, artifact, job.subject.options)


def _float_instead(job: Job, decided: Decided) -> Decided:
    plain = decide_float(
        job.subject,
        job.scores(job.judge),
        job.scores(job.accept),
        job.request.budget.max_drop,
        job.work,
        decided.sqnr,
    )
    slower = Choice(what="precision", chosen=job.subject.float_precision, reason="INT8 is slower here")
    return replace(plain, choices=(*decided.choices, slower))
