"""Hazards that a handful of samples show before calibration, for every runtime that may be built for.

One pass over the samples finds ranges; where a runtime would compute selections or Softmax in integers, or
saturates, a second one looks at the codes that those ranges give. Nothing is searched, and memory stays flat.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from deploy.errors import UnsupportedError
from deploy.graph.blocks import Block, partition
from deploy.graph.hazards import Hazard
from deploy.quantize.adopt import adopt
from deploy.quantize.assign import Assignment, assign
from deploy.quantize.dead_channels import WORTH, activations, dead_channels, saving
from deploy.quantize.place import Chain, Placement, find_chains, observed_values, place
from deploy.quantize.range_hazards import Measured, Params, channels, collapsed, range_hazards
from deploy.quantize.ranges import Histogram
from deploy.quantize.saturation import emulate, worst
from deploy.quantize.seen import Samples, Seen, look
from deploy.quantize.tie_hazards import tie_hazards
from deploy.spec.plan import QuantParams, TensorPlan
from deploy.spec.profile import Runtime
from deploy.spec.tensors import Precision

SATURATION_ERROR = 0.05
"""Relative error of a layer's results by saturation alone, from which it is warned of: 26 dB, more than the
noise of 8 bits."""

MEASURED: dict[str, tuple[str, ...]] = {
    "swish": ("swish-range",),
    "concat-ranges": ("concat-ranges",),
    "detection-head": ("concat-ranges",),
}
"""Kinds that the graph alone can only fear, and what real data say in their place."""


def data_hazards(
    model: ir.Model,
    runtimes: Sequence[Runtime],
    samples: Samples,
    *,
    excluded: Collection[str] = (),
    imported: Mapping[str, TensorPlan] | None = None,
) -> dict[str, list[Hazard]]:
    """The hazards by runtime, from the fused float graph ``model``; ``excluded`` nodes stay float.

    On noise they are notes, since its ranges are no real ones. A model that came quantized has ``imported``
    parameters, which are judged as they are.
    """
    blocks = partition(model)
    chains = {runtime.name: find_chains(model, blocks, runtime) for runtime in runtimes}
    axes: dict[str, int | None] = dict.fromkeys(
        value for r in runtimes if r.quant is not None for value in observed_values(model, chains[r.name], r)
    )
    axes |= {name: axis for name, axis in channels(model).items() if name in axes}
    axes |= activations(model)
    seen = look(samples.run, axes)
    always = list(_dead(model, seen, samples))
    found = {}
    for runtime in runtimes:
        measured = []
        if runtime.quant is not None and runtime.quant.activation != "int16":
            view = _View(model, blocks, chains[runtime.name], runtime, seen, excluded, imported or {})
            measured = view.hazards(samples)
        found[runtime.name] = always + [
            Hazard(node, kind, f"{text} ({samples})", "note" if samples.random else "warning")
            for kind, nodes, text in collapsed(measured)
            for node in nodes
        ]
    return found


class _View:
    """What one runtime would make of the values: the parameters that these few samples alone would give."""

    def __init__(
        self,
        model: ir.Model,
        blocks: Sequence[Block],
        chains: Sequence[Chain],
        runtime: Runtime,
        seen: Mapping[str, Seen],
        excluded: Collection[str],
        imported: Mapping[str, TensorPlan],
    ) -> None:
        assert runtime.quant is not None
        self.model, self.seen, self.rules, self.imported = model, seen, runtime.quant, imported
        kept = {*excluded, *_unbounded(model, seen)}
        precision: dict[str, Precision] = {block.id: "int8" for block in blocks}
        self.placement = place(model, blocks, precision, chains, runtime, kept)
        self.tensors = self._assigned(replace(self.placement, weights={}, biases={})).tensors

    def params(self, value: ir.Value, reader: ir.Node | None) -> QuantParams | None:
        """As `range_hazards.Params` has it."""
        plan = self.tensors.get(value.name or "")
        if plan is None or (reader is not None and plan.readers and reader.name not in plan.readers):
            return None
        return plan if reader is None else plan.uses.get(reader.name or "", plan)

    def hazards(self, samples: Samples) -> list[Measured]:
        params: Params = self.params
        found = list(range_hazards(self.model, self.seen, params, samples.run))
        found += tie_hazards(self.model, params, samples.run)
        found += self._saturation(samples)
        return found

    def _saturation(self, samples: Samples) -> Iterator[Measured]:
        if self.rules.pairs == "exact" or not (self.imported or self.rules.weight_bits > 7):
            return
        assignment = self._assigned(self.placement)
        cure = "give the float model, which then gets them" if self.imported else "set weight_bits = 7"
        for node, found in worst(emulate(self.placement, assignment, self.rules, samples.run)):
            if found.error <= SATURATION_ERROR:
                return
            yield Measured(
                node,
                "saturation",
                f"{found.share:.1%} of the pairs of products leave 16 bits on CPUs without 8-bit dot "
                f"products, an error of {found.error:.0%} of the result",
                f"weights of 7 bits never do (2 x 255 x 64 < 32768): {cure}",
                found.error,
            )

    def _assigned(self, placement: Placement) -> Assignment:
        if self.imported:
            try:
                return adopt(self.model, self.imported, self.rules)
            except UnsupportedError:  # the build refuses it and says why; there is nothing to look at
                return Assignment({}, {})
        histograms = {}
        for name, found in self.seen.items():
            histograms[name] = Histogram()
            if found.bounded:
                ends = np.array([found.low, found.high], np.float32)
                histograms[name].add(ends, found.low, found.high)
        return assign(self.model, placement, histograms, self.rules, "minmax")


def _unbounded(model: ir.Model, seen: Mapping[str, Seen]) -> Iterator[str]:
    """Nodes that read or make a value that becomes infinite or no number: they stay float."""
    endless = {name for name, found in seen.items() if found.endless}
    for node in model.graph:
        if any(v is not None and v.name in endless for v in (*node.inputs, *node.outputs)):
            yield node.name or ""


def _dead(model: ir.Model, seen: Mapping[str, Seen], samples: Samples) -> Iterator[Hazard]:
    dead = dead_channels(model, seen)
    multiplies, weights = saving(model, dead)
    if samples.random or max(multiplies, weights) < WORTH:
        return
    count, total = sum(d.count for d in dead), sum(d.total for d in dead)
    text = (
        f"{count} of {total} channels of {len(dead)} activation{'s' if len(dead) > 1 else ''} never changed; "
        f"without them the network has up to {multiplies:.1%} fewer MACs and {weights:.1%} fewer parameters: "
        f"look at them over all data, then prune them ({samples})"
    )
    for found in dead:
        yield Hazard(found.node, "dead-activation", text, "note")
