"""Whether the machine runs as it mostly does, by a fixed piece of work done between measurements.

A core of a rented machine often shares its units with a neighbour's. While that one is at work products take
up to 1.7 times as long, for seconds on end, though the clock and our share of the processor stay the same,
and copies hardly change. A survey that met one kernel then and another later would compare neighbours. So
every round is taken between two beats of the pulse, and rounds in which it was far from usual do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from deploy.execute.reference import Session, open_graph

_SIDE = 192
_BEATS_IN_ROW = 3
_LONGEST_GAP_S = 1.0
"""A beat stands for the time since the one before, though for no longer than this."""
OFF = 0.1
"""Relative difference from the usual pulse above which the machine is in another state."""


Taken = TypeVar("Taken")


@dataclass
class Pulse:
    """The beats of ``work`` so far, in seconds. ``patience`` is how many seconds of waiting are left."""

    work: Callable[[], object]
    patience: float = 0.0
    _beats: list[float] = field(default_factory=list)
    _stand_for: list[float] = field(default_factory=list)
    _last: float | None = None

    def __post_init__(self) -> None:
        self.work()  # the first one allocates
        self.beat()

    def beat(self) -> float:
        """The fastest of three runs, in seconds."""
        taken = min(timed(self.work) for _ in range(_BEATS_IN_ROW))
        now = time.perf_counter()
        gap = taken if self._last is None else now - self._last
        self._beats.append(taken)
        self._stand_for.append(min(gap, _LONGEST_GAP_S))
        self._last = now
        return taken

    def listen(self, seconds: float) -> None:
        """Beat for a while, to learn what is usual."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            self.beat()

    def usual(self) -> float:
        """The beat of half of the time, in seconds."""
        order = np.argsort(self._beats)
        until = np.cumsum(np.asarray(self._stand_for)[order])
        return float(np.asarray(self._beats)[order][np.searchsorted(until, until[-1] / 2)])

    def steady(self, take: Callable[[], Taken], count: int, seconds: float) -> tuple[list[Taken], float]:
        """What ``take`` gives in ``count`` rounds while the machine is as usual.

        That is waited for, and more rounds are taken, for up to ``seconds`` and while there is patience; then
        the rounds that were nearest to it count. Also how far off the last of these was, as a share of the
        usual pulse; 0 where that is no more than beats vary.
        """
        usual, until = self.usual(), time.perf_counter() + seconds
        rounds: list[tuple[float, Taken]] = []
        while len(rounds) < count or (self._calm(rounds) < count and self._waits(until)):
            before = self._wait(usual, until)
            taken = take()
            rounds.append((max(before, self._off(usual)), taken))
        nearest = sorted(rounds, key=lambda entry: entry[0])[:count]
        off = nearest[-1][0]
        return [taken for _, taken in nearest], off if off > OFF else 0.0

    def _wait(self, usual: float, until: float) -> float:
        """How far off the machine is, once it is not any more or nobody waits any longer.

        It is at work meanwhile: after a nap the first beats are slow.
        """
        begin = time.perf_counter()
        while (off := self._off(usual)) > OFF and self._waits(until):
            now = time.perf_counter()
            self.patience, begin = self.patience - (now - begin), now
        return off

    def _off(self, usual: float) -> float:
        return abs(self.beat() / usual - 1)

    def _waits(self, until: float) -> bool:
        return self.patience > 0 and time.perf_counter() < until

    @staticmethod
    def _calm(rounds: Sequence[tuple[float, object]]) -> int:
        return sum(off <= OFF for off, _ in rounds)


@contextmanager
def pulse(threads: int, patience: float) -> Iterator[Pulse]:
    """A pulse by a small product in ONNX Runtime, which takes a fraction of a millisecond."""
    with gemm(_SIDE, threads) as session:
        yield Pulse(product(session, _SIDE), patience)


def gemm(side: int, threads: int) -> Session:
    """A product with a constant matrix in ONNX Runtime, which packs it beforehand as for a network."""
    matrix = f"float[{side}, {side}]"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g ({matrix} x, {matrix} w) => ({matrix} y) {{ y = MatMul(x, w) }}"""
    graph = ir.from_onnx_text(text)
    weight = graph.graph.inputs.pop()
    weight.const_value = ir.tensor(_matrix(side), name="w")
    graph.graph.register_initializer(weight)
    return open_graph(graph, threads=threads)


def product(session: Session, side: int) -> Callable[[], object]:
    """One run of such a product."""
    feeds = {"x": _matrix(side)}
    return lambda: session.run(feeds)


def timed(work: Callable[[], object]) -> float:
    """Seconds by the wall clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _matrix(side: int) -> np.ndarray:
    return np.random.default_rng(side).standard_normal((side, side)).astype(np.float32)
