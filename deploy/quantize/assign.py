"""Turns ranges into parameters by a runtime's rules: the numbers of the plan, and the integers of constants.

activations   one scale and zero point per tensor, from the group's merged histogram
weights       symmetric, per output channel, codes in [-127, 127] (7-bit: [-64, 64])
biases        int32 with scale = input scale x weight scale, where the rules say so
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant
from deploy.graph.qdq import data_digest, quantize_array
from deploy.quantize.place import Placement
from deploy.quantize.ranges import Histogram, Range, range_by
from deploy.quantize.share import TURNED
from deploy.spec.plan import Origin, QuantParams, TensorPlan
from deploy.spec.profile import FixedOutput, QuantRules
from deploy.spec.project import Observer
from deploy.spec.tensors import RANGES, QuantType

_SMALLEST_SCALE = 1e-12
_BIAS_LIMIT = 2.0**30
"""Biases stay below half of int32, so that adding the accumulator cannot overflow."""


_NONE_CHOSEN: Mapping[str, Range] = {}
Found = dict[tuple[QuantType, bool, tuple[str, ...]], Range]
"""Ranges by what they depend on beside histograms and observer: the type, whether it is symmetric, whose."""


@dataclass(frozen=True)
class Assignment:
    """The plan's tensors, and the integer data of those that are constants."""

    tensors: dict[str, TensorPlan]
    codes: dict[str, np.ndarray]


def assign(
    model: ir.Model,
    placement: Placement,
    histograms: Mapping[str, Histogram],
    rules: QuantRules,
    observer: Observer,
    ranges: Mapping[str, Range] = _NONE_CHOSEN,
    found: Found | None = None,
) -> Assignment:
    """Parameters for every value in ``placement``: by ``observer``, but for the groups that ``ranges`` names.

    ``found`` is what was found for the same histograms and observer before, and takes what is found now.

    Raises KeyError for a value without a histogram.
    """
    tensors = _activations(placement, histograms, rules, observer, ranges, {} if found is None else found)
    codes: dict[str, np.ndarray] = {}
    for name, uses in placement.weights.items():
        array = _array(model, name)
        single = not rules.per_channel or any(head.op_type in rules.per_tensor for head, _ in uses)
        axis = None if single else common_axis(uses, array.ndim)
        scale = _weight_scale(array, axis, rules)
        for bias, (source, weight) in placement.biases.items():
            if weight == name:
                scale = _wide_enough_for(
                    np.abs(_array(model, bias)), scale, _scale_read(tensors[source], placement, weight)
                )
        params = QuantParams(
            type="int8", scale=_floats(stored_scale(scale, rules)), zero_point=(0,) * scale.size, axis=axis
        )
        limit = rules.largest_weight
        codes[name] = quantize_array(array, params, low=-limit, high=limit)
        tensors[name] = TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes[name]))
    for bias, (source, weight) in placement.biases.items():
        read = _scale_read(tensors[source], placement, weight)
        scale = np.float32(read) * np.asarray(tensors[weight].scale, np.float32)
        params = QuantParams(
            type="int32",
            scale=_floats(scale),
            zero_point=(0,) * scale.size,
            axis=None if tensors[weight].axis is None else 0,
        )
        codes[bias] = quantize_array(_array(model, bias), params)
        tensors[bias] = TensorPlan(
            **params.model_dump(), origin="bias", bias_of=(source, weight), digest=data_digest(codes[bias])
        )
    return Assignment(tensors, codes)


def _activations(
    placement: Placement,
    histograms: Mapping[str, Histogram],
    rules: QuantRules,
    observer: Observer,
    ranges: Mapping[str, Range],
    found: Found,
) -> dict[str, TensorPlan]:
    members: dict[str, list[str]] = {}
    for name, group in (*placement.groups.items(), *placement.turned.items()):
        members.setdefault(group, []).append(name)
    fixed: dict[str, FixedOutput] = {}
    for chain in placement.chains:
        made = placement.groups.get(chain.output.name or "")
        own = rules if made is None else placement.rules_of(made, rules)
        if made is not None and chain.nodes[-1].op_type in own.fixed_output:
            fixed[made] = own.fixed_output[chain.nodes[-1].op_type]
    params: dict[str, QuantParams] = {}
    for group, names in members.items():
        own = placement.rules_of(group, rules)
        if group in fixed:
            scale = _floats(stored_scale(np.asarray([fixed[group].scale]), own))
            params[group] = QuantParams(
                type=own.activation, scale=scale, zero_point=(fixed[group].zero_point,)
            )
        else:
            chosen = None if group in placement.wide else ranges.get(group)
            low, high = chosen or _observed(histograms, tuple(names), own, observer, found)
            params[group] = activation_params(low, high, own)
    tensors = {}
    for group, name in ((group, name) for group, names in members.items() for name in names):
        if placement.groups[name] != group:
            continue
        origin: Origin = "fixed" if group in fixed else "calibration" if name == group else "shared"
        tensors[name] = TensorPlan(
            **params[group].model_dump(),
            origin=origin,
            shared_with=None if name == group else group.removesuffix(TURNED),
            readers=placement.readers.get(name, ()),
            uses=placement.uses(name, params),
        )
    return tensors


