"""What a build would do, found without searching, measuring or writing a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.cache import Cache
from deploy.graph.blocks import partition
from deploy.quantize.forms import form_plans, store_weights
from deploy.spec.artifact import Verdict
from deploy.spec.project import WITHOUT_RANGES
from deploy.spec.recipe import Recipe
from deploy.spec.residency import Residency
from deploy.spec.tensors import Precision
from deploy.stages import steps
from deploy.stages.energy import check_objective
from deploy.stages.job import check_request, subject_for
from deploy.stages.legalize import legalize
from deploy.stages.prepare import Prepared
from deploy.stages.recipe import ready
from deploy.stages.record import Record
from deploy.stages.replay import follow_lock, read_lock
from deploy.stages.request import Request, Roles
from deploy.stages.residency import residencies
from deploy.stages.target import Route, Target, able_to, find_target, judged


@dataclass(frozen=True)
class RoutePreview:
    """``precisions`` are what each block starts from: the accuracy guard and the clock may still change them.

    ``verdicts`` are the nodes that the backend refuses or does not know, ``residency`` what the device's
    accelerators would compute.
    """

    runtime: str
    precisions: tuple[tuple[str, Precision], ...]
    verdicts: tuple[Verdict, ...]
    residency: tuple[Residency, ...] = ()

    @property
    def able(self) -> bool:
        """Whether the runtime refuses no node."""
        return all(verdict.support != "unsupported" for verdict in self.verdicts)


@dataclass(frozen=True)
class Preview:
    """What would be built: for each runtime that may win, preferred ones first. ``data`` says what would be
    used, ``recipe`` what would be taken away before that."""

    target: str
    profile: str
    blocks: int
    routes: tuple[RoutePreview, ...]
    data: tuple[str, ...]
    recipe: Recipe = Recipe()


def preview(request: Request, cache: Cache, record: Record) -> Preview:
    """Read and clean the model, open the data, ask the backends of every node. Raises what a build raises."""
    target = find_target(request.target, request.runtime)
    check_objective(request)
    source = steps.read_source(request, cache, record)
    prepared = steps.clean(source, request, cache, record)
    request, followed = follow_lock(request, target, prepared)
    roles = steps.open_data(prepared, request, record)
    request = ready(request, prepared, target, roles, read_lock(request, prepared), record.progress)
    target = followed
    prepared = legalize(target, prepared, request.threads, cache, record)
    check_request(request, prepared)
    target = able_to(target, request.precision, request.io)
    return Preview(
        target=target.name,
        profile=target.profile.name,
        blocks=len(partition(prepared.fused)),
        routes=tuple(_route(target, route, prepared, roles, request) for route in target.routes),
        data=_notes(request, roles, bool(prepared.facts.imported)),
        recipe=request.recipe,
    )


def _route(target: Target, route: Route, prepared: Prepared, roles: Roles, request: Request) -> RoutePreview:
    subject = subject_for(target, route, prepared, {}, request)
    quantizes = roles.calibration is not None or bool(prepared.facts.imported)
    floats = not quantizes or request.precision in WITHOUT_RANGES
    able = set() if floats else set(subject.int8_blocks())
    verdicts = judged(route, prepared)
    if subject.form is None:
        integer, other = subject.integer_precision, subject.float_precision
        precisions = tuple((b.id, integer if b.id in able else other) for b in subject.blocks)
    else:
        stored = store_weights(subject.graph, subject.form, subject.runtime, subject.left_out)
        plans = form_plans(stored, subject.form, subject.blocks, subject.runtime, subject.left_out)
        precisions = tuple((plan.id, plan.precision) for plan in plans)
    return RoutePreview(
        runtime=route.runtime.name,
        precisions=precisions,
        verdicts=tuple(v for v in verdicts if v.support != "supported"),
        residency=residencies(subject.graph, subject.runtime, subject.options.model_dump(mode="json")),
    )


def _notes(request: Request, roles: Roles, imported: bool) -> tuple[str, ...]:
    notes = []
    if imported:
        notes.append("ranges as the model brings them: it is already quantized")
    elif request.precision in WITHOUT_RANGES:
        notes.append(f"no calibration: precision {request.precision} needs none")
    elif roles.calibration is None:
        notes.append("no calibration: a float build")
    else:
        kind = "random noise" if roles.random else roles.calibration.origin
        notes.append(f"ranges from {min(request.samples, len(roles.calibration))} samples of {kind}")
    for name, dataset in (
        ("trained on", roles.train),
        ("chosen on", roles.validation),
        ("accepted on", roles.eval),
    ):
        if dataset is not None:
            labels = "labelled" if dataset.labelled else "without labels: agreement with the float model"
            notes.append(f"{name} {len(dataset)} samples of {dataset.origin}, {labels}")
    return tuple(notes)
