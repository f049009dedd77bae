"""One unit measured on one runtime in one precision, as points of a cost table."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.adapter.protocol import Arrays, Backend, Runner
from deploy.errors import DeployError
from deploy.graph.blocks import partition
from deploy.graph.cost import macs
from deploy.graph.edit import names, weight_bytes
from deploy.predict.caches import LONGEST
from deploy.predict.kernels import Kernel, kernels
from deploy.predict.latency import Costs, UnknownCostError
from deploy.quantize.candidate import Candidate, Subject, build_candidate
from deploy.quantize.place import find_chains
from deploy.quantize.ranges import Histogram
from deploy.spec.overlay import Cost, Failure
from deploy.spec.profile import Runtime
from deploy.spec.tensors import Precision
from deploy.survey.pulse import Pulse
from deploy.survey.unit import KEPT_FLOAT, Extend, Unit, chain
from deploy.survey.units import separated

_SHORT = 2
_CHAIN_MACS = 60_000_000
"""A long chain stays below this, about 10 ms of one thread."""
_CHAIN_BYTES = 8 * 2**20
"""Weights of a long chain, so that they stay in a cache as those of a small network do. Some runtimes hold a
copy of a recurrent layer's weights for each step: such chains are as short as they can be."""
_SHORTEST = 5
_ROUNDS = 9
_SLICE_MS = 4.0
_PATIENCE_S = 3.0
"""For a point whose rounds are taken while the machine is in another state than usual."""
_PER_ELEMENT = 20
"""What one number of an image weighs beside multiply-accumulates, in these."""
_DROWNED = 0.25
"""A kernel must take this share of what is taken off by the table."""
_LOST = 0.03
"""And this share of the whole chain."""
_LEAST_ENTRY = 0.01
_NEARLY_ALL = 0.8
"""Of a short chain's time: units that take more leave nothing to tell what getting in and out takes."""

_POSITIVE = ("Relu", "Softmax")


@dataclass(frozen=True)
class Place:
    """Where points are measured: one runtime of one profile, opened with so many threads, on a machine whose
    state is known by its ``pulse``."""

    runtime: Runtime
    backend: Backend
    threads: int
    pulse: Pulse


@dataclass(frozen=True)
class _Chain:
    runner: Runner
    feeds: Arrays
    kernels: Counter[Kernel]


def measure_unit(
    unit: Unit, precision: Precision, place: Place, known: Costs, workdir: Path
) -> list[Cost | Failure]:
    """The points that a unit gives: its own, and what getting in and out cost. ``known`` are the classes that
    may have to be taken off.

    Empty where the runtime has no integer kernel for it. What cannot be built or run is a Failure.
    """
    try:
        return _measured(unit, precision, place, known, workdir)
    except (DeployError, UnknownCostError) as e:
        reason = e.message if isinstance(e, DeployError) else str(e)
        return [Failure(op=unit.op, precision=precision, shape=unit.shape, reason=reason)]
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


def _measured(
    unit: Unit, precision: Precision, place: Place, known: Costs, workdir: Path
) -> list[Cost | Failure]:
    if unit.op == "overhead":
        return _alone(unit, precision, place, workdir)
    with ExitStack() as stack:
        chains: list[tuple[float, _Chain]] = []
        for index, (share, extend, repeats, form) in enumerate(_terms(unit, precision, place.runtime)):
            model = chain(unit.input, extend, repeats)
            opened = _open(model, form, place, workdir / str(index), stack)
            if opened is None:
                return []
            chains.append((share, opened))
        taken, off = _times([opened for _, opened in chains], place.pulse)
    left: dict[Kernel, float] = defaultdict(float)
    for share, opened in chains:
        for kernel, count in opened.kernels.items():
            left[kernel] += share * count
    gained = np.sum([share * ms for (share, _), ms in zip(chains, taken, strict=True)], axis=0)
    wanted = {k: n for k, n in left.items() if k.op in (unit.op, *unit.also) and n > 0}
    wanted = {k: n for k, n in wanted.items() if k.precision == precision or k.op == "convert"}
    if not any(k.op == unit.op for k in wanted):
        return []
    others = sum(known.kernel(k).estimate.ms * n for k, n in left.items() if n and k not in wanted)
    whole = float(np.median(taken[0]))
    rest = gained - others
    if np.median(rest) < max(_DROWNED * abs(others), _LOST * whole):
        reason = "it drowns in what is measured with it"
        return [Failure(op=unit.op, precision=precision, shape=unit.shape, reason=reason)]
    spread = max(off, _spread(rest))
    per_byte = float(np.median(rest)) / sum(n * k.bytes for k, n in wanted.items())
    found: list[Cost | Failure] = [
        _cost(unit, kernel, precision, per_byte * kernel.bytes, spread) for kernel in wanted
    ]
    if unit.op in ("conv", "gemm"):
        found += _entry(unit, precision, float(np.median(taken[1])), chains[1][1], found, known)
    return found


def _terms(unit: Unit, precision: Precision, runtime: Runtime) -> list[tuple[float, Extend, int, Precision]]:
    """The chains whose times are added up, each with its factor, its unit, its length and its precision."""
    if unit.op in runtime.absorbs:
        unit = separated(unit)
    repeats = _repeats(unit)
    if unit.without is None:
        return [(1, unit.extend, repeats, precision), (-1, unit.extend, _SHORT, precision)]
    if unit.op == "convert":
        forms = (runtime.float_precision, precision)
        halves = [(-0.5, unit.without, repeats, form) for form in forms]
        return [(1, unit.extend, repeats, precision), *halves]
    return [(1, unit.extend, repeats, precision), (-1, unit.without, repeats, precision)]


