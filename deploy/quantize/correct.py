"""Sequential bias correction (Nagel et al. 2019, section 4.2; Finkelstein et al. 2019).

Rounding shifts the mean of what a layer computes. Layer by layer, in the order of the graph, the mean over
samples and positions of (float output - quantized output) is added to the layer's bias, where the quantized
output is that of the quantized network *with all layers before corrected*. Of a layer before a Relu, directly
or behind a residual sum, those positions count that the Relu lets through: the last layers of a ResNet-18,
whose outputs are mostly cut off, otherwise cost it 1.5 dB, since errors where nothing comes of them counted.

Each part of the quantized graph is run once: it is cut behind every layer that can be corrected, and what is
alive at a cut is kept for all samples (in memory up to 64 MB, then in files). A correction shifts the kept
output of its layer, so that nothing is run again. The float graph takes one more pass. So the whole costs
about as much as two, whatever the depth, and peak memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch
from deploy.data.dataset import Dataset, at_once
from deploy.execute.reference import open_graph
from deploy.graph.edit import sole_consumer
from deploy.graph.qdq import data_digest, insert
from deploy.graph.summary import tensor_specs
from deploy.quantize.assign import Assignment
from deploy.quantize.bias import bias_array, bias_slot, channel_axis, output_channels, set_bias
from deploy.quantize.prefix import Prefix, Store, Target
from deploy.quantize.rung import Rung, Step
from deploy.spec.plan import QuantParams, TensorPlan
from deploy.spec.profile import QuantRules

_BATCH = 16
_SURE = 2.0
"""Standard errors by which a mean must differ from 0, or it is taken for noise and not corrected."""
_BIAS_LIMIT = 2**30
"""Half of int32, so that adding the accumulator cannot overflow."""


@dataclass(frozen=True)
class Corrected:
    """The graph with new biases where they are float, and the assignment with new ones where integers."""

    graph: ir.Model
    assignment: Assignment


def apply(
    model: ir.Model,
    assignment: Assignment,
    rules: QuantRules,
    dataset: Dataset,
    *,
    samples: int,
    threads: int = 1,
) -> Rung[Corrected]:
    """Corrected biases of every layer whose weights ``assignment`` quantizes.

    Left alone are layers without a place for a bias (a MatMul that no bias follows), what is statistically
    noise, and what lies behind nodes with bodies (If, Loop). A convolution without a bias gets one, int32
    where the rules want it. Raises BackendError where the graph does not run.
    """
    result = model.clone()
    # Biases that are missing are zeros first: then every layer is alike.
    targets, steps = _targets(result, assignment)
    filled = _with_missing(result, targets, assignment, rules)
    if not targets:
        return Rung("correct", Corrected(model, assignment), tuple(steps), 0.0)
    nodes = {node.name: node for node in result.graph}
    shifts: dict[str, np.ndarray] = {}
    quantized = insert(result, filled.tensors, filled.codes)
    with Prefix(quantized, targets, threads) as prefix, closing(Store()) as masks:
        exact = _float_sums(result, prefix, masks, dataset, samples, threads)
        for target in prefix.reachable:
            parts = [
                _sums(array, target.axis, _mask(masks, target, batch, array.shape))[0]
                for batch, array in enumerate(prefix.advance(target))
            ]
            wanted, weights = exact[target.output]
            error = wanted - np.concatenate(parts)
            total = np.maximum(weights.sum(axis=0), 1.0)
            mean = error.sum(axis=0) / total
            doubt = np.sqrt(np.square(error - mean * weights).sum(axis=0)) / total
            sure = np.abs(mean) > _SURE * doubt
            if not sure.any():
                steps.append(Step(target.node, "left alone: its mean error is within chance"))
                continue
            shifts[target.node], shift = _stored(nodes[target.node], np.where(sure, mean, 0.0), filled)
            prefix.shift(target, shift)
            power = max(float(np.square(wanted.sum(axis=0) / total).mean()), 1e-30)
            before, after = float(np.square(mean).mean()), float(np.square(mean - shift).mean())
            what = f"{int(sure.sum())} of {sure.size} channels corrected"
            steps.append(Step(target.node, what, before / power, after / power))
    corrected = _written(result, filled, shifts)
    return Rung("correct", corrected, tuple(steps), 2.0)


def _targets(model: ir.Model, assignment: Assignment) -> tuple[list[Target], list[Step]]:
    """Layers with quantized weights in graph order, and what is to be said of those without a place."""
    targets, refused = [], []
    for node in model.graph:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or weight is None:
            continue
        if weight.name not in assignment.codes or output_channels(node) is None:
            continue
        slot = bias_slot(node)
        if slot is None:
            refused.append(Step(node.name or "", "left alone: it has no place for a bias of its own"))
            continue
        output = slot[0].outputs[0]
        targets.append(Target(node.name or "", output.name or "", channel_axis(node), _gate(output)))
    return targets, refused


def _gate(value: ir.Value) -> str | None:
    """What a Relu reads, if that is ``value``, or a sum of it with a shortcut of the same shape."""
    reader = sole_consumer(value)
    if reader is not None and reader.op_type == "Add" and reader.outputs[0].shape == value.shape:
        value = reader.outputs[0]
        reader = sole_consumer(value)
    return value.name if reader is not None and reader.op_type == "Relu" else None


def _with_missing(
    model: ir.Model, targets: Sequence[Target], assignment: Assignment, rules: QuantRules
) -> Assignment:
    """Give the targets in ``model`` biases of zeros where they have none, integers where the rules say so."""
    tensors, codes = dict(assignment.tensors), dict(assignment.codes)
    wanted = {target.node for target in targets}
    for node in list(model.graph):
        slot = bias_slot(node) if node.name in wanted else None
        if slot is None or (slot[1] < len(slot[0].inputs) and slot[0].inputs[slot[1]] is not None):
            continue
        channels = output_channels(node)
        assert channels is not None
        bias = set_bias(model, node, np.zeros(channels))
        source, weight = node.inputs[0], node.inputs[1]
        assert bias.name is not None and source is not None and weight is not None
        plan, stored = tensors.get(source.name or ""), tensors[weight.name or ""]
        activation = None if plan is None else plan.uses.get(node.name or "", plan)
        if rules.bias != "int32" or activation is None or activation.type == "int16":
            continue
        scale = np.float32(activation.scale[0]) * np.asarray(stored.scale, np.float32)
        zeros = np.zeros(channels, np.int32)
        params = QuantParams(
            type="int32",
            scale=tuple(map(float, scale)),
            zero_point=(0,) * scale.size,
            axis=None if stored.axis is None else 0,
        )
        tensors[bias.name] = TensorPlan(
            **params.model_dump(),
            origin="bias",
            bias_of=(source.name or "", weight.name or ""),
            digest=data_digest(zeros),
        )
        codes[bias.name] = zeros
    return Assignment(tensors, codes)


def _float_sums(
    model: ir.Model, prefix: Prefix, masks: Store, dataset: Dataset, samples: int, threads: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The sum of each target's output over the positions that matter, and how many these are, by sample and
    channel. Feeds ``prefix`` with the same batches, and leaves in ``masks`` where the positions are."""
    targets = prefix.reachable
    wanted = list(dict.fromkeys(n for t in targets for n in (t.output, t.gate) if n is not None))
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {target.output: [] for target in targets}
    fixed = fixed_batch(tensor_specs(model.graph.inputs))
    with open_graph(model, threads=threads, expose=wanted) as session:
        for batch in dataset.batches(fixed or at_once(dataset, _BATCH), limit=samples):
            missing = fixed - len(batch.ids) if fixed else 0
            if missing and prefix.batches:
                break  # a fixed batch that is not full: too few to be worth it
            feeds = {
                n: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for n, a in batch.feeds.items()
            }
            seen = session.run(feeds, wanted)
            for target in targets:
                array = seen[target.output]
                if target.gate is not None:
                    masks.put(target.output, prefix.batches, np.packbits(seen[target.gate] > 0))
                mask = _mask(masks, target, prefix.batches, array.shape)
                parts[target.output].append(_sums(array, target.axis, mask))
            prefix.feed(feeds)
    return {
        name: (np.concatenate([p[0] for p in found]), np.concatenate([p[1] for p in found]))
        for name, found in parts.items()
    }


