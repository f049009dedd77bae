"""Sparsity: channels in a better order, zeros chosen, and weights that make up for those that go.

Layers are taken in graph order (`layers.py`). On samples that were held out the error of what leaves the
layer's block decides, and of what leaves the network: between the ways below, and whether the layer stays
dense.

    magnitude    the largest stay as they are: two of each four, or wherever they lie (`magnitude.py`)
    obs          the others make up for those that go, by the Gram matrix of the layer's inputs: `obs.solve`
                 for 2:4, lightly and strongly damped, `obs.leanest` and `obs.refit` for zeros in no pattern
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.compress import obs
from deploy.compress.channel_tune import Tuning, tune
from deploy.compress.ground import Ground, StepResult
from deploy.compress.layers import BATCH, Layers, Moments, parted
from deploy.compress.magnitude import magnitude_masks, prune_magnitude, share_in_round
from deploy.compress.permute import Search, permute
from deploy.compress.prune.choose import matching
from deploy.compress.step import Compressed, Step
from deploy.data.dataset import Dataset
from deploy.errors import UsageError, VerificationError
from deploy.graph.cost import macs_of
from deploy.graph.edit import constant, replace_weight
from deploy.graph.pattern import Product, fits, mask_2_4, products, sparse_2_4
from deploy.progress import SILENT, Progress
from deploy.spec.compression import Sparsify
from deploy.train.finetune import reproducible
from deploy.train.units import Stop, batches

_DAMPS = (0.01, 0.1)
_DEAR, _MUCH = 10.0, 0.05
"""How many times its share of the work a layer may have of the error at the outputs, if that is so much."""
_RATE = 1e-3
"""What tuning begins with: little is wrong, and a third of what removed channels take."""
_SLIGHT = 1e-3
"""What error at the outputs, as a share of their power, is next to none."""


def check(step: Sparsify, model: ir.Model, ground: Ground) -> None:
    """Raises UsageError where no target gains by the pattern, nothing has it, or samples are missing."""
    if step.pattern == "2:4" and not (ground.pays or step.anyway):
        raise UsageError(
            f"sparsify: 2:4 makes nothing faster here: {ground.why or 'the target does not skip zeros'}",
            hint="leave the step out, or set anyway = true for smaller files at rest",
        )
    but = matching(model, step.protect, "sparsify: protect")
    found = list(products(model))
    every = [product for product in found if product.node.name not in but]
    if found and not every:
        raise UsageError(
            "sparsify: all products of weights are protected", hint="protect fewer, or leave the step out"
        )
    if not any(step.pattern == "unstructured" or fits(product) for product in every):
        what = "no product has inputs in whole fours" if every else "the model has no product of weights"
        raise UsageError(f"sparsify: {what}", hint="leave the step out")
    if ground.samples is None and (step.method == "obs" or step.tolerance is not None or step.tune):
        raise UsageError(
            "sparsify: there are no samples to choose the zeros by",
            hint='give calibration samples, or set method = "magnitude" without a tolerance and tune',
        )


def run(step: Sparsify, model: ir.Model, ground: Ground) -> StepResult:
    """The graph with the zeros that ``step`` asks for, in rounds where it does, trained in between.

    Raises VerificationError where a later part of the step broke the 2:4 pattern.
    """
    whole, ordered = _ordered(step, model, Search(seed=ground.seed))
    graph, rows = whole, tuple[Step, ...]()
    for number in range(1, step.rounds + 1):
        share = None if step.sparsity is None else share_in_round(number, step.rounds, step.sparsity)
        found = sparsify(
            graph,
            ground.samples,
            step.model_copy(update={"permute": False}),
            share=share,
            seed=ground.seed,
            threads=ground.threads,
            progress=ground.progress,
        )
        graph, rows = found.graph, found.steps
        if step.rewind and number == step.rounds:
            graph = _rewound(whole, graph)
        if step.finetune is not None:
            sparse = list(masks(graph)) if step.pattern == "2:4" else []
            graph = ground.tune(graph, step.finetune)
            prove(graph, sparse)
    if step.tune and ground.samples is not None:
        sparse = list(masks(graph)) if step.pattern == "2:4" else []
        graph = tuned(step, whole, graph, ground)
        prove(graph, sparse)
    return StepResult(graph, _told(step, graph), (*ordered, *rows))


def tuned(step: Sparsify, whole: ir.Model, graph: ir.Model, ground: Ground) -> ir.Model:
    """``graph`` trained in ``step.tune`` steps to make what ``whole`` makes, with its zeros; of what it was
    now and then the best on samples that it has not seen. Raises what `channel_tune.tune` raises."""
    assert ground.samples is not None
    feeds = batches(graph, ground.samples, step.samples, BATCH)
    learn, judge = ([feeds[i] for i in part] for part in parted(len(feeds)))
    if ground.train is not None:  # files are often sorted by class
        wanted = min(BATCH * step.tune, len(ground.train))
        rows = np.unique(np.linspace(0, len(ground.train) - 1, wanted).astype(int))
        learn = batches(graph, ground.train.select(rows), wanted, BATCH)
    settings = Tuning(steps=step.tune, rate=_RATE, seed=ground.seed)
    with reproducible(ground.threads):
        return tune(whole, graph, {}, learn, judge, settings, ground.progress).graph


def _ordered(step: Sparsify, model: ir.Model, search: Search) -> tuple[ir.Model, tuple[Step, ...]]:
    """The graph with channels in a better order for 2:4 if that is wanted, and what was done; what is sparse
    already keeps its order."""
    if step.pattern != "2:4" or not step.permute or masks(model):
        return model, ()
    found = permute(model, search)
    return found.graph, found.steps


def sparsify(
    model: ir.Model,
    dataset: Dataset | None,
    step: Sparsify,
    *,
    share: float | None = None,
    seed: int = 0,
    threads: int = 1,
    search: Search | None = None,
    progress: Progress = SILENT,
) -> Compressed:
    """A copy with sparse weights, by ``step`` without its rounds and training.

    ``model`` has inferred shapes. 2:4 lies along the axes that products sum over, which are whole fours, and
    is proved on the graph; what came so stays as it is, and so do layers that cost out of all proportion.
    Without a pattern the share of zeros is ``share``, else ``step.sparsity``. A row of each product says what
    was done. Without ``dataset`` magnitudes alone decide. Equal seed, threads and machine give equal weights.
    Raises DataError where there are fewer than two batches of samples, UnsupportedError listing nodes that
    torch has no kernel for.
    """
    share = step.sparsity if share is None else share
    but = matching(model, step.protect, "sparsify: protect")
    if dataset is None and share is not None:
        return prune_magnitude(model, share, step.scope, but)
    model, ordered = _ordered(step, model, search or Search(seed=seed))
    zeros = _Zeros(model, step, share, but)
    if dataset is None:
        found = {name: array * zeros.kept[name] for name, array in zeros.wanted.items()}
        more = [Step(p.node.name or "", "2:4 by magnitude", True) for p in zeros.products.values()]
    else:
        with reproducible(threads), torch.no_grad():
            layers = Layers(model, zeros.products, dataset, step.samples, seed)
            found, more = _chosen(layers, zeros, progress)
            if share is None and (dear := _dear(model, more)):
                zeros = _Zeros(model, step, share, {*but, *dear})
                layers.again()
                found, rest = _chosen(layers, zeros, progress)
                more = [*rest, *(_left(row, dear[row.place]) for row in more if row.place in dear)]
                zeros.left = [row for row in zeros.left if row.place not in dear]
    result = model.clone()
    nodes = {product.weight: product.node for product in products(result)}
    for name, array in found.items():
        replace_weight(result, nodes[name], 1, array)
    if share is None:
        prove(result, list(found))
    order = [product.node.name for product in products(model)]
    rows = sorted((*zeros.left, *more), key=lambda row: order.index(row.place))
    return Compressed(result, (*ordered, *rows))


def each_alone(
    model: ir.Model, dataset: Dataset, step: Sparsify, *, seed: int, threads: int, progress: Progress = SILENT
) -> dict[str, tuple[np.ndarray, float]]:
    """For every product that fits and is not sparse yet, by node: the weight with 2:4 zeros that leaves least
    error on samples held out, and that error as a share of the power of what leaves the layer's block.

    Each as if it were the only one, fed with what the graph as it is makes: any of them go together, none
    makes up for another. Raises as `sparsify` does.
    """
    zeros = _Zeros(model, step, None, ())
    found = {}
    with reproducible(threads), torch.no_grad():
        layers = Layers(model, zeros.products, dataset, step.samples, seed)
        for stop, product in layers.visit(progress):
            ways = list(zeros.ways(layers, stop, product).values())
            errors = [layers.error(stop, product.weight, array) for array in ways]
            best = min(range(len(ways)), key=lambda i: (math.isnan(errors[i]), errors[i]))
            found[product.node.name or ""] = (ways[best].numpy(), errors[best])
    return found


class _Zeros:
    """What is to become sparse, and how: ``kept`` is true at what magnitudes alone keep of ``wanted``."""

    def __init__(self, model: ir.Model, step: Sparsify, share: float | None, but: Collection[str]) -> None:
        self.step, self.share = step, share
        self.left: list[Step] = []
        """Rows of the products that stay as they are."""
        self.products: dict[str, Product] = {}
        there = masks(model) if share is None else {}
        for product in products(model):
            why = ""
            if product.node.name in but:
                why = "left dense: protected"
            elif share is None and not fits(product):
                why = "left dense: its inputs are not whole fours"
            elif product.weight in there:
                why = "left as it came, 2:4 sparse"
            if why:
                self.left.append(Step(product.node.name or "", why, False))
            else:
                self.products[product.weight] = product
        arrays = _weights(model)
        self.wanted = {name: arrays[name] for name in self.products}
        if share is None:
            axes = {name: product.axis for name, product in self.products.items()}
            self.kept = {name: mask_2_4(np.abs(a), axes[name]) for name, a in self.wanted.items()}
        else:
            self.kept = magnitude_masks(self.wanted, share, step.scope)

    @property
    def name(self) -> str:
        return "2:4" if self.share is None else f"{self.share:.0%} zeros"

    def ways(
        self, layers: Layers, stop: Stop, product: Product, *, weighed: bool = False
    ) -> dict[str, Tensor]:
        """What the weight may become, by the way that leads there. ``weighed`` as in `Layers.moments`."""
        dense = torch.tensor(self.wanted[product.weight])
        kept = torch.from_numpy(self.kept[product.weight])
        found = {"magnitude": dense * kept}
        by_obs = self.step.method == "obs"
        moments = layers.moments(stop, product, dense, weighed=weighed) if by_obs else None
        if moments is None:
            return found
        for damp in _DAMPS if self.share is None else _DAMPS[:1]:
            found[f"obs damped by {damp:g}"] = (
                _solved(moments, dense, damp) if self.share is None else self._refitted(moments, dense, kept)
            )
        return found

    def _refitted(self, moments: Moments, dense: Tensor, kept: Tensor) -> Tensor:
        """Zeros in no pattern: those that the layer misses least, or with scope "global" those of magnitude,
        which compare between layers; what stays makes up for them."""
        layer = moments.layer
        packed, alive = layer.packed(dense), layer.packed(kept)
        forms = [obs.damped(gram, _DAMPS[0]) for gram in moments.gram]
        if self.step.scope == "layer" and self.share is not None:
            alive = obs.leanest(packed, forms, self.share)
        groups = [
            obs.refit(own * mask, own, form, pull)
            for own, mask, form, pull in zip(packed, alive, forms, moments.pull, strict=True)
        ]
        return layer.unpacked(torch.stack(groups), dense)


def _chosen(layers: Layers, zeros: _Zeros, progress: Progress) -> tuple[dict[str, np.ndarray], list[Step]]:
    """The sparse weights by name, and a row for each product in question."""
    found: dict[str, np.ndarray] = {}
    rows, astray = [], 0.0
    for stop, product in layers.visit(progress):
        name, place = product.weight, product.node.name or ""
        if name not in zeros.products:
            continue
        before = layers.error(stop)
        ways = zeros.ways(layers, stop, product, weighed=zeros.share is None)
        errors = {way: layers.error(stop, name, array) for way, array in ways.items()}
        farther = errors
        if zeros.share is None:  # what is weighed by what the outputs need is judged there
            farther = {way: layers.outputs_error(stop, name, array) for way, array in ways.items()}
        best = min(farther, key=lambda way: (math.isnan(farther[way]), farther[way]))
        limit = zeros.step.tolerance
        if limit is not None and not errors[best] <= before + limit:
            told = f"left dense: {zeros.name} by {best} raises the error by more than {limit:g}"
            rows.append(Step(place, told, False, before, errors[best]))
            continue
        told = f"{zeros.name} by {best}"
        if best != "magnitude":
            told += f", an error of {errors['magnitude']:.2g} by magnitude alone"
        layers.put(name, ways[best])
        found[name] = ways[best].numpy()
        rise = farther[best] - astray if zeros.share is None else math.nan
        rows.append(Step(place, told, True, before, errors[best], rise))
        astray = farther[best]
    return found, rows


def _dear(model: ir.Model, rows: Sequence[Step]) -> dict[str, str]:
    """The layers whose zeros cost out of all proportion, and that in words: the first of a network, often,
    whose error all others get, and which is little work."""
    rises = {row.place: max(0.0, row.rise) for row in rows if row.kept}
    nodes = {node.name or "": node for node in model.graph}
    work = {name: macs_of(nodes[name]) for name in rises}
    whole, every = max(_SLIGHT, sum(rises.values())), max(1, sum(own or 0 for own in work.values()))
    found = {}
    for name, rise in rises.items():
        own = work[name]
        if own is not None and rise / whole > max(_MUCH, _DEAR * own / every):
            found[name] = f"left dense: {rise / whole:.0%} of the error for {own / every:.1%} of the work"
    return found


def _left(row: Step, what: str) -> Step:
    return replace(row, what=what, kept=False)


def _solved(moments: Moments, dense: Tensor, damp: float) -> Tensor:
    """The weight of a layer with two of each four zero, by `obs.solve` group by group."""
    layer = moments.layer
    packed = layer.packed(dense)
    taps = math.prod(dense.shape[2:]) if layer.node.op_type == "Conv" else 1
    order = obs.fours_first(packed.shape[2] // taps, taps)
    result = torch.empty_like(packed)
    for group in range(len(packed)):
        gram, pull = moments.gram[group][order][:, order], moments.pull[group][:, order]
        result[group][:, order] = obs.solve(packed[group][:, order], gram, pull, damp=damp)
    return layer.unpacked(result, dense)


def _rewound(given: ir.Model, graph: ir.Model) -> ir.Model:
    """The graph that was ``given``, under the zeros of ``graph``."""
    copy = given.clone()
    kept = {name: array != 0 for name, array in _weights(graph).items()}
    early = _weights(given)
    for product in list(products(copy)):
        if product.weight in kept:
            replace_weight(copy, product.node, 1, early[product.weight] * kept[product.weight])
    return copy


def _weights(model: ir.Model) -> dict[str, np.ndarray]:
    """The weights of products."""
    found = {product.weight: constant(product.node.inputs[1]) for product in products(model)}
    return {name: array for name, array in found.items() if array is not None}


def _told(step: Sparsify, graph: ir.Model) -> str:
    arrays = _weights(graph)
    if step.pattern == "2:4":
        sparse = masks(graph)
        share = sum(mask.size for mask in sparse.values()) / max(sum(a.size for a in arrays.values()), 1)
        return f"{len(sparse)} of {len(arrays)} products 2:4 sparse, {share:.0%} of their weights"
    zeros = sum(int((a == 0).sum()) for a in arrays.values()) / max(sum(a.size for a in arrays.values()), 1)
    return f"{zeros:.1%} of the weights are zero, in no pattern: smaller at rest, no faster"


def masks(model: ir.Model) -> dict[str, np.ndarray]:
    """Where the weights of ``model`` that are 2:4 sparse are not zero, by name: what training has to keep."""
    arrays = _arrays(model)
    return {name: array != 0 for name, (array, axis) in arrays.items() if sparse_2_4(array, axis)}


def prove(model: ir.Model, names: Sequence[str]) -> None:
    """Raises VerificationError naming those of the weights ``names`` that are not 2:4 sparse in ``model``, as
    it is, or as it was written and read again."""
    arrays = _arrays(model)
    wrong = [name for name in names if name not in arrays or not sparse_2_4(*arrays[name])]
    if wrong:
        raise VerificationError(
            f"not 2:4 sparse: {', '.join(wrong)}",
            hint="a step behind sparsity changed the zeros: report this",
        )


def _arrays(model: ir.Model) -> Mapping[str, tuple[np.ndarray, int]]:
    """The weights of products with the axes that they are summed over."""
    found = {}
    for product in products(model):
        array = constant(product.node.inputs[1])
        if array is not None:
            found[product.weight] = (array, product.axis)
    return found
