"""What TensorRT's ONNX parser reads, as a table with its restrictions.

Source: onnx/onnx-tensorrt, docs/operators.md of release 10.15 (opset 9 to 24), and for what TensorRT 8 lacks
the same table of release 8.5 (opset up to 17). What the tables do not list is ``unknown``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant, is_constant, scalar
from deploy.spec.artifact import Verdict

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_INTS = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_BOOL = frozenset({ir.DataType.BOOL})
_UINT8 = frozenset({ir.DataType.UINT8})
_INT8 = frozenset({ir.DataType.INT8, ir.DataType.INT4})

_TYPES: dict[frozenset[ir.DataType], str] = {
    _FLOATS: """Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization BlackmanWindow Ceil Celu Clip
        Conv ConvTranspose Cos Cosh CumSum DeformConv Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool
        GlobalLpPool GlobalMaxPool GridSample GroupNormalization GRU HammingWindow HannWindow HardSigmoid
        HardSwish Hardmax InstanceNormalization IsInf LayerNormalization LeakyRelu Log LogSoftmax LRN LSTM
        LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization Mish NonMaxSuppression NonZero PRelu
        QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize
        RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT Scan Selu Sigmoid Sin Sinh Softmax Softplus
        Softsign Sqrt Tan Tanh ThresholdedRelu""",
    _FLOATS | _INTS: """Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less
        LessOrEqual Max Mean Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
        ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu ScatterElements ScatterND
        Shrink Sign SpaceToDepth Sub Sum TensorScatter TopK""",
    _FLOATS | _INTS | _BOOL: """Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements
        GatherND Identity If Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose
        Trilu Unsqueeze Where""",
    _FLOATS | _INTS | _BOOL | _UINT8: "Cast CastLike",
    _FLOATS | _INT8: "Attention",
    _INT8: "DequantizeLinear",
    _BOOL: "And Not Or Xor",
}
SUPPORTED = {op: types for types, ops in _TYPES.items() for op in ops.split()}
"""Operation -> types of its data."""

_REFUSED = """AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Col2Im CenterCropPad
    Compress ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger
    MaxRoiPool MaxUnpool MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement
    OptionalHasElement QLinearConv QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty
    SequenceErase SequenceInsert SequenceLength SequenceMap SoftmaxCrossEntropyLoss SplitToSequence
    StringConcat StringNormalizer StringSplit TfIdfVectorizer Unique"""
UNSUPPORTED = frozenset(_REFUSED.split())

_LATER = """Attention BlackmanWindow CastLike DeformConv Gelu GroupNormalization HammingWindow HannWindow
    Hardmax IsInf LayerNormalization Mish RMSNormalization RotaryEmbedding STFT TensorScatter"""
NOT_IN_8 = frozenset(_LATER.split())
"""Supported by TensorRT 10, not listed for TensorRT 8."""

LAST_OPSET_OF_8 = 17

_UNTYPED = (
    "ConstantOfShape",
    "EyeLike",
    "RandomNormal",
    "RandomUniform",
    "Range",
    "If",
    "Loop",
    "Scan",
    "Shape",
)
"""Whose first input is not the data that the table's types speak of."""
_TYPED_INPUT = {"Where": 1, "OneHot": 2}


def verdict(node: ir.Node, opset: int) -> Verdict:
    """Whether TensorRT reads ``node``; ``opset`` is the one that the file is written for."""
    support, reason = _judge(node, opset)
    return Verdict(node=node.name or "", op=node.op_type, support=support, reason=reason)


_Support = Literal["supported", "unsupported", "unknown"]


def _judge(node: ir.Node, opset: int) -> tuple[_Support, str]:
    op = node.op_type
    if node.domain not in ("", "ai.onnx"):
        return "unsupported", f"TensorRT reads no operations of the domain {node.domain} without a plugin"
    if op in UNSUPPORTED:
        return "unsupported", "TensorRT's ONNX parser does not support it"
    if op not in SUPPORTED:
        return "unknown", "it is not in NVIDIA's table of ONNX operators"
    problem = _type_problem(node)
    if problem:
        return problem
    rule = _RULES.get(op)
    restriction = rule(node) if rule is not None else ""
    if restriction:
        return "unsupported", restriction
    if op in _POOLS and _rank(node.inputs[0]) == 3:
        return "unknown", "pooling is documented for two and three dimensions only"
    if opset <= LAST_OPSET_OF_8 and op in NOT_IN_8:
        return "unknown", "TensorRT 8 does not list it; in a file of this opset it may be written out"
    return "supported", ""


