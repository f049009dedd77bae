"""A plan written into a graph as QuantizeLinear / DequantizeLinear pairs, and read back out of one.

For an activation ``v`` the pair is ``v -> v/q -> v/dq`` and the readers of ``v`` take ``v/dq``. For a
constant the integers are stored as ``v/int`` and the result of its DequantizeLinear is called ``v``, so that
every node that read ``v`` still does. A quantized graph output keeps its name; its producer's value becomes
``v/raw``. The pair for a reader ``n`` with parameters of its own is ``v@n/q``, ``v@n/dq``; by this name
`read_tensors` knows it, everything else it sees from how the nodes are connected. Where such a name is
taken already, a number is appended. Where its parameters are of another width than the value's own, the pair
reads ``v/dq``: integers of one width are made of those of the other, as runtimes do.

    x = clamp(round_half_even(v / scale) + zero_point)      (ONNX QuantizeLinear, operator set 21)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, fresh_name, names
from deploy.spec.plan import QuantParams, TensorPlan, with_overrides
from deploy.spec.tensors import RANGES

_Q, _DQ, _RAW, _INT = "/q", "/dq", "/raw", "/int"
_NUMPY = {t: np.dtype(t) for t in ("int8", "uint8", "int16", "uint16", "int32")}
_NUMPY |= {"int4": np.dtype(np.int8), "uint4": np.dtype(np.uint8)}
"""What codes are held in outside of a graph."""
_FOUR_BITS = {"int4": ir.DataType.INT4, "uint4": ir.DataType.UINT4}


def quantize_array(
    array: np.ndarray, params: QuantParams, *, low: int | None = None, high: int | None = None
) -> np.ndarray:
    """Integer codes of ``array``; computed in float64 from float32 inputs, so rounding is exact.

    ``low`` and ``high`` narrow the type's range, for weights of 7 bits or without -128. Halves go to the even
    code, as ONNX's QuantizeLinear has it.

    >>> params = QuantParams(type="uint8", scale=(0.5,), zero_point=(3,))
    >>> quantize_array(np.array([-1.0, 0.25, 0.75, 200.0]), params).tolist()
    [1, 3, 5, 255]
    """
    bounds = RANGES[params.type]
    scale, zero = (
        _along(params, np.asarray(p, np.float64), array.shape) for p in (params.scale, params.zero_point)
    )
    codes = np.rint(array.astype(np.float64) / scale) + zero
    clipped = np.clip(codes, bounds[0] if low is None else low, bounds[1] if high is None else high)
    return np.asarray(clipped, dtype=_NUMPY[params.type])


def dequantize_array(codes: np.ndarray, params: QuantParams) -> np.ndarray:
    """The float32 values that the codes stand for.

    >>> params = QuantParams(type="int8", scale=(0.5, 2.0), zero_point=(0, 1), axis=0)
    >>> dequantize_array(np.array([[1, 2], [1, 2]], np.int8), params).tolist()
    [[0.5, 1.0], [0.0, 2.0]]
    """
    scale, zero = (
        _along(params, np.asarray(p, np.float64), codes.shape) for p in (params.scale, params.zero_point)
    )
    return np.asarray((codes.astype(np.float64) - zero) * scale, dtype=np.float32)


def data_digest(codes: np.ndarray) -> str:
    """SHA-256 (hex) of integer data, little-endian, in row order; of those of 4 bits each as a byte."""
    little = codes.astype(codes.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(np.ascontiguousarray(little).tobytes()).hexdigest()


def plain(codes: np.ndarray) -> np.ndarray:
    """Codes of 4 bits in numpy's type of a byte; others as they are."""
    return codes.astype(_NUMPY[codes.dtype.name]) if codes.dtype.name in _FOUR_BITS else codes


def insert(
    model: ir.Model,
    tensors: Mapping[str, TensorPlan],
    codes: Mapping[str, np.ndarray],
    scale_type: str = "float32",
) -> ir.Model:
    """A copy of the graph that carries ``tensors``; ``codes`` holds the integers of its constants.

    ``scale_type`` is the float type around the pairs. Raises KeyError for a value that the graph lacks,
    ValueError for an input that is an output too and whose plan names no ``readers``: both bear one name.
    """
    copy = model.clone()
    graph = copy.graph
    writing = _Writing(copy, np.dtype(scale_type), names(copy))
    values = {v.name: v for v in graph.inputs} | {o.name: o for node in graph for o in node.outputs}
    for name, plan in tensors.items():
        if name in graph.initializers:
            _store_constant(writing, name, plan, codes[name])
        else:
            _pair(writing, values[name], plan)
    graph.sort()
    return copy