def _scale_read(source: TensorPlan, placement: Placement, weight: str) -> float:
    """By what the kernels have a value that they multiply by ``weight`` and add an integer bias to."""
    readers = (source.uses.get(head.name or "", source) for head, _ in placement.weights[weight])
    return next((params.scale[0] for params in readers if params.type == "int8"), source.scale[0])


def _observed(
    histograms: Mapping[str, Histogram],
    names: tuple[str, ...],
    rules: QuantRules,
    observer: Observer,
    found: Found,
) -> Range:
    """The range of values that share their parameters."""
    key = rules.activation, rules.symmetric_activation, names
    if key not in found:
        merged = Histogram()
        for name in names:
            merged.merge(histograms[name])
        found[key] = range_by(rules, merged, observer)
    return found[key]


def activation_params(low: float, high: float, rules: QuantRules) -> QuantParams:
    """One scale and zero point that cover ``[low, high]`` (which contains 0) in the rules' type.

    What was always 0 could have any scale: it gets one that kernels can compute with, as if it ran to 1.

    >>> from datetime import date
    >>> rules = QuantRules(activation="uint8", compute=("Conv",), source="an example", date=date(2026, 1, 1))
    >>> found = activation_params(-0.5, 1.5, rules)
    >>> round(found.scale[0], 6), found.zero_point
    (0.007843, (64,))
    """
    bottom, top = RANGES[rules.activation]
    high = high if low < high else 1.0
    if rules.symmetric_activation:
        scale = stored_scale(np.asarray([max(-low, high) / top]), rules)
        return QuantParams(type=rules.activation, scale=_floats(scale), zero_point=(0,))
    scale = stored_scale(np.asarray([(high - low) / (top - bottom)]), rules)
    zero = round(bottom - low / float(scale[0]))
    return QuantParams(type=rules.activation, scale=_floats(scale), zero_point=(min(max(zero, bottom), top),))


def _weight_scale(array: np.ndarray, axis: int | None, rules: QuantRules) -> np.ndarray:
    axes = tuple(i for i in range(array.ndim) if i != axis)
    largest = np.abs(array.astype(np.float64)).max(axis=axes if axis is not None else None)
    return np.atleast_1d(largest / rules.largest_weight)


def _wide_enough_for(bias: np.ndarray, scale: np.ndarray, input_scale: float) -> np.ndarray:
    """Widen channels whose bias would not fit int32; their weights are then too small to matter."""
    needed = bias.astype(np.float64) / (input_scale * _BIAS_LIMIT)
    return np.asarray(np.maximum(scale, needed.max() if scale.size == 1 else needed))


def stored_scale(scale: np.ndarray, rules: QuantRules) -> np.ndarray:
    """Scales as the artifact can hold them: float32, or float16 rounded up so that nothing is clipped."""
    scale = np.maximum(scale, _SMALLEST_SCALE)
    if rules.scale == "float32":
        return scale.astype(np.float32)
    return half_scale(scale)


def half_scale(scale: np.ndarray) -> np.ndarray:
    """Scales as float16, rounded up.

    >>> half_scale(np.array([0.1, 1e-9])).tolist()
    [0.10003662109375, 5.960464477539063e-08]
    """
    half = np.maximum(scale.astype(np.float16), np.float16(2.0**-24))
    return np.asarray(np.where(half.astype(np.float64) < scale, np.nextafter(half, np.float16(np.inf)), half))


def _floats(scale: np.ndarray) -> tuple[float, ...]:
    return tuple(float(s) for s in scale)


def common_axis(uses: Iterable[tuple[ir.Node, int]], rank: int) -> int | None:
    """The axis along which all readers of a weight have their output channels; None where they differ."""
    axes = {_channel_axis(head, slot, rank) for head, slot in uses}
    return axes.pop() if len(axes) == 1 else None


def _channel_axis(head: ir.Node, slot: int, rank: int) -> int | None:
    """The output-channel axis of a weight; None where one scale must do."""
    if head.op_type == "Conv":
        return 0
    if head.op_type == "ConvTranspose":
        return 1 if head.attributes.get_int("group", 1) == 1 else None
    if head.op_type == "Gemm" and slot == 1:
        return 0 if head.attributes.get_int("transB", 0) else 1
    if head.op_type == "MatMul" and slot == 1 and rank == 2:
        return 1
    if head.op_type == "Gather":
        return 0 if head.attributes.get_int("axis", 0) == 0 else None
    return None


def _array(model: ir.Model, name: str) -> np.ndarray:
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array
