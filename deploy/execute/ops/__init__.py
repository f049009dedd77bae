"""Kernels in torch, one function for each ONNX operation; :data:`TABLE` is all there is."""

from __future__ import annotations

from deploy.execute.ops import (
    attention,
    control,
    conv,
    elementwise,
    index,
    matmul,
    norm,
    pool,
    quant,
    recurrent,
    resize,
    sequence,
    shape,
    signal,
    vision,
)
from deploy.execute.optable import join

TABLE = join(
    (
        attention.ops,
        control.ops,
        conv.ops,
        elementwise.ops,
        index.ops,
        matmul.ops,
        norm.ops,
        pool.ops,
        quant.ops,
        recurrent.ops,
        resize.ops,
        sequence.ops,
        shape.ops,
        signal.ops,
        vision.ops,
    )
)
"""ONNX operation -> the function that makes its kernel."""
