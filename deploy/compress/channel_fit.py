"""What is left after channels were removed, fitted anew so that it makes what the whole graph made there.

Layers are taken in graph order. Each is given what the layers in front of it, already fitted, make of the
samples; it should make what the whole graph has there, on the channels that are left. With d the change of a
weight, x its inputs, and m what its outputs lack, least squares with damping:

    d = E[m x'] (E[x x'] + damp)^-1

(He et al., "Channel Pruning" 2017; Luo et al., "ThiNet" 2017). A bias is solved for, too. Of several damps
the one that leaves least on batches held out is taken, and none where all of them leave more than was.
Errors are compared where a residual sum is complete, so that a branch makes up for the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.compress.channel_order import Feeds
from deploy.compress.layers import Goal, goal, outputs_of, parted
from deploy.compress.step import Compressed, Step
from deploy.execute.program import Step as ProgramStep
from deploy.graph.edit import constant, replace_weight, sole_consumer
from deploy.graph.groups import Groups
from deploy.graph.labels import varying
from deploy.progress import SILENT, Progress
from deploy.train.gram import PLACES, Layer, layer_of
from deploy.train.loader import number
from deploy.train.units import Pieces, Quantized

_DAMPS = (3e-3, 3e-2, 0.3)
"""Of the mean of H's diagonal."""
_MEMORY = 1 << 30
"""Bytes of inner values that are held for all samples."""

Kept = Mapping[str, tuple[int, np.ndarray]]
"""Of values of the whole graph that lost channels: along which axis, and the indices that are left."""


def kept_channels(
    groups: Groups, removed: Sequence[int], before: Kept | None = None
) -> dict[str, tuple[int, np.ndarray]]:
    """What is left of every value. ``before`` is what was left when ``groups`` were found, in a graph from
    which channels had been removed earlier."""
    gone = np.zeros(1 + max(groups.atoms, default=0), bool)
    gone[list(removed)] = True
    found = dict(before or {})
    for name, ids in groups.values.items():
        keep = np.flatnonzero(~gone[ids.reshape(-1)])
        if keep.size < ids.size:
            axis, earlier = found.get(name, (varying(ids)[0], np.arange(ids.size)))
            found[name] = (axis, earlier[keep])
    return found


def narrowed(value: Tensor, kept: Kept, name: str) -> Tensor:
    """A value of the whole graph on the channels that are left."""
    if name not in kept:
        return value
    axis, indices = kept[name]
    return value.index_select(axis, torch.from_numpy(indices))


@dataclass(frozen=True)
class _Moments:
    """H of the inputs (groups, n, n) and r = E[m x'] (groups, rows, n); a last input of ones where a bias is
    solved for. ``power`` is the sum of the squares of what lacks, at a place."""

    gram: Tensor
    pull: Tensor
    power: float

    def solved(self, damp: float, biased: bool) -> Tensor:
        """The change of the weights (groups, rows, n)."""
        form = self.gram.double()
        ridge = damp * form.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp_min(1e-12)
        ridge = ridge.expand(-1, form.shape[1]).clone()
        if biased:
            ridge[:, -1] = 1e-6 * ridge[:, -1]
        form = form + torch.diag_embed(ridge)
        return torch.cholesky_solve(self.pull.double().mT, torch.linalg.cholesky(form)).mT.float()

    def change(self, by: Tensor) -> float:
        """By how much the mean squared error of the outputs changes."""
        return float(((by @ self.gram - 2 * self.pull) * by).sum())


