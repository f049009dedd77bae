"""A survey of this machine: its figures, and every unit on every runtime that is found here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from deploy.adapter.discover import find_backend
from deploy.adapter.overlays import Kept, data_root, runs_here, save
from deploy.adapter.profiles import profile_for
from deploy.cache import scratch
from deploy.errors import ToolchainError
from deploy.measure.host import host, this_machine
from deploy.predict.latency import Costs
from deploy.progress import Progress
from deploy.spec.overlay import Cost, Failure, Overlay, RuntimeCosts
from deploy.spec.profile import Runtime
from deploy.spec.tensors import Precision
from deploy.stages.record import Record
from deploy.survey.journal import Journal, journal
from deploy.survey.machine import machine_facts
from deploy.survey.point import Place, measure_unit
from deploy.survey.unit import Unit
from deploy.survey.units import units

_CALM = 0.1
"""A point whose spread is above it is measured once more; the calmer one counts."""

Point = tuple[Unit, Precision]


def survey(
    *,
    runtimes: Sequence[str] | None,
    threads: int,
    quick: bool,
    fresh: bool,
    progress: Progress,
    root: Path | None = None,
) -> Kept:
    """Measure this machine with its ``runtimes``, all that are found if None, and keep the overlay.

    One that was killed goes on where it stopped, unless ``fresh``. ``root`` is the data folder, the user's if
    None. Raises ToolchainError where no runtime is found, UsageError where another survey runs here or the
    folder cannot be written.
    """
    here = host()
    profile = profile_for(here.arch, here.features)
    wanted = [r for r in profile.runtime if runtimes is None or r.name in runtimes]
    found = runs_here(wanted, threads)
    if not found:
        missing = [find_backend(r.name).available().missing for r in wanted]
        raise ToolchainError("no runtime is found here that could be measured", hint="; ".join(missing))
    folder = data_root() if root is None else root
    listed = units(quick=quick)
    record = Record(progress)
    places = [Place(profile.runtime_named(runs.name), find_backend(runs.name), threads) for runs in found]
    names = (_name(u, p) for place in places for u in listed for p in _precisions(place.runtime, quick=quick))
    points = list(dict.fromkeys(names))
    machine = this_machine()
    with journal(
        machine, found, points, quick=quick, data_root=folder, progress=progress, fresh=fresh
    ) as kept:
        begin = time.perf_counter()
        earlier = kept.seconds
        with record.stage("machine") as stage:
            facts = machine_facts(quick=quick, threads=threads)
            stage.outcome = f"{len(facts)} figures"
        measured = []
        for runs, place in zip(found, places, strict=True):
            with record.stage(runs.name) as stage:
                work = [(u, p) for u in listed for p in _precisions(place.runtime, quick=quick)]
                costs, failures = _points(place, work, kept, progress)
                measured.append(
                    RuntimeCosts(
                        name=runs.name,
                        version=runs.version,
                        threads=threads,
                        settings=dict(runs.settings),
                        runner=runs.runner,
                        cost=tuple(costs),
                        failures=tuple(failures),
                    )
                )
                stage.outcome = f"{len(costs)} points, version {runs.version}"
        overlay = Overlay(
            profile=profile.name,
            machine=machine,
            date=date.today(),
            command=_command(runtimes, threads, quick=quick),
            quick=quick,
            seconds=round(earlier + time.perf_counter() - begin, 1),
            noise=_noise(measured),
            facts=facts,
            runtime=tuple(measured),
        )
        return Kept(save(overlay, folder), overlay)


def _points(
    place: Place, work: Sequence[Point], kept: Journal, progress: Progress
) -> tuple[list[Cost], list[Failure]]:
    costs: list[Cost] = []
    failures: list[Failure] = []
    for index, (unit, precision) in enumerate(work):
        name = _name(unit, precision)
        results = kept.done.get((place.runtime.name, name))
        if results is None:
            begin = time.perf_counter()
            known = Costs(tuple(cost for cost in costs if cost.ms > 0))
            results = tuple(_calmest(unit, precision, _around(place, precision), known))
            kept.add(place.runtime.name, name, results, time.perf_counter() - begin)
            progress.advance(index + 1, len(work))  # what was measured before tells nothing of the time left
        costs += [r for r in results if isinstance(r, Cost)]
        failures += [r for r in results if isinstance(r, Failure)]
    return costs, failures


def _calmest(unit: Unit, precision: Precision, place: Place, known: Costs) -> list[Cost | Failure]:
    """The unit measured, and if others disturbed that once more."""
    if unit.op == "convert" and precision != "int8":
        return []
    with scratch("survey") as work:
        first = measure_unit(unit, precision, place, known, work / "first")
        if _spread(first) <= _CALM:
            return first
        second = measure_unit(unit, precision, place, known, work / "second")
    return min(first, second, key=_spread)


def _spread(results: Sequence[Cost | Failure]) -> float:
    """Of the unit itself, which comes first; none where nothing was found."""
    if not results:
        return 0.0
    first = results[0]
    return first.spread if isinstance(first, Cost) else np.inf


def _precisions(runtime: Runtime, *, quick: bool) -> list[Precision]:
    """What the runtime computes floats in, in a full survey float32 too where that is less, and integers."""
    integer: list[Precision] = ["int8"] if runtime.quant is not None else []
    floats: list[Precision] = [runtime.float_precision] if quick else ["float", runtime.float_precision]
    return [*dict.fromkeys(floats), *integer]


def _around(place: Place, precision: Precision) -> Place:
    """The place for one precision: where float32 is asked for, the runtime computes in nothing else."""
    if precision != "float" or place.runtime.float_precision == "float":
        return place
    return replace(place, runtime=place.runtime.model_copy(update={"around": "float32"}))


def _name(unit: Unit, precision: Precision) -> str:
    return f"{unit.op} {unit.shape}, {precision}"


def _noise(measured: Sequence[RuntimeCosts]) -> float:
    """The median spread of all points that were timed themselves."""
    spreads = [c.spread for r in measured for c in r.cost if c.op != "entry"]
    return round(float(np.median(spreads)), 3) if spreads else 0.0


def _command(runtimes: Sequence[str] | None, threads: int, *, quick: bool) -> str:
    words = ["deploy profile", *(f"--runtime {name}" for name in runtimes or ())]
    if threads != 1:
        words.append(f"--threads {threads}")
    return " ".join([*words, "--quick"] if quick else words)
