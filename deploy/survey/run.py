"""A survey of this machine: its figures, and every unit on every runtime that is found here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np

from deploy.adapter.discover import find_backend
from deploy.adapter.overlays import Kept, Runs, data_root, runs_here, save
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
from deploy.survey.pulse import pulse
from deploy.survey.unit import Unit
from deploy.survey.units import units

_LISTEN_S = 5.0
_PATIENCE_S = 120.0
"""For states of the machine other than its usual one to pass; then points are taken as they come."""
_CALM = 0.1
"""A point whose spread is above it is measured once more; the calmer one counts."""


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
    runtimes_here = [profile.runtime_named(runs.name) for runs in found]
    names = (_name(u, p) for r in runtimes_here for u in listed for p in _precisions(r, quick=quick))
    points = list(dict.fromkeys(names))
    machine = this_machine()
    with (
        journal(
            machine, found, points, quick=quick, data_root=folder, progress=progress, fresh=fresh
        ) as kept,
        pulse(threads, _PATIENCE_S) as state,
    ):
        begin = time.perf_counter()
        earlier = kept.seconds
        with record.stage("machine") as stage:
            state.listen(_LISTEN_S)
            facts = machine_facts(quick=quick, threads=threads, pulse=state)
            stage.outcome = f"{len(facts)} figures"
        with record.stage("kernels") as stage:
            places = [Place(runtime, find_backend(runtime.name), threads, state) for runtime in runtimes_here]
            results = _points(places, listed, kept, progress, quick=quick)
            measured = [_costs(runs, threads, results[runs.name]) for runs in found]
            stage.outcome = ", ".join(f"{r.name} {r.version} {len(r.cost)} points" for r in measured)
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


def _costs(runs: Runs, threads: int, results: Sequence[Cost | Failure]) -> RuntimeCosts:
    return RuntimeCosts(
        name=runs.name,
        version=runs.version,
        threads=threads,
        settings=dict(runs.settings),
        runner=runs.runner,
        cost=tuple(r for r in results if isinstance(r, Cost)),
        failures=tuple(r for r in results if isinstance(r, Failure)),
    )


def _points(
    places: Sequence[Place], listed: Sequence[Unit], kept: Journal, progress: Progress, *, quick: bool
) -> dict[str, list[Cost | Failure]]:
    """What each runtime's points gave. A unit is measured on all of them before the next one is: what is
    compared was met within seconds, and a machine that becomes slower in these minutes favours nobody."""
    found: dict[str, list[Cost | Failure]] = {place.runtime.name: [] for place in places}
    work = [
        (unit, place, precision)
        for unit in listed
        for place in places
        for precision in _precisions(place.runtime, quick=quick)
    ]
    for index, (unit, place, precision) in enumerate(work):
        name, runtime = _name(unit, precision), place.runtime.name
        results = kept.done.get((runtime, name))
        if results is None:
            begin = time.perf_counter()
            known = Costs(tuple(c for c in found[runtime] if isinstance(c, Cost) and c.ms > 0))
            results = tuple(_calmest(unit, precision, _around(place, precision), known))
            kept.add(runtime, name, results, time.perf_counter() - begin)
            progress.advance(index + 1, len(work))  # what was measured before tells nothing of the time left
        found[runtime] += results
    return found


def _calmest(unit: Unit, precision: Precision, place: Place, known: Costs) -> list[Cost | Failure]:
    """The unit measured, and if others disturbed that once more, while there is patience."""
    if unit.op == "convert" and precision != "int8":
        return []
    with scratch("survey") as work:
        first = measure_unit(unit, precision, place, known, work / "first")
        if _spread(first) <= _CALM or place.pulse.patience <= 0:
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
