"""What the ranges of a few samples show before calibration: values that 8 bits with one scale cannot hold.

A value is suspect where its range leaves too few levels for a part of it. That alone costs nothing: what
matters is how far the result of the layer that reads it rises above the rounding of what it reads,

    variance of the result / (step**2 / 12 * sum of its weights squared)

around the mean of each output channel, since what never changes tells nothing. So a suspect is a hazard only
if this is low, too. Where no layer with weights reads it, the part itself is compared with its rounding. Each
check is told the parameters that the value would get: what stays float on a runtime is never suspect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import activation_from
from deploy.graph.edit import constant, constant_tensor, is_constant
from deploy.quantize.seen import Run, Seen, look
from deploy.spec.plan import QuantParams

FEW_LEVELS = 32.0
"""Levels of the median channel, an operand or a negative lobe, below which a value is suspect: three bits of
eight are lost."""
NOISY = 20.0
"""Decibels of a result over the rounding of what it was made from, below which a suspect is a hazard."""
FEWEST_NUMBERS = 4
"""Numbers in each output channel from which their variance is one."""
COARSE_LOGITS = 0.5
"""A step of attention logits: half of it, rounded away, changes an exponential by 28 per cent."""
_SWISHES = frozenset(("HardSwish", "Swish", "Mish", "Gelu", "QuickGelu"))
_NORMS = frozenset(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"))


@dataclass(frozen=True)
class Measured:
    """A hazard with its number: ``what`` happens, and the ``cure``. The larger ``badness``, the worse."""

    node: str
    kind: str
    what: str
    cure: str
    badness: float


@dataclass(frozen=True)
class _Suspect:
    """``value`` leaves too few levels for a part of it, which lies ``own`` decibels above the rounding."""

    node: ir.Node
    kind: str
    value: ir.Value
    what: str
    cure: str
    own: float
    by_channel: bool = False
    """Whether each channel is a feature of its own, so that the median one counts and not the sum."""


Params = Callable[[ir.Value, ir.Node | None], QuantParams | None]
"""The parameters by which a node reads a value (None: by which it is made), None where that is float."""


def channels(model: ir.Model) -> dict[str, int]:
    """The values to be looked at channel by channel, with the axis of their channels."""
    wanted: dict[str, int] = {}
    for node in model.graph:
        for value, _, axis in _crowded_places(node):
            wanted.setdefault(value.name or "", axis)
    for node in model.graph:  # of these the variance of the whole is wanted, whatever the axis
        parts = node.inputs if node.op_type in ("Concat", "Add") else _swishes(node)
        for part in parts:
            if part is not None:
                wanted.setdefault(part.name or "", 0)
    return wanted


def range_hazards(model: ir.Model, seen: Mapping[str, Seen], params: Params, run: Run) -> Iterator[Measured]:
    """All of them, in graph order; another pass over the samples looks at what suspects are read into."""
    suspects = [s for node in model.graph for s in _suspects(node, seen, params)]
    readers = {id(s): _readers(s, params) for s in suspects}
    results = {n.outputs[0].name or "": _result_axis(n) for found in readers.values() for n in found}
    made = look(run, results)
    for suspect in suspects:
        ratios = [_ratio(n, made, params, suspect.by_channel) for n in readers[id(suspect)]]
        noise = min(ratios, default=suspect.own)
        if noise < NOISY:
            where = "what it is read into lies" if ratios else "this lies"
            what = f"{suspect.what}, and {where} only {noise:.0f} dB above its rounding"
            yield Measured(suspect.node.name or "", suspect.kind, what, suspect.cure, -noise)
    for node in model.graph:
        if node.op_type == "Softmax" and not decides(node):
            yield from _logits(node, seen, params)


def _suspects(node: ir.Node, seen: Mapping[str, Seen], params: Params) -> Iterator[_Suspect]:
    for value in _swishes(node):
        yield from _lobe(node, value, seen, params)
    if node.op_type == "Concat":
        yield from _joined(node, seen, params)
    if node.op_type == "Add":
        yield from _added(node, seen, params)
    for value, kind, _ in _crowded_places(node):
        yield from _crowded(node, value, kind, seen, params)


def _readers(suspect: _Suspect, params: Params) -> list[ir.Node]:
    """Layers with constant weights that read the suspect quantized, the suspect's own node first of all."""
    if suspect.value in suspect.node.inputs:
        return [suspect.node] if _weighted(suspect.node) else []
    return [
        n
        for n in dict.fromkeys(suspect.value.consumers())
        if _weighted(n) and n.inputs[0] is suspect.value and params(suspect.value, n) is not None
    ]


