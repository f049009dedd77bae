"""How quantized operations are written: which inputs are data, scale, zero point, and what they mean.

Sources: ONNX operators QuantizeLinear-21, QLinearConv-10, QLinearMatMul-21; ONNX Runtime's contrib operators
(docs/ContribOperators.md, domain com.microsoft).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import get_args

import numpy as np
import onnx_ir as ir

from deploy.frontend.rewrite import NotExpressible, constant_array, given, required
from deploy.spec.plan import QuantParams
from deploy.spec.tensors import RANGES, QuantType

MICROSOFT = "com.microsoft"
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Form:
    """A quantized operation with a float one inside. Indices of inputs: ``operands`` are (data, scale, zero
    point), ``output`` (scale, zero point), ``bias`` an int32 in scale(first) x scale(second), ``plain`` float
    or boolean inputs that come first in the float operation."""

    op: str
    operands: tuple[tuple[int, int, int], ...]
    output: tuple[int, int]
    bias: int | None = None
    plain: tuple[int, ...] = ()


_UNARY = ((0, 1, 2),)
_BINARY = ((0, 1, 2), (3, 4, 5))

FORMS: dict[tuple[str, str], Form] = {
    ("", "QLinearConv"): Form("Conv", _BINARY, (6, 7), bias=8),
    (MICROSOFT, "QLinearConv"): Form("Conv", _BINARY, (6, 7), bias=8),
    ("", "QLinearMatMul"): Form("MatMul", _BINARY, (6, 7)),
    (MICROSOFT, "QGemm"): Form("Gemm", _BINARY, (7, 8), bias=6),
    (MICROSOFT, "QLinearAdd"): Form("Add", _BINARY, (6, 7)),
    (MICROSOFT, "QLinearMul"): Form("Mul", _BINARY, (6, 7)),
    (MICROSOFT, "QLinearSigmoid"): Form("Sigmoid", _UNARY, (3, 4)),
    (MICROSOFT, "QLinearLeakyRelu"): Form("LeakyRelu", _UNARY, (3, 4)),
    (MICROSOFT, "QLinearSoftmax"): Form("Softmax", _UNARY, (3, 4)),
    (MICROSOFT, "QLinearGlobalAveragePool"): Form("GlobalAveragePool", _UNARY, (3, 4)),
    (MICROSOFT, "QLinearAveragePool"): Form("AveragePool", _UNARY, (3, 4)),
    (MICROSOFT, "QLinearWhere"): Form("Where", ((1, 2, 3), (4, 5, 6)), (7, 8), plain=(0,)),
}

FORWARD = frozenset(
    (
        *("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Split"),
        *("Expand", "Tile", "Identity", "DepthToSpace", "SpaceToDepth", "Resize", "Concat", "Pad"),
    )
)
"""Operations that move codes without changing them: they mean the same on the values behind the codes."""

LINEAR = frozenset(["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "BatchNormalization"])
"""Operations behind which a quantizer may have dropped an activation, for the codes to clamp instead."""

_NOT_NEGATIVE = frozenset(["Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp", "Sqrt"])
_KEEPS_SIGN = FORWARD | {
    "Add",
    "Mul",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean",
    "Max",
}
_RELU6 = 6.0

ORDER_ONLY = frozenset(["ArgMax", "ArgMin", "Shape", "Size"])
"""Operations on codes whose result is none: it depends on their order or shape alone."""

_DYNAMIC = frozenset(
    (
        *("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulInteger"),
        *("ConvInteger", "MatMulIntegerToFloat", "QAttention", "QEmbedLayerNormalization", "QOrderedMatMul"),
    )
)


def is_quantized(node: ir.Node) -> bool:
    """Whether ``node`` reads or writes integer codes of real numbers."""
    return (
        (node.op_type in (QUANTIZE, DEQUANTIZE) and node.domain in ("", MICROSOFT))
        or (node.domain, node.op_type) in FORMS
        or not_imported(node)
    )


def not_imported(node: ir.Node) -> bool:
    """Quantized in a way that has no static parameters, or that nothing here reads."""
    return node.op_type in _DYNAMIC or (
        node.op_type.startswith("QLinear")
        and (node.domain, node.op_type) not in FORMS
        and (node.domain, node.op_type) != (MICROSOFT, "QLinearConcat")
    )


def parameters(
    scale: ir.Value | None, zero_point: ir.Value | None, axis: int | None, default: ir.DataType
) -> QuantParams:
    """The parameters behind a scale and a zero point, per tensor where they are one number.

    ``default`` is the type without a zero point. Raises NotExpressible where they are computed, or no 4- to
    32-bit integers.
    """
    scales, zeros = constant_array(scale), constant_array(zero_point)
    if scales is None or (zero_point is not None and zeros is None):
        raise NotExpressible("its scale or zero point is computed")
    dtype = default if zero_point is None or zero_point.dtype is None else zero_point.dtype
    kind = quant_type(dtype)
    if scales.size != 1 and (axis is None or scales.size != max(scales.shape)):
        raise NotExpressible("it is quantized in blocks")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise NotExpressible("its scale is not positive")
    zero = np.zeros(scales.size, np.int64) if zeros is None else zeros.astype(np.int64).reshape(-1)
    zero = np.broadcast_to(zero, (scales.size,))
    return QuantParams(
        type=kind,
        scale=tuple(float(s) for s in scales.astype(np.float32).reshape(-1)),
        zero_point=tuple(int(z) for z in zero),
        axis=None if scales.size == 1 else axis,
    )


def quant_type(dtype: ir.DataType) -> QuantType:
    """The plan's word for an integer type. Raises NotExpressible for any other."""
    for kind in get_args(QuantType):
        if kind == dtype.name.lower():
            found: QuantType = kind
            return found
    raise NotExpressible(f"its type is {dtype.name.lower()}")


