"""What a model would take on a target before it is built: on each runtime as float, in integers and mixed."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.cache import Cache
from deploy.predict.kernels import UnknownSizeError
from deploy.predict.latency import Prediction, UnknownCostError, predict
from deploy.quantize.candidate import Subject
from deploy.quantize.knapsack import fastest
from deploy.quantize.pays import problem_of
from deploy.spec.residency import Residency
from deploy.stages import steps
from deploy.stages.costs import Known, costs_of
from deploy.stages.job import subject_for
from deploy.stages.legalize import legalize
from deploy.stages.record import Record
from deploy.stages.request import Request
from deploy.stages.residency import residencies
from deploy.stages.target import find_target


@dataclass(frozen=True)
class Expected:
    """One form of the model on one runtime. ``basis`` says what the prediction is made of; ``least``: that is
    no more than a bound, and the prediction's interval means nothing."""

    runtime: str
    form: str
    prediction: Prediction
    integer_blocks: int
    blocks: int
    basis: str
    least: bool = False


@dataclass(frozen=True)
class Expectation:
    """``rows`` with the preferred runtime first; ``notes`` say what could not be predicted, and why.

    ``residency`` is what the accelerators would compute, by runtime.
    """

    target: str
    rows: tuple[Expected, ...]
    notes: tuple[str, ...]
    residency: tuple[tuple[str, Residency], ...] = ()


def expected(request: Request, record: Record, cache: Cache) -> Expectation:
    """The latency of one sample on each runtime of the request's target. Raises what cleaning raises."""
    target = find_target(request.target, request.runtime)
    prepared = steps.clean(steps.read_source(request, cache, record), request, cache, record)
    prepared = legalize(target, prepared, request.threads, cache, record)
    known = costs_of(target, request.threads)
    rows: list[Expected] = []
    notes = list(known.notes)
    for route in target.routes:
        name = route.runtime.name
        if name not in known.runtimes:
            notes.append(f"{name}: nothing is known of what kernels take on {target.profile.title}")
            continue
        subject = subject_for(target, route, prepared, {}, request)
        try:
            rows += _forms(subject, known.runtimes[name])
        except UnknownCostError as e:
            notes.append(f"{name}: {e}")
        except UnknownSizeError as e:
            notes.append(f"{name}: a size at '{e.node}' is free: fix it with --shape")
    there = tuple(
        (route.runtime.name, found)
        for route in target.routes
        if route.runtime.unit
        for found in _there(subject_for(target, route, prepared, {}, request))
    )
    return Expectation(target.name, tuple(rows), tuple(notes), there)


def _there(subject: Subject) -> tuple[Residency, ...]:
    return residencies(subject.graph, subject.runtime, subject.options.model_dump(mode="json"))


def _forms(subject: Subject, known: Known) -> list[Expected]:
    everything = frozenset(block.id for block in subject.blocks)
    able = subject.int8_blocks()
    forms: list[tuple[str, frozenset[str]]] = [(subject.float_precision, everything)]
    if able:
        forms.append((subject.integer_precision, frozenset()))
        chosen = fastest(problem_of(subject, known.costs, {}))
        mixed = frozenset(b for b in able if chosen[b] != subject.integer_precision)
        if 0 < len(mixed) < len(able):
            forms.append(("mixed", mixed))
    return [
        Expected(
            runtime=subject.runtime.name,
            form=form,
            prediction=predict(subject.graph, subject.quantized(floats), subject.runtime, known.costs),
            integer_blocks=len(set(able) - floats),
            blocks=len(everything),
            basis=known.basis,
            least=known.least,
        )
        for form, floats in forms
    ]