def _cost(unit: Unit, kernel: Kernel, precision: Precision, ms: float, spread: float) -> Cost:
    return Cost(
        op=kernel.op,
        precision=precision,
        macs=kernel.macs,
        bytes=kernel.bytes,
        depth=kernel.depth,
        align=kernel.align,
        ms=float(f"{ms:.4g}"),
        spread=round(min(spread, 9.99), 3),
        shape=unit.shape,
    )


def _alone(unit: Unit, precision: Precision, place: Place, workdir: Path) -> list[Cost | Failure]:
    """What a graph of next to nothing takes."""
    with ExitStack() as stack:
        opened = _open(chain(unit.input, unit.extend, 1), precision, place, workdir, stack)
        if opened is None:
            return []
        (taken,), off = _times([opened], place.pulse)
    kernel = Kernel("overhead", precision, (), 0, 64)
    return [_cost(unit, kernel, precision, float(np.median(taken)), max(off, _spread(taken)))]


def _spread(taken: np.ndarray) -> float:
    return float(np.subtract(*np.percentile(taken, [75, 25])) / np.median(taken))


def _entry(
    unit: Unit, precision: Precision, ms: float, short: _Chain, own: list[Cost | Failure], known: Costs
) -> list[Cost | Failure]:
    """What the short chain took besides its units and a graph's overhead: getting in and out.

    Nothing where the units took nearly all: what is left then is their own noise.
    """
    kernels = [point.ms for point in own if isinstance(point, Cost)]
    units = sum(kernels) / len(kernels) * sum(short.kernels.values())
    rest = ms - units - known.overhead(precision)
    if units > _NEARLY_ALL * ms or rest < _LEAST_ENTRY * ms:
        return []
    moved = sum(array.nbytes for array in short.feeds.values())
    return [_cost(unit, Kernel("entry", precision, (), 0, 2 * moved), precision, rest, 0.2)]


def _open(
    model: ir.Model, precision: Precision, place: Place, workdir: Path, stack: ExitStack
) -> _Chain | None:
    """A chain built and opened; None where nothing of it would be in integers but should be."""
    subject = _subject(model, place)
    everything = frozenset(block.id for block in subject.blocks)
    if precision == "int8" and not subject.int8_blocks():
        return None
    candidate = build_candidate(subject, () if precision == "int8" else everything, workdir)
    runner = stack.enter_context(place.backend.open(candidate.artifact, subject.options))
    shape = [size if isinstance(size, int) else 1 for size in candidate.artifact.inputs[0].shape]
    value = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return _Chain(runner, {"x": value}, _kernels(model, candidate, place.runtime))


def _kernels(graph: ir.Model, candidate: Candidate, runtime: Runtime) -> Counter[Kernel]:
    """The kernels by what their cost depends on."""
    found = kernels(graph, candidate.plan.tensors, runtime)
    return Counter(Kernel(k.op, k.precision, (), k.macs, k.bytes, k.depth, k.align) for k in found)


def _subject(graph: ir.Model, place: Place) -> Subject:
    blocks = partition(graph)
    return Subject(
        graph=graph,
        graph_sha256="",
        target="this-machine",
        runtime=place.runtime,
        backend=place.backend,
        options=place.backend.options(place.runtime, place.threads),
        blocks=blocks,
        chains=find_chains(graph, blocks, place.runtime),
        histograms=_histograms(graph),
        observer="minmax",
        excluded=frozenset(n.name or "" for n in graph.graph if (n.name or "").startswith(KEPT_FLOAT)),
    )


def _histograms(graph: ir.Model) -> Mapping[str, Histogram]:
    """What the numbers are does not matter, but for what never is negative: there a Relu costs nothing."""
    positive = {node.outputs[0].name for node in graph.graph if node.op_type in _POSITIVE}
    return {name: _usual(positive=name in positive) for name in names(graph)}


@cache
def _usual(*, positive: bool) -> Histogram:
    histogram = Histogram()
    values = np.random.default_rng(2).standard_normal(4096).astype(np.float32)
    values = np.maximum(values, 0) if positive else values
    histogram.add(values, float(values.min()), float(values.max()))
    return histogram


def _repeats(unit: Unit) -> int:
    """How long the long chain is: long enough to be timed, and no longer."""
    model = chain(unit.input, unit.extend, 1)
    one = (macs(model) or 0) + _PER_ELEMENT * math.prod(size for size in unit.input if isinstance(size, int))
    most = _CHAIN_BYTES // max(1, weight_bytes(model)) if unit.op not in ("recurrent", "gru") else 0
    return int(np.clip(min(_CHAIN_MACS // one, most), _SHORTEST, LONGEST))


def _times(chains: Sequence[_Chain], pulse: Pulse) -> tuple[list[np.ndarray], float]:
    """Milliseconds of each, round by round in turn: of each round the fastest run, as others only disturb.
    Also how far from its usual state the machine was."""
    repeats = [_warm_up(opened) for opened in chains]

    def taken() -> list[float]:
        return [
            min(_run(opened) for _ in range(count)) for opened, count in zip(chains, repeats, strict=True)
        ]

    rounds, off = pulse.steady(taken, _ROUNDS, _PATIENCE_S)
    return list(np.asarray(rounds).T), off


def _warm_up(opened: _Chain) -> int:
    """Run a few times; how many runs fill a slice."""
    best = min(_run(opened) for _ in range(3))
    return max(2, min(50, round(_SLICE_MS / best)))


def _run(opened: _Chain) -> float:
    begin = time.perf_counter()
    opened.runner.run(opened.feeds)
    return (time.perf_counter() - begin) * 1e3
