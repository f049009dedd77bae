"""A quantized graph that learns: weights behind their rounding, scales as exponentials, and both read back.

    weight  ->  Mul  ->  QuantizeLinear  ->  Clip to the plan's codes  ->  DequantizeLinear  ->  its readers
    bias    ->  Mul  ->  QuantizeLinear  ->  DequantizeLinear,   by input scale * weight scale
    value   ->  QuantizeLinear  ->  DequantizeLinear,   one scale for all that share it

What is learned is of size 1: weights in units of their channel's root mean square, so that one learning rate
suits channels and layers whose weights differ by orders of magnitude, as folded batch norm leaves them. A
scale is the exponential of what is learned (Jain et al., "Trained Quantization Thresholds", MLSys 2020): it
stays positive. Where scales are stored as float16 they pass
through that type. Zero points and prescribed parameters stay as they are. So what the graph computes while it
learns can be written down as codes and scales, and `read_back` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.errors import UsageError
from deploy.execute.module import GraphModule
from deploy.execute.ops.quant import along
from deploy.graph.edit import add_initializer, constant, fresh_name, names
from deploy.graph.qdq import data_digest, dequantize_array, insert, planned_name
from deploy.spec.plan import TensorPlan
from deploy.spec.tensors import RANGES

ScaleType = Literal["float32", "float16"]

_LOG, _KEPT = "/log_scale", "/log_scale_kept"
"""What is learned and what is not differ in name, so that a checkpoint of the one does not fit the other."""
_BIAS_LIMIT = 2.0**30
_SMALLEST = {"float32": 1e-12, "float16": 2.0**-24}
_LARGEST = {"float32": 1e30, "float16": 65504.0}
_INSIDE = 0.49
"""How near to the middle of its code a weight begins that was not rounded to the nearest."""
_USUAL = 64
"""Codes that an input usually has: times the weights' size this is what a bias is added to."""
_UNKNOWN = 4096
"""Numbers that a value of unknown shape is taken to have."""


@dataclass(frozen=True)
class Learnable:
    """``model`` is the graph that learns what ``tensors`` quantize. ``scales`` maps the first value of a
    group, or a weight, to the constant that holds the logarithm of its scale; ``units`` weights and
    biases to that by which they are multiplied; ``largest`` is the greatest code of a weight."""

    model: ir.Model
    tensors: Mapping[str, TensorPlan]
    scales: Mapping[str, str]
    units: Mapping[str, str]
    largest: int
    scale_type: ScaleType
    learn_scales: bool

    def prepare(self, module: GraphModule) -> Callable[[], None]:
        """Make ``module``, which computes `model`, learn nothing but what may change; what it returns is to
        be called after every step, and keeps scales where the plan's rules want them."""
        held = module.named_weights()
        logs = {name: held[log] for name, log in self.scales.items() if log in held}
        stored = {
            v.name for n in module.model.graph if n.op_type in _PAIR for v in n.inputs[1:2] if v is not None
        }
        for name, parameter in held.items():
            if name in stored or name in self.units.values():  # a scale that is prescribed is read as it is
                parameter.requires_grad_(False)
        for name, parameter in logs.items():
            parameter.requires_grad_(self.learn_scales)
            if self.learn_scales:
                share = _times(self._share(name, module))
                parameter.register_hook(share)  # type: ignore[no-untyped-call]  # torch declares it so
        return lambda: self._project(held, logs)

    def _share(self, name: str, module: GraphModule) -> float:
        """What the gradient of a scale is multiplied by, so that it is no larger than that of a weight (Esser
        et al., "Learned Step Size Quantization", ICLR 2020, section 2.2)."""
        plan = next(p for n, p in self.tensors.items() if name in (n, p.shared_with))
        top = self.largest if plan.origin == "weight" else RANGES[plan.type][1]
        if name in module.model.graph.initializers:
            array = constant(module.model.graph.initializers[name])
            count = (array.size if array is not None else 1) / len(plan.scale)
        else:
            values = (v for n in module.model.graph for v in (*n.inputs, *n.outputs) if v is not None)
            shape = next((v.shape for v in values if v.name == name), None)
            sizes = [] if shape is None else [d for d in shape if isinstance(d, int)]
            count = math.prod(sizes) if sizes else _UNKNOWN
        return 1 / math.sqrt(count * top)

    @torch.no_grad()
    def _project(self, held: Mapping[str, Tensor], logs: Mapping[str, Tensor]) -> None:
        for log in logs.values():
            log.clamp_(math.log(_SMALLEST[self.scale_type]), math.log(_LARGEST[self.scale_type]))
        for name, plan in self.tensors.items():
            if plan.bias_of is None or name not in held or plan.bias_of[1] not in logs:
                continue
            source, weight = plan.bias_of
            first = self.tensors[source].shared_with or source
            given = torch.tensor(self.tensors[source].scale) if first not in logs else logs[first].exp()
            unit = constant(self.model.graph.initializers[self.units[name]])
            needed = held[name].abs() * torch.from_numpy(np.array(unit)) / (given * _BIAS_LIMIT)
            log = logs[weight]
            floor = needed.max() if log.numel() == 1 else needed
            # Half a percent more than needed, which is what float16 may take off.
            log.copy_(torch.maximum(log, (floor.reshape(log.shape) * 1.005).clamp_min(1e-30).log()))


