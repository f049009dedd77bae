"""Layers one after the other, each with samples: what it is given, what it should make, and what it makes.

The graph is walked once. What was changed in earlier layers is in what a layer is given; what it should make
is what the graph as it came has, so that later layers can make up for earlier ones.

A layer late in a convolutional network has more inputs than a few hundred images have places for. Images are
therefore looked at moved and mirrored, too, as often as that takes: the graph says what is right for any.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.data.dataset import Dataset
from deploy.errors import DataError
from deploy.graph.blocks import partition
from deploy.graph.edit import constant, sole_consumer
from deploy.graph.pattern import Product
from deploy.graph.summary import tensor_specs
from deploy.progress import Progress
from deploy.spec.finetune import Augment
from deploy.spec.tensors import Layout
from deploy.train.augment import augment, image_inputs
from deploy.train.gram import LONGEST, PLACES, Layer, layer_of
from deploy.train.loader import number
from deploy.train.loss import scores_before
from deploy.train.units import Pieces, Quantized, Stop, batches, error, held_bytes, single_units, walk

BATCH = 16
_HELD_OUT = 4
"""One batch of so many is held out."""
_MEMORY = 1 << 30
"""Bytes of inner values that are held for all samples; of larger ones fewer samples are taken."""
_VIEWS = Augment(crop=2, flip=True)
_PLACES_EACH, _MOST_VIEWS = 2, 3
"""Places for each input of a layer that views are made for, and how many views at most."""
_DIRECTIONS = 2
_ALIKE = 0.6
"""How much of what a place counts is the same for all places."""
_SLIGHT = 1e-3
"""Of the largest slope of a batch norm: channels below have no say."""


@dataclass(frozen=True)
class Moments:
    """What samples say of a layer, by groups that share no inputs: the Gram matrix H = E[x x'] (groups, n, n)
    of its inputs, and r = E[m x'] (groups, rows, n), m being what its outputs lack."""

    layer: Layer
    gram: Tensor
    pull: Tensor


@dataclass(frozen=True)
class Goal:
    """The value behind a product up to which all is a sum, and by how much each output channel counts in it:
    its own result, what a batch norm makes of it, what a residual sum is with it."""

    value: str
    slope: np.ndarray | None

    def inverse(self, rank: int) -> Tensor:
        """One over the slopes, along axis 1; 0 for channels that hardly count."""
        assert self.slope is not None
        sure = np.abs(self.slope) > _SLIGHT * np.abs(self.slope).max()
        found = np.where(sure, 1 / np.where(sure, self.slope, 1.0), 0.0)
        return torch.from_numpy(found.astype(np.float32).reshape(1, -1, *[1] * (rank - 2)))


def parted(batches: int, every: int = _HELD_OUT) -> tuple[list[int], list[int]]:
    """The numbers of the batches that are learned from, and of those held out, one of ``every``; a lone one
    is both."""
    every = min(every, batches)
    held = [i for i in range(batches) if i % every == every - 1]
    return [i for i in range(batches) if i not in held] or held, held


def goal(node: ir.Node, inside: Collection[str]) -> Goal:
    """Follows batch norms, constants added and residual sums, among the nodes named ``inside``."""
    value, slope = node.outputs[0], None
    while (reader := sole_consumer(value)) is not None and reader.name in inside:
        if reader.op_type == "BatchNormalization" and reader.inputs[0] is value:
            scale, variance = constant(reader.inputs[1]), constant(reader.inputs[4])
            if scale is None or variance is None or len(reader.outputs) > 1 or node.op_type != "Conv":
                break
            here = scale / np.sqrt(variance + reader.attributes.get_float("epsilon", 1e-5))
            slope = here if slope is None else slope * here
        elif reader.op_type != "Add" or reader.outputs[0].shape != value.shape or len(value.uses()) > 1:
            break
        value = reader.outputs[0]
    return Goal(value.name or "", slope)


class Layers:
    """The walk. What `put` stores in place of a weight holds from there on.

    Raises DataError where there are fewer than two batches of samples, UnsupportedError listing the nodes
    that torch has no kernel for.
    """

    def __init__(
        self, model: ir.Model, products: Mapping[str, Product], dataset: Dataset, samples: int, seed: int
    ) -> None:
        self.products, self.seed = products, seed
        self.pieces = Pieces(model)
        self.units = single_units(model, partition(model), products)
        self.feeds = batches(model, dataset, samples, BATCH)
        held = held_bytes(self.pieces, self.units, self.feeds[0])
        self.feeds = self.feeds[: max(2, _MEMORY // max(held, 1))]
        if len(self.feeds) < 2:
            raise DataError(
                f"{dataset.origin}: two batches are needed, of {BATCH} samples or as the model has it",
                hint="give more calibration samples",
            )
        self.seen, self.held = parted(len(self.feeds))
        copies = self._copies(held * len(self.feeds))
        self.views = range(len(self.feeds), len(self.feeds) + copies * len(self.seen))
        self.feeds += [self._viewed(i, copy) for copy in range(copies) for i in self.seen]
        self.plan = Quantized({}, {})

    def _copies(self, held: int) -> int:
        """How many views of the samples it takes until no layer has more inputs than half its places, where
        all inputs are images. ``held`` are the bytes of inner values of one."""
        samples = sum(len(next(iter(self.feeds[i].values()))) for i in self.seen)
        needed = 0
        for product in self.products.values():
            weight, shape = constant(product.node.inputs[1]), product.node.outputs[0].shape
            if product.node.op_type != "Conv" or weight is None or shape is None:
                continue
            sizes = [size for size in shape.dims[2:] if isinstance(size, int)]
            inputs = math.prod(weight.shape[1:])
            if inputs <= LONGEST and len(sizes) == len(shape.dims) - 2:
                needed = max(needed, -(-_PLACES_EACH * inputs // (samples * math.prod(sizes))) - 1)
        inputs_are_images = len(self._images()) == len(self.pieces.program.inputs)
        return max(0, min(needed, _MOST_VIEWS, _MEMORY // max(held, 1) - 1)) if inputs_are_images else 0

    def _images(self) -> dict[str, Layout]:
        return image_inputs(tensor_specs(self.pieces.module.model.graph.inputs), Augment())

    def _viewed(self, batch: int, copy: int) -> dict[str, Tensor]:
        """A batch moved and mirrored at random."""
        generator = torch.Generator().manual_seed(number(self.seed, batch, copy))
        return augment(dict(self.feeds[batch]), {}, _VIEWS, self._images(), generator).feeds

    @cached_property
    def _outputs(self) -> dict[int, dict[str, Tensor]]:
        """What the network as it came makes of the batches held out."""
        return {i: self.pieces.module(self.feeds[i]) for i in self.held}

    def visit(self, progress: Progress) -> Iterator[tuple[Stop, Product]]:
        """Every product with where the walk stands."""
        for position, stop in enumerate(walk(self.pieces, self.units, self.plan, self.feeds)):
            progress.advance(position + 1, len(self.units))
            for name in stop.unit.weights:
                yield stop, self.products[name]

    def again(self) -> None:
        """The walk begins anew, with every weight as it came."""
        self.plan.constants.clear()

    def put(self, name: str, array: Tensor) -> None:
        self.plan.constants[name] = array

    @cached_property
    def _says(self) -> dict[str, dict[int, Tensor]]:
        """How much each place of a layer's outputs has to say in the network's, by weight and batch.

        That is the mean square of its gradient, of random sums of the outputs (of scores, before a softmax),
        in units of its mean. Single places may have nearly all of it, a class token, and would be too little
        to fit weights to: most of what counts is the same for all.
        """
        names = {product.node.outputs[0].name or "": weight for weight, product in self.products.items()}
        ends = list(dict.fromkeys(scores_before(v)[0] for v in self.pieces.module.model.graph.outputs))
        found: dict[str, dict[int, Tensor]] = {weight: {} for weight in self.products}
        for i in (*self.seen, *self.views):
            generator = torch.Generator().manual_seed(number(self.seed, i, 2))
            with torch.enable_grad():
                feeds = {name: value.clone() for name, value in self.feeds[i].items()}
                for value in feeds.values():
                    value.requires_grad_(value.is_floating_point())
                results = self.pieces.module(feeds, list(dict.fromkeys([*names, *ends])))
                inner = {name: results[name] for name in names if results[name].requires_grad}
                scored = [results[end] for end in ends if results[end].requires_grad]
                for _ in range(_DIRECTIONS if inner and scored else 0):
                    sums = [(v * torch.randn(v.shape, generator=generator)).sum() for v in scored]
                    slopes = torch.autograd.grad(
                        torch.stack(sums).sum(), list(inner.values()), retain_graph=True, allow_unused=True
                    )
                    for name, slope in zip(inner, slopes, strict=True):
                        if slope is not None:
                            axis = 1 if self.products[names[name]].node.op_type == "Conv" else -1
                            own = found[names[name]]
                            own[i] = own.get(i, torch.zeros(())) + slope.square().sum(axis).reshape(-1)
        for own in found.values():
            mean = torch.cat(list(own.values())).mean().item() if own else 0.0
            if mean > 0:
                own.update((i, _ALIKE + (1 - _ALIKE) * value / mean) for i, value in own.items())
            else:
                own.clear()
        return found

    def moments(
        self, stop: Stop, product: Product, dense: Tensor, *, weighed: bool = False
    ) -> Moments | None:
        """None for products that have no Gram matrix of a bearable size. Of many places some are drawn;
        ``weighed``: those count more that have more to say in the network's outputs."""
        layer = layer_of(product.node, product.weight)
        if layer is None:
            return None
        aim = goal(product.node, stop.unit.nodes)
        generator = torch.Generator().manual_seed(number(self.seed, self.units.index(stop.unit)))
        wanted = max(PLACES, 4 * layer.packed(dense).shape[2])
        share = -(-wanted // len(self.seen))
        form, missed, count = torch.zeros(()), torch.zeros(()), 0
        for i in (*self.seen, *self.views):
            if count >= wanted:
                break
            x = layer.columns(self._value(stop, layer.source, i, True), dense.shape[2:])
            lacking = self._value(stop, aim.value, i, False) - self._value(stop, aim.value, i, True)
            if aim.slope is not None:
                lacking = lacking * aim.inverse(lacking.ndim)
            m = outputs_of(lacking, layer)
            if weighed and (say := self._says[product.weight].get(i)) is not None:
                x, m = x * say.sqrt(), m * say.sqrt()
            if x.shape[2] > share:
                drawn = torch.randperm(x.shape[2], generator=generator)[:share]
                x, m = x[:, :, drawn], m[:, :, drawn]
            across = x.transpose(1, 2)
            form, missed = form + x @ across, missed + m @ across
            count += x.shape[2]
        return Moments(layer, form / count, missed / count)

    def error(self, stop: Stop, name: str = "", array: Tensor | None = None) -> float:
        """By how much what leaves the block is off on the samples held out, as a share of its power, with
        ``array`` in the place of the weight ``name``."""
        plan = self.plan if array is None else Quantized({}, {**self.plan.constants, name: array})
        parts = [
            error(self.pieces.run(stop.steps, stop.given[i], stop.leaving, plan), stop.targets[i]).item()
            for i in self.held
        ]
        return float(np.mean(parts))

    def outputs_error(self, stop: Stop, name: str = "", array: Tensor | None = None) -> float:
        """The same of the network's outputs, with what was `put` up to here and all that comes behind as it
        was."""
        plan = self.plan if array is None else Quantized({}, {**self.plan.constants, name: array})
        names = {name for unit in self.units[self.units.index(stop.unit) :] for name in unit.nodes}
        steps = self.pieces.steps(names)
        made, outputs = set(self.pieces.makes(steps)), self.pieces.program.outputs
        ahead = [name for name in outputs if name in made]
        parts = []
        for i, wanted in self._outputs.items():
            found = self.pieces.run(steps, stop.given[i], ahead, plan)
            behind = {name: stop.given[i][name] for name in outputs if name not in made}
            parts.append(error({**behind, **found}, wanted).item())
        return float(np.mean(parts))

    def _value(self, stop: Stop, name: str, batch: int, changed: bool) -> Tensor:
        values = (stop.given if changed else stop.exact)[batch]
        if name in values:
            return values[name]
        return self.pieces.run(stop.steps, values, [name], self.plan if changed else None)[name]


def outputs_of(y: Tensor, layer: Layer) -> Tensor:
    """What a layer makes as (groups, outputs, places), places in the order of `Layer.columns`."""
    if layer.node.op_type != "Conv":
        return y.reshape(1, -1, y.shape[-1]).transpose(1, 2)
    flat = y.reshape(*y.shape[:2], -1).transpose(0, 1)
    return flat.reshape(layer.groups, len(flat) // layer.groups, -1)
