"""Every operation that is written for Core ML, by family. One claimed twice is an error."""

from backends.coreml.ops import (
    activation,
    conv,
    elementwise,
    index,
    matmul,
    norm,
    pool,
    recurrent,
    reduce,
    resize,
    shape,
)
from deploy.adapter.optable import joined

OPERATIONS = joined(
    (
        conv.ops,
        pool.ops,
        matmul.ops,
        elementwise.ops,
        activation.ops,
        norm.ops,
        reduce.ops,
        shape.ops,
        index.ops,
        resize.ops,
        recurrent.ops,
    )
)
