"""Every operation that is written for TFLite, by family. One claimed twice is an error."""

from backends.tflite.ops import (
    activation,
    blocks,
    conv,
    elementwise,
    matmul,
    norm,
    pool,
    reduce,
    shape,
    transposed,
    unpool,
)
from backends.tflite.optable import joined

OPERATIONS = joined(
    (
        conv.ops,
        transposed.ops,
        blocks.ops,
        pool.ops,
        unpool.ops,
        matmul.ops,
        elementwise.ops,
        activation.ops,
        norm.ops,
        reduce.ops,
        shape.ops,
    )
)