def _weighted(node: ir.Node) -> bool:
    return node.op_type == "Conv" or _reads_rows(node)


def _result_axis(node: ir.Node) -> int:
    return 1 if node.op_type == "Conv" else -1


def _ratio(node: ir.Node, made: Mapping[str, Seen], params: Params, by_channel: bool) -> float:
    """Decibels of what varies in the result over what the rounding of the layer's input makes of it."""
    source = node.inputs[0]
    given = None if source is None else params(source, node)
    weight = constant(node.inputs[1])
    result = made[node.outputs[0].name or ""]
    variances = result.variances
    if given is None or weight is None or weight.ndim < 2 or result.numbers < FEWEST_NUMBERS:
        return math.inf
    first = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
    rows = (
        weight.reshape(len(weight), -1) if first else np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1)
    )
    noise = given.scale[0] ** 2 / 12 * np.square(rows, dtype=np.float64).sum(axis=1)
    if len(noise) != len(variances):
        return math.inf
    if by_channel:
        alive = noise > 0
        return _decibels(float(np.median(variances[alive] / noise[alive]))) if alive.any() else math.inf
    return _decibels(float(variances.sum() / noise.sum())) if noise.any() else math.inf


def _decibels(ratio: float) -> float:
    return 10 * math.log10(max(ratio, 1e-30))


def _own(variance: float, step: float) -> float:
    """Decibels of what varies over the rounding of the value itself."""
    return _decibels(variance * 12 / step**2)


def _range(seen: Mapping[str, Seen], value: ir.Value | None) -> Seen | None:
    found = None if value is None or value.name is None else seen.get(value.name)
    return found if found is not None and found.bounded and found.width > 0 else None


def _swishes(node: ir.Node) -> Iterator[ir.Value]:
    """The result of a swish-like activation: of the node, or of the nodes behind it that spell one out."""
    if node.op_type in _SWISHES:
        yield node.outputs[0]
    for value in node.outputs:
        function = activation_from(value)
        if function and any(n.op_type in ("Sigmoid", "Erf", "Tanh", "HardSigmoid") for n in function):
            yield function[-1].outputs[0]


def _lobe(node: ir.Node, value: ir.Value, seen: Mapping[str, Seen], params: Params) -> Iterator[_Suspect]:
    found, given = _range(seen, value), params(value, None)
    if found is None or given is None or found.low >= 0 or found.high <= -found.low:
        return
    step = given.scale[0]
    if -found.low / step >= FEW_LEVELS:
        return
    whole, symmetric = 255 * -found.low / found.width, 127 * -found.low / found.high
    yield _Suspect(
        node,
        "swish-range",
        value,
        f"its values below zero, down to {found.low:.2g}, share one scale with values up to "
        f"{found.high:.3g}: {whole:.1f} of 255 levels are left for them with a zero point, {symmetric:.1f} "
        "without",
        "bound the activation (a clip at 6, as hard-swish networks are trained with), or keep what reads it "
        "float",
        _own(found.variance, step),
    )


def _joined(node: ir.Node, seen: Mapping[str, Seen], params: Params) -> Iterator[_Suspect]:
    given = params(node.outputs[0], None)
    operands = [(v, _range(seen, v)) for v in node.inputs if v is not None and not is_constant(v)]
    known = [(v, found) for v, found in operands if found is not None]
    if given is None or len(known) < 2:
        return
    narrow, least = min(known, key=lambda item: item[1].width)
    most, step = max(found.width for _, found in known), given.scale[0]
    if least.width / step >= FEW_LEVELS:
        return
    yield _Suspect(
        node,
        "concat-ranges",
        node.outputs[0],
        f"operand '{narrow.name}' spans {least.width:.3g} beside another's {most:.3g} on one scale, so it "
        f"keeps {least.width / step:.1f} levels and loses {math.log2(most / least.width):.1f} of 8 bits",
        "scale the operands alike before it (and divide in what follows), or keep it float",
        _own(least.variance, step),
    )


