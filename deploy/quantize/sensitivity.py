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
from deploy.data.dataset import Dataset, at_once
from deploy.execute.reference import open_graph
from deploy.graph.blocks import Block, bodies
from deploy.graph.edit import add_initializer, fresh_name, names
from deploy.quantize.assign import Assignment
from deploy.spec.plan import QuantParams

_BATCH = 8
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def block_sqnr(
    model: ir.Model,
    blocks: Iterable[Block],
    assignment: Assignment,
    dataset: Dataset,
    *,
    samples: int,
    threads: int = 1,
) -> dict[str, float]:
    """Decibels by block id, for every block that holds a quantized value; infinite where nothing is lost.

    A block is judged with what it reads and what it makes quantized, as far as the assignment says so. Nodes
    with bodies (If, Loop, Scan) are left out.
    """
    shadow, probes = _shadowed(model, list(blocks), assignment)
    wanted = [name for pair in probes.values() for names_ in pair for name in names_]
    powers = dict.fromkeys(wanted, 0.0)
    # Taken literally: a copy does what its block would do alone, and its integers stay integers in memory.
    with open_graph(shadow, optimised=False, threads=threads, expose=wanted) as runner:
        size = fixed_batch(runner.inputs) or at_once(dataset, _BATCH)
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
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return -math.inf  # as where a mask of -3e38 is added: eight bits then tell nothing else apart
    return 10 * math.log10(max(signal, 1e-30) / noise)


def _shadowed(
    model: ir.Model, blocks: list[Block], assignment: Assignment
) -> tuple[ir.Model, dict[str, list[tuple[str, str]]]]:
    """The graph with a quantized copy of each block; per block the names of (signal, noise) powers."""
    copy = model.clone()
    graph = copy.graph
    taken = names(copy)
    nodes = {node.name: node for node in graph}
    readers = {id(o): [user for user, _ in o.uses()] for node in graph for o in node.outputs}
    tensors = assignment.tensors
    # What stands for a value: its constant read back from integers, its quantized form, a block's copy of it.
    constants: dict[str | None, ir.Value] = {}
    for name, codes in assignment.codes.items():
        constants[name] = _read_back(copy, name, codes, tensors[name], taken)
    paired: dict[str, ir.Value] = {}
    probes: dict[str, list[tuple[str, str]]] = {}

    def operand(reader: ir.Node, value: ir.Value | None, twins: Mapping[int, ir.Value]) -> ir.Value | None:
        """What the copy of ``reader`` reads in place of ``value``."""
        if value is None or value.name in constants:
            return None if value is None else constants[value.name]
        given = twins.get(id(value), value)
        plan = tensors.get(value.name or "")
        if plan is None or (plan.readers and reader.name not in plan.readers):
            return given
        own, result = plan.uses.get(reader.name or ""), quantized(given, plan)
        return result if own is None or own.type == plan.type else quantized(result, own)

    def quantized(value: ir.Value, plan: QuantParams) -> ir.Value:
        name = value.name or ""
        if name not in paired:
            paired[name] = _pair(copy, value, plan, taken)
        return paired[name]

    for block in blocks:
        members = [nodes[name] for name in block.nodes]
        touched = {v.name for n in members for v in (*n.inputs, *n.outputs) if v is not None} & tensors.keys()
        if not touched or bodies(members[0]):  # a body can belong to one node only
            continue
        twins: dict[int, ir.Value] = {}
        for node in members:
            twin = ir.Node(
                node.domain,
                node.op_type,
                [operand(node, v, twins) for v in node.inputs],
                list(node.attributes.values()),
                num_outputs=len(node.outputs),
                name=f"{node.name}~",
            )
            graph.append(twin)
            for original, new in zip(node.outputs, twin.outputs, strict=True):
                new.name, new.type, new.shape = f"{original.name}~", original.type, original.shape
                if not original.name:  # an optional output that is left out
                    new.name = original.name
                twins[id(original)] = new
        pairs = []
        for value in _ends(members, readers):
            plan = tensors.get(value.name or "")
            result = twins[id(value)]
            if plan is not None and not plan.readers:
                result = quantized(result, plan)
            pairs.append(_powers(copy, value, result))
        if pairs:
            probes[block.id] = pairs
    graph.sort()
    return copy, probes


def _ends(members: list[ir.Node], readers: Mapping[int, list[ir.Node]]) -> list[ir.Value]:
    """The values that leave a block; its last one where those that leave are not known to be float."""
    made = [o for node in members for o in node.outputs if _is_float(o)]
    leaving = [v for v in made if v.is_graph_output() or any(n not in members for n in readers[id(v)])]
    return leaving or made[-1:]


def _is_float(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype in _FLOATS  # a sequence has a dtype too


def _read_back(
    model: ir.Model, name: str, codes: np.ndarray, params: QuantParams, taken: set[str]
) -> ir.Value:
    """What the codes of a constant stand for."""
    stem = f"{name}~int8"
    scale, zero = np.asarray(params.scale, np.float32), np.asarray(params.zero_point, codes.dtype)
    if params.axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    parts = [
        add_initializer(model, f"{stem}{part}", array, taken)
        for part, array in (("", codes), ("/scale", scale), ("/zero", zero))
    ]
    node = ir.node("DequantizeLinear", parts, {"axis": params.axis or 0}, name=f"{stem}/dq")
    node.outputs[0].name = fresh_name(model, f"{stem}/dq", taken)
    node.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.append(node)
    return node.outputs[0]


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


def _powers(model: ir.Model, signal: ir.Value, shadow: ir.Value) -> tuple[str, str]:
    """Nodes that sum the squares of the signal and of what the shadow differs by."""
    difference = ir.node("Sub", [signal, shadow], name=f"{signal.name}~noise")
    power = ir.node("ReduceSumSquare", [signal], name=f"{signal.name}~signal_power")
    noise = ir.node("ReduceSumSquare", [difference.outputs[0]], name=f"{signal.name}~noise_power")
    for node in (difference, power, noise):
        node.outputs[0].name = node.name
        node.outputs[0].type = signal.type
        model.graph.append(node)
    return f"{signal.name}~signal_power", f"{signal.name}~noise_power"
