"""Kernels in torch, one function for each ONNX operation; :data:`TABLE` is all there is."""

from __future__ import annotations

from deploy.execute.ops import (
    activation,
    attention,
    cast,
    control,
    conv,
    elementwise,
    generate,
    index,
    logic,
    loss,
    matmul,
    norm,
    pool,
    quant,
    recurrent,
    reduce,
    resize,
    sequence,
    shape,
    signal,
    text,
    vision,
)
from deploy.execute.optable import join

TABLE = join(
    (
        activation.ops,
        attention.ops,
        cast.ops,
        control.ops,
        conv.ops,
        elementwise.ops,
        generate.ops,
        index.ops,
        logic.ops,
        loss.ops,
        matmul.ops,
        norm.ops,
        pool.ops,
        quant.ops,
        recurrent.ops,
        reduce.ops,
        resize.ops,
        sequence.ops,
        shape.ops,
        signal.ops,
        text.ops,
        vision.ops,
    )
)
"""ONNX operation -> the function that makes its kernel."""