def _mask(masks: Store, target: Target, batch: int, shape: tuple[int, ...]) -> np.ndarray | None:
    if target.gate is None:
        return None
    size = int(np.prod(shape))
    return np.unpackbits(masks.get(target.output, batch), count=size).reshape(shape).astype(bool)


def _sums(array: np.ndarray, axis: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums by [sample, channel] over positions where ``mask`` is set, and how many these are."""
    kept = (0, axis % array.ndim)
    over = tuple(i for i in range(array.ndim) if i not in kept)
    if mask is None:
        total = array.sum(axis=over, dtype=np.float64)
        return total, np.full_like(total, array.size // max(total.size, 1))
    counts = mask.sum(axis=over, dtype=np.float64)
    return (array * mask).sum(axis=over, dtype=np.float64), counts


def _stored(node: ir.Node, shift: np.ndarray, assignment: Assignment) -> tuple[np.ndarray, np.ndarray]:
    """The shift in the units in which the bias is stored, and what it then really is."""
    slot = bias_slot(node)
    assert slot is not None
    bias = slot[0].inputs[slot[1]]
    codes = assignment.codes.get((bias.name if bias is not None else None) or "")
    if codes is None or bias is None:
        return shift, shift
    scale = np.asarray(assignment.tensors[bias.name or ""].scale)
    wanted = np.clip(codes + np.rint(shift / scale), -_BIAS_LIMIT, _BIAS_LIMIT)
    steps = wanted - codes
    return steps, steps * scale


def _written(model: ir.Model, assignment: Assignment, shifts: Mapping[str, np.ndarray]) -> Corrected:
    """The biases in their places. ``model`` is changed, except where the plan holds the bias."""
    tensors, codes = dict(assignment.tensors), dict(assignment.codes)
    for node in list(model.graph):
        shift = shifts.get(node.name or "")
        if shift is None:
            continue
        slot, old = bias_slot(node), bias_array(node)
        assert slot is not None and old is not None
        bias = slot[0].inputs[slot[1]]
        name = bias.name if bias is not None else None
        if name is not None and name in codes:
            codes[name] = (codes[name] + shift).astype(np.int32)
            tensors[name] = tensors[name].model_copy(update={"digest": data_digest(codes[name])})
        else:
            set_bias(model, node, old + shift)
    return Corrected(model, Assignment(tensors, codes))