_PAIR = ("QuantizeLinear", "DequantizeLinear")


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * factor


def learnable(
    model: ir.Model,
    tensors: Mapping[str, TensorPlan],
    codes: Mapping[str, np.ndarray],
    *,
    largest: int = 127,
    scale_type: ScaleType = "float32",
    learn_scales: bool = True,
) -> Learnable:
    """The graph that learns, beginning with what ``tensors`` and ``codes`` say of the float graph ``model``.

    Weights begin at their float values, moved into the cells of their codes where these are others than the
    nearest. Raises UsageError where a plan holds parameters for single readers, as imported ones may.
    """
    alone = next((name for name, plan in tensors.items() if plan.uses), None)
    if alone is not None:
        raise UsageError(
            f"'{alone}' is quantized otherwise for one of its readers, as in models that came quantized",
            hint="train the float model that it was made from",
        )
    values = {name: plan for name, plan in tensors.items() if name not in codes}
    writing = _Writing(insert(model, values, {}), scale_type, _LOG if learn_scales else _KEPT)
    for node in [n for n in writing.model.graph if n.op_type in _PAIR]:
        name = _quantized_value(node)
        plan = values[name]
        if plan.origin == "fixed":
            writing.known[name] = _given(node, 1)
        else:
            node.replace_input_with(1, writing.scale(plan.shared_with or name, plan))
    for name, plan in tensors.items():
        if name in codes and plan.bias_of is None:
            writing.round_weight(name, plan, codes[name], min(largest, RANGES[plan.type][1]))
    for name, plan in tensors.items():
        if name in codes and plan.bias_of is not None:
            source, weight = plan.bias_of
            first = tensors[source].shared_with or source
            given = writing.known.get(source) or writing.known[first]
            usual = tensors[source].scale[0] * _USUAL * float(_size(_array(model, weight), None).max())
            writing.round_bias(name, plan, codes[name], given, weight, usual)
    writing.model.graph.sort()
    return Learnable(writing.model, tensors, writing.logs, writing.units, largest, scale_type, learn_scales)


def _quantized_value(node: ir.Node) -> str:
    """The planned name of the value that a pair belongs to."""
    quantize = node if node.op_type == "QuantizeLinear" else _given(node, 0).producer()
    assert quantize is not None
    return planned_name(_given(quantize, 0))


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


class _Writing:
    """A graph under change. ``known`` are scales as the graph computes them, ``logs`` what is behind."""

    def __init__(self, model: ir.Model, scale_type: ScaleType, suffix: str) -> None:
        self.model, self.scale_type, self.suffix = model, scale_type, suffix
        self.taken = names(model)
        self.known: dict[str, ir.Value] = {}
        self.logs: dict[str, str] = {}
        self.units: dict[str, str] = {}

    def node(
        self, op: str, inputs: list[ir.Value | None], stem: str, kind: ir.DataType, **attributes: int
    ) -> ir.Value:
        name = fresh_name(self.model, stem, self.taken)
        node = ir.node(op, inputs, attributes, name=name)
        node.outputs[0].name, node.outputs[0].dtype = name, kind
        self.model.graph.append(node)
        return node.outputs[0]

    def scale(self, name: str, plan: TensorPlan) -> ir.Value:
        """The scale of a group or weight, computed from what is learned."""
        if name not in self.known:
            shape: tuple[int, ...] = () if plan.axis is None else (-1,)
            logs = torch.tensor(plan.scale, dtype=torch.float32).log().reshape(shape).numpy()
            log = add_initializer(self.model, name + self.suffix, logs, self.taken)
            found = self.node("Exp", [log], f"{name}/exp", ir.DataType.FLOAT)
            if self.scale_type == "float16":
                for kind in (ir.DataType.FLOAT16, ir.DataType.FLOAT):
                    found = self.node("Cast", [found], f"{name}/stored", kind, to=kind.value)
            self.known[name], self.logs[name] = found, log.name or ""
        return self.known[name]

    def round_weight(self, name: str, plan: TensorPlan, codes: np.ndarray, largest: int) -> None:
        floats = _array(self.model, name)
        scale = along(torch.tensor(plan.scale), torch.from_numpy(codes), plan.axis or 0, 0).numpy()
        middle = codes.astype(np.float32)
        start = np.clip(floats / scale, middle - _INSIDE, middle + _INSIDE) * scale
        ends = [
            add_initializer(self.model, f"{name}/{word}", np.asarray(end, np.int8), self.taken)
            for word, end in (("least", -largest), ("greatest", largest))
        ]
        self._pair(name, plan, start, _size(start, plan.axis), self.scale(name, plan), np.int8, ends)

    def round_bias(
        self, name: str, plan: TensorPlan, codes: np.ndarray, given: ir.Value, weight: str, usual: float
    ) -> None:
        scale = self.node("Mul", [given, self.known[weight]], f"{name}/scale", ir.DataType.FLOAT)
        start = dequantize_array(codes, plan)
        self._pair(name, plan, start, np.maximum(_size(start, None), usual), scale, np.int32, [])

    def _pair(
        self,
        name: str,
        plan: TensorPlan,
        start: np.ndarray,
        unit: np.ndarray,
        scale: ir.Value,
        kind: type[np.int8] | type[np.int32],
        ends: list[ir.Value],
    ) -> None:
        value = self.model.graph.initializers[name]
        value.const_value = ir.tensor(np.asarray(start / unit, np.float32), name=name)
        shape: tuple[int, ...] = () if plan.axis is None else (len(plan.scale),)
        zero = add_initializer(self.model, f"{name}/zero", np.zeros(shape, kind), self.taken)
        uses = [(node, index) for node, index in value.uses()]
        axis, stored = plan.axis or 0, ir.DataType.from_numpy(np.dtype(kind))
        factor = add_initializer(self.model, f"{name}/unit", unit.astype(np.float32), self.taken)
        self.units[name] = factor.name or ""
        found = self.node("Mul", [value, factor], f"{name}/value", ir.DataType.FLOAT)
        found = self.node("QuantizeLinear", [found, scale, zero], f"{name}/q", stored, axis=axis)
        if ends:
            found = self.node("Clip", [found, *ends], f"{name}/clip", stored)
        found = self.node(
            "DequantizeLinear", [found, scale, zero], f"{name}/dq", ir.DataType.FLOAT, axis=axis
        )
        found.shape = value.shape
        for node, index in uses:
            node.replace_input_with(index, found)


