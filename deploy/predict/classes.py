"""Which operations are which kernel class."""

from __future__ import annotations

import math

import onnx_ir as ir

from deploy.graph.blocks import ACTIVATION
from deploy.graph.edit import is_constant
from deploy.graph.shapes import static_shape
from deploy.spec.overlay import KernelClass

# fmt: off
_CHEAP = frozenset((
    "Relu", "Clip", "LeakyRelu", "PRelu", "ThresholdedRelu", "Neg", "Abs", "Floor", "Ceil", "Round", "Sign",
    "Not", "Cast", "Reciprocal", "Sqrt",
))
_HARD = frozenset(("HardSwish", "HardSigmoid"))
_TWO_OPERANDS = frozenset((
    "Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean", "Pow", "Mod", "Where", "And", "Or", "Xor",
    "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "BatchNormalization", "PRelu",
))
_CLASSES: dict[str, KernelClass] = {
    "ConvTranspose": "transposed", "Gemm": "gemm", "LSTM": "recurrent", "GRU": "recurrent",
    "RNN": "recurrent",
    "Einsum": "batched", "Attention": "batched", "Transpose": "transpose", "Concat": "concat",
    "Resize": "resize", "Upsample": "resize",
    **dict.fromkeys(_TWO_OPERANDS, "elementwise"), **dict.fromkeys(_CHEAP, "activation"),
    **dict.fromkeys(_HARD, "hard"),
    **dict.fromkeys(("Exp", "Log", "Erf", "Sin", "Cos", "Tan", "Swish", *(
        ACTIVATION - _CHEAP - _HARD)), "transcendental"),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), "softmax"),
    **dict.fromkeys((
        "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization",
        "LpNormalization", "MeanVarianceNormalization", "LRN", "SkipLayerNormalization",
    ), "norm"),
    **dict.fromkeys((
        "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "ReduceMean", "ReduceSum", "ReduceMax",
        "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceSumSquare", "ReduceLogSumExp", "ArgMax",
        "ArgMin", "TopK", "CumSum",
    ), "reduce"),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "MaxUnpool"), "pool"),
}
# fmt: on
JOINS = frozenset(op for op, kind in _CLASSES.items() if kind in ("elementwise", "activation", "hard")) | (
    frozenset(op for op, kind in _CLASSES.items() if kind == "transcendental")
)
"""What a kernel that absorbs takes in."""
_STEM = 4
"""Images have up to four channels, and convolutions of these have kernels of their own."""


def class_of(node: ir.Node) -> KernelClass:
    """The kernel class of one node; ``move`` for what only carries data about, and for the unknown."""
    if node.op_type == "Conv":
        return _convolution(node)
    if node.op_type == "GRU" and not node.attributes.get_int("linear_before_reset", 0):
        return "gru"
    if node.op_type == "MatMul":
        return "gemm" if len(node.inputs) > 1 and is_constant(node.inputs[1]) else "batched"
    return _CLASSES.get(node.op_type, "move")


def _convolution(node: ir.Node) -> KernelClass:
    weight = node.inputs[1]
    shape = None if weight is None else static_shape(weight)
    groups = node.attributes.get_int("group", 1)
    if shape is None:
        return "conv"
    per_group, kernel = shape[1], math.prod(shape[2:])
    if groups > 1:
        return "depthwise" if per_group == 1 else "grouped"
    if per_group <= _STEM:
        return "stem"
    return "pointwise" if kernel == 1 else "conv"
