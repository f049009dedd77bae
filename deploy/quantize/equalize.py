"""Cross-layer equalization and high-bias absorption (Nagel et al. 2019, "Data-Free Quantization").

Channels that one scale covers are brought to like ranges by factors that the neighbouring weights take up;
the network computes what it did. The paper balances the *weights* of two layers. With a scale for each
output channel that wins nothing: the rows of the first layer may be divided by anything. What is left is the
noise of the activation between, which has one scale, and of the columns of the second layer, whose rows share
one:

    J(s) = sum over reading layers c of  [ sum_i s_i^2 |W_ci|^2 (D(s)^2 / 12 + clipped_i(s))    activations
                                         + sum_p d_p(s)^2 / 12 sum_i E[x_i^2] / s_i^2 ] / P_c       weights
    D(s) = (max_i high_i/s_i - min_i low_i/s_i) / levels            d_p(s) = max_i |W_pi| s_i / 127

P_c is the power of what the layer computes. The range is that of the
observer on one half of the samples, its error taken on the other: a range that all channels fill to the brim
is exceeded by one of them on the next sample, which cost a ResNet-20 up to 13 dB in a layer. The
maxima allow no closed form, but the family of the paper and
of SmoothQuant, s_i = r_i^a / m_i^b (r ranges of channels, m of columns relative to their rows), contains the
optimum of either term alone; 25 pairs (a, b) are tried in J. Where weights have a single scale
(``per_tensor``) d is one number, and depends on the factors of the layer's output channels, too; then groups
are gone through again until J stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import onnx_ir as ir

from deploy.data.dataset import Dataset
from deploy.execute.observe import observe
from deploy.graph.edit import constant
from deploy.graph.shapes import infer
from deploy.quantize.absorb import absorb
from deploy.quantize.channels import FIXED, Channels, follow, scale
from deploy.quantize.expected import Layer, Noise, Tensor, layers_of, tensors_of
from deploy.quantize.extents import Extent, extents
from deploy.quantize.place import Placement
from deploy.quantize.rung import Rung, Step
from deploy.spec.profile import QuantRules
from deploy.spec.project import Observer
from deploy.spec.tensors import RANGES

_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_LARGEST = 2.0**12
"""Factors stay between this and its inverse: a channel that is nearly dead need not be brought to life."""
_LEAST_GAIN = 0.63
"""A group is left alone unless its noise falls below this share, 2 dB: what was expected to win less made
ResNets worse, by up to 1.4 dB at the outputs."""
_SWEEPS = 4


def apply(
    model: ir.Model,
    placement: Placement,
    rules: QuantRules,
    dataset: Dataset,
    *,
    observer: Observer,
    samples: int,
    threads: int = 1,
) -> Rung[ir.Model]:
    """A graph that computes the same with channels equalized and high biases absorbed.

    ``placement`` says which values and weights are quantized, ``rules`` how. One pass over the samples, a
    second one where a Clip might be in the way. Ranges must be found anew for the result.
    """
    clips = [n for n in model.graph if n.op_type == "Clip" and n.inputs[0] is not None]
    reached = _reached(model, clips, dataset, samples, threads) if clips else {}
    channels = follow(model, reached)
    values = _values(model, channels, placement)
    seen = extents(model, channels, values, dataset, samples=samples, threads=threads)
    if not seen:
        return Rung("equalize", model, (), float(bool(clips)))
    factors, steps = _solve(model, channels, placement, rules, observer, seen)
    limits = [(channels.values[n.outputs[0].name or ""], n) for n in clips if n.name in reached]
    for ids, clip in limits:
        _keep_below(factors, ids, clip, seen)
    scaled = infer(scale(model, channels, factors))
    absorbed = absorb(scaled, placement, channels, factors, seen)
    return Rung("equalize", scaled, (*steps, *absorbed), 1.0 + bool(clips))


def _values(model: ir.Model, channels: Channels, placement: Placement) -> list[str]:
    """The quantized values that have channels to scale, and what their readers read."""
    read = {
        head.inputs[0].name
        for uses in placement.weights.values()
        for head, _ in uses
        if head.inputs[0] is not None
    }
    floats = {o.name for n in model.graph for o in n.outputs if o.dtype == ir.DataType.FLOAT}
    return [
        name
        for name, ids in channels.values.items()
        if name in floats and (name in placement.groups or name in read) and (ids > FIXED).any()
    ]


def _solve(
    model: ir.Model,
    channels: Channels,
    placement: Placement,
    rules: QuantRules,
    observer: Observer,
    seen: Mapping[str, Extent],
) -> tuple[np.ndarray, list[Step]]:
    """Factors for all channel numbers, and what was won group by group."""
    layers = layers_of(model, channels, placement, rules, seen)
    tensors = tensors_of(channels, placement, seen, layers)
    factors = np.ones(channels.count)
    # A norm's channels belong to SmoothQuant, which searches by the error on data.
    norms = {int(i) for s in channels.slots if s.role == "norm" for i in np.unique(s.ids)}
    components = [c for c in _components(channels.count, tensors, layers) if not norms & set(c.tolist())]
    levels = RANGES[rules.activation][1] - RANGES[rules.activation][0]
    limit = rules.largest_weight
    symmetric = rules.symmetric_activation
    work = []
    for component in components:
        own = np.zeros(channels.count, bool)
        own[component] = True
        near = [t for t in tensors if own[np.maximum(t.ids, 0)].any()]
        reading = [c for c in layers if own[np.maximum(c.ids, 0)].any()]
        making = [c for c in layers if c.single and own[c.outputs].any() and c not in reading]
        if near and reading:
            noise = Noise(
                near,
                reading,
                [*reading, *making],
                levels,
                limit,
                symmetric,
                observer != "minmax",
            )
            work.append((component, noise, noise.total(factors)))
    for _ in range(_SWEEPS if any(c.single for c in layers) else 1):
        before = factors.copy()
        for component, noise, _ in work:
            _improve(factors, component, noise)
        if np.allclose(before, factors, rtol=0.02):
            break
    steps = []
    for component, noise, start in work:
        end = noise.total(factors)
        if end < start and (factors[component] != 1).any():
            spread = float(factors[component].max() / factors[component].min())
            place = ", ".join(layer.name for layer in noise.reading)
            steps.append(
                Step(place, f"{len(component)} channels by factors up to {spread:.3g} apart", start, end)
            )
    return factors, steps


def _improve(factors: np.ndarray, component: np.ndarray, noise: Noise) -> None:
    """The best of the family for one group, written into ``factors`` if it is worth it."""
    ranges, columns = np.zeros(len(factors)), np.zeros(len(factors))
    for tensor in noise.tensors:
        reach = np.maximum(tensor.most(0), tensor.most(1))
        np.maximum.at(ranges, np.maximum(tensor.ids, 0), reach / max(float(reach.max()), 1e-30))
    for layer in noise.reading:
        rows = factors[layer.outputs] if layer.single else 1.0
        peak = layer.peak / np.reshape(rows, (-1, 1) if layer.single else ())
        top = peak.max() if layer.single else peak.max(axis=1, keepdims=True)
        np.maximum.at(columns, layer.ids, peak / np.maximum(top, 1e-30))
    alive = component[(ranges[component] > 0) & (columns[component] > 0)]
    if not alive.size:
        return
    reach, column = ranges[alive], columns[alive]
    start = least = noise.total(factors)
    best: np.ndarray | None = None
    for a, b in product(_POWERS, _POWERS):
        tried = factors.copy()
        wish = reach**a / column**b
        # The range of the whole stays: what else shares the scale is neither drowned nor cut.
        tried[alive] = np.clip(wish * (reach / wish).max() / reach.max(), 1 / _LARGEST, _LARGEST)
        found = noise.total(tried)
        if found < least:
            best, least = tried, found
    if best is not None and least < _LEAST_GAIN * start:
        factors[:] = best


def _components(count: int, tensors: Sequence[Tensor], layers: Sequence[Layer]) -> list[np.ndarray]:
    """Numbers that meet in a tensor or in what a layer reads, group by group; not those that are fixed."""
    leader = np.arange(count)

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = int(leader[i])
        return i

    for ids in [t.ids for t in tensors] + [c.ids for c in layers]:
        free = np.unique(ids[ids > FIXED])
        for i in free[1:]:
            a, b = find(int(free[0])), find(int(i))
            leader[max(a, b)] = min(a, b)
    roots = np.array([find(i) for i in range(count)])
    present = np.unique(np.concatenate([c.ids.ravel() for c in layers])) if layers else np.zeros(0, np.int64)
    present = present[present > FIXED]
    return [present[roots[present] == root] for root in np.unique(roots[present])]


def _reached(
    model: ir.Model, clips: Sequence[ir.Node], dataset: Dataset, samples: int, threads: int
) -> dict[str, np.ndarray]:
    """Of Clips that begin at 0 or nowhere: the channels (axis 1) that reach a bound on data."""
    sources = {n.inputs[0].name or "": n for n in clips if n.inputs[0] is not None}
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    for batch in observe(model, dataset, list(sources), samples=samples, threads=threads):
        for name in sources:
            array = batch.values.pop(name)
            axes = tuple(i for i in range(array.ndim) if i != 1)
            least, most = array.min(axis=axes, keepdims=True), array.max(axis=axes, keepdims=True)
            low[name] = np.minimum(low.get(name, least), least)
            high[name] = np.maximum(high.get(name, most), most)
    found = {}
    for name, node in sources.items():
        bottom, top = clip_bounds(node)
        if bottom is not None and top is not None and name in low and low[name].ndim > 1:
            found[node.name or ""] = (high[name] >= top) | ((low[name] <= bottom) & (bottom != 0))
    return found


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """The bounds of a Clip, infinite where absent, None where they are computed."""
    found: list[float | None] = []
    for index, absent in ((1, -np.inf), (2, np.inf)):
        value = node.inputs[index] if index < len(node.inputs) else None
        array = constant(value)
        found.append(absent if value is None else None if array is None else float(array.reshape(())))
    return found[0], found[1]


def _keep_below(factors: np.ndarray, ids: np.ndarray, clip: ir.Node, seen: Mapping[str, Extent]) -> None:
    """No channel may be brought to reach a bound that it did not reach: such a group is left alone."""
    name = clip.outputs[0].name or ""
    bottom, top = clip_bounds(clip)
    if name not in seen or bottom is None or top is None:
        factors[np.unique(ids[ids > FIXED])] = 1.0
        return
    by = factors[np.maximum(ids, 0)]
    # A scaled bound would be another Clip for each channel: the smallest factor that keeps clear is taken.
    high, low = seen[name].high.max(axis=0), seen[name].low.min(axis=0)
    least = np.maximum(high / top, low / bottom if bottom else 0.0).reshape(ids.shape)
    np.maximum.at(
        factors, np.maximum(ids, 0).ravel(), np.broadcast_to(np.maximum(by, least), ids.shape).ravel()
    )
    factors[FIXED] = 1.0