@dataclass
class _Writing:
    """A graph under change. ``zeros`` are the all-zero points stored so far, by type and shape."""

    model: ir.Model
    float_type: np.dtype[np.generic]
    taken: set[str]
    zeros: dict[tuple[str, tuple[int, ...]], ir.Value] = field(default_factory=dict)

    def free(self, name: str) -> str:
        return fresh_name(self.model, name, self.taken)

    def store(self, name: str, array: np.ndarray, kind: str = "") -> ir.Value:
        """A constant of the graph; ``kind`` names the type where numpy has none for it."""
        typed = array.astype(_FOUR_BITS[kind].numpy()) if kind in _FOUR_BITS else array
        return add_initializer(self.model, name, typed, self.taken)

    def parameters(self, params: QuantParams, stem: str, of: tuple[int, ...] = ()) -> list[ir.Value]:
        """Scale and zero point as constants of the graph, for a tensor of shape ``of``.

        Groups whose zero points are all 0 have none written: that is what leaving them out means.
        """
        shape = params.scale_shape(of)
        scale = self.store(stem + "/scale", np.asarray(params.scale, self.float_type).reshape(shape))
        zero = np.asarray(params.zero_point, _NUMPY[params.type]).reshape(shape)
        if zero.ndim == 0 or zero.any():
            return [scale, self.store(stem + "/zero_point", zero, params.type)]
        if params.group is not None:
            return [scale]
        # All-zero vectors are alike in many tensors: one copy of each type and shape is stored.
        key = (params.type, zero.shape)
        if key not in self.zeros:
            self.zeros[key] = self.store(f"zero/{params.type}/{zero.size}", zero, params.type)
        return [scale, self.zeros[key]]


def _store_constant(writing: _Writing, name: str, plan: TensorPlan, codes: np.ndarray) -> None:
    graph = writing.model.graph
    value = graph.initializers.pop(name)
    stored = writing.store(name + _INT, codes, plan.type)
    node = _linear(
        "DequantizeLinear", writing, name + _DQ, [stored, *writing.parameters(plan, name, codes.shape)], plan
    )
    node.outputs[0].shape = value.shape
    value.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    node.outputs[0].name = name
    graph.append(node)


def _pair(writing: _Writing, value: ir.Value, plan: TensorPlan) -> None:
    graph = writing.model.graph
    name = value.name
    assert name is not None
    is_output = any(out is value for out in graph.outputs) and not plan.readers
    if is_output and value.is_graph_input():
        raise ValueError(f"'{name}' is input and output: as an output it cannot be quantized")
    readers: dict[str, list[tuple[ir.Node, int]]] = {}
    for user, index in value.uses():
        if not plan.readers or user.name in plan.readers:
            readers.setdefault(user.name if user.name in plan.uses else "", []).append((user, index))
    if is_output or any(_turns(plan, consumer) for consumer in readers):
        readers.setdefault("", [])
    own: ir.Value | None = None
    for consumer, uses in sorted(readers.items(), key=lambda item: item[0] != ""):
        params, stem = (plan.uses[consumer], f"{name}@{consumer}") if consumer else (plan, name)
        source = own if own is not None and _turns(plan, consumer) else value
        result = _quantize_dequantize(writing, source, params, stem)
        own = own if consumer else result
        for user, index in uses:
            user.replace_input_with(index, result)
        if is_output and not consumer:
            for i, out in enumerate(graph.outputs):
                if out is value:
                    graph.outputs[i] = result
            value.name = writing.free(name + _RAW)
            result.name = name


def _turns(plan: TensorPlan, consumer: str) -> bool:
    """Whether a reader has integers of another width than the value is stored in."""
    return consumer in plan.uses and _NUMPY[plan.uses[consumer].type].itemsize != _NUMPY[plan.type].itemsize


def _quantize_dequantize(writing: _Writing, value: ir.Value, params: QuantParams, stem: str) -> ir.Value:
    constants = writing.parameters(params, stem)
    quantize = _linear("QuantizeLinear", writing, stem + _Q, [value, *constants], params)
    codes = quantize.outputs[0]
    codes.dtype = ir.DataType.from_numpy(_NUMPY[params.type])
    dequantize = _linear("DequantizeLinear", writing, stem + _DQ, [codes, *constants], params)
    for node in (quantize, dequantize):
        node.outputs[0].shape = value.shape
        writing.model.graph.append(node)
    return dequantize.outputs[0]


