"""What kernels take on a device that was not measured, or at a few sizes only.

A measured device lends its curves: what a kernel takes there is scaled by how much faster the other device
is, in multiply-accumulates for the classes that are made of them, in bytes for the others, as far as both are
known. A few points measured on the device itself go before that: their classes are read off them, and all
others are corrected by the mean of what they say, held back where they are few. Without any measured device
there is only the roofline of the data sheet (Williams, Waterman and Patterson 2009): no kernel is faster than
that, most are slower.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deploy.predict.caches import Cache
from deploy.predict.curve import Estimate
from deploy.predict.kernels import Kernel
from deploy.predict.latency import Costs, Part, UnknownCostError
from deploy.spec.overlay import Cost, KernelClass
from deploy.spec.profile import Fact, Figure, Profile
from deploy.spec.tensors import Precision

BY_PRODUCTS: frozenset[KernelClass] = frozenset(
    ("conv", "pointwise", "grouped", "transposed", "stem", "gemm", "batched", "recurrent", "gru")
)
"""Classes that take as long as their multiply-accumulates; the others as long as their bytes."""
_STRANGE = 0.7
"""Deviation (relative) of what is scaled by data sheets, and by which a few points are held back."""
_OWN = 0.25
"""What points of one class on one device stray from a common factor."""
_PEAKS: Mapping[Precision, tuple[tuple[str, float], ...]] = {
    "float": (("fp32_peak", 0.5), ("fp32_macs", 1.0)),
    "fp16": (("fp16_dense", 0.5), ("fp16_sparse", 0.25), ("int8_dense", 0.25), ("int8_sparse", 0.125)),
    "bf16": (("bf16_dense", 0.5), ("fp16_dense", 0.5)),
    "fp8": (("fp8_dense", 0.5),),
    "int8": (("int8_dense", 0.5), ("int8_sparse", 0.25), ("int8_macs", 1.0)),
}
"""Facts of profiles in 10^12 a second, and what part of that are multiply-accumulates of the type.

