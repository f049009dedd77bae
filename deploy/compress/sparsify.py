"""2:4 sparsity without training: channels in a better order, then weights that make up for those that go.

Layers are taken in graph order (`layers.py`). On samples that were held out the error of what leaves the
layer's block decides: between the ways below, and whether the layer stays dense.

    magnitude    the two largest of each four stay as they are
    obs          `obs.solve` on the Gram matrices of the layer's inputs, lightly and strongly damped
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.compress import obs
from deploy.compress.layers import Layers, Moments
from deploy.compress.pattern import Product, fits, mask_2_4, products, sparse_2_4
from deploy.compress.permute import Search, permute
from deploy.compress.step import Compressed, Step
from deploy.data.dataset import Dataset
from deploy.errors import VerificationError
from deploy.graph.edit import constant, replace_weight
from deploy.progress import SILENT, Progress
from deploy.train.finetune import reproducible
from deploy.train.units import Stop

_DAMPS = (0.01, 0.1)

Method = Literal["magnitude", "obs"]


@dataclass(frozen=True)
class Sparsify:
    """``permute`` orders channels first. A layer stays dense where sparsity raises the error of its outputs,
    a share of their power, by more than ``tolerance``; None takes all. ``samples`` are taken from the first,
    every fourth batch of them held out."""

    method: Method = "obs"
    permute: bool = True
    tolerance: float | None = None
    samples: int = 256
    seed: int = 0
    threads: int = 1
    search: Search = field(default_factory=Search)


def sparsify(
    model: ir.Model, dataset: Dataset, settings: Sparsify | None = None, progress: Progress = SILENT
) -> Compressed:
    """A copy with 2:4 sparse weights along the axes that products sum over, proved on the graph itself.

    ``model`` has inferred shapes. Only products whose summed axis is whole fours are touched; a step of each
    says what was done. Equal seed, threads and machine give equal weights. Raises DataError where there are
    fewer than two batches of samples, UnsupportedError listing nodes that torch has no kernel for.
    """
    settings = settings or Sparsify()
    steps: list[Step] = []
    if settings.permute:
        ordered = permute(model, settings.search)
        model, steps = ordered.graph, list(ordered.steps)
    with reproducible(settings.threads), torch.no_grad():
        found, more = _chosen(model, dataset, settings, progress)
    result = model.clone()
    nodes = {product.weight: product.node for product in products(result)}
    for name, array in found.items():
        replace_weight(result, nodes[name], 1, array)
    prove(result, list(found))
    return Compressed(result, (*steps, *more))


def _chosen(
    model: ir.Model, dataset: Dataset, settings: Sparsify, progress: Progress
) -> tuple[dict[str, np.ndarray], list[Step]]:
    """The sparse weights by name, and a step for each product of the model."""
    every = list(products(model))
    wanted = {p.weight: p for p in every if fits(p)}
    steps = [
        Step(p.node.name or "", "left dense: its inputs are not whole fours", False)
        for p in every
        if not fits(p)
    ]
    found: dict[str, np.ndarray] = {}
    layers = Layers(model, wanted, dataset, settings.samples, settings.seed)
    for stop, product in layers.visit(progress):
        name, place = product.weight, product.node.name or ""
        before = layers.error(stop)
        ways = _ways(layers, stop, product, settings.method)
        errors = {way: layers.error(stop, name, array) for way, array in ways.items()}
        best = min(errors, key=lambda way: (math.isnan(errors[way]), errors[way]))
        limit = settings.tolerance
        if limit is not None and not errors[best] <= before + limit:
            told = f"left dense: 2:4 by {best} raises the error by more than {limit:g}"
            steps.append(Step(place, told, False, before, errors[best]))
            continue
        told = f"2:4 by {best}"
        if best != "magnitude":
            told += f", an error of {errors['magnitude']:.2g} by magnitude alone"
        layers.put(name, ways[best])
        found[name] = ways[best].numpy()
        steps.append(Step(place, told, True, before, errors[best]))
    return found, steps


def _ways(layers: Layers, stop: Stop, product: Product, method: Method) -> dict[str, Tensor]:
    """What the weight may become, by the way that leads there."""
    array = constant(product.node.inputs[1])
    assert array is not None
    dense = torch.tensor(array)
    found = {"magnitude": dense * torch.from_numpy(mask_2_4(np.abs(array), product.axis))}
    moments = layers.moments(stop, product, dense) if method == "obs" else None
    if moments is not None:
        for damp in _DAMPS:
            found[f"obs damped by {damp:g}"] = _solved(moments, dense, damp)
    return found


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