def _linear(
    op: str, writing: _Writing, name: str, inputs: Sequence[ir.Value], params: QuantParams
) -> ir.Node:
    """A node with one output of its own name, typed as the float around the pairs."""
    name = writing.free(name)
    attributes = {"axis": params.axis, "block_size": params.group}
    node = ir.node(op, inputs, {k: v for k, v in attributes.items() if v is not None}, name=name)
    node.outputs[0].name = name
    node.outputs[0].dtype = ir.DataType.from_numpy(writing.float_type)
    return node


def _along(params: QuantParams, numbers: np.ndarray, of: tuple[int, ...]) -> np.ndarray:
    """Scales or zero points so that they stand beside the numbers of a tensor of shape ``of``."""
    if params.axis is None:
        return numbers.reshape(())
    if params.group is not None:
        grouped = numbers.reshape(params.scale_shape(of)).repeat(params.group, axis=params.axis)
        return np.asarray(grouped.take(np.arange(of[params.axis]), axis=params.axis))
    shape = [1] * len(of)
    shape[params.axis] = -1
    return numbers.reshape(shape)


def read_tensors(model: ir.Model) -> dict[str, TensorPlan]:
    """The parameters that a graph written by `insert` carries, by value name.

    Origins, sharing and bias links are not in a graph: every origin reads ``imported``. Raises ValueError
    where a scale or zero point is not a constant, so that nothing can be read back.
    """
    tensors: dict[str, TensorPlan] = {}
    overrides: dict[str, dict[str, QuantParams]] = {}
    for node in model.graph:
        if node.op_type == "DequantizeLinear" and (codes := constant(_input(node, 0))) is not None:
            name = node.outputs[0].name or ""
            tensors[name] = TensorPlan(**_params(node), origin="imported", digest=data_digest(plain(codes)))
        elif node.op_type == "QuantizeLinear":
            source = _input(node, 0)
            name = planned_name(source)
            if (node.name or "").startswith(name + "@"):
                for consumer in _readers(node):
                    overrides.setdefault(name, {})[consumer] = params_of(node)
                continue
            floats = source.is_graph_output() or any(not _is_quantize(u) for u, _ in source.uses())
            readers = _readers(node) if floats else ()
            if floats and not readers and not any(r.is_graph_output() for r in _results(node)):
                continue  # nobody reads it quantized
            tensors[name] = TensorPlan(**_params(node), origin="imported", readers=readers)
    return with_overrides(tensors, overrides)


def planned_name(source: ir.Value) -> str:
    """The planned name of what a QuantizeLinear reads; a quantized output of the graph has passed it on.

    What reads integers of another width than it makes has the name of those.
    """
    maker = source.producer()
    if maker is not None and maker.op_type == "DequantizeLinear":
        before = _input(maker, 0).producer()
        if before is not None and _is_quantize(before):
            return planned_name(_input(before, 0))
    for quantize, _ in source.uses():
        for result in _results(quantize) if _is_quantize(quantize) else ():
            if result.is_graph_output():
                return result.name or ""
    return source.name or ""


def _results(quantize: ir.Node) -> list[ir.Value]:
    return [dequantize.outputs[0] for dequantize, _ in quantize.outputs[0].uses()]


def _readers(quantize: ir.Node) -> tuple[str, ...]:
    users = {user for result in _results(quantize) for user, _ in result.uses()}
    return tuple(sorted(user.name or "" for user in users if not _is_quantize(user)))


def _is_quantize(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear"


def params_of(node: ir.Node) -> QuantParams:
    """The parameters of a QuantizeLinear or DequantizeLinear. Raises ValueError where they are computed."""
    return QuantParams.model_validate(_params(node))


def _params(node: ir.Node) -> dict[str, object]:
    scale = constant(_input(node, 1))
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant(given)
    group = node.attributes.get_int("block_size", 0) or None
    if (
        zero is None
        and given is None
        and scale is not None
        and (codes := constant(_input(node, 0))) is not None
    ):
        zero = np.zeros(scale.shape, codes.dtype)
    if scale is None or zero is None:
        raise ValueError(f"{node.name}: scale and zero point must be constants")
    return {
        "type": zero.dtype.name,
        "scale": tuple(float(s) for s in scale.astype(np.float32).ravel()),
        "zero_point": tuple(int(z) for z in zero.ravel()),
        "axis": node.attributes.get_int("axis", 1) if scale.ndim else None,
        "group": group,
    }


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        raise ValueError(f"{node.name}: input {index} is missing")
    return value
