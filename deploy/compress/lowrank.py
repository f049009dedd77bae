"""Low rank: one large product becomes two or three small ones, where that is less to compute and to store.

Ranks follow from what may be lost: of the squares of a weight, or of what it makes on samples (`tucker.py`).
With samples layers are taken in graph order and also aim at what earlier ones lost (`layers.py`); samples
held out decide between that and the weight's own factors, and whether the layer stays whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.compress.ground import Ground, StepResult
from deploy.compress.layers import Layers, Moments
from deploy.compress.step import Compressed, Step
from deploy.compress.tucker import Factors, by_outputs, lost_power, tucker
from deploy.data.dataset import Dataset
from deploy.errors import UsageError
from deploy.graph.cost import macs
from deploy.graph.edit import (
    Attribute,
    add_initializer,
    constant,
    fresh_name,
    insert_before,
    names,
    replace_node,
    weight_bytes,
)
from deploy.graph.pattern import Product, products
from deploy.graph.shapes import infer, static_shape
from deploy.progress import SILENT, Progress
from deploy.spec.compression import LowRank
from deploy.train.finetune import reproducible
from deploy.train.units import Stop

_BUDGETS = (4.0, 2.0, 1.0, 0.5, 0.25)
"""Of what may be lost, what Tucker's sides are allowed: their losses do not just add up."""
_DAMP = 0.01


@dataclass(frozen=True)
class Size:
    """What a product takes for one sample."""

    macs: int
    numbers: int

    def below(self, other: Size) -> bool:
        return self.macs < other.macs and self.numbers < other.numbers


def check(step: LowRank, model: ir.Model, ground: Ground) -> None:
    """Raises UsageError where there is no product to split, or no samples to judge the error by."""
    if not any(product.groups == 1 for product in products(model)):
        raise UsageError("lowrank: the model has no product of weights to split", hint="leave the step out")
    if step.tolerance is not None and ground.samples is None:
        raise UsageError(
            "lowrank: there are no samples to judge the error of a layer by",
            hint="give calibration samples, or leave tolerance out",
        )


def run(step: LowRank, model: ir.Model, ground: Ground) -> StepResult:
    """The graph in factors where that is less to compute, by samples where there are any, and trained where
    ``step`` asks for it."""
    found = factorize(
        model,
        ground.samples,
        step,
        align=ground.align,
        seed=ground.seed,
        threads=ground.threads,
        progress=ground.progress,
    )
    rows, graph = found.steps, found.graph
    count = sum(row.kept for row in rows)
    told = f"{count} of {len(rows)} products split"
    before, after = macs(model), macs(graph)
    if before and after is not None:
        size = weight_bytes(graph) / max(weight_bytes(model), 1)
        told += f", {after / before:.0%} of the MACs and {size:.0%} of the weights left"
    if count and step.finetune is not None:
        graph = ground.tune(graph, step.finetune)
    return StepResult(graph, told, rows)


