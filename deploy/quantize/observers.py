"""The range of each activation by what it costs the layers that read it.

An observer (minmax, percentile, mse, kl) looks at one tensor's own distribution. What counts is what rounding
and clipping do to the results of the kernels behind: a rare large value may decide them, or not matter. So
the candidates, and a grid of ranges wider and narrower than the extremes, are tried on a few samples: one
graph holds the float nodes and beside each reading kernel a copy that reads one operand through Q/DQ, whose
scale and zero point are inputs of the graph. One run tries one candidate for all values at once. What wins is
held against what was asked for on other samples before it is taken: without that, two networks lost 1.5 dB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch
from deploy.data.dataset import Dataset, at_once
from deploy.execute.reference import open_graph
from deploy.graph.edit import fresh_name, names
from deploy.quantize.assign import activation_params
from deploy.quantize.place import Chain, Placement
from deploy.quantize.ranges import Histogram, Range, range_by
from deploy.quantize.rung import Rung, Step
from deploy.spec.profile import QuantRules
from deploy.spec.project import Observer

_GRID = (1.15, 0.85, 0.7, 0.55, 0.4)
"""Ranges tried besides those of the observers, as parts of the largest magnitude."""
_LEAST_GAIN, _LEAST_GAIN_CUT = 0.8, 0.63
"""What was asked for stays unless another candidate leaves less than this share of its noise, 1 dB. One that
cuts off more must win 2 dB: layers behind average out what rounding adds, and not what clipping takes."""
_ASKED, _BEST = "asked", "best"
_BATCH = 8


@dataclass(frozen=True)
class _Probe:
    """A kernel's copy: the group whose parameters it reads by, and the outputs with the two powers."""

    group: str
    signal: str
    noise: str


def apply(
    model: ir.Model,
    placement: Placement,
    histograms: Mapping[str, Histogram],
    rules: QuantRules,
    dataset: Dataset,
    *,
    observer: Observer,
    samples: int,
    threads: int = 1,
) -> Rung[dict[str, Range]]:
    """The range of every group of ``placement`` (by its leader), as `assign` takes it.

    ``observer`` is what was asked for; it stays where no other wins 1 dB, and where nothing reads a value in
    integers. Raises KeyError for a value without a histogram.
    """
    merged = _merged(placement, histograms)
    own = {group: placement.rules_of(group, rules) for group in placement.groups.values()}
    chosen = {group: range_by(own[group], h, observer) for group, h in merged.items()}
    candidates = {group: _candidates(h, chosen[group], own[group]) for group, h in merged.items()}
    probing, probes = _probing(model, placement, rules)
    if not probes:
        return Rung("ranges", chosen, (), 0.0)
    rows = np.linspace(0, len(dataset) - 1, min(len(dataset), 4 * samples)).astype(np.int64)
    first, others = dataset.select(rows[::4]), dataset.select(np.delete(rows, np.s_[::4]))
    noise = _measure(probing, probes, candidates, own, first, threads)
    best = {group: min(errors, key=errors.__getitem__) for group, errors in noise.items()}
    finals = {g: {_ASKED: candidates[g][_ASKED], _BEST: candidates[g][name]} for g, name in best.items()}
    steps = []
    for group, errors in _measure(probing, probes, finals, own, others or first, threads).items():
        low, high = finals[group][_BEST]
        asked = chosen[group]
        least = _LEAST_GAIN if low <= asked[0] and high >= asked[1] else _LEAST_GAIN_CUT
        if errors[_BEST] < least * errors[_ASKED]:
            chosen[group] = low, high
            what = f"{best[group]}: {low:.4g} to {high:.4g}"
            steps.append(Step(group, what, errors[_ASKED], errors[_BEST]))
    runs = len(first) * len(next(iter(candidates.values()))) + len(others) * 2
    return Rung("ranges", chosen, tuple(steps), 2 * runs / len(dataset))


def _merged(placement: Placement, histograms: Mapping[str, Histogram]) -> dict[str, Histogram]:
    merged: dict[str, Histogram] = {}
    for name, group in placement.groups.items():
        merged.setdefault(group, Histogram()).merge(histograms[name])
    return {group: h for group, h in merged.items() if h.bounded}


def _candidates(histogram: Histogram, asked: Range, rules: QuantRules) -> dict[str, Range]:
    found = {_ASKED: asked}
    for observer in get_args(Observer):
        found[observer] = range_by(rules, histogram, observer)
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if histogram.total == 0:
        low = high = 0.0
    for part in _GRID:
        limit = part * max(-low, high)
        # A wider range keeps what is one-sided one-sided.
        found[f"{part:g} of the extremes"] = (
            (low * part, high * part) if part > 1 else (max(low, -limit), min(high, limit))
        )
    return found


