"""Activations of 16 bits: which operations LiteRT computes so beside weights of 8 bits, and in which version.

Measured with ai-edge-litert 2.3.0: all are right to one step. Sigmoid, Tanh and Softmax are not among them,
being off by up to three. The versions are those of tensorflow/lite/tools/versioning/op_version.cc.
"""

from __future__ import annotations

from deploy.adapter.optable import Unsupported

OPERATIONS = frozenset(
    (
        *("Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "GlobalAveragePool", "ReduceMean", "LeakyRelu"),
        *("AveragePool", "MaxPool", "Pad", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
        *("Slice", "Split", "Gather", "Concat", "Max", "Min"),
    )
)
"""By their names in ONNX."""

_VERSIONS = {
    "CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7, "ADD": 3, "SUB": 5, "MUL": 4, "MEAN": 3,
    "LEAKY_RELU": 2, "AVERAGE_POOL_2D": 3, "MAX_POOL_2D": 3, "PAD": 3, "PADV2": 3, "RESHAPE": 1,
    "TRANSPOSE": 5, "SLICE": 4, "STRIDED_SLICE": 2, "SPLIT": 4, "GATHER": 4, "CONCATENATION": 3,
    "MAXIMUM": 4, "MINIMUM": 4, "QUANTIZE": 2,
}  # fmt: skip
POWERS_OF_TWO = ("ADD", "SUB")
"""Operators whose option ``potScaleInt16``, true where nothing is said, allows no other scales."""


def version(code: str) -> int:
    """From which on an operator takes 16 bits. Raises Unsupported for one that does not."""
    if code not in _VERSIONS:
        raise Unsupported(f"{code} has no form for activations of 16 bits")
    return _VERSIONS[code]
