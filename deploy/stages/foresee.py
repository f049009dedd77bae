"""Hazards that the first samples show, before anything is calibrated or searched; kept by model and data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.cache import Cache
from deploy.graph.hazards import Hazard, grouped
from deploy.quantize.data_hazards import MEASURED, data_hazards
from deploy.quantize.seen import SAMPLES, Samples, of_data, of_feeds
from deploy.spec.document import Frozen, digest, parse, render
from deploy.spec.manifest import KnownHazard
from deploy.spec.project import WITHOUT_RANGES
from deploy.stages import steps
from deploy.stages.job import Ingredients
from deploy.stages.legalize import legalize
from deploy.stages.prepare import FloatGraph, Prepared
from deploy.stages.record import Record
from deploy.stages.request import Request, Roles
from deploy.stages.target import Route, find_target

_FOUND = "hazards.json"


class Foreseen(Frozen):
    """By runtime, what each would make of the values. ``samples`` in words; ``random``: they are noise."""

    samples: str
    random: bool
    runtimes: dict[str, tuple[KnownHazard, ...]]

    def joined(self, known: Sequence[KnownHazard], runtime: str) -> tuple[KnownHazard, ...]:
        """With what the graph alone says, as far as real samples do not say better; warnings first."""
        if runtime not in self.runtimes:
            return tuple(known)
        kept = [hazard for hazard in known if self.random or hazard.kind not in MEASURED]
        found = (*self.runtimes[runtime], *kept)
        return tuple(sorted(found, key=lambda hazard: hazard.severity != "warning"))

    def count(self, severity: str) -> int:
        """How many kinds of that severity some runtime has."""
        return len({h.kind for found in self.runtimes.values() for h in found if h.severity == severity})


NOTHING = Foreseen(samples="", random=False, runtimes={})


def foresee(made_of: Ingredients, cache: Cache, record: Record) -> Foreseen:
    """What the first calibration samples show; nothing where nothing is going to be quantized."""
    roles, request = made_of.roles, made_of.request
    if roles.calibration is None or request.precision in WITHOUT_RANGES:
        return NOTHING
    with record.stage("hazards") as stage:
        found, stage.cached = _look(made_of.target.routes, made_of.prepared, roles, request, cache)
        warnings, notes = found.count("warning"), found.count("note")
        said = [
            f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((warnings, "warning"), (notes, "note")) if n
        ]
        stage.outcome = f"{' and '.join(said) or 'none'} over {found.samples}"
    return found


@dataclass(frozen=True)
class Outlook:
    """What is to be known of a model before it is built for ``target``."""

    target: str
    samples: str
    hazards: tuple[KnownHazard, ...]


def outlook(request: Request, record: Record, cache: Cache) -> Outlook:
    """The hazards of a model on its first samples, or on random inputs without data, for all runtimes of the
    target; what is true of some of them only names these. Raises what a build raises until it calibrates."""
    target = find_target(request.target, request.runtime)
    prepared = steps.clean(steps.read_source(request, cache, record), request, cache, record)
    roles = steps.open_data(prepared, request, record)
    prepared = legalize(target, prepared, request.threads, cache, record)
    found, _ = _look(target.routes, prepared, roles, request, cache)
    return Outlook(target.name, found.samples, _over_all(found, prepared.facts.hazards))


def _over_all(found: Foreseen, known: Sequence[KnownHazard]) -> tuple[KnownHazard, ...]:
    """The hazards of all runtimes, each once."""
    where: dict[KnownHazard, list[str]] = {}
    for runtime in found.runtimes:
        for hazard in found.joined(known, runtime):
            where.setdefault(hazard, []).append(runtime)
    everywhere = len(found.runtimes)
    named = [
        hazard
        if len(runtimes) == everywhere
        else hazard.model_copy(update={"text": f"with {', '.join(runtimes)}: {hazard.text}"})
        for hazard, runtimes in where.items()
    ]
    return tuple(sorted(named, key=lambda hazard: hazard.severity != "warning"))


def _look(
    routes: Iterable[Route], prepared: Prepared, roles: Roles, request: Request, cache: Cache
) -> tuple[Foreseen, bool]:
    """What was found for every route, and whether all of it came from the cache."""
    graphs: dict[str, tuple[FloatGraph, list[Route]]] = {}
    for route in routes:
        graph = prepared.graph_for(route.runtime)
        graphs.setdefault(graph.sha256, (graph, []))[1].append(route)
    parts, all_cached = [], True
    for graph, members in graphs.values():
        key = cache.key(
            "hazards",
            graph=graph.sha256,
            data=None if roles.calibration is None else roles.calibration.digest,
            samples=SAMPLES,
            random=roles.random,
            seed=request.seed,
            rules=[digest(route.runtime) for route in members],
            exclude=sorted(request.exclude),
            threads=request.threads,
        )
        folder, cached = cache.fetch(key, partial(_write, graph, members, prepared, roles, request))
        all_cached &= cached
        parts.append(parse(Foreseen, (folder / _FOUND).read_text(), origin=folder / _FOUND))
    runtimes = {name: found for part in parts for name, found in part.runtimes.items()}
    return parts[0].model_copy(update={"runtimes": runtimes}), all_cached


def _write(
    graph: FloatGraph,
    routes: Sequence[Route],
    prepared: Prepared,
    roles: Roles,
    request: Request,
    folder: Path,
) -> None:
    samples = _samples(graph, prepared, roles, request.threads)
    found: Mapping[str, list[Hazard]] = data_hazards(
        graph.model,
        [route.runtime for route in routes],
        samples,
        excluded=request.exclude,
        imported=prepared.facts.imported,
    )
    known = {name: grouped(hazards) for name, hazards in found.items()}
    (folder / _FOUND).write_text(
        render(Foreseen(samples=str(samples), random=samples.random, runtimes=known))
    )


def _samples(graph: FloatGraph, prepared: Prepared, roles: Roles, threads: int) -> Samples:
    if roles.calibration is None:
        return of_feeds(graph.model, prepared.trial, threads=threads)
    return of_data(graph.model, roles.calibration, threads=threads, random=roles.random)