class _Stream:
    """A graph that is run step by step over all batches; of inner values only those are held that are still
    read."""

    def __init__(self, model: ir.Model, feeds: Feeds) -> None:
        self.pieces = Pieces(model)
        self.plan = Quantized({}, {})
        program = self.pieces.program
        self._names = {slot: name for name, slot in program.slots.items()}
        self.position = 0
        self.at = {step.name: i for i, step in enumerate(program.steps)}
        self.maker = {
            self._names[slot]: i for i, step in enumerate(program.steps) for slot in step.writes if slot >= 0
        }
        self._last: dict[str, int] = {}
        for i, step in enumerate(program.steps):
            self._last.update((self._names[slot], i) for slot in step.reads if slot >= 0)
        self.values: list[dict[str, Tensor]] = [dict(batch) for batch in feeds]

    def advance(self, position: int) -> None:
        """Run all steps in front of ``position``."""
        steps = self.pieces.program.steps[self.position : position]
        if not steps:
            return
        made = [name for name in self.pieces.makes(steps) if self._last.get(name, -1) >= position]
        for values in self.values:
            values.update(self._run(steps, values, made))
            for name in [name for name in values if self._last.get(name, -1) < position]:
                del values[name]
        self.position = position

    def look(self, batch: int, value: str) -> Tensor:
        """A value that is made at or behind the position."""
        if value in self.values[batch]:
            return self.values[batch][value]
        steps = self.pieces.program.steps[self.position : self.maker[value] + 1]
        return self._run(steps, self.values[batch], [value])[value]

    def _run(
        self, steps: Sequence[ProgramStep], values: Mapping[str, Tensor], want: Sequence[str]
    ) -> dict[str, Tensor]:
        return self.pieces.run(steps, {n: values[n] for n in self.pieces.reads(steps)}, want, self.plan)


def _most_held(model: ir.Model, batch: Mapping[str, Tensor]) -> int:
    """How many bytes a stream holds at most for this batch."""
    stream, most = _Stream(model, [batch]), 0
    with torch.no_grad():
        for position in range(len(stream.pieces.program.steps)):
            stream.advance(position)
            values = [v for v in stream.values[0].values() if isinstance(v, Tensor)]
            most = max(most, sum(v.numel() * v.element_size() for v in values))
    return most


