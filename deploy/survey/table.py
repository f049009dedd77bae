"""What an overlay says in a few lines: by class how fast each precision is, and what INT8 gains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Literal

from deploy.spec.overlay import Cost, KernelClass, Overlay, RuntimeCosts
from deploy.spec.tensors import Precision

Unit = Literal["GOP/s", "GB/s", "ms"]

_PLAIN: tuple[Precision, ...] = ("float", "bf16", "fp16")
"""What others are compared with: the first of them that was measured."""
_NO_CHOICE: tuple[KernelClass, ...] = ("convert", "entry", "overhead")
"""What nobody chooses a precision for."""
_MOVES: tuple[KernelClass, ...] = ("move", "concat", "transpose", "resize", "pool")
"""What has no integer kernel because it needs none: it takes what it gets."""
_EVEN = 0.05
"""Closer than this is no difference, however quiet the machine."""


@dataclass(frozen=True)
class ClassRow:
    """One class of kernels on one runtime.

    ``speeds`` are throughputs by precision at the largest size that was measured in it: 10^9 operations a
    second, two for each multiply-accumulate, where the class has these, else 10^9 bytes a second, else the
    milliseconds that it takes. ``gains`` are the times of float (where that was not measured, of bfloat16 or
    float16) over those of another precision, at the largest shape that both have. ``int8`` says in words what
    INT8 is worth, over all shapes.
    """

    op: KernelClass
    points: int
    failed: int
    unit: Unit
    speeds: Mapping[Precision, float]
    gains: Mapping[Precision, float]
    int8: str


def class_rows(runtime: RuntimeCosts) -> list[ClassRow]:
    """A row for each class that was measured or tried, in the order in which they come."""
    ops = dict.fromkeys([cost.op for cost in runtime.cost] + [failure.op for failure in runtime.failures])
    return [_row(op, runtime) for op in ops]


def throughput(cost: Cost, unit: Unit) -> float:
    """The point in that unit; 0 where it took no time that could be told."""
    if unit == "ms":
        return cost.ms
    amount = 2 * cost.macs if unit == "GOP/s" else cost.bytes
    return amount / cost.ms / 1e6 if cost.ms > 0 else 0.0


def unit_of(costs: Iterable[Cost]) -> Unit:
    """What the throughput of these points of one class is told in."""
    sized = [cost for cost in costs if cost.op != "overhead"]
    if any(cost.macs for cost in sized):
        return "GOP/s"
    return "GB/s" if any(cost.bytes for cost in sized) else "ms"


@dataclass(frozen=True)
class Unsteady:
    """A class of kernels whose times vary: the median spread of its points, and the one that varies most."""

    runtime: str
    op: KernelClass
    precision: Precision
    spread: float
    worst: Cost

    @property
    def interval(self) -> tuple[float, float]:
        """Between these milliseconds lie half of the worst point's runs, about its median."""
        half = self.worst.spread * self.worst.ms / 2
        return max(0.0, self.worst.ms - half), self.worst.ms + half


def most_unsteady(overlay: Overlay, most: int = 3) -> list[Unsteady]:
    """The classes with the largest spreads, the worst first."""
    groups: dict[tuple[str, KernelClass, Precision], list[Cost]] = {}
    for runtime in overlay.runtime:
        for cost in runtime.cost:
            groups.setdefault((runtime.name, cost.op, cost.precision), []).append(cost)
    found = [
        Unsteady(name, op, precision, median(c.spread for c in costs), max(costs, key=lambda c: c.spread))
        for (name, op, precision), costs in groups.items()
    ]
    return sorted(found, key=lambda group: -group.spread)[:most]


def _row(op: KernelClass, runtime: RuntimeCosts) -> ClassRow:
    costs = [cost for cost in runtime.cost if cost.op == op]
    failures = [failure for failure in runtime.failures if failure.op == op]
    unit = unit_of(costs)
    speeds: dict[Precision, float] = {}
    gains: dict[Precision, float] = {}
    floats = _by_shape(costs, _plain(costs))
    for precision in dict.fromkeys(cost.precision for cost in costs):
        largest = max((c for c in costs if c.precision == precision), key=_size)
        speeds[precision] = throughput(largest, unit)
        both = [(floats[s], c) for s, c in _by_shape(costs, precision).items() if s in floats and c.ms > 0]
        if both and precision != _plain(costs):
            plain, other = max(both, key=lambda pair: _size(pair[0]))
            gains[precision] = plain.ms / other.ms
    tried = any(failure.precision == "int8" for failure in failures)
    return ClassRow(op, len(costs), len(failures), unit, speeds, gains, _verdict(costs, tried=tried))


def _verdict(costs: list[Cost], *, tried: bool) -> str:
    floats, integers = _by_shape(costs, _plain(costs)), _by_shape(costs, "int8")
    pairs = [(floats[shape], cost) for shape, cost in integers.items() if shape in floats and cost.ms > 0]
    if costs and costs[0].op in _NO_CHOICE:
        return ""
    if not pairs:
        if tried:
            return "could not be measured"
        return "" if integers or (costs and costs[0].op in _MOVES) else "float only"
    faster = slower = 0
    for plain, integer in pairs:
        margin = max(_EVEN, (plain.spread + integer.spread) / 2)
        faster += plain.ms / integer.ms > 1 + margin
        slower += integer.ms / plain.ms > 1 + margin
    if faster == len(pairs):
        return "pays"
    if slower == len(pairs):
        return "slower"
    if faster:
        return f"pays at {faster} of {len(pairs)} sizes" + (f", slower at {slower}" if slower else "")
    return f"slower at {slower} of {len(pairs)} sizes" if slower else "no difference"


def _plain(costs: list[Cost]) -> Precision:
    measured = {cost.precision for cost in costs}
    return next((precision for precision in _PLAIN if precision in measured), "float")


def _by_shape(costs: list[Cost], precision: Precision) -> dict[tuple[str, int], Cost]:
    return {(cost.shape, cost.macs): cost for cost in costs if cost.precision == precision}


def _size(cost: Cost) -> tuple[int, int]:
    return cost.macs, cost.bytes
