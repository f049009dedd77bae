"""Forms that concern weights alone, for which no data are needed.

fp16     large weights are float16 constants behind a Cast
w8, w4   they are integers behind a DequantizeLinear, everything else is float
dynamic  the same in 8 bits, and products round what they read by ranges found while running

Where a profile has rules for a form (`Runtime.weights`), only the matrices of products are stored so, by the
groups that its kernels take, and what these kernels round while running is written out in the literal graph.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import Block
from deploy.graph.cost import macs_of
from deploy.graph.dynamic import rounded_inputs, rounding_inputs
from deploy.graph.edit import constant
from deploy.graph.grouped import rounding_groups, rounding_tensors
from deploy.graph.products import SHORTEST, columns_last, product_weights
from deploy.graph.qdq import data_digest, insert, quantize_array
from deploy.graph.shapes import static_shape
from deploy.graph.weights import SMALLEST, fits_half, large_weights, stored_as_half
from deploy.quantize.assign import Assignment, half_scale
from deploy.quantize.groups import quantize_blocks, quantize_groups
from deploy.quantize.weights import assign_weights, weight_scales
from deploy.spec.plan import BlockPlan, QuantParams, TensorPlan
from deploy.spec.profile import Runtime, WeightRules
from deploy.spec.tensors import Precision

WeightForm = Literal["fp16", "dynamic", "w8", "w4"]

BY_THE_USER = "excluded by the user"
"""The reason that plans give for blocks with a node that was excluded, by which they are known again."""

_FEW_ROWS, _FEW_COST = 4, 3
"""A product of so few rows takes three times as long for each multiplication: each weight is read for it."""
_WORTH_TRYING = 1.1
_FILLED = 1.125
"""By how much groups may make a row longer before smaller ones are taken."""


@dataclass(frozen=True)
class Stored:
    """A graph with its weights in a form, the parameters of those that are integers, and what that changed.

    ``weights`` are the names of all that are stored otherwise; ``rounded`` the nodes that round what they
    read, with the axes that share one scale; ``grouped`` those where so many numbers of a row do, ``whole``
    those where all do.
    """

    graph: ir.Model
    tensors: Mapping[str, TensorPlan]
    weights: frozenset[str]
    rounded: Mapping[str, tuple[int, ...]]
    grouped: Mapping[str, int] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()

    @property
    def rounding(self) -> frozenset[str]:
        """All nodes that round what they read."""
        return self.whole.union(self.rounded, self.grouped)

    def literal(self) -> ir.Model:
        """The graph that says, node by node, what is computed."""
        graph = rounding_inputs(self.graph, self.rounded) if self.rounded else self.graph
        graph = rounding_groups(graph, self.grouped) if self.grouped else graph
        return rounding_tensors(graph, self.whole) if self.whole else graph


def with_form(runtime: Runtime, form: WeightForm | None) -> Runtime:
    """The runtime with the options by which artifacts of that form are opened."""
    rules = None if form is None or form == "fp16" else runtime.weights.get(form)
    return (
        runtime
        if rules is None
        else runtime.model_copy(update={"options": {**runtime.options, **rules.options}})
    )


def mixes_samples(runtime: Runtime, form: WeightForm | None) -> bool:
    """Whether what a sample gives depends on those beside it: one range is found for all that is read.

    So it is scored by itself, as it is run most of the time; in batches ranges would be wider (measured: a
    keyword transformer loses 0.1 points alone and 0.7 in batches of 32).
    """
    rules = None if form is None or form == "fp16" else runtime.weights.get(form)
    return rules is not None and rules.rounds == "tensor"


def stored_share(model: ir.Model, runtime: Runtime, form: WeightForm) -> float:
    """Which part of the large weights a form stores on a runtime: by rules those of products alone."""
    large = large_weights(model)
    rules = None if form == "fp16" else runtime.weights.get(form)
    stored = large if rules is None or rules.others else product_weights(model, rules.operations)
    sizes = {name: math.prod(shape) for name in large if (shape := _static(model, name)) is not None}
    whole = sum(sizes.values())
    return sum(sizes.get(name, 0) for name in stored) / whole if whole else 1.0


def _static(model: ir.Model, name: str) -> tuple[int, ...] | None:
    shape = model.graph.initializers[name].shape
    return None if shape is None or not shape.is_static() else shape.numpy()


def store_weights(model: ir.Model, form: WeightForm, runtime: Runtime, excluded: Collection[str]) -> Stored:
    """The graph in that form. Weights that a node in ``excluded`` reads stay as they are."""
    if form == "fp16":
        halved = [name for name in large_weights(model, excluded) if _fits(model, name)]
        return Stored(stored_as_half(model, halved), {}, frozenset(halved), {})
    half, bits = runtime.around == "float16", 4 if form == "w4" else 8
    if (rules := runtime.weights.get(form)) is not None:
        return _store_products(model, bits, rules, excluded, half)
    assignment = assign_weights(model, bits, excluded, half=half)
    graph = insert(model, assignment.tensors, assignment.codes)
    rounded = rounded_inputs(graph, runtime.rounds) if form == "dynamic" else {}
    return Stored(graph, assignment.tensors, frozenset(assignment.tensors), rounded)


def _store_products(
    model: ir.Model, bits: int, rules: WeightRules, excluded: Collection[str], half: bool
) -> Stored:
    weights = product_weights(model, rules.operations, excluded)
    laid_out = columns_last(model, weights)
    tensors, codes = {}, {}
    grouped: dict[str, int] = {}
    for name, nodes in weights.items():
        array = constant(laid_out.graph.initializers[name])
        assert array is not None
        if not np.isfinite(array).all():
            continue
        group = group_for(len(array), rules)
        params, codes[name] = _quantized(array, group, bits, half)
        tensors[name] = TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes[name]))
        if rules.rounds == "group" and (size := _rounding(len(array), group, rules)) is not None:
            grouped |= {node.name or "": size for node in nodes}
    readers = frozenset(node.name or "" for name in tensors for node in weights[name])
    whole = readers if rules.rounds == "tensor" else frozenset()
    if rules.others:
        rest = _others(laid_out, bits, rules, excluded, half)
        left = rest.tensors.keys() - weights.keys()
        tensors |= {name: plan for name, plan in rest.tensors.items() if name in left}
        codes |= {name: array for name, array in rest.codes.items() if name in left}
    return Stored(insert(laid_out, tensors, codes), tensors, frozenset(tensors), {}, grouped, whole)


def _others(
    model: ir.Model, bits: int, rules: WeightRules, excluded: Collection[str], half: bool
) -> Assignment:
    """All large weights, those of convolutions in groups of input channels where these go into them."""
    found = assign_weights(model, bits, excluded, half=half)
    for name, uses in large_weights(model, excluded).items():
        array = constant(model.graph.initializers[name])
        assert array is not None
        if name not in found.tensors or {node.op_type for node, _ in uses} != {"Conv"}:
            continue
        group = group_for(array.shape[1], rules)
        if group is not None and array.shape[1] % group == 0:
            params, codes = quantize_blocks(array, 1, group, bits, half=half)
            plan = TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes))
            found.tensors[name], found.codes[name] = plan, codes
    return found


def group_for(size: int, rules: WeightRules) -> int | None:
    """How many weights share a scale where ``size`` are summed over; None for all of them.

    The profile's number or that halved, down to 32, the largest that fills up little: kernels store the last
    group whole.
    """
    if rules.group is None or (not rules.rest and (size % rules.group or size == rules.group)):
        return None
    sizes = [rules.group]
    while sizes[-1] >= 2 * SHORTEST:
        sizes.append(sizes[-1] // 2)
    filled = {group: -(-size // group) * group for group in sizes}
    return next(
        (group for group in sizes if filled[group] <= _FILLED * size), min(sizes, key=filled.__getitem__)
    )


def _rounding(size: int, group: int | None, rules: WeightRules) -> int | None:
    """How many numbers of a row of ``size`` are rounded by one scale; None where kernels round nothing."""
    together = rules.rounding or group
    if together is None or size < together or (group is not None and group % together):
        return None
    return together


def _quantized(array: np.ndarray, group: int | None, bits: int, half: bool) -> tuple[QuantParams, np.ndarray]:
    if group is not None:
        return quantize_groups(array, group, bits, half=half)
    limit = 2 ** (bits - 1) - 1
    scale = weight_scales(array, 1, limit, search=bits < 8)
    scale = half_scale(scale) if half else scale
    params = QuantParams(
        type="int8" if bits == 8 else "int4",
        scale=tuple(map(float, scale)),
        zero_point=(0,) * scale.size,
        axis=1,
    )
    return params, quantize_array(array, params, low=-limit, high=limit)


def pays_weight_only(model: ir.Model, runtime: Runtime, *, batch: int = 1) -> dict[WeightForm, float]:
    """Which forms of weights alone may be faster than float here: how many times, at least 1.1, best first.

    The profile says how much faster products were measured to be (`WeightRules.pays`); what else is
    multiplied takes as long as before, what is not multiplied counts nothing. So it is a reason to build and
    time a form, no prediction. Empty where sizes are unknown.
    """
    costs: dict[str, float] = {}
    for node in model.graph:
        macs, rows = macs_of(node, batch), _rows(node, batch)
        if macs is None or rows is None:
            return {}
        costs[node.name or ""] = macs * (_FEW_COST if rows <= _FEW_ROWS else 1)
    found: dict[WeightForm, float] = {}
    for form, rules in runtime.weights.items():
        after = dict(costs)
        for name, nodes in product_weights(model, rules.operations).items() if form in runtime.forms else ():
            array = model.graph.initializers[name].shape
            for node in nodes:
                after[node.name or ""] /= _gain(node, array, rules, _rows(node, batch) or 1)
        total = sum(after.values())
        if total and (times := sum(costs.values()) / total) >= _WORTH_TRYING:
            found[form] = round(times, 2)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _rows(node: ir.Node, batch: int) -> int | None:
    """How many rows a product of matrices has; of other nodes how many numbers come of them, by channels."""
    shape = static_shape(node.outputs[0], batch)
    return None if shape is None else math.prod(shape[:-1])


def _gain(node: ir.Node, shape: ir.Shape | None, rules: WeightRules, rows: int) -> float:
    """How many times the speed of float one product has in a form; 1 where nothing says that it is faster."""
    first, second = shape.numpy() if shape is not None and shape.is_static() else (0, 0)
    size = second if node.attributes.get_int("transB", 0) else first
    if rules.rounds == "group" and _rounding(size, group_for(size, rules), rules) is None:
        return 1.0  # it is multiplied as floats
    enough = [gain for gain in rules.pays if rows <= gain.rows]
    fewest = min((gain.rows for gain in enough), default=0)
    fitting = [gain for gain in enough if gain.rows == fewest and first * second >= gain.numbers]
    return max(fitting, key=lambda gain: gain.numbers).gain if fitting else 1.0


def _fits(model: ir.Model, name: str) -> bool:
    array = constant(model.graph.initializers[name])
    return array is not None and fits_half(array)


def form_plans(
    stored: Stored, form: WeightForm, blocks: Iterable[Block], runtime: Runtime, excluded: Collection[str]
) -> tuple[BlockPlan, ...]:
    """What each block is computed in, and why where it is not in the form that was asked for."""
    alone: Precision = "w8" if form == "dynamic" else form
    readers = {
        node.name
        for node in stored.graph.graph
        if any(value is not None and value.name in stored.weights for value in node.inputs)
    }
    plans = []
    for block in blocks:
        converted, rounds = (
            not readers.isdisjoint(block.nodes),
            not stored.rounding.isdisjoint(block.nodes),
        )
        reason = ""
        if not set(excluded).isdisjoint(block.nodes):
            reason = BY_THE_USER
        elif not converted:
            reason = f"no weights of {SMALLEST} numbers or more"
        elif form == "dynamic" and not rounds:
            reason = f"{runtime.name} rounds no activations for {block.kind} here"
        precision = form if rounds and converted else alone if converted else runtime.float_precision
        plans.append(BlockPlan(id=block.id, nodes=block.nodes, precision=precision, reason=reason))
    return tuple(plans)
