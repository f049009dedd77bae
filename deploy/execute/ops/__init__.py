"""Kernels in torch, one function for each ONNX operation; :data:`TABLE` is all there is."""

from __future__ import annotations

from deploy.execute.ops import control, conv, elementwise, index, quant, recurrent, sequence, shape, signal
from deploy.execute.optable import join

TABLE = join(
    (
        control.ops,
        conv.ops,
        elementwise.ops,
        index.ops,
        quant.ops,
        recurrent.ops,
        sequence.ops,
        shape.ops,
        signal.ops,
    )
)
"""ONNX operation -> the function that makes its kernel."""
