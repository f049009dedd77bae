"""SmoothQuant (Xiao et al. 2023): outlying channels in front of products move from activations into weights.

    Y = (X / s)(diag(s) W)        s_i = max|X_i|^a / max|W_i|^(1 - a)

X has one scale, so that a few loud channels leave the others few levels; W has one for each output channel,
and takes the factors up. 1/s goes into the scale and shift of the norm that makes X, for nothing; where X is
read by others too (a residual sum behind a post-norm), or is made by an activation, a Mul in front of the
products bears it, where that wins enough. All products that read X share s. ``a`` is searched for each X by
the error of the products' own results on samples, both operands rounded as the runtime's rules have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.data.dataset import Dataset
from deploy.execute.observe import observe
from deploy.graph.edit import add_initializer, constant, fresh_name, insert_before, names, replace_weight
from deploy.graph.shapes import infer
from deploy.quantize.channels import FIXED, Channels, follow, scale
from deploy.quantize.place import Placement
from deploy.quantize.ranges import Histogram, range_by
from deploy.quantize.rung import Rung, Step
from deploy.spec.profile import QuantRules
from deploy.spec.project import Observer
from deploy.spec.tensors import RANGES

_COARSE, _FINE = (0.2, 0.4, 0.6, 0.8, 1.0), 0.1
"""What is tried of alpha, and how far from the best of these on both sides."""
_UNLIKE = 2.0
"""Largest over median channel: below it one scale serves all, and nothing is tried."""
_ROWS = 768
"""Rows of X on which errors are compared, and as many more on which ranges are found."""
_LEAST_GAIN, _LEAST_GAIN_INSERTED = 0.8, 0.4
"""What must be left of the noise at most (1 dB); where a Mul has to be inserted, 4 dB."""
_LARGEST = 2.0**10


@dataclass(frozen=True)
class Site:
    """A value that quantized products read. ``free``: a norm makes it that can take the factors."""

    value: ir.Value
    readers: tuple[ir.Node, ...]
    free: bool


@dataclass
class _Rows:
    """Samples of X: even ones are for finding ranges, odd ones for judging."""

    parts: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def add(self, array: np.ndarray, share: int) -> None:
        rows = array.reshape(-1, array.shape[-1])
        rows = rows[:: max(1, len(rows) // share)][:share]
        self.parts.append(rows.astype(np.float32))
        self.count += len(rows)


def apply(
    model: ir.Model,
    placement: Placement,
    rules: QuantRules,
    dataset: Dataset,
    *,
    observer: Observer,
    samples: int,
    threads: int = 1,
    insert: bool = True,
) -> Rung[ir.Model]:
    """A graph that computes the same with smoothed operands of products; ranges must be found anew.

    ``placement`` says which products are quantized. With ``insert`` false nothing but norms takes factors.
    """
    channels = follow(model)
    sites = [site for site in find_sites(model, channels, placement) if site.free or insert]
    if not sites:
        return Rung("smooth", model, (), 0.0)
    rows = {site.value.name or "": _Rows() for site in sites}
    share = max(1, -(-2 * _ROWS // min(samples, len(dataset))))
    for seen in observe(model, dataset, list(rows), samples=samples, threads=threads):
        for name, kept in rows.items():
            kept.add(seen.values.pop(name), share * len(seen.batch.ids))
    factors = np.ones(channels.count)
    inserted: list[tuple[Site, np.ndarray]] = []
    steps = []
    for site in sites:
        name = site.value.name or ""
        x = np.concatenate(rows[name].parts)
        weights = [_matrix(node) for node in site.readers]
        found = _search(x[0::2], x[1::2], weights, rules, observer)
        if found is None:
            continue
        alpha, by, before, after = found
        if after > (_LEAST_GAIN if site.free else _LEAST_GAIN_INSERTED) * before:
            continue
        place = ", ".join(node.name or "" for node in site.readers)
        if site.free:
            factors[channels.values[name].ravel()] = by
        else:
            inserted.append((site, by))
        how = "into the norm" if site.free else "by an inserted Mul"
        steps.append(
            Step(
                place, f"alpha {alpha:g} {how}, factors up to {by.max() / by.min():.3g} apart", before, after
            )
        )
    result = scale(model, channels, factors) if (factors != 1).any() else model.clone()
    for site, by in inserted:
        _insert(result, site, by)
    return Rung("smooth", infer(result), tuple(steps), 1.0)


def find_sites(model: ir.Model, channels: Channels, placement: Placement) -> list[Site]:
    """What quantized products with constant weights read, in graph order.

    A site is free where a norm makes all channels of the value and nobody but these products reads them.
    """
    heads = {head.name for uses in placement.weights.values() for head, slot in uses if slot == 1}
    norms = {int(i) for s in channels.slots if s.role == "norm" for i in np.unique(s.ids)}
    made_by_layers = {
        int(i) for s in channels.slots if s.role == "layer" and s.power < 0 for i in np.unique(s.ids)
    }
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        value = node.inputs[0] if node.inputs else None
        straight = node.op_type == "MatMul" or node.attributes.get_int("transA", 0) == 0
        if (
            node.name in heads
            and node.op_type in ("MatMul", "Gemm")
            and value is not None
            and straight
            and _owned(node)
        ):
            readers.setdefault(value, []).append(node)
    sites = []
    for value, nodes in readers.items():
        ids = channels.values.get(value.name or "")
        size = _matrix(nodes[0]).shape[0]
        if value.is_initializer() or len({_matrix(n).shape[0] for n in nodes}) > 1:
            continue
        numbers = set() if ids is None else set(ids.ravel().tolist())
        along = ids is not None and ids.size == ids.shape[-1] == size == len(numbers)
        free = along and numbers <= norms and not numbers & ({FIXED} | made_by_layers)
        if free and any(u not in nodes for u, _ in value.uses()):
            free = False  # what is merely moved from here is scaled along, but judged nowhere
        sites.append(Site(value, tuple(nodes), free))
    return sites


def _search(
    known: np.ndarray,
    judged: np.ndarray,
    weights: Sequence[np.ndarray],
    rules: QuantRules,
    observer: Observer,
) -> tuple[float, np.ndarray, float, float] | None:
    """The best alpha with its factors, and the noise without and with them; None where nothing is better."""
    loud = np.abs(known).max(axis=0).astype(np.float64)
    heavy = np.max([np.abs(w).max(axis=1) for w in weights], axis=0).astype(np.float64)
    alive = (loud > 0) & (heavy > 0)
    if not alive.any() or loud.max() < _UNLIKE * np.median(loud[alive]):
        return None
    exact = [judged @ w for w in weights]
    power = [max(float(np.square(y, dtype=np.float64).sum()), 1e-30) for y in exact]

    def noise(by: np.ndarray) -> float:
        x = _rounded_activation(known / by, judged / by, rules, observer)
        total = 0.0
        for w, y, p in zip(weights, exact, power, strict=True):
            total += (
                float(np.square(x @ _rounded_weight(w * by[:, None], rules) - y, dtype=np.float64).sum()) / p
            )
        return total / len(weights)

    def factors(alpha: float) -> np.ndarray:
        wish = np.ones(len(loud))
        wish[alive] = loud[alive] ** alpha / heavy[alive] ** (1 - alpha)
        wish[alive] /= np.exp(np.mean(np.log(wish[alive])))
        return np.asarray(np.clip(wish, 1 / _LARGEST, _LARGEST), np.float32)

    tried = {alpha: noise(factors(alpha)) for alpha in _COARSE}
    middle = min(tried, key=tried.__getitem__)
    for alpha in (middle - _FINE, middle + _FINE):
        tried[alpha] = noise(factors(alpha))
    best = min(tried, key=tried.__getitem__)
    return best, factors(best), noise(np.ones(len(loud), np.float32)), tried[best]


def _rounded_activation(
    known: np.ndarray, judged: np.ndarray, rules: QuantRules, observer: Observer
) -> np.ndarray:
    histogram = Histogram()
    histogram.add(known, float(known.min()), float(known.max()))
    bottom, top = RANGES[rules.activation]
    low, high = range_by(rules, histogram, observer)
    step = max(high, -low) / top if rules.symmetric_activation else (high - low) / (top - bottom)
    step = step or 1.0
    zero = 0 if rules.symmetric_activation else round(bottom - low / step)
    codes = np.clip(np.rint(judged / step) + zero, bottom, top)
    return np.asarray((codes - zero) * step, np.float32)


def _rounded_weight(weight: np.ndarray, rules: QuantRules) -> np.ndarray:
    limit = rules.largest_weight
    peak = np.abs(weight).max(axis=0 if rules.per_channel else None)
    step = np.maximum(peak / limit, 1e-30)
    return np.asarray(np.rint(weight / step) * step, np.float32)


def _insert(model: ir.Model, site: Site, by: np.ndarray) -> None:
    """Divide what the products of ``site`` read, by a Mul in front of them, and multiply their weights."""
    taken = names(model)
    wanted = {node.name for node in site.readers}
    nodes = [node for node in model.graph if node.name in wanted]
    value, stem = nodes[0].inputs[0], f"{site.value.name}/smooth"
    inverse = add_initializer(model, f"{stem}/by", (1 / by).astype(np.float32), taken)
    name = fresh_name(model, stem, taken)
    mul = insert_before(nodes[0], "Mul", [value, inverse], name=name, output=name)
    mul.outputs[0].type, mul.outputs[0].shape = site.value.type, site.value.shape
    for node in nodes:
        node.replace_input_with(0, mul.outputs[0])
        turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
        weight = constant(node.inputs[1])
        assert weight is not None
        replace_weight(model, node, 1, weight * (by if turned else by[:, None]))


def _matrix(node: ir.Node) -> np.ndarray:
    """The weights of a product as [inputs, outputs]."""
    weight = constant(node.inputs[1])
    assert weight is not None
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    return weight.T if turned else weight


def _owned(node: ir.Node) -> bool:
    """Whether the weights are a float matrix that nobody else reads."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    array = constant(weight)
    return (
        weight is not None
        and array is not None
        and array.ndim == 2
        and array.dtype == np.float32
        and len(weight.uses()) == 1
    )