def _measure(
    model: ir.Model,
    probes: list[_Probe],
    candidates: Mapping[str, Mapping[str, Range]],
    rules: Mapping[str, QuantRules],
    dataset: Dataset,
    threads: int,
) -> dict[str, dict[str, float]]:
    """Noise over signal, summed over the kernels that read a group: group -> candidate -> share.

    ``rules`` are those of each group.
    """
    groups = [g for g in dict.fromkeys(probe.group for probe in probes) if g in candidates]
    tried = list(next(iter(candidates.values())))
    feeds: dict[str, dict[str, np.ndarray]] = {}
    for name in tried:
        feeds[name] = {}
        for group in dict.fromkeys(probe.group for probe in probes):
            params = activation_params(*candidates.get(group, {}).get(name, (0.0, 1.0)), rules[group])
            feeds[name][_scale(group)] = np.asarray(params.scale[0], np.float32)
            feeds[name][_zero(group)] = np.asarray(params.zero_point[0], rules[group].activation)
    wanted = [n for probe in probes for n in (probe.signal, probe.noise)]
    powers = {name: dict.fromkeys(wanted, 0.0) for name in tried}
    with open_graph(model, optimised=False, threads=threads, expose=wanted) as session:
        own = [spec for spec in session.inputs if spec.name not in feeds[tried[0]]]
        size = fixed_batch(own) or at_once(dataset, _BATCH)
        for batch in dataset.batches(size):
            if fixed_batch(own) and len(batch.ids) < size:
                break
            for name in tried:
                results = session.run({**batch.feeds, **feeds[name]}, wanted)
                for power in wanted:
                    powers[name][power] += float(results[power])
    return {
        group: {
            name: sum(
                powers[name][p.noise] / max(powers[name][p.signal], 1e-30) for p in probes if p.group == group
            )
            for name in tried
        }
        for group in groups
    }


def _probing(model: ir.Model, placement: Placement, rules: QuantRules) -> tuple[ir.Model, list[_Probe]]:
    """The graph with a copy of each integer kernel for each group that it reads."""
    copy = model.clone()
    nodes = {node.name: node for node in copy.graph}
    taken = names(copy)
    probes: list[_Probe] = []
    parameters: dict[str, tuple[ir.Value, ir.Value]] = {}
    quantized: dict[str, ir.Value] = {}
    for number, chain in enumerate(placement.chains):
        groups = dict.fromkeys(placement.groups.get(v.name or "", "") for _, v in chain.inputs())
        for group in groups:
            if not group:
                continue
            if group not in parameters:
                parameters[group] = _parameters(copy, group, rules)
            members = [nodes[node.name] for node in chain.nodes]
            values = {v.name or "" for _, v in chain.inputs() if placement.groups.get(v.name or "") == group}
            for name in values - quantized.keys():
                value = next(v for n in members for v in n.inputs if v is not None and v.name == name)
                quantized[name] = _pair(copy, value, parameters[group], taken)
            result = _twin(
                copy, chain, members, {n: quantized[n] for n in values}, f"~{number}~{group}", taken
            )
            probes.append(_powers(copy, members[-1].outputs[0], result, group, taken))
    copy.graph.sort()
    return copy, probes


def _parameters(model: ir.Model, group: str, rules: QuantRules) -> tuple[ir.Value, ir.Value]:
    scale = ir.Value(name=_scale(group), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    kind = ir.DataType.from_numpy(np.dtype(rules.activation))
    zero = ir.Value(name=_zero(group), type=ir.TensorType(kind), shape=ir.Shape([]))
    model.graph.inputs.extend([scale, zero])
    return scale, zero


def _scale(group: str) -> str:
    return f"{group}~scale"


def _zero(group: str) -> str:
    return f"{group}~zero"


def _append(model: ir.Model, op: str, inputs: list[ir.Value], stem: str, taken: set[str]) -> ir.Value:
    name = fresh_name(model, stem, taken)
    node = ir.node(op, inputs, name=name)
    node.outputs[0].name = name
    node.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.append(node)
    return node.outputs[0]


def _pair(model: ir.Model, value: ir.Value, by: tuple[ir.Value, ir.Value], taken: set[str]) -> ir.Value:
    codes = _append(model, "QuantizeLinear", [value, *by], f"{value.name}~q", taken)
    assert by[1].dtype is not None
    codes.dtype = by[1].dtype
    return _append(model, "DequantizeLinear", [codes, *by], f"{value.name}~dq", taken)


def _twin(
    model: ir.Model,
    chain: Chain,
    members: list[ir.Node],
    operands: Mapping[str, ir.Value],
    suffix: str,
    taken: set[str],
) -> ir.Value:
    """A copy of a kernel that reads ``operands`` in place of the values of these names; its result."""
    inner: dict[ir.Value, ir.Value] = {}
    entering = {(node.name, value.name) for node, value in chain.inputs()}
    for node in members:
        inputs = []
        for value in node.inputs:
            entered = value is not None and (node.name, value.name) in entering
            operand = operands.get(value.name or "") if entered and value is not None else None
            inputs.append(operand or (None if value is None else inner.get(value, value)))
        name = fresh_name(model, f"{node.name}{suffix}", taken)
        twin = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=name,
        )
        model.graph.append(twin)
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            new.name, new.type, new.shape = (
                fresh_name(model, f"{old.name}{suffix}", taken),
                old.type,
                old.shape,
            )
            inner[old] = new
    return inner[members[-1].outputs[0]]


def _powers(model: ir.Model, exact: ir.Value, found: ir.Value, group: str, taken: set[str]) -> _Probe:
    difference = _append(model, "Sub", [exact, found], f"{found.name}~difference", taken)
    powers = []
    for value, stem in ((exact, "signal"), (difference, "noise")):
        name = fresh_name(model, f"{found.name}~{stem}", taken)
        power = ir.node("ReduceSumSquare", [value], {"keepdims": 0}, name=name)
        power.outputs[0].name, power.outputs[0].dtype = power.name, ir.DataType.FLOAT
        power.outputs[0].shape = ir.Shape([])
        model.graph.append(power)
        powers.append(power.name or "")
    return _Probe(group, powers[0], powers[1])