def _array(model: ir.Model, name: str) -> np.ndarray:
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array


def _size(array: np.ndarray, axis: int | None) -> np.ndarray:
    """The root mean square along all axes but ``axis``, which stay as 1; of what is nothing 1."""
    axes = tuple(i for i in range(array.ndim) if i != axis)
    found = np.sqrt(np.square(array, dtype=np.float64).mean(axes, keepdims=True))
    return np.where(found > 0, found, 1.0)


def read_back(
    trained: ir.Model, learned: Learnable, model: ir.Model
) -> tuple[ir.Model, dict[str, TensorPlan], dict[str, np.ndarray]]:
    """The float graph ``model`` with what was learned, its plan and the integers of its constants.

    ``trained`` is the graph of ``learned`` with other weights. Quantized constants become what their codes
    stand for, so that whoever quantizes them again by these scales finds the same codes.
    """
    held = {name: constant(value) for name, value in trained.graph.initializers.items()}
    floats = {name: array for name, array in held.items() if array is not None}
    scales = {name: _scale(floats[log], learned.scale_type) for name, log in learned.scales.items()}
    tensors: dict[str, TensorPlan] = {}
    for name, plan in learned.tensors.items():
        found = scales.get(plan.shared_with or name)
        if found is not None:
            plan = plan.model_copy(update={"scale": tuple(map(float, found.reshape(-1)))})
        tensors[name] = plan
    for name, plan in tensors.items():
        if plan.bias_of is not None:
            given, own = (torch.tensor(tensors[n].scale, dtype=torch.float32) for n in plan.bias_of)
            tensors[name] = plan.model_copy(update={"scale": tuple(map(float, given * own))})
    result, codes = model.clone(), {}
    for name, value in result.graph.initializers.items():
        if name not in floats:
            continue
        array = floats[name]
        constants = tensors.get(name)
        if constants is not None:
            array = array * floats[learned.units[name]]
            codes[name] = _codes(array, constants, learned.largest)
            tensors[name] = constants.model_copy(update={"digest": data_digest(codes[name])})
            array = dequantize_array(codes[name], constants)
        value.const_value = ir.tensor(np.array(array), dtype=value.dtype, name=name)
    return result, tensors, codes


def _scale(log: np.ndarray, scale_type: ScaleType) -> Tensor:
    found = torch.from_numpy(np.array(log)).exp()
    return found.half().float() if scale_type == "float16" else found


def _codes(array: np.ndarray, plan: TensorPlan, largest: int) -> np.ndarray:
    """As the graph computes them: in float32, halves to the even code."""
    values = torch.from_numpy(np.array(array, np.float32))
    scale = along(torch.tensor(plan.scale, dtype=torch.float32), values, plan.axis or 0, 0)
    low, high = RANGES[plan.type]
    codes = (values / scale).round().double().clamp(low, high)
    if plan.bias_of is None:
        codes = codes.clamp(-largest, largest)
    return codes.numpy().astype(np.int32 if plan.type == "int32" else np.int8)
