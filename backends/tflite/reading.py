"""What the graph says of a value or node: its type, its quantization, the activation that it is."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnx_ir as ir

from deploy.adapter.optable import Unsupported, type_name
from deploy.graph.edit import constant, constant_tensor, scalar
from deploy.spec.plan import QuantParams
from deploy.spec.tensors import RANGES, QuantType

TYPES = ("float32", "int8", "uint8", "int32", "int64", "bool")
"""What tensors can be of."""
_STORED: dict[str, QuantType] = {"int8": "int8", "int16": "int16", "int32": "int32", "int4": "int4"}
"""What values can be quantized to, by the name of the type in the graph."""


_BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "NONE": (None, None), "RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0),
}  # fmt: skip
"""Between what the activations that TFLite fuses keep their results."""


def activation_of(node: ir.Node) -> str:
    """The activation that TFLite fuses for this node, NONE where it is none of them."""
    if node.op_type == "Relu":
        return "RELU"
    if node.op_type != "Clip":
        return "NONE"
    low, high = (_bound(node, index) for index in (1, 2))
    return next((name for name, bounds in _BOUNDS.items() if bounds == (low, high)), "NONE")


def idle(activation: str, params: QuantParams) -> bool:
    """Whether an activation changes no result that is rounded by these parameters, since they end there, too.

    So it is behind a sum in INT8 with a Relu, whose range begins at 0: XNNPACK, which fuses activations with
    convolutions only, would run a kernel of its own that does nothing.

    >>> idle("RELU", QuantParams(type="int8", scale=(0.1,), zero_point=(-128,)))
    True
    >>> idle("RELU6", QuantParams(type="int8", scale=(0.1,), zero_point=(-128,)))
    False
    """
    low, high = _BOUNDS[activation]
    bottom, top = RANGES[params.type]
    scale, zero = params.scale[0], params.zero_point[0]
    ends = high is None or zero + round(high / scale) >= top
    return (low is None or zero + round(low / scale) <= bottom) and ends


def _bound(node: ir.Node, index: int) -> float | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    number = scalar(value)
    if number is None:
        return float("nan")  # computed: equal to none of the bounds
    return None if index == 2 and number >= float(np.finfo(np.float32).max) else number


def dtype_of(value: ir.Value) -> str:
    """The type by which a value that is no quantized one is stored. Raises Unsupported for others."""
    name = "" if value.dtype is None or value.dtype.is_string() else type_name(value.dtype)
    if name not in TYPES:
        raise Unsupported(f"a tensor of {name or 'unknown type'}")
    return name


def stored_constant(value: ir.Value) -> np.ndarray | None:
    """The numbers that a file stores for a constant: integers, where it is dequantized, or float16."""
    source = value.producer()
    if source is not None and source.op_type == "DequantizeLinear":
        codes = constant(source.inputs[0])
        return codes.astype(np.int8) if codes is not None and codes.dtype.name == "int4" else codes
    return constant(source.inputs[0]) if source is not None and widens(source) else constant(value)


def widens(node: ir.Node) -> bool:
    """Whether a node makes float32 of a float16 constant."""
    if node.op_type != "Cast" or node.attributes.get_int("to", 0) != ir.DataType.FLOAT.value:
        return False
    tensor = constant_tensor(node.inputs[0])
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT16


def quantize_of(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear by which a value is stored; None where somebody reads it as it is."""
    readers = [user for user, _ in value.uses()]
    if not readers or value.is_graph_output() or any(r.op_type != "QuantizeLinear" for r in readers):
        return None
    return min(readers, key=lambda r: "@" in (r.name or ""))


def params_of(node: ir.Node) -> QuantParams:
    """The parameters of a QuantizeLinear or DequantizeLinear. Raises Unsupported for a form not written."""
    scale = constant_tensor(node.inputs[1]) if len(node.inputs) > 1 else None
    zero = constant_tensor(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or zero is None or scale.dtype != ir.DataType.FLOAT:
        raise Unsupported("scale and zero point must be constants, the scale float32")
    axis = node.attributes.get_int("axis", 1)
    return _params(scale, zero, axis)  # type: ignore[arg-type]  # the protocol does not say it, but each is a key


@lru_cache(4096)
def _params(scale: ir.TensorProtocol, zero: ir.TensorProtocol, axis: int) -> QuantParams:
    """Each node is asked several times, and the two of a pair share their constants."""
    kind = type_name(zero.dtype)
    if kind not in _STORED:
        raise Unsupported(f"quantized to {kind}; written are {', '.join(_STORED)}")
    return QuantParams(
        type=_STORED[kind],
        scale=tuple(scale.numpy().ravel().tolist()),
        zero_point=tuple(zero.numpy().astype(np.int64).ravel().tolist()),
        axis=axis if scale.shape.rank() else None,
    )