def factorize(
    model: ir.Model,
    dataset: Dataset | None,
    settings: LowRank,
    *,
    align: int = 1,
    seed: int = 0,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Compressed:
    """A copy in which products are factors where both MACs and weights become fewer; shapes are inferred.

    ``settings.lost`` is the share of power that a layer's factors may lose: of its weight's squares, or with
    samples of what it makes of them. Ranks are rounded up to multiples of ``settings.align``, else ``align``.
    A row says which ranks, and what that saves; its errors are those of what leaves the block on samples
    held out, or the share of the weight's squares lost where there are no samples. Raises DataError where
    there are fewer than two batches of samples, UnsupportedError listing nodes that torch has no kernel for.
    """
    settings = settings if settings.align is not None else settings.model_copy(update={"align": align})
    wanted = {p.weight: p for p in products(model) if p.groups == 1}
    steps = [
        Step(p.node.name or "", "left whole: its groups are small products", False)
        for p in products(model)
        if p.groups != 1
    ]
    found: dict[str, Factors] = {}
    if dataset is None:
        steps.extend(_by_squares(product, settings, found) for product in wanted.values())
    else:
        with reproducible(threads), torch.no_grad():
            layers = Layers(model, wanted, dataset, settings.samples, seed)
            for stop, product in layers.visit(progress):
                steps.append(_by_samples(layers, stop, product, settings, found))
    result = model.clone()
    taken = names(result)
    for product in list(products(result)):
        if product.weight in found:
            _replace(result, product, found[product.weight], taken)
    return Compressed(infer(result), tuple(steps))


def _by_squares(product: Product, settings: LowRank, found: dict[str, Factors]) -> Step:
    weight = rows(product)
    best = _smallest(product, weight, None, settings)
    place = product.node.name or ""
    if best is None:
        return Step(place, "left whole: factors would not be smaller", False)
    found[product.weight] = best
    return Step(place, _told(product, best), True, 0.0, lost_power(best.weight(), weight, None))


def _by_samples(
    layers: Layers, stop: Stop, product: Product, settings: LowRank, found: dict[str, Factors]
) -> Step:
    place, before = product.node.name or "", layers.error(stop)
    array = constant(product.node.inputs[1])
    assert array is not None
    moments = layers.moments(stop, product, torch.tensor(array))
    if moments is None:
        return Step(place, "left whole: its Gram matrix would be too large", False)
    gram = moments.gram[0].double().numpy()
    ways: dict[float, tuple[Factors, Tensor]] = {}
    for weight in (rows(product), _aim(product, moments)):
        best = _smallest(product, weight, gram, settings)
        if best is not None:
            put = torch.from_numpy(_as_given(product, best.weight(), array))
            ways[layers.error(stop, product.weight, put)] = (best, put)
    if not ways:
        return Step(place, "left whole: factors would not be smaller", False, before, before)
    error = min(ways)
    best, put = ways[error]
    if settings.tolerance is not None and not error <= before + settings.tolerance:
        told = f"left whole: {_told(product, best)}, raises the error by more than {settings.tolerance:g}"
        return Step(place, told, False, before, error)
    layers.put(product.weight, put)
    found[product.weight] = best
    return Step(place, _told(product, best), True, before, error)


def _aim(product: Product, moments: Moments) -> np.ndarray:
    """The weight that would make up for what earlier layers lost, as far as its inputs tell."""
    weight = rows(product)
    gram, pull = moments.gram[0].double().numpy(), moments.pull[0].double().numpy()
    form = gram + _DAMP * np.trace(gram) / len(gram) * np.eye(len(gram))
    return weight + np.linalg.solve(form, pull.T).T.reshape(weight.shape)


def _smallest(
    product: Product, weight: np.ndarray, gram: np.ndarray | None, settings: LowRank
) -> Factors | None:
    """The factors with the fewest MACs that lose no more than they may; None where none are smaller."""
    tried = [by_outputs(weight, gram, settings.lost, settings.align or 1)]
    if weight.shape[2] > 1:
        for budget in _BUDGETS:
            one = tucker(weight, gram, min(budget * settings.lost, 1.0), settings.align or 1)
            if lost_power(one.weight(), weight, gram) <= settings.lost:
                tried.append(one)
                break
    sizes = {i: size for i, one in enumerate(tried) if (size := size_of(product, one)) is not None}
    whole = size_of(product, None)
    smaller = [i for i, size in sizes.items() if whole is not None and size.below(whole)]
    return tried[min(smaller, key=lambda i: sizes[i].macs)] if smaller else None


def size_of(product: Product, factors: Factors | None) -> Size | None:
    """MACs and weights of a product, whole or as factors; None where shapes are not known."""
    node = product.node
    given, made = (None if v is None else static_shape(v) for v in (node.inputs[0], node.outputs[0]))
    if given is None or made is None:
        return None
    conv = node.op_type == "Conv"
    before, after = (math.prod(shape[2:]) if conv else math.prod(shape[:-1]) for shape in (given, made))
    if factors is None:
        count = rows(product).size
        return Size(count * after, count)
    macs, numbers = factors.core.size * after, factors.core.size
    if factors.down is not None:
        macs, numbers = macs + factors.down.size * before, numbers + factors.down.size
    if factors.up is not None:
        macs, numbers = macs + factors.up.size * after, numbers + factors.up.size
    return Size(macs, numbers)


def rows(product: Product) -> np.ndarray:
    """The weight as (outputs, inputs, taps), float64."""
    array = constant(product.node.inputs[1])
    assert array is not None
    if product.node.op_type == "Conv":
        return array.reshape(*array.shape[:2], -1).astype(np.float64)
    return (array if product.axis == 1 else array.T)[:, :, None].astype(np.float64)


def _as_given(product: Product, weight: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The inverse of `rows`."""
    if product.node.op_type == "Conv":
        return weight.reshape(like.shape).astype(like.dtype)
    return np.ascontiguousarray(weight[:, :, 0] if product.axis == 1 else weight[:, :, 0].T).astype(
        like.dtype
    )


def _told(product: Product, factors: Factors) -> str:
    whole, small = size_of(product, None), size_of(product, factors)
    assert whole is not None and small is not None
    out, given = factors.ranks
    ranks = f"rank {out}" if factors.down is None else f"ranks {given} and {out}"
    share = f"{small.macs / whole.macs:.0%} of the MACs, {small.numbers / whole.numbers:.0%} of the weights"
    return f"{ranks}, {share}"


def _replace(model: ir.Model, product: Product, factors: Factors, taken: set[str]) -> None:
    """Put the factors in the place of a product; the last of them bears its name and makes its output."""
    node, kept = product.node, product.node.inputs[1]
    conv, name = node.op_type == "Conv", node.name or ""
    assert kept is not None and kept.name is not None and kept.shape is not None
    kernel = tuple(int(n) for n in kept.shape.numpy()[2:])
    ones = (1,) * len(kernel)

    def stored(part: str, array: np.ndarray, shape: tuple[int, ...]) -> ir.Value:
        flat = array.reshape(*array.shape[:2], *shape) if conv else array.reshape(array.shape[:2])
        turned = flat.T if not conv and product.axis == 0 else flat
        return add_initializer(model, f"{kept.name}/{part}", np.ascontiguousarray(turned, np.float32), taken)

    def before(part: str, inputs: list[ir.Value | None], attributes: Mapping[str, Attribute]) -> ir.Value:
        own = fresh_name(model, f"{name}/{part}", taken)
        output = fresh_name(model, f"{node.outputs[0].name}/{part}", taken)
        return insert_before(node, node.op_type, inputs, attributes, name=own, output=output).outputs[0]

    assert factors.up is not None
    value = node.inputs[0]
    if factors.down is not None:
        value = before("down", [value, stored("down", factors.down, ones)], {"kernel_shape": ones})
    core = stored("core", factors.core, kernel)
    value = before("core", [value, core], _core_attributes(node))
    last = [value, stored("up", factors.up, ones), *node.inputs[2:]]
    replace_node(node, node.op_type, last, _up_attributes(node, ones))
    if not kept.uses() and not kept.is_graph_output():
        del model.graph.initializers[kept.name]


def _core_attributes(node: ir.Node) -> dict[str, Attribute]:
    """Those of a convolution; of a Gemm how it reads."""
    if node.op_type == "Gemm":
        return {key: node.attributes.get_int(key, 0) for key in ("transA", "transB")}
    found: dict[str, Attribute] = {}
    for key in ("kernel_shape", "strides", "pads", "dilations"):
        if key in node.attributes:
            found[key] = tuple(node.attributes.get_ints(key, []))
    if "auto_pad" in node.attributes:
        found["auto_pad"] = node.attributes.get_string("auto_pad", "NOTSET")
    return found


def _up_attributes(node: ir.Node, ones: tuple[int, ...]) -> dict[str, Attribute]:
    if node.op_type == "Conv":
        return {"kernel_shape": ones}
    if node.op_type == "MatMul":
        return {}
    scales: dict[str, Attribute] = {key: node.attributes.get_float(key, 1.0) for key in ("alpha", "beta")}
    return {**scales, "transB": node.attributes.get_int("transB", 0)}