def _type_problem(node: ir.Node) -> tuple[_Support, str] | None:
    types = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None and v.dtype is not None}
    if ir.DataType.STRING in types:
        return "unsupported", "TensorRT has no strings"
    if ir.DataType.DOUBLE in types:
        return "unknown", "TensorRT computes float64 as float32"
    index = _TYPED_INPUT.get(node.op_type, 0)
    data = node.inputs[index] if index < len(node.inputs) else None
    if node.op_type in _UNTYPED or data is None or data.dtype is None:
        return None
    allowed = SUPPORTED[node.op_type]
    if data.dtype not in allowed:
        listed = ", ".join(sorted(t.name for t in allowed))
        return "unsupported", f"it takes {listed}, not {data.dtype.name}"
    return None


# --------------------------------------------------------------------------------- restrictions, "" where met

_POOLS = ("AveragePool", "MaxPool", "LpPool")


def _needs_constant(index: int, what: str) -> Callable[[ir.Node], str]:
    def rule(node: ir.Node) -> str:
        value = node.inputs[index] if index < len(node.inputs) else None
        return "" if value is None or is_constant(value) else f"{what} must be a constant"

    return rule


def _symmetric(node: ir.Node) -> str:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        return ""
    array = constant(zero)
    if array is None:
        return "the zero point must be a constant"
    if zero.dtype not in _INT8:
        return f"it quantizes to int8, not {zero.dtype.name if zero.dtype else 'unknown'}"
    return "the zero point must be 0 (symmetric quantization)" if array.any() else ""


def _pool(node: ir.Node) -> str:
    if any(d != 1 for d in node.attributes.get_ints("dilations", ())):
        return "dilations must be 1"
    if len(node.outputs) > 1 and _used(node.outputs[1]):
        return "its second output, Indices, is not supported"
    return ""


def _recurrent(node: ir.Node) -> str:
    names = list(node.attributes.get_strings("activations", ()))
    half = len(names) // 2
    if node.attributes.get_string("direction", "forward") == "bidirectional" and names[:half] != names[half:]:
        return "both directions must have the same activations"
    if node.attributes.get_int("input_forget", 0):
        return "input_forget must be 0"
    return "layout must be 0" if node.attributes.get_int("layout", 0) else ""


_RESIZE = {
    "coordinate_transformation_mode": (
        "half_pixel",
        *("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"),
    ),
    "mode": ("nearest", "nearest", "linear"),
    "nearest_mode": ("round_prefer_floor", "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "keep_aspect_ratio_policy": ("stretch", "stretch"),
}
"""Attribute -> its default, then what is allowed."""


def _resize(node: ir.Node) -> str:
    for attribute, (default, *allowed) in _RESIZE.items():
        value = node.attributes.get_string(attribute, default)
        if value not in allowed:
            return f"{attribute} must be one of {', '.join(allowed)}, not {value}"
    if node.attributes.get_int("antialias", 0):
        return "antialiasing is not supported"
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    axes = list(node.attributes.get_ints("axes", ()))
    if scales is not None and not is_constant(scales) and axes and axes != list(range(len(axes))):
        return "with computed scales, axes must name all dimensions in order"
    return ""


def _top_k(node: ir.Node) -> str:
    k = scalar(node.inputs[1])
    if k is not None and k >= 3840:
        return f"K must be less than 3840, not {k:.0f}"
    return "" if node.attributes.get_int("sorted", 1) else "sorted must be 1"


def _layer_norm(node: ir.Node) -> str:
    return "only its first output is supported" if any(_used(o) for o in node.outputs[1:]) else ""


def _dropout(node: ir.Node) -> str:
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is None:
        return ""
    array = constant(mode)
    return "" if array is not None and not np.any(array) else "training_mode must be a constant false"


def _grid_sample(node: ir.Node) -> str:
    return "" if _rank(node.inputs[0]) in (4, None) else "its input must have 4 dimensions"


def _scatter_nd(node: ir.Node) -> str:
    reduction = node.attributes.get_string("reduction", "none")
    return "" if reduction == "none" else f"reduction must be none, not {reduction}"


def _eye_like(node: ir.Node) -> str:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return "its input must have a fixed shape" if shape is not None and shape.is_dynamic() else ""


def _hardmax(node: ir.Node) -> str:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    axis = node.attributes.get_int("axis", -1)
    return "" if shape is None or isinstance(shape[axis], int) else "the dimension of its axis must be fixed"


_RULES: dict[str, Callable[[ir.Node], str]] = {
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _symmetric),
    **{op: _needs_constant(1, "axes") for op in SUPPORTED if op.startswith("Reduce")},
    **{op: _needs_constant(1, "axes") for op in ("Squeeze", "Unsqueeze")},
    "CumSum": _needs_constant(1, "axis"),
    "OneHot": _needs_constant(1, "depth"),
    "Dropout": _dropout,
    "EyeLike": _eye_like,
    "GridSample": _grid_sample,
    "Hardmax": _hardmax,
    "LayerNormalization": _layer_norm,
    "Resize": _resize,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
}


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else value.shape.rank()


def _used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
