"""Operands of unlike ranges that would share one scale, given each its own where that wins enough.

Where a Concat joins boxes of 640 with scores of 1, or a Split takes such apart, one scale for all leaves the
small ones a few codes. Left out of the integer operations such a node moves no codes any more: its operands
keep scales of their own, and the runtime requantizes (ONNX Runtime: QLinearConcat) or computes it in float.
Where its result is read in integers that has one scale again and little is won; what is decided by is the
error of what readers get, measured on samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.data.dataset import Dataset
from deploy.execute.observe import observe
from deploy.graph.blocks import Block
from deploy.graph.edit import is_constant
from deploy.graph.qdq import insert
from deploy.quantize.assign import Assignment, assign
from deploy.quantize.place import Chain, Placement, place
from deploy.quantize.ranges import Histogram
from deploy.quantize.rung import Rung, Step
from deploy.spec.plan import TensorPlan
from deploy.spec.profile import Runtime
from deploy.spec.project import Observer
from deploy.spec.tensors import Precision

_UNLIKE = 4.0
"""Largest over smallest range of what shares a scale: below it two bits are lost at most."""
_LEAST_GAIN = 0.5
"""A split costs a requantization: it must at least halve the noise (3 dB)."""


@dataclass(frozen=True)
class _Read:
    """Something whose error counts: a value, or the part of it along ``axis`` from ``start`` to ``end``."""

    value: str
    axis: int = 0
    start: int = 0
    end: int | None = None

    def of(self, array: np.ndarray) -> np.ndarray:
        if self.end is None:
            return array
        return np.take(array, np.arange(self.start, self.end), self.axis)


def apply(
    model: ir.Model,
    blocks: Sequence[Block],
    precision: Mapping[str, Precision],
    chains: Sequence[Chain],
    runtime: Runtime,
    histograms: Mapping[str, Histogram],
    dataset: Dataset,
    *,
    observer: Observer,
    samples: int,
    threads: int = 1,
    excluded: Collection[str] = (),
) -> Rung[frozenset[str]]:
    """Names of nodes to leave out of the integer operations, besides ``excluded``: give both to `place`."""
    rules = runtime.quant
    if rules is None:
        return Rung("split", frozenset(), (), 0.0)

    def planned(more: Collection[str]) -> tuple[Placement, Assignment]:
        assert rules is not None
        placement = place(model, blocks, precision, chains, runtime, {*excluded, *more})
        return placement, assign(model, placement, histograms, rules, observer)

    shared, together = planned(())
    chosen, steps, runs = [], [], 0
    for node in model.graph:
        if node.op_type not in (*rules.unify, *rules.forward) or not _unlike(node, shared, histograms):
            continue
        name = node.name or ""
        _, apart = planned([name])
        group = next(shared.groups[v.name] for v in node.outputs if v.name in shared.groups)
        members = {value for value, leader in shared.groups.items() if leader == group}
        reads = _reads(node, shared)
        errors = [
            _error(
                model, {n: a.tensors[n] for n in members if n in a.tensors}, reads, dataset, samples, threads
            )
            for a in (together, apart)
        ]
        runs += 4
        if errors[1] < _LEAST_GAIN * errors[0]:
            chosen.append(name)
            steps.append(Step(name, f"{node.op_type} with a scale for each operand", *errors))
        else:
            steps.append(Step(name, "left as it is: its readers would win little", errors[0], errors[0]))
    share = min(samples, len(dataset)) / len(dataset)
    return Rung("split", frozenset(chosen), tuple(steps), runs * share)


def _sides(node: ir.Node) -> Sequence[ir.Value]:
    """What shares a scale because of the node: operands of a Concat, results of a Split."""
    values = (
        [v for v in node.inputs if v is not None]
        if node.op_type in ("Concat", "Max", "Min")
        else node.outputs
    )
    return [v for v in values if not is_constant(v)]


def _unlike(node: ir.Node, placement: Placement, histograms: Mapping[str, Histogram]) -> bool:
    sides = _sides(node)
    if len(sides) < 2 or any(v.name not in placement.groups or v.name not in histograms for v in sides):
        return False
    if len({placement.groups[v.name or ""] for v in sides}) > 1:
        return False
    reach = [max(-histograms[v.name or ""].low, histograms[v.name or ""].high) for v in sides]
    return max(reach) > _UNLIKE * min(reach) and np.isfinite(max(reach))


def _reads(node: ir.Node, placement: Placement) -> list[_Read]:
    """The results of kernels that read what the node makes; part by part what is read otherwise."""
    found: list[_Read] = []
    for value in node.outputs:
        kernels = [c for c in placement.chains if any(v is value for _, v in c.inputs())]
        found += [_Read(chain.output.name or "") for chain in kernels]
        inside = {id(n) for chain in kernels for n in chain.nodes}
        if kernels and all(id(user) in inside for user, _ in value.uses()) and not value.is_graph_output():
            continue
        rank = 0 if value.shape is None else value.shape.rank()
        sizes = [None if v is None or v.shape is None else v.shape[_axis(node, rank)] for v in node.inputs]
        if node.op_type != "Concat" or not all(isinstance(size, int) for size in sizes):
            found.append(_Read(value.name or ""))
            continue
        ends = np.cumsum([size for size in sizes if isinstance(size, int)])
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            found.append(_Read(value.name or "", _axis(node, rank), int(start), int(end)))
    return found


def _axis(node: ir.Node, rank: int) -> int:
    return node.attributes.get_int("axis", 0) % max(rank, 1)


def _error(
    model: ir.Model,
    tensors: Mapping[str, TensorPlan],
    reads: Sequence[_Read],
    dataset: Dataset,
    samples: int,
    threads: int,
) -> float:
    """The mean of noise over signal of all ``reads`` when only ``tensors`` are quantized."""
    quantized = insert(model, tensors, {})
    made = {value.name for node in quantized.graph for value in node.outputs}
    outputs = {value.name for value in quantized.graph.outputs}
    name_of = {}
    for read in reads:
        plan = tensors.get(read.value)
        paired = plan is not None and not plan.readers and read.value not in outputs
        name_of[read.value] = f"{read.value}/dq" if paired and f"{read.value}/dq" in made else read.value
    signal, noise = np.zeros(len(reads)), np.zeros(len(reads))
    exact = observe(model, dataset, sorted(name_of), samples=samples, threads=threads)
    found = observe(quantized, dataset, sorted(set(name_of.values())), samples=samples, threads=threads)
    for one, other in zip(exact, found, strict=True):
        for i, read in enumerate(reads):
            a, b = read.of(one.values[read.value]), read.of(other.values[name_of[read.value]])
            signal[i] += float(np.square(a, dtype=np.float64).sum())
            noise[i] += float(np.square(a - b, dtype=np.float64).sum())
    return float(np.mean(noise / np.maximum(signal, 1e-30)))