@dataclass(frozen=True)
class _Both:
    """The whole graph and what is left of it, as far as they have run on the same batches."""

    whole: _Stream
    left: _Stream
    kept: Kept
    seed: int

    def advance(self, node: str, value: str) -> None:
        """What is left runs up to ``node``; the whole graph, too, but not past what makes ``value``."""
        self.left.advance(self.left.at[node])
        self.whole.advance(min(self.whole.at.get(node, 0), self.whole.maker[value]))

    def moments(
        self, layer: Layer, aim: Goal, weight: Tensor, batches: Sequence[int], ones: bool
    ) -> _Moments | None:
        """Of many places some are drawn. None where the two make values of different shapes."""
        gram, pull, count, power = torch.zeros(()), torch.zeros(()), 0, 0.0
        for i in batches:
            x = layer.columns(self.left.look(i, layer.source), weight.shape[2:])
            if ones:
                x = torch.cat([x, x.new_ones(len(x), 1, x.shape[2])], 1)
            wanted = narrowed(self.whole.look(i, aim.value), self.kept, aim.value)
            made = self.left.look(i, aim.value)
            if wanted.shape != made.shape:
                return None
            lacking = wanted - made
            if aim.slope is not None:
                lacking = lacking * aim.inverse(lacking.ndim)
            m = outputs_of(lacking, layer)
            share = -(-max(PLACES, 4 * x.shape[1]) // len(batches))
            if x.shape[2] > share:
                generator = torch.Generator().manual_seed(number(self.seed, i))
                drawn = torch.randperm(x.shape[2], generator=generator)[:share]
                x, m = x[:, :, drawn], m[:, :, drawn]
            gram, pull = gram + x @ x.mT, pull + m @ x.mT
            power += float(m.square().sum())
            count += x.shape[2]
        return _Moments(gram / count, pull / count, power / count)


@dataclass(frozen=True)
class _Site:
    """Where a change of a layer's bias goes: an input of a node, times a factor for each channel."""

    node: ir.Node
    index: int
    factor: np.ndarray | None = None


def refit(
    dense: ir.Model,
    thin: ir.Model,
    kept: Kept,
    feeds: Feeds,
    *,
    damps: Sequence[float] = _DAMPS,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Compressed:
    """A copy of ``thin`` whose layers make what ``dense`` makes, as far as they can, on ``feeds``.

    ``thin`` is ``dense`` without channels (`graph.shrink`), ``kept`` what is left of the values. Both go by
    the same names. Convolutions, depthwise ones too, and products with a constant are fitted; a step of each
    says how the squared error of what it makes changed, on samples held out. All values that are alive at a
    time are held for all samples; where these are more than a gigabyte, fewer batches are taken.
    """
    result = thin.clone()
    inside = {node.name or "" for node in result.graph}
    held_bytes = _most_held(dense, feeds[0]) + _most_held(thin, feeds[0])
    feeds = feeds[: max(2, _MEMORY // max(held_bytes, 1))]
    both = _Both(_Stream(dense, feeds), _Stream(thin, feeds), kept, seed)
    nodes = list(result.graph)
    parts = parted(len(feeds))
    steps = []
    for done, node in enumerate(nodes):
        progress.advance(done + 1, len(nodes))
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        array = constant(weight)
        layer = None if weight is None or array is None else layer_of(node, weight.name or "")
        if layer is None or weight is None or array is None or len(weight.uses()) != 1:
            continue
        aim = goal(node, inside)
        if aim.value not in both.whole.maker or aim.value not in both.left.maker:
            continue
        with torch.no_grad():
            both.advance(node.name or "", aim.value)
            step = _fit(result, layer, aim, torch.tensor(array), both, parts, damps)
        steps.append(step)
    return Compressed(result, tuple(steps))


def _fit(
    model: ir.Model,
    layer: Layer,
    aim: Goal,
    weight: Tensor,
    both: _Both,
    parts: tuple[Sequence[int], Sequence[int]],
    damps: Sequence[float],
) -> Step:
    """One layer: solved for on the first of the ``parts``, judged on the second, written into ``model`` and
    into what runs of it."""
    place, left = layer.node.name or "", both.left
    site = _bias_site(layer.node)
    ones = site is not None
    learned, judged = (both.moments(layer, aim, weight, batches, ones) for batches in parts)
    if learned is None or judged is None:
        return Step(place, "kept: what it makes has another shape in the whole graph", False)
    power = judged.power
    changes = {damp: learned.solved(damp, ones) for damp in damps}
    scores = {damp: judged.change(by) for damp, by in changes.items()}
    best = min(scores, key=scores.__getitem__)
    if not scores[best] < 0:
        return Step(place, "kept: no fit made it better", False, power, power)
    by = changes[best]
    columns = by[:, :, :-1] if ones else by
    packed = layer.packed(weight) + columns
    new = layer.unpacked(packed, weight)
    left.plan.constants[layer.weight] = new
    replace_weight(model, layer.node, 1, new.numpy())
    if site is not None:
        _add_bias(model, site, by[:, :, -1].reshape(-1), left)
    return Step(place, f"fitted, damped by {best:g}", True, power, max(0.0, power + scores[best]))


def _bias_site(node: ir.Node) -> _Site | None:
    """None where nothing behind the layer adds a number per output channel."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        array = constant(node.inputs[2])
        plain = node.op_type == "Conv" or node.attributes.get_float("beta", 1.0) == 1.0
        single = len(node.inputs[2].uses()) == 1
        return _Site(node, 2) if array is not None and array.ndim == 1 and plain and single else None
    reader = sole_consumer(node.outputs[0])
    if reader is None:
        return None
    if reader.op_type == "BatchNormalization" and node.op_type == "Conv":
        scale, variance = constant(reader.inputs[1]), constant(reader.inputs[4])
        shift = reader.inputs[2]
        if scale is None or variance is None or shift is None or len(shift.uses()) != 1:
            return None
        factor = scale / np.sqrt(variance + reader.attributes.get_float("epsilon", 1e-5))
        return _Site(reader, 2, factor)
    if reader.op_type == "Add" and node.op_type == "MatMul":
        for index, value in enumerate(reader.inputs):
            array = constant(value)
            if array is not None and value is not None and array.ndim == 1 and len(value.uses()) == 1:
                return _Site(reader, index)
    return None


def _add_bias(model: ir.Model, site: _Site, by: Tensor, left: _Stream) -> None:
    value = site.node.inputs[site.index]
    array = constant(value)
    assert array is not None and value is not None and value.name is not None
    added = by.numpy() if site.factor is None else by.numpy() * site.factor
    new = (array + added).astype(array.dtype)
    left.plan.constants[value.name] = torch.from_numpy(new)
    replace_weight(model, site.node, site.index, new)
