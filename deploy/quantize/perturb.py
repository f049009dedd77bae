"""What a treatment changes in one block: the weights that it replaces, and the values that it rounds.

Where values are rounded follows from a runtime's rules (`deploy/quantize/place.py`) when that block alone is
INT8. Without a runtime it is `PLAIN`: the weights of a product and what it reads, so that the error of a
value belongs to the block that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import Block
from deploy.graph.edit import constant, is_constant, sole_consumer
from deploy.graph.pattern import FOUR, mask_2_4
from deploy.graph.weights import large_weights
from deploy.quantize.assign import common_axis, stored_scale
from deploy.quantize.place import Chain, Placement, find_chains, observed_values, place
from deploy.quantize.ranges import Histogram, find_range
from deploy.quantize.weights import weight_scales
from deploy.spec.profile import QuantRules, Runtime
from deploy.spec.project import Observer
from deploy.spec.sensitivity import Treatment
from deploy.spec.tensors import RANGES

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
RECURRENT = ("LSTM", "GRU", "RNN")
PLAIN = Runtime(
    name="plain",
    onnx_opset=21,
    quant=QuantRules(
        activation="uint8",
        bias="float",
        compute=(*_PRODUCTS, *RECURRENT),
        float_output=(*_PRODUCTS, *RECURRENT),
        source="no runtime: what every integer product rounds",
        date=date(2026, 11, 21),
    ),
    source="no runtime",
    date=date(2026, 11, 21),
)
"""The rules where no runtime was named."""

PRUNED = 0.3
"""The share of output channels that the treatment ``prune`` clears."""
_WIDTHS: Mapping[Treatment, tuple[int, int]] = {"int8": (8, 8), "int4": (4, 4), "w8a16": (8, 16)}
"""Bits of weights and of activations."""
_INPUT_AXIS = {"Conv": 1, "ConvTranspose": 0}


@dataclass(frozen=True)
class Rounding:
    """``(clamp(round_half_even(x / scale) + zero, low, high) - zero) * scale``, as ``readers`` read it: nodes
    by name, everybody where empty."""

    scale: float
    zero: int
    low: int
    high: int
    readers: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[int, int]:
        """Of the rounded ``x / scale``, the zero point left out."""
        return self.low - self.zero, self.high - self.zero


@dataclass(frozen=True)
class WeightChange:
    """A weight rounded to codes in [-limit, limit] by ``scale``, or cleared where it is not ``kept``.

    Both can be broadcast to it. ``axis`` is that of its output channels; ``added`` names what goes with them.
    """

    axis: int | None
    scale: np.ndarray | None = None
    limit: int = 0
    kept: np.ndarray | None = None
    added: tuple[str, ...] = ()

    def of(self, array: np.ndarray) -> np.ndarray:
        """The weight afterwards."""
        if self.kept is not None:
            return np.asarray(array * self.kept)
        assert self.scale is not None
        codes = np.clip(np.rint(array / self.scale), -self.limit, self.limit)
        return np.asarray(codes * self.scale, array.dtype)


@dataclass(frozen=True)
class Setting:
    """A graph, its blocks, the rules and the ranges that treatments follow."""

    graph: ir.Model
    blocks: tuple[Block, ...]
    runtime: Runtime = PLAIN
    histograms: Mapping[str, Histogram] | None = None
    observer: Observer = "mse"

    @cached_property
    def chains(self) -> list[Chain]:
        return find_chains(self.graph, self.blocks, self.runtime)

    @cached_property
    def nodes(self) -> dict[str, ir.Node]:
        return {node.name or "": node for node in self.graph.graph}

    @cached_property
    def unbounded(self) -> frozenset[str]:
        """Nodes that read or make a value which becomes infinite."""
        ranges = self.histograms or {}
        values = {name for name, histogram in ranges.items() if not histogram.bounded}
        return frozenset(
            node.name or ""
            for node in self.graph.graph
            if any(v is not None and v.name in values for v in (*node.inputs, *node.outputs))
        )

    @cached_property
    def _large(self) -> dict[str, list[tuple[ir.Node, int]]]:
        return large_weights(self.graph)

    @cached_property
    def _placements(self) -> dict[str, Placement]:
        return {
            block.id: place(
                self.graph, self.blocks, {block.id: "int8"}, self.chains, self.runtime, self.unbounded
            )
            for block in self.blocks
        }


def values_to_observe(setting: Setting) -> list[str]:
    """The values whose ranges the treatments need."""
    return observed_values(setting.graph, setting.chains, setting.runtime)


def treatable(setting: Setting, treatments: tuple[Treatment, ...]) -> Iterator[tuple[Block, Treatment]]:
    """Blocks with the treatments that change anything in them, in graph order."""
    for block in setting.blocks:
        for treatment in treatments:
            if _places(setting, block, treatment) or roundings(setting, block, treatment):
                yield block, treatment


def roundings(setting: Setting, block: Block, treatment: Treatment) -> dict[str, Rounding]:
    """The values that the treatment rounds, by name; none for one that concerns weights alone.

    Raises KeyError for a value without a histogram.
    """
    rules = setting.runtime.quant
    if treatment not in _WIDTHS or rules is None or setting.histograms is None:
        return {}
    placement = setting._placements[block.id]
    members: dict[str, list[str]] = {}
    for name, group in placement.groups.items():
        members.setdefault(group, []).append(name)
    fixed = {
        chain.output.name: rules.fixed_output[chain.nodes[-1].op_type]
        for chain in placement.chains
        if chain.nodes[-1].op_type in rules.fixed_output
    }
    bits = _WIDTHS[treatment][1]
    bottom, top = _codes(rules, bits)
    found = {}
    for group, names in members.items():
        floats = [name for name in names if name in setting.histograms]
        prescribed = next((fixed[name] for name in names if name in fixed), None)
        if prescribed is not None and bits == 8:
            scale, zero = prescribed.scale, prescribed.zero_point
        elif floats:
            ranges = [setting.histograms[name] for name in floats]
            own = placement.rules_of(group, rules)
            scale, zero = _parameters(ranges, setting.observer, own, bottom, top)
        for name in floats:
            found[name] = Rounding(scale, zero, bottom, top, placement.readers.get(name, ()))
    return found


def _codes(rules: QuantRules, bits: int) -> tuple[int, int]:
    """The smallest and largest code: the rules' own at 8 bits, as many of that kind at others."""
    if bits == 8 and rules.activation != "int16":
        return RANGES[rules.activation]
    if bits == 16 or rules.activation != "uint8":
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _parameters(
    ranges: list[Histogram], observer: Observer, rules: QuantRules, bottom: int, top: int
) -> tuple[float, int]:
    merged = Histogram()
    for histogram in ranges:
        merged.merge(histogram)
    symmetric = rules.symmetric_activation or top > RANGES["uint8"][1]
    low, high = find_range(merged, observer, symmetric=symmetric, levels=top - bottom)
    high = high if low < high else 1.0
    width = max(-low, high) / top if symmetric else (high - low) / (top - bottom)
    scale = float(stored_scale(np.asarray([width]), rules)[0])
    return scale, 0 if symmetric else min(max(round(bottom - low / scale), bottom), top)


