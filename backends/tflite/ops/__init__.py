"""Every operation that is written for TFLite, by family. One claimed twice is an error."""

from backends.tflite.ops import (
    activation,
    blocks,
    cast,
    conv,
    cut,
    elementwise,
    extreme,
    generate,
    index,
    join,
    logic,
    matmul,
    norm,
    pool,
    reduce,
    scatter,
    shape,
    softmax,
    transcendental,
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
        softmax.ops,
        transcendental.ops,
        logic.ops,
        cast.ops,
        norm.ops,
        reduce.ops,
        extreme.ops,
        shape.ops,
        cut.ops,
        generate.ops,
        index.ops,
        join.ops,
        scatter.ops,
    )
)