Tensor cores do half as many products of float16 as of INT8 (NVIDIA A100 Tensor Core GPU Architecture, 2020).
"""


@dataclass(frozen=True)
class Roof:
    """The most that a device can do: multiply-accumulates by precision and bytes, each per millisecond."""

    macs: Mapping[Precision, float]
    bytes: float | None

    def least(self, kernel: Kernel | Cost) -> float | None:
        """The least milliseconds of a kernel as its class goes; None where that peak is unknown."""
        if kernel.op in BY_PRODUCTS:
            peak = self.macs.get(kernel.precision)
            return None if peak is None else kernel.macs / peak
        return None if self.bytes is None else kernel.bytes / self.bytes


def roof_of(profile: Profile, threads: int = 1) -> Roof:
    """The peaks that a profile's facts state, for an accelerator whole, for a CPU of ``threads`` cores.

    ``<type>_macs_per_cycle`` of a core and ``clock`` in GHz make a CPU's.
    """
    facts = {**profile.memory, **profile.hardware}
    macs: dict[Precision, float] = {}
    for precision, known in _PEAKS.items():
        for name, part in known:
            value = _number(facts.get(name))
            if value is not None:
                macs[precision] = value * 1e9 * part
                break
    clock = _number(facts.get("clock"))
    for precision, name in (("float", "fp32_macs_per_cycle"), ("int8", "int8_macs_per_cycle")):
        each = _number(facts.get(name))
        if clock is not None and each is not None:
            macs[precision] = clock * 1e6 * each * threads
    bandwidth = _number(facts.get("bandwidth"))
    return Roof(macs, None if bandwidth is None else bandwidth * 1e6)


def roof_seen(points: Iterable[Cost]) -> Roof:
    """The best that measured points reached: 95th percentiles, as one point may be a lucky one."""
    macs: dict[Precision, list[float]] = defaultdict(list)
    moved: list[float] = []
    for point in points:
        if point.ms <= 0:  # what was taken off by the table was all of it
            continue
        if point.op in BY_PRODUCTS and point.macs:
            macs[point.precision].append(point.macs / point.ms)
        elif point.op in ("elementwise", "move", "concat", "activation"):
            moved.append(point.bytes / point.ms)
    return Roof(
        {p: float(np.percentile(seen, 95)) for p, seen in macs.items()},
        float(np.percentile(moved, 95)) if moved else None,
    )


@dataclass(frozen=True)
class Sheet:
    """The roofline of a data sheet alone. Its estimates are the least that is possible.

    Without a bandwidth what goes by bytes counts nothing: it takes more than that.
    """

    roof: Roof
    cache: Cache | None = None

    @property
    def basis(self) -> str:
        """Where its estimates are from."""
        known = "roofline" if self.roof.bytes else "multiply-accumulates alone"
        return f"the data sheet's {known}, the least that is possible"

    def kernel(self, kernel: Kernel) -> Part:
        """Raises UnknownCostError where the data sheet does not say how fast the products are."""
        if kernel.op in BY_PRODUCTS and self.roof.least(kernel) is None:
            raise UnknownCostError(f"no data sheet says how fast {kernel.op} in {kernel.precision} is")
        peaks = ((kernel.macs, self.roof.macs.get(kernel.precision)), (kernel.bytes, self.roof.bytes))
        least = max((amount / peak for amount, peak in peaks if peak is not None), default=0.0)
        return Part(kernel, Estimate(least, _STRANGE, math.inf), stand_in=True)

    def fixed(self, moved: int, precision: Precision) -> float:
        """Nothing: data sheets do not speak of it."""
        del moved, precision
        return 0.0


@dataclass(frozen=True)
class Transferred:
    """The curves of a measured device made those of another one.

    ``own`` are the few points that were measured on the device itself; ``roofs`` the peaks of the measured
    device and of this one, where they are known.
    """

    source: Costs
    own: tuple[Cost, ...] = ()
    roofs: tuple[Roof, Roof] | None = None
    cache: Cache | None = None

    @property
    def basis(self) -> str:
        """Where its estimates are from."""
        there, here = self.roofs or (Roof({}, None), Roof({}, None))
        if there.macs.keys() & here.macs.keys() or (there.bytes and here.bytes):
            return "scaled from another machine"
        return "as on another machine: how fast the two are is not known"

    def kernel(self, kernel: Kernel) -> Part:
        """Raises UnknownCostError where nothing like it was measured anywhere."""
        if (kernel.op, kernel.precision) in self._measured:
            return self._own.kernel(kernel)
        lent = self.source.kernel(kernel)
        factor, deviation = self._correction(kernel.op, kernel.precision)
        scaled = lent.estimate.ms * self._scale(kernel) * math.exp(factor)
        estimate = Estimate(scaled, math.hypot(lent.estimate.deviation, deviation), lent.estimate.nearest)
        return Part(kernel, estimate, stand_in=True)

    def fixed(self, moved: int, precision: Precision) -> float:
        """As measured where it was, else as on the measured device."""
        return self._own.fixed(moved, precision) or self.source.fixed(moved, precision)

    @cached_property
    def _own(self) -> Costs:
        return Costs(tuple(point for point in self.own if point.ms > 0))

    @cached_property
    def _measured(self) -> frozenset[tuple[KernelClass, Precision]]:
        return frozenset((point.op, point.precision) for point in self._own.points)

    def _scale(self, kernel: Kernel | Cost) -> float:
        """How many times as long the device takes, by both peaks."""
        if self.roofs is None:
            return 1.0
        there, here = (roof.least(kernel) for roof in self.roofs)
        return here / there if there and here else 1.0

    def _correction(self, op: KernelClass, precision: Precision) -> tuple[float, float]:
        """Logarithm of the factor that the device's own points ask for, and how sure that is.

        All points first, then those of the precision, then those of the class; each level is held back
        towards the one before as its points are few (a normal prior whose mean is the level before).
        """
        mean, variance = 0.0, _STRANGE**2
        everything = list(self._strayed.values())
        for strayed in (
            [log for log, _ in everything],
            [log for log, point in everything if point.precision == precision],
            [log for log, point in everything if point.op == op],
        ):
            if strayed:
                noise = max(_OWN**2, float(np.var(strayed))) / len(strayed)
                held = variance / (variance + noise)
                mean += held * (float(np.mean(strayed)) - mean)
                variance = noise * held + _OWN**2
        return mean, math.sqrt(variance)

    @cached_property
    def _strayed(self) -> dict[int, tuple[float, Cost]]:
        """How far each own point lies from what is lent and scaled, in logarithms."""
        found = {}
        for index, point in enumerate(self.own):
            if point.ms <= 0 or point.op in ("overhead", "entry"):
                continue
            kernel = Kernel(point.op, point.precision, (), point.macs, point.bytes, point.depth, point.align)
            try:
                lent = self.source.kernel(kernel).estimate.ms * self._scale(point)
            except UnknownCostError:
                continue
            found[index] = (math.log(point.ms / lent), point)
        return found


def _number(fact: Fact | None) -> float | None:
    if not isinstance(fact, Figure) or isinstance(fact.value, bool | str):
        return None
    return float(fact.value)