def _added(node: ir.Node, seen: Mapping[str, Seen], params: Params) -> Iterator[_Suspect]:
    given = params(node.outputs[0], None)
    known = [(v, _range(seen, v)) for v in node.inputs if v is not None and not is_constant(v)]
    to_softmax = any(n.op_type == "Softmax" for n in node.outputs[0].consumers())  # `_logits` speaks of it
    if given is None or len(known) != 2 or to_softmax:
        return
    (one, first), (two, second) = known
    if first is None or second is None:
        return
    narrow, least, most = (one, first, second) if first.width < second.width else (two, second, first)
    left = least.width / given.scale[0]
    if left >= FEW_LEVELS:
        return
    yield _Suspect(
        node,
        "add-ranges",
        node.outputs[0],
        f"operand '{narrow.name}' spans {least.width:.3g}, {left:.1f} of the 255 levels of a sum that "
        f"{most.width:.3g} beside it makes wide: it loses {math.log2(255 / left):.1f} bits",
        "look for an outlying channel in the other operand, or keep it float",
        math.inf,  # by itself a small addend is a small loss
    )


def decides(softmax: ir.Node) -> bool:
    """Whether a Softmax is the last word, whose largest entry is the answer."""
    value = softmax.outputs[0]
    return value.is_graph_output() or any(n.op_type in ("ArgMax", "TopK") for n in value.consumers())


def _logits(node: ir.Node, seen: Mapping[str, Seen], params: Params) -> Iterator[Measured]:
    value = node.inputs[0]
    found = _range(seen, value)
    given = None if value is None else params(value, node)
    if found is None or given is None or given.scale[0] <= COARSE_LOGITS:
        return
    step = given.scale[0]
    yield Measured(
        node.name or "",
        "attention-logits",
        f"its input runs from {found.low:.4g} to {found.high:.4g}, so one of 255 levels is {step:.2g} and "
        f"rounding changes an exponential up to {math.exp(min(step / 2, 50)):.3g} times",
        "mask with -inf if a mask makes it wide, or keep Softmax and what feeds it float",
        step,
    )


def _crowded_places(node: ir.Node) -> Iterator[tuple[ir.Value, str, int]]:
    """Values whose channels share a scale though they need not be alike: value, kind, channel axis."""
    value = node.inputs[0] if node.inputs else None
    if value is None or is_constant(value):
        return
    if _is_depthwise(node):
        yield value, "depthwise-activation", 1
        yield node.outputs[0], "depthwise-activation", 1
    elif node.op_type in _NORMS or _reads_rows(node):
        yield value, "outlier-activation", -1


def _reads_rows(node: ir.Node) -> bool:
    """Whether it multiplies rows of features by constant weights."""
    product = node.op_type in ("MatMul", "Gemm") and not node.attributes.get_int("transA", 0)
    return product and constant_tensor(node.inputs[1]) is not None


def _is_depthwise(node: ir.Node) -> bool:
    weight = constant_tensor(node.inputs[1]) if node.op_type == "Conv" else None
    return weight is not None and weight.shape[1] == 1 and node.attributes.get_int("group", 1) > 1


def _crowded(
    node: ir.Node, value: ir.Value, kind: str, seen: Mapping[str, Seen], params: Params
) -> Iterator[_Suspect]:
    read = value in node.inputs
    found, given = _range(seen, value), params(value, node if read else None)
    if found is None or given is None:
        return
    widths = found.widths
    alive = widths[widths > 0]
    if alive.size < 4:
        return
    step, median = given.scale[0], float(np.median(alive))
    if median / step >= FEW_LEVELS:
        return
    depthwise = kind == "depthwise-activation"
    yield _Suspect(
        node,
        kind,
        value,
        f"of '{value.name}', which it {'reads' if read else 'makes'}, channel {int(widths.argmax())} reaches "
        f"{widths.max() / median:.0f} times as far as the median one, which one scale for all leaves "
        f"{median / step:.1f} levels",
        "equalize this layer with the one before it, or keep it float"
        if depthwise
        else "move the outlying channels into the weights (SmoothQuant), or keep what reads it float",
        _own(float(np.median(found.variances[widths > 0])), step),
        by_channel=depthwise,
    )


def collapsed(found: Iterable[Measured]) -> list[tuple[str, list[str], str]]:
    """Each kind once, in order of appearance: its nodes from the worst on, and the text of the worst."""
    kinds: dict[str, list[Measured]] = {}
    for hazard in found:
        kinds.setdefault(hazard.kind, []).append(hazard)
    result = []
    for kind, members in kinds.items():
        members.sort(key=lambda m: -m.badness)
        nodes = list(dict.fromkeys(m.node for m in members))
        first = members[0]
        at = f"at {first.node}, the worst of {len(nodes)}, " if len(nodes) > 1 else ""
        result.append((kind, nodes, f"{at}{first.what}: {first.cure}"))
    return result
