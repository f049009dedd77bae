"""What a graph takes under a plan on a runtime, added up from what its kernels take."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import onnx_ir as ir

from deploy.graph.blocks import Block
from deploy.graph.pattern import product_zeros
from deploy.graph.shapes import model_inputs, static_shape
from deploy.predict.caches import Cache
from deploy.predict.curve import Curve, Estimate
from deploy.predict.kernels import Kernel, kernels
from deploy.spec.overlay import Cost, KernelClass, RuntimeCosts
from deploy.spec.plan import BlockPlan, TensorPlan
from deploy.spec.profile import Figure, Runtime
from deploy.spec.tensors import Precision

_NO_FACTS: Mapping[str, Figure] = {}
_QUANTILE = 1.645
_LIKE: dict[KernelClass, tuple[KernelClass, ...]] = {
    "stem": ("conv",),
    "pointwise": ("gemm", "conv"),
    "gemm": ("pointwise", "conv"),
    "conv": ("pointwise",),
    "grouped": ("conv", "depthwise"),
    "transposed": ("conv",),
    "depthwise": ("elementwise",),
    "batched": ("gemm",),
    "recurrent": ("gru", "gemm"),
    "gru": ("recurrent", "gemm"),
    "activation": ("elementwise",),
    "hard": ("activation", "elementwise"),
    "transcendental": ("hard", "softmax", "elementwise"),
    "softmax": ("transcendental", "norm", "elementwise"),
    "norm": ("softmax", "elementwise"),
    "reduce": ("elementwise",),
    "pool": ("elementwise",),
    "resize": ("move", "elementwise"),
    "concat": ("move", "elementwise"),
    "transpose": ("move", "elementwise"),
    "move": ("concat", "elementwise"),
    "convert": ("elementwise",),
}
"""Where a class was not measured: the classes that are most like it, the best first."""
_FLOATS: tuple[Precision, ...] = ("float", "fp16", "bf16")
"""Where a precision was not measured: those that stand in, the first best."""
_IN_NETWORKS = 0.1
"""Deviation (relative) of kernels in a network from those in a chain of their like: caches, layouts, what a
runtime inserts. Without it three of four intervals held what seven networks took (`benchmarks/README.md`)."""
_STRANGE = 0.7
"""Deviation (relative) of what is taken from another class."""


class UnknownCostError(LookupError):
    """Nothing like a kernel was measured, and nothing else tells what it takes."""


@dataclass(frozen=True)
class Part:
    """One kernel and what it is thought to take; ``stand_in`` by the points of another class or precision."""

    kernel: Kernel
    estimate: Estimate
    stand_in: bool = False


class CostSource(Protocol):
    """Something that knows what kernels take: measured, lent, or off a data sheet."""

    @property
    def cache(self) -> Cache | None:
        """Where weights stay from one inference to the next, as far as that is known."""

    def kernel(self, kernel: Kernel) -> Part:
        """What one kernel takes. Raises UnknownCostError where nothing is known of its like."""

    def fixed(self, moved: int, precision: Precision) -> float:
        """Milliseconds of a graph that reads and puts out so many bytes and does nothing else."""


@dataclass(frozen=True)
class Prediction:
    """Milliseconds of one inference, with the interval in which the truth lies nine times of ten.

    ``fixed`` is what a graph takes whatever it does, with its inputs and outputs.
    """

    parts: tuple[Part, ...]
    fixed: float

    @property
    def ms(self) -> float:
        return self.fixed + sum(part.estimate.ms for part in self.parts)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Kernels of one class err together, classes apart, and all of a network as chains never show."""
        if not self.ms:
            return 0.0, 0.0
        together: dict[tuple[KernelClass, Precision], float] = defaultdict(float)
        for part in self.parts:
            together[part.kernel.op, part.kernel.precision] += part.estimate.ms * part.estimate.deviation
        deviation = math.hypot(*together.values()) / self.ms
        deviation = math.hypot(deviation, _IN_NETWORKS)
        factor = math.exp(_QUANTILE * deviation)
        return self.ms / factor, self.ms * factor

    def by_block(self, blocks: Sequence[Block] | Sequence[BlockPlan]) -> dict[str, float]:
        """Milliseconds by block id. A change of form counts for the block that first reads its result."""
        owners = {name: block.id for block in blocks for name in block.nodes}
        total = {block.id: 0.0 for block in blocks}
        for part in self.parts:
            total[owners[part.kernel.nodes[0]]] += part.estimate.ms
        return total

    def by_class(self) -> dict[KernelClass, float]:
        """Milliseconds by kernel class."""
        total: dict[KernelClass, float] = defaultdict(float)
        for part in self.parts:
            total[part.kernel.op] += part.estimate.ms
        return dict(total)


