"""The kernels of TensorFlow Lite Micro, by the operators of the format.

An operator that its resolver cannot be given, or of a type that the kernel does not take, stops the program
on the device; there is nothing to fall back to.
"""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT = ("float32",)
_BOTH = (*_FLOAT, "int8")
_SIGNAL = (*_BOTH, "int16")
_WHOLE = (*_SIGNAL, "int32")
_EVERY = (*_WHOLE, "int64", "uint8", "bool")

SOURCE = "tflite-micro 0.dev20261023182759"
"""Where the table was read, and against which every line of it is tested."""


@dataclass(frozen=True)
class Kernel:
    """``add`` names the resolver's method, without ``Add``. ``types`` are those of operand number ``data``.

    ``keeps``: bytes that the kernel keeps for one operator as long as the interpreter lives, without what
    each channel takes, measured on 64 bits. ``rank``: how many axes its data may have; beyond it some
    kernels end the program.
    """

    add: str
    types: tuple[str, ...]
    keeps: int
    data: int = 0
    rank: int = 6


KERNELS = {
    "ABS": Kernel("Abs", _SIGNAL, 48),
    "ADD": Kernel("Add", _WHOLE, 88),
    "ADD_N": Kernel("AddN", _BOTH, 72),
    "ARG_MAX": Kernel("ArgMax", _BOTH, 8),
    "ARG_MIN": Kernel("ArgMin", _BOTH, 8),
    "AVERAGE_POOL_2D": Kernel("AveragePool2D", _SIGNAL, 80),
    "BATCH_MATMUL": Kernel("BatchMatMul", _SIGNAL, 160, rank=5),
    "BATCH_TO_SPACE_ND": Kernel("BatchToSpaceNd", _BOTH, 0),
    "BROADCAST_ARGS": Kernel("BroadcastArgs", ("int32", "int64"), 8),
    "BROADCAST_TO": Kernel("BroadcastTo", _EVERY, 8, rank=5),
    "CAST": Kernel("Cast", (*_WHOLE, "bool"), 16),
    "CEIL": Kernel("Ceil", _FLOAT, 0),
    "CONCATENATION": Kernel("Concatenation", (*_WHOLE, "int64", "bool"), 104),
    "CONV_2D": Kernel("Conv2D", _SIGNAL, 128),
    "COS": Kernel("Cos", _FLOAT, 0),
    "CUMSUM": Kernel("CumSum", _BOTH, 56),
    "DEPTHWISE_CONV_2D": Kernel("DepthwiseConv2D", _SIGNAL, 128),
    "DEPTH_TO_SPACE": Kernel("DepthToSpace", _BOTH, 32),
    "DEQUANTIZE": Kernel("Dequantize", ("int8", "int16", "uint8"), 48),
    "DIV": Kernel("Div", (*_BOTH, "int32"), 40),
    "DYNAMIC_UPDATE_SLICE": Kernel("DynamicUpdateSlice", _WHOLE, 16),
    "ELU": Kernel("Elu", _BOTH, 272),
    "EMBEDDING_LOOKUP": Kernel("EmbeddingLookup", _BOTH, 40, data=1),
    "EQUAL": Kernel("Equal", (*_BOTH, "int32", "int64", "bool"), 40),
    "EXP": Kernel("Exp", _FLOAT, 0),
    "EXPAND_DIMS": Kernel("ExpandDims", _SIGNAL, 8),
    "FILL": Kernel("Fill", (*_BOTH, "int32"), 8, data=1),
    "FLOOR": Kernel("Floor", _FLOAT, 0),
    "FLOOR_DIV": Kernel("FloorDiv", _FLOAT, 8),
    "FLOOR_MOD": Kernel("FloorMod", _FLOAT, 8),
    "FULLY_CONNECTED": Kernel("FullyConnected", _SIGNAL, 112),
    "GATHER": Kernel("Gather", _BOTH, 40),
    "GATHER_ND": Kernel("GatherNd", _BOTH, 24),
    "GREATER": Kernel("Greater", (*_WHOLE, "int64"), 40),
    "GREATER_EQUAL": Kernel("GreaterEqual", (*_BOTH, "int32", "int64"), 40),
    "HARD_SWISH": Kernel("HardSwish", _BOTH, 32),
    "L2_NORMALIZATION": Kernel("L2Normalization", _BOTH, 16),
    "L2_POOL_2D": Kernel("L2Pool2D", _FLOAT, 80),
    "LEAKY_RELU": Kernel("LeakyRelu", _SIGNAL, 48),
    "LESS": Kernel("Less", (*_BOTH, "int32", "int64"), 40),
    "LESS_EQUAL": Kernel("LessEqual", (*_BOTH, "int32", "int64"), 40),
    "LOG": Kernel("Log", _FLOAT, 0),
    "LOGICAL_AND": Kernel("LogicalAnd", ("bool",), 8),
    "LOGICAL_NOT": Kernel("LogicalNot", ("bool",), 0),
    "LOGICAL_OR": Kernel("LogicalOr", ("bool",), 8),
    "LOGISTIC": Kernel("Logistic", _SIGNAL, 32),
    "LOG_SOFTMAX": Kernel("LogSoftmax", _BOTH, 48),
    "MAXIMUM": Kernel("Maximum", (*_WHOLE, "int64"), 8),
    "MAX_POOL_2D": Kernel("MaxPool2D", _SIGNAL, 80),
    "MEAN": Kernel("Mean", _SIGNAL, 72),
    "MINIMUM": Kernel("Minimum", (*_WHOLE, "int64"), 8),
    "MIRROR_PAD": Kernel("MirrorPad", _BOTH, 56),
    "MUL": Kernel("Mul", _WHOLE, 56),
    "NEG": Kernel("Neg", _FLOAT, 0),
    "NOT_EQUAL": Kernel("NotEqual", (*_BOTH, "int32", "int64", "bool"), 40),
    "PACK": Kernel("Pack", (*_WHOLE, "int64"), 24),
    "PAD": Kernel("Pad", _WHOLE, 72, rank=5),
    "PADV2": Kernel("PadV2", _WHOLE, 64, rank=5),
    "PRELU": Kernel("Prelu", _BOTH, 40, rank=4),
    "QUANTIZE": Kernel("Quantize", (*_WHOLE, "uint8"), 48),
    "REDUCE_ALL": Kernel("ReduceAll", ("bool",), 72),
    "REDUCE_MAX": Kernel("ReduceMax", _BOTH, 72),
    "REDUCE_MIN": Kernel("ReduceMin", _BOTH, 72),
    "RELU": Kernel("Relu", _SIGNAL, 48),
    "RELU6": Kernel("Relu6", _SIGNAL, 16),
    "RESHAPE": Kernel("Reshape", _EVERY, 40),
    "RESIZE_BILINEAR": Kernel("ResizeBilinear", _BOTH, 8),
    "RESIZE_NEAREST_NEIGHBOR": Kernel("ResizeNearestNeighbor", _SIGNAL, 8),
    "REVERSE_V2": Kernel("ReverseV2", _EVERY, 8),
    "ROUND": Kernel("Round", _FLOAT, 0),
    "RSQRT": Kernel("Rsqrt", _FLOAT, 48),
    "SELECT_V2": Kernel("SelectV2", _SIGNAL, 32, data=1),
    "SHAPE": Kernel("Shape", _EVERY, 16),
    "SIN": Kernel("Sin", _FLOAT, 0),
    "SLICE": Kernel("Slice", (*_WHOLE, "bool"), 0, rank=5),
    "SOFTMAX": Kernel("Softmax", _SIGNAL, 96),
    "SPACE_TO_BATCH_ND": Kernel("SpaceToBatchNd", _BOTH, 16),
    "SPACE_TO_DEPTH": Kernel("SpaceToDepth", _BOTH, 32),
    "SPLIT": Kernel("Split", _WHOLE, 16, data=1),
    "SPLIT_V": Kernel("SplitV", _WHOLE, 8),
    "SQRT": Kernel("Sqrt", _FLOAT, 0),
    "SQUARE": Kernel("Square", _FLOAT, 0),
    "SQUARED_DIFFERENCE": Kernel("SquaredDifference", _WHOLE, 120),
    "SQUEEZE": Kernel("Squeeze", _EVERY, 48),
    "STRIDED_SLICE": Kernel("StridedSlice", (*_WHOLE, "bool"), 120, rank=4),
    "SUB": Kernel("Sub", _WHOLE, 72),
    "SUM": Kernel("Sum", _SIGNAL, 72),
    "TANH": Kernel("Tanh", _SIGNAL, 32),
    "TRANSPOSE": Kernel("Transpose", _SIGNAL, 8, rank=5),
    "TRANSPOSE_CONV": Kernel("TransposeConv", _SIGNAL, 120, data=2),
    "UNPACK": Kernel("Unpack", _WHOLE, 8),
    "ZEROS_LIKE": Kernel("ZerosLike", (*_BOTH, "int32", "int64"), 0),
}
"""Of operators with control flow, variables or a state of their own none are listed: none are written."""

WEIGHTS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1, "FULLY_CONNECTED": 1}
"""Where the weights stand, which are int8 wherever the data are integers."""
