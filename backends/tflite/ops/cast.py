"""Changes of type."""

from __future__ import annotations

import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.ops.elementwise import term
from backends.tflite.optable import ANY, OpTable
from backends.tflite.reading import dtype_of

ops = OpTable()


@ops.lower("Cast", "CastLike", types=ANY)
def cast(node: ir.Node, out: Emitter) -> None:
    """Towards zero, as in ONNX; nothing where the type is the same."""
    term(node, out).cast(dtype_of(node.outputs[0])).becomes(node.outputs[0])