def linear_parameters(node: ir.Node) -> QuantParams:
    """The parameters of a QuantizeLinear or DequantizeLinear node."""
    if node.attributes.get_int("block_size", 0):
        raise NotExpressible("it is quantized in blocks")
    named = node.attributes.get_int("output_dtype", 0) if node.op_type == QUANTIZE else 0
    default = ir.DataType(named) if named else ir.DataType.UINT8
    data = required(node, 0)
    if node.op_type == DEQUANTIZE and data.dtype is not None:
        default = data.dtype
    axis = node.attributes.get_int("axis", 1)
    if axis < 0 and data.shape is not None:
        axis += data.shape.rank()
    return parameters(given(node, 1), given(node, 2), axis, default)


def activation_bounds(params: QuantParams) -> tuple[float, float | None] | None:
    """(0, None) or (0, 6) where the smallest code stands for 0 and, in the second, the largest for 6."""
    low, high = RANGES[params.type]
    if params.axis is not None or params.zero_point[0] != low:
        return None
    top = (high - low) * params.scale[0]
    return 0.0, _RELU6 if abs(top - _RELU6) < 1e-5 * _RELU6 else None


def never_negative(value: ir.Value, depth: int = 16) -> bool:
    """Whether the graph itself says so, looking a few operations back."""
    node = value.producer()
    if node is None or depth == 0:
        return False
    if node.op_type in _NOT_NEGATIVE:
        return True
    if node.op_type == "Clip":
        low = constant_array(given(node, 1))
        return low is not None and bool((low >= 0).all())
    data = node.inputs if node.op_type in ("Add", "Mul", "Concat", "Max") else node.inputs[:1]
    return node.op_type in _KEEPS_SIGN and all(v is not None and never_negative(v, depth - 1) for v in data)


def weight_axis(node: ir.Node, rank: int) -> int:
    """Along which axis the second operand of a quantized product has its scales."""
    transposed = node.op_type == "QGemm" and node.attributes.get_int("transB", 0) == 1
    return 0 if node.op_type == "QLinearConv" or transposed else rank - 1


def dequantize(codes: np.ndarray, params: QuantParams) -> np.ndarray:
    """float32, computed as ONNX Runtime does: (code - zero point), then one product."""
    scale = _along(np.array(params.scale, np.float32), params.axis, codes.ndim)
    zero = _along(np.array(params.zero_point, np.int64), params.axis, codes.ndim)
    return np.asarray((codes.astype(np.int64) - zero).astype(np.float32) * scale, np.float32)


def quantize(array: np.ndarray, params: QuantParams) -> np.ndarray:
    """Codes as int64: clamp(round_half_even(x / scale) + zero point)."""
    scale = _along(np.array(params.scale, np.float32), params.axis, array.ndim)
    zero = _along(np.array(params.zero_point, np.int64), params.axis, array.ndim)
    low, high = RANGES[params.type]
    codes = np.rint(array.astype(np.float64) / scale.astype(np.float64)) + zero
    return np.asarray(np.clip(codes, low, high), np.int64)


def _along(numbers: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    if axis is None:
        return numbers.reshape(())
    shape = [1] * rank
    shape[axis] = -1
    return numbers.reshape(shape)


def digest(codes: np.ndarray, params: QuantParams) -> str:
    """SHA-256 (hex) of the integers, little-endian, in row order; 4-bit ones one to a byte."""
    name = {"int4": "int8", "uint4": "uint8"}.get(params.type, params.type)
    little = np.dtype(name).newbyteorder("<")
    return hashlib.sha256(np.ascontiguousarray(codes.astype(little)).tobytes()).hexdigest()