@dataclass(frozen=True)
class Costs:
    """The curves of one runtime, made of its measured points."""

    points: tuple[Cost, ...]
    cache: Cache | None = None

    @classmethod
    def of(cls, measured: RuntimeCosts, facts: Mapping[str, Figure] = _NO_FACTS) -> Costs:
        """``facts``: what is known of the machine that they were measured on."""
        return cls(tuple(point for point in measured.cost if point.ms > 0), Cache.of(facts))

    def kernel(self, kernel: Kernel) -> Part:
        """What one kernel takes. Raises UnknownCostError where nothing like it was measured."""
        return _changed(self._alone(kernel), more=sum(map(self._in_passing, kernel.along)))

    def _in_passing(self, activation: Kernel) -> float:
        """What one takes beyond moving its data, which are there already."""
        curve = self._curves.get((activation.op, activation.precision))
        light = self._curves.get(("activation", activation.precision))
        if curve is None or light is None:
            return 0.0
        return max(0.0, curve(activation).ms - light(activation).ms)

    def _alone(self, kernel: Kernel) -> Part:
        own = self._curves.get((kernel.op, kernel.precision))
        if own is not None:
            return Part(kernel, own(kernel))
        for op, precision in self._stand_ins(kernel):
            curve = self._curves.get((op, precision))
            if curve is not None:
                found = curve(kernel)
                strange = math.hypot(found.deviation, _STRANGE)
                return Part(kernel, Estimate(found.ms, strange, found.nearest), stand_in=True)
        raise UnknownCostError(f"nothing like {kernel.op} in {kernel.precision} was measured")

    def overhead(self, precision: Precision) -> float:
        """What any graph takes."""
        for known in (precision, *_FLOATS):
            taken = [p.ms for p in self.points if (p.op, p.precision) == ("overhead", known)]
            if taken:
                return statistics.median(taken)
        return 0.0

    def fixed(self, moved: int, precision: Precision) -> float:
        """What a graph takes that reads and puts out so many bytes and does nothing else."""
        curves = (self._curves.get(("entry", known)) for known in (precision, *_FLOATS))
        curve = next((curve for curve in curves if curve is not None), None)
        entry = 0.0 if curve is None else curve(Kernel("entry", precision, (), 0, moved)).ms
        return self.overhead(precision) + entry

    @cached_property
    def _curves(self) -> dict[tuple[KernelClass, Precision], Curve]:
        grouped: dict[tuple[KernelClass, Precision], list[Cost]] = defaultdict(list)
        for point in self.points:
            grouped[point.op, point.precision].append(point)
        return {key: Curve(tuple(points)) for key, points in grouped.items()}

    def _stand_ins(self, kernel: Kernel) -> Sequence[tuple[KernelClass, Precision]]:
        """What may stand in, the best first. Activations of 16 bits are like nothing else: LiteRT's kernels
        for them take up to a hundred times as long as its float ones."""
        if kernel.precision == "w8a16":
            return [(op, "w8a16") for op in _LIKE.get(kernel.op, ())]
        precisions: list[Precision] = [kernel.precision]
        precisions += [p for p in _FLOATS if p != kernel.precision]
        return [(op, p) for p in precisions for op in (kernel.op, *_LIKE.get(kernel.op, ()))]


def predict(
    model: ir.Model,
    tensors: Mapping[str, TensorPlan],
    runtime: Runtime,
    costs: CostSource,
    batch: int = 1,
    sparse: Collection[str] = (),
) -> Prediction:
    """What a float graph takes when ``tensors`` are quantized.

    Products whose weights are 2:4 sparse, and those of the nodes ``sparse`` as if theirs were, take as many
    times less as the runtime gains by that. Raises UnknownSizeError where a size other than the batch is
    free, UnknownCostError where nothing like a kernel was measured.
    """
    gain = runtime.sparsity_gain
    thin = {name for name, zeros in product_zeros(model).items() if zeros} if gain > 1 else set()
    thin |= set(sparse) if gain > 1 else set()
    found = kernels(model, tensors, runtime, batch)
    waits = [0.0] * len(found) if costs.cache is None else costs.cache.extra(found)
    parts = tuple(
        _changed(costs.kernel(kernel), 1.0 if thin.isdisjoint(kernel.nodes) else gain, wait)
        for kernel, wait in zip(found, waits, strict=True)
    )
    return Prediction(
        parts, costs.fixed(_moved(model, batch), "int8" if tensors else runtime.float_precision)
    )


def _changed(part: Part, times: float = 1.0, more: float = 0.0) -> Part:
    """The part so many times as fast, and so many milliseconds later."""
    if times == 1 and not more:
        return part
    return replace(part, estimate=replace(part.estimate, ms=part.estimate.ms / times + more))


def _moved(model: ir.Model, batch: int) -> int:
    """Bytes of the graph's inputs and outputs."""
    total = 0
    for value in (*model_inputs(model), *model.graph.outputs):
        shape = static_shape(value, batch)
        if shape is not None and value.dtype is not None:
            total += math.ceil(math.prod(shape) * value.dtype.itemsize)
    return total