def weight_changes(setting: Setting, block: Block, treatment: Treatment) -> dict[str, WeightChange]:
    """What becomes of each weight that the treatment changes, by name. Those that are not finite stay."""
    found = {}
    for name, (node, slot) in _places(setting, block, treatment).items():
        array = constant(setting.graph.graph.initializers[name])
        if array is None or not np.isfinite(array).all():
            continue
        axis = 1 if node.op_type in RECURRENT else common_axis([(node, slot)], array.ndim)
        if treatment == "2:4":
            found[name] = WeightChange(axis, kept=mask_2_4(np.abs(array), _input_axis(node, array.ndim)))
        elif treatment != "prune":
            found[name] = _rounded(setting, array, axis, node.op_type, treatment)
        elif axis is not None:
            kept = ~_smallest_channels(array, axis)
            added = tuple(_added(node, array.shape[axis]))
            found[name] = WeightChange(axis, kept=_along(kept, array.ndim, axis), added=added)
    return found


def changed_weights(setting: Setting, changes: Mapping[str, WeightChange]) -> dict[str, np.ndarray]:
    """The constants in question as these changes leave them."""
    changed = {}
    for name, change in changes.items():
        array = constant(setting.graph.graph.initializers[name])
        assert array is not None
        changed[name] = change.of(array)
        for bias in change.added:
            before = constant(setting.graph.graph.initializers[bias])
            assert before is not None and change.kept is not None
            changed[bias] = before * change.kept.reshape(-1)
    return changed


