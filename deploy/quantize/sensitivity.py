"""How much noise INT8 adds to each block, block by block, each fed with the float graph's own values.

One graph holds every float node and, beside each INT8 block, a quantized copy of it that reads the float
values through Q/DQ pairs. So one run gives the signal-to-quantization-noise ratio of all blocks at once,
and no block is blamed for the noise of those before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch, run_samples
from deploy.data.dataset import Dataset
from deploy.execute.reference import open_graph
from deploy.graph.blocks import Block
from deploy.graph.edit import add_initializer, names
from deploy.graph.qdq import dequantize_array
from deploy.quantize.assign import Assignment
from deploy.spec.plan import QuantParams

_BATCH = 8
_FLOAT_ARITHMETIC = {"session.disable_quant_qdq": "1"}
"""Pairs are computed as they stand, so that a copy does what its block would do alone."""


def block_sqnr(
    model: ir.Model,
    blocks: Iterable[Block],
    assignment: Assignment,
    dataset: Dataset,
    *,
    samples: int,
    threads: int = 1,
) -> dict[str, float]:
    """Decibels by block id, for every block that holds a quantized value; infinite where nothing is lost."""
    shadow, probes = _shadowed(model, list(blocks), assignment)
    wanted = [name for pair in probes.values() for names_ in pair for name in names_]
    powers = dict.fromkeys(wanted, 0.0)
    with open_graph(shadow, threads=threads, expose=wanted, settings=_FLOAT_ARITHMETIC) as runner:
        size = fixed_batch(runner.inputs) or _BATCH
        for batch in dataset.batches(size, limit=samples):
            results = run_samples(runner, batch.feeds, size, wanted)
            for name in wanted:
                powers[name] += float(np.sum(results[name], dtype=np.float64))
    found = {}
    for block, pairs in probes.items():
        # The worst of a block's outputs stands for it.
        found[block] = min(_decibels(powers[signal], powers[noise]) for signal, noise in pairs)
    return found


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(max(signal, 1e-30) / noise)


def _shadowed(
    model: ir.Model, blocks: list[Block], assignment: Assignment
) -> tuple[ir.Model, dict[str, list[tuple[str, str]]]]:
    """The graph with a quantized copy of each block; per block the names of (signal, noise) powers."""
    copy = model.clone()
    graph = copy.graph
    taken = names(copy)
    nodes = {node.name: node for node in graph}
    constants: dict[str, ir.Value] = {}
    for name, codes in assignment.codes.items():
        real = dequantize_array(codes, assignment.tensors[name])
        constants[name] = add_initializer(copy, f"{name}~int8", real, taken)
    paired: dict[str, ir.Value] = {}
    probes: dict[str, list[tuple[str, str]]] = {}

    def quantized(value: ir.Value) -> ir.Value:
        """``value`` through its Q/DQ pair."""
        name = value.name or ""
        if name not in paired:
            paired[name] = _pair(copy, value, assignment.tensors[name], taken)
        return paired[name]

    for block in blocks:
        members = [nodes[name] for name in block.nodes]
        inner = {id(o) for node in members for o in node.outputs}
        shadow: dict[int, ir.Value] = {}

        def operand(
            value: ir.Value | None, inner: set[int], shadow: Mapping[int, ir.Value]
        ) -> ir.Value | None:
            if value is None:
                return None
            if value.name in constants:
                return constants[value.name]
            if id(value) in inner:
                return shadow.get(id(value), value)
            return quantized(value) if value.name in assignment.tensors else value

        touched = any(
            v is not None and v.name in assignment.tensors for n in members for v in (*n.inputs, *n.outputs)
        )
        if not touched:
            continue
        for node in members:
            twin = ir.Node(
                node.domain,
                node.op_type,
                [operand(v, inner, shadow) for v in node.inputs],
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=f"{node.name}~",
            )
            graph.append(twin)
            for original, new in zip(node.outputs, twin.outputs, strict=True):
                new.name, new.type, new.shape = f"{original.name}~", original.type, original.shape
                planned = original.name in assignment.tensors
                shadow[id(original)] = (
                    _pair(copy, new, assignment.tensors[original.name or ""], taken) if planned else new
                )
        pairs = []
        for node in members:
            for value in node.outputs:
                leaves = value.is_graph_output() or any(
                    id(u) not in {id(m) for m in members}
                    for u, _ in value.uses()
                    if not (u.name or "").endswith("~")
                )
                if leaves and value.dtype == ir.DataType.FLOAT:
                    pairs.append(_powers(copy, value, shadow[id(value)], taken))
        if pairs:
            probes[block.id] = pairs
    graph.sort()
    return copy, probes


def _pair(model: ir.Model, value: ir.Value, params: QuantParams, taken: set[str]) -> ir.Value:
    """Q/DQ on ``value`` inside the probing graph."""
    stem = f"{value.name}~q"
    code_type = np.dtype(params.type)
    scale = add_initializer(model, f"{stem}/scale", np.asarray(params.scale[0], np.float32), taken)
    zero = add_initializer(model, f"{stem}/zero", np.asarray(params.zero_point[0], code_type), taken)
    quantize = ir.node("QuantizeLinear", [value, scale, zero], name=stem)
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{stem}/dq")
    quantize.outputs[0].name, dequantize.outputs[0].name = stem, f"{stem}/dq"
    dequantize.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.append(quantize)
    model.graph.append(dequantize)
    return dequantize.outputs[0]


def _powers(model: ir.Model, signal: ir.Value, shadow: ir.Value, taken: set[str]) -> tuple[str, str]:
    """Nodes that sum the squares of the signal and of what the shadow differs by."""
    del taken
    difference = ir.node("Sub", [signal, shadow], name=f"{signal.name}~noise")
    power = ir.node("ReduceSumSquare", [signal], name=f"{signal.name}~signal_power")
    noise = ir.node("ReduceSumSquare", [difference.outputs[0]], name=f"{signal.name}~noise_power")
    for node in (difference, power, noise):
        node.outputs[0].name = node.name
        node.outputs[0].dtype = ir.DataType.FLOAT
        model.graph.append(node)
    return f"{signal.name}~signal_power", f"{signal.name}~noise_power"
