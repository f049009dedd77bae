"""A plan written into a graph as QuantizeLinear / DequantizeLinear pairs, and read back out of one.

For an activation ``v`` the pair is ``v -> v/q -> v/dq`` and the readers of ``v`` take ``v/dq``. For a
constant the integers are stored as ``v/int`` and the result of its DequantizeLinear is called ``v``, so that
every node that read ``v`` still does. A quantized graph output keeps its name; its producer's value becomes
``v/raw``. These names are how :func:`read_tensors` finds its way back.

    x = clamp(round_half_even(v / scale) + zero_point)      (ONNX QuantizeLinear, operator set 21)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, names
from deploy.spec.plan import QuantParams, TensorPlan
from deploy.spec.tensors import RANGES

_Q, _DQ, _RAW, _INT = "/q", "/dq", "/raw", "/int"
_NUMPY = {t: np.dtype(t) for t in ("int8", "uint8", "int16", "uint16", "int32")}


def quantize_array(
    array: np.ndarray, params: QuantParams, *, low: int | None = None, high: int | None = None
) -> np.ndarray:
    """Integer codes of ``array``; computed in float64 from float32 inputs, so rounding is exact."""
    bounds = RANGES[params.type]
    scale, zero = (
        _along(params, np.asarray(p, np.float64), array.ndim) for p in (params.scale, params.zero_point)
    )
    codes = np.rint(array.astype(np.float64) / scale) + zero
    clipped = np.clip(codes, bounds[0] if low is None else low, bounds[1] if high is None else high)
    return np.asarray(clipped, dtype=_NUMPY[params.type])


def dequantize_array(codes: np.ndarray, params: QuantParams) -> np.ndarray:
    """The float32 values that the codes stand for."""
    scale, zero = (
        _along(params, np.asarray(p, np.float64), codes.ndim) for p in (params.scale, params.zero_point)
    )
    return np.asarray((codes.astype(np.float64) - zero) * scale, dtype=np.float32)


def data_digest(codes: np.ndarray) -> str:
    """SHA-256 (hex) of integer data, little-endian, in row order."""
    little = codes.astype(codes.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()


def insert(
    model: ir.Model,
    tensors: Mapping[str, TensorPlan],
    codes: Mapping[str, np.ndarray],
    scale_type: str = "float32",
) -> ir.Model:
    """A copy of the graph that carries ``tensors``; ``codes`` holds the integers of its constants.

    ``scale_type`` is the float type around the pairs. Raises KeyError for a value that the graph lacks.
    """
    graph_model = model.clone()
    graph = graph_model.graph
    taken = names(graph_model)
    values = {v.name: v for v in graph.inputs} | {o.name: o for node in graph for o in node.outputs}
    float_type = np.dtype(scale_type)
    for name, plan in tensors.items():
        if name in graph.initializers:
            _store_constant(graph_model, name, plan, codes[name], float_type, taken)
        else:
            _pair(graph_model, values[name], plan, float_type, taken)
    graph.sort()
    return graph_model


def _store_constant(
    model: ir.Model,
    name: str,
    plan: TensorPlan,
    codes: np.ndarray,
    float_type: np.dtype[np.generic],
    taken: set[str],
) -> None:
    graph = model.graph
    value = graph.initializers.pop(name)
    stored = add_initializer(model, name + _INT, codes, taken)
    node = _linear("DequantizeLinear", model, stored, plan, name, name + _DQ, float_type, taken)
    node.outputs[0].shape = value.shape
    value.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    node.outputs[0].name = name
    graph.append(node)


def _pair(
    model: ir.Model, value: ir.Value, plan: TensorPlan, float_type: np.dtype[np.generic], taken: set[str]
) -> None:
    graph = model.graph
    name = value.name
    assert name is not None
    uses = [(user, index) for user, index in value.uses() if not _is_pair(user)]
    is_output = any(out is value for out in graph.outputs)
    consumers: dict[str, list[tuple[ir.Node, int]]] = {}
    for user, index in uses:
        if not plan.readers or user.name in plan.readers:
            key = user.name if user.name in plan.uses else ""
            consumers.setdefault(key or "", []).append((user, index))
    for key, group in consumers.items():
        params = plan.uses[key] if key else plan
        suffix = f"@{key}" if key else ""
        result = _quantize_dequantize(model, value, params, name + suffix, float_type, taken)
        for user, index in group:
            user.replace_input_with(index, result)
    if is_output and not plan.readers:
        existing = next((u for u, _ in value.uses() if u.name == name + _Q), None)
        result = (
            existing.outputs[0].consumers()[0].outputs[0]
            if existing is not None
            else _quantize_dequantize(model, value, plan, name, float_type, taken)
        )
        for i, out in enumerate(graph.outputs):
            if out is value:
                graph.outputs[i] = result
        value.name = name + _RAW
        result.name = name


def _quantize_dequantize(
    model: ir.Model,
    value: ir.Value,
    params: QuantParams,
    stem: str,
    float_type: np.dtype[np.generic],
    taken: set[str],
) -> ir.Value:
    quantize = _linear("QuantizeLinear", model, value, params, stem, stem + _Q, float_type, taken)
    quantize.outputs[0].dtype = ir.DataType.from_numpy(_NUMPY[params.type])
    quantize.outputs[0].shape = value.shape
    dequantize = _linear(
        "DequantizeLinear", model, quantize.outputs[0], params, stem, stem + _DQ, float_type, taken
    )
    dequantize.outputs[0].shape = value.shape
    model.graph.append(quantize)
    model.graph.append(dequantize)
    return dequantize.outputs[0]


def _linear(
    op: str,
    model: ir.Model,
    data: ir.Value,
    params: QuantParams,
    stem: str,
    name: str,
    float_type: np.dtype[np.generic],
    taken: set[str],
) -> ir.Node:
    shape: tuple[int, ...] = () if params.axis is None else (-1,)
    scale = np.asarray(params.scale, float_type).reshape(shape)
    zero = np.asarray(params.zero_point, _NUMPY[params.type]).reshape(shape)
    # All-zero vectors are alike in many tensors: one copy of each length and type is stored.
    zero_name = f"zero/{params.type}/{zero.size}" if zero.ndim and not zero.any() else stem + "/zero_point"
    inputs = [
        data,
        _shared_initializer(model, stem + "/scale", scale, taken),
        _shared_initializer(model, zero_name, zero, taken),
    ]
    attributes = {} if params.axis is None else {"axis": params.axis}
    node = ir.node(op, inputs, attributes, name=name)
    node.outputs[0].name = name
    node.outputs[0].dtype = ir.DataType.from_numpy(float_type)
    return node


def _shared_initializer(model: ir.Model, name: str, array: np.ndarray, taken: set[str]) -> ir.Value:
    existing = model.graph.initializers.get(name)
    return existing if existing is not None else add_initializer(model, name, array, taken)


def _is_pair(node: ir.Node) -> bool:
    return node.op_type in ("QuantizeLinear", "DequantizeLinear")


def _along(params: QuantParams, numbers: np.ndarray, rank: int) -> np.ndarray:
    if params.axis is None:
        return numbers.reshape(())
    shape = [1] * rank
    shape[params.axis] = -1
    return numbers.reshape(shape)


def read_tensors(model: ir.Model) -> dict[str, TensorPlan]:
    """The parameters that a graph written by :func:`insert` carries, by value name.

    Origins, sharing and bias links are not in a graph: every origin reads ``imported``. Raises ValueError
    where a scale or zero point is not a constant, so that nothing can be read back.
    """
    tensors: dict[str, TensorPlan] = {}
    overrides: dict[str, dict[str, QuantParams]] = {}
    outputs = {o.name for o in model.graph.outputs}
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and (codes := constant(_input(node, 0))) is not None:
            name = node.outputs[0].name or ""
            tensors[name] = TensorPlan(**_params(node), origin="imported", digest=data_digest(codes))
        elif node.op_type == "QuantizeLinear":
            source = _input(node, 0)
            name = (source.name or "").removesuffix(_RAW)
            stem = (node.name or "").removesuffix(_Q)
            if "@" in stem:
                overrides.setdefault(name, {})[stem.rpartition("@")[2]] = QuantParams(**_params(node))
                continue
            readers = _readers(node) if _has_other_reader(source, node, outputs) else ()
            tensors[name] = TensorPlan(**_params(node), origin="imported", readers=readers)
    for name, uses in overrides.items():
        if name in tensors:
            tensors[name] = tensors[name].model_copy(update={"uses": uses})
    return tensors


def _has_other_reader(source: ir.Value, quantize: ir.Node, outputs: set[str | None]) -> bool:
    others = [u for u, _ in source.uses() if u is not quantize and "@" not in (u.name or "")]
    return bool(others) or source.name in outputs


def _readers(quantize: ir.Node) -> tuple[str, ...]:
    found: Sequence[ir.Node] = [u for dq, _ in quantize.outputs[0].uses() for u, _ in dq.outputs[0].uses()]
    return tuple(sorted({u.name or "" for u in found}))


def _params(node: ir.Node) -> dict[str, object]:
    scale, zero = constant(_input(node, 1)), constant(_input(node, 2))
    if scale is None or zero is None:
        raise ValueError(f"{node.name}: scale and zero point must be constants")
    return {
        "type": zero.dtype.name,
        "scale": tuple(float(s) for s in np.atleast_1d(scale.astype(np.float32))),
        "zero_point": tuple(int(z) for z in np.atleast_1d(zero)),
        "axis": node.attributes.get_int("axis", 1) if scale.ndim else None,
    }


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ValueError(f"{node.name}: input {index} is missing")
    return value