def _places(setting: Setting, block: Block, treatment: Treatment) -> dict[str, tuple[ir.Node, int]]:
    """The weights that the treatment changes, with a node of the block that reads each, and where."""
    if treatment in _WIDTHS:
        return _integer_weights(setting, block)
    if treatment == "w4":
        uses = ((name, use) for name, all_ in setting._large.items() for use in all_)
        return {name: use for name, use in uses if use[0].name in block.nodes}
    found = {}
    nodes = [setting.nodes[name] for name in block.nodes]
    for node in nodes:
        value = node.inputs[1] if node.op_type in _PRODUCTS and len(node.inputs) > 1 else None
        if value is None or not is_constant(value) or value.shape is None or value.name is None:
            continue
        shape = [int(size) for size in value.shape.numpy()]
        if treatment == "2:4" and len(shape) > 1 and shape[_input_axis(node, len(shape))] % FOUR == 0:
            found[value.name] = (node, 1)
        elif treatment == "prune" and not any(v.is_graph_output() for n in nodes for v in n.outputs):
            axis = common_axis([(node, 1)], len(shape))
            if axis is not None and int(PRUNED * shape[axis]):
                found[value.name] = (node, 1)
    return found


def _integer_weights(setting: Setting, block: Block) -> dict[str, tuple[ir.Node, int]]:
    """The weights that become integers with the block, by the rules; recurrent ones where these compute
    such."""
    placement = setting._placements[block.id]
    found = {name: uses[0] for name, uses in placement.weights.items()}
    for chain in placement.chains:
        for node in chain.nodes:
            for slot in (1, 2) if node.op_type in RECURRENT else ():
                value = node.inputs[slot]
                if value is not None and value.name and is_constant(value):
                    found[value.name] = (node, slot)
    return found


def _rounded(
    setting: Setting, array: np.ndarray, axis: int | None, op: str, treatment: Treatment
) -> WeightChange:
    rules = setting.runtime.quant
    bits = 4 if treatment == "w4" else _WIDTHS[treatment][0]
    limit = 2 ** (bits - 1) - 1
    along = axis
    if treatment != "w4" and rules is not None:
        limit = min(limit, rules.largest_weight)
        along = None if not rules.per_channel or op in rules.per_tensor else axis
    scale = weight_scales(array, along, limit, search=bits < 8)
    if treatment != "w4" and rules is not None:
        scale = stored_scale(scale, rules).astype(np.float32)
    return WeightChange(axis, scale=scale if along is None else _along(scale, array.ndim, along), limit=limit)


def _input_axis(node: ir.Node, rank: int) -> int:
    """The axis of a product's weights that it sums over, and of which 2:4 keeps two in four."""
    if node.op_type == "Gemm":
        return 1 if node.attributes.get_int("transB", 0) else 0
    return _INPUT_AXIS.get(node.op_type, rank - 2)


def _smallest_channels(array: np.ndarray, axis: int) -> np.ndarray:
    """Which slices along ``axis`` go: `PRUNED` of them, rounded down, those of smallest L2 norm."""
    norms = np.square(array, dtype=np.float64).sum(axis=tuple(i for i in range(array.ndim) if i != axis))
    gone = np.zeros(len(norms), bool)
    gone[np.argsort(norms, kind="stable")[: int(PRUNED * len(norms))]] = True
    return gone


def _along(numbers: np.ndarray, rank: int, axis: int) -> np.ndarray:
    return numbers.reshape([-1 if i == axis else 1 for i in range(rank)])


def _added(node: ir.Node, channels: int) -> Iterator[str]:
    """The constant that is added to each output channel, in the product itself or behind it."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    following = sole_consumer(node.outputs[0])
    if node.op_type == "MatMul" and following is not None and following.op_type == "Add":
        value = next((v for v in following.inputs if is_constant(v)), None)
    array = constant(value)
    if array is not None and value is not None and value.name and array.shape == (channels,):
        yield value.name
