"""Channels whose activation never changes over a few samples, and what the network would be without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import ACTIVATION
from deploy.graph.cost import NodeCost, macs, node_costs, parameters
from deploy.graph.edit import constant, is_constant
from deploy.quantize.seen import PASSES, Seen, channel_axis, maker

FEWEST_NUMBERS = 256
"""Numbers seen in each channel, from which its silence says anything: a rare feature is often 0."""
WORTH = 0.01
"""The part of all MACs or parameters from which dead channels are worth a word."""


@dataclass(frozen=True)
class Dead:
    """``count`` of ``total`` channels behind an activation, and what they cost: their own weights, and those
    by which others read them."""

    node: str
    count: int
    total: int
    macs: float
    parameters: float


def activations(model: ir.Model) -> dict[str, int]:
    """The results of activations whose channels are known: name -> axis."""
    found = {}
    for node in model.graph:
        if node.op_type in ACTIVATION and node.outputs[0].name:
            axis = channel_axis(node.outputs[0])
            if axis is not None:
                found[node.outputs[0].name] = axis
    return found


def dead_channels(model: ir.Model, seen: Mapping[str, Seen]) -> list[Dead]:
    """Activations with channels that were constant in all samples, in graph order.

    Channels whose weights are all zero are left out: those are known without data.
    """
    costs: dict[str, NodeCost] = {}  # most networks have no such channels: nothing is counted for them
    found = []
    for node in model.graph:
        name = node.outputs[0].name or "" if node.outputs else ""
        stats = seen.get(name)
        if node.op_type not in ACTIVATION or stats is None or stats.lows is None or stats.highs is None:
            continue
        if stats.numbers < FEWEST_NUMBERS or not stats.bounded:
            continue
        dead = stats.lows == stats.highs
        source = maker(node.outputs[0])
        if source is not None:
            dead &= ~_without_weights(source, dead.size)
        count = int(np.count_nonzero(dead))
        if count:
            costs = costs or {cost.node: cost for cost in node_costs(model)}
            touched = [costs[n] for n in _touched(node.outputs[0], source) if n in costs]
            part = count / dead.size
            found.append(
                Dead(node.name or "", count, dead.size, part * _macs(touched), part * _parameters(touched))
            )
    return found


def saving(model: ir.Model, dead: list[Dead]) -> tuple[float, float]:
    """The parts of all MACs and of all parameters that pruning them would save, at most."""
    if not dead:
        return 0.0, 0.0
    all_macs, all_parameters = macs(model) or 0, parameters(model)
    return (
        min(1.0, sum(d.macs for d in dead) / all_macs) if all_macs else 0.0,
        min(1.0, sum(d.parameters for d in dead) / all_parameters) if all_parameters else 0.0,
    )


def _macs(costs: list[NodeCost]) -> float:
    return float(sum(cost.macs or 0 for cost in costs))


def _parameters(costs: list[NodeCost]) -> float:
    return float(sum(cost.parameters for cost in costs))


def _touched(value: ir.Value, source: ir.Node | None) -> Iterator[str]:
    """The layers that shrink with the channels of ``value``: its maker and those that read it."""
    if source is not None:
        yield source.name or ""
    waiting, known = [value], {value}
    while waiting:
        for reader in waiting.pop().consumers():
            data = [v for v in reader.inputs if v is not None and not is_constant(v)]
            if reader.op_type in ("Conv", "MatMul", "Gemm"):
                yield reader.name or ""
                passes = reader.op_type == "Conv" and reader.attributes.get_int("group", 1) > 1
            else:
                passes = reader.op_type in PASSES and len(data) == 1
            if passes and reader.outputs[0] not in known:
                known.add(reader.outputs[0])
                waiting.append(reader.outputs[0])


def _without_weights(source: ir.Node, channels: int) -> np.ndarray:
    """Which output channels have no weights at all."""
    weight = constant(source.inputs[1]) if len(source.inputs) > 1 else None
    if weight is None or source.op_type == "ConvTranspose" or weight.ndim < 2:
        return np.zeros(channels, bool)
    first = source.op_type == "Conv" or source.attributes.get_int("transB", 0) == 1
    rows = weight.reshape(len(weight), -1) if first else weight.reshape(-1, weight.shape[-1]).T
    return np.asarray(~rows.any(axis=1) if len(rows) == channels else np.zeros(channels, bool))
