"""Products of matrices. With constant weights they are MIL's ``linear``, whose weights lie by outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter
from backends.coreml.optable import OpTable

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Var

ops = OpTable()


def by_outputs(value: ir.Value) -> bool:
    """Whether all who read a constant matrix want it turned, each row an output: so it is stored then."""
    readers = list(value.uses())
    return (
        bool(readers) and not value.is_graph_output() and all(_turns(node, index) for node, index in readers)
    )


def _turns(node: ir.Node, index: int) -> bool:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if index != 1 or weight is None or weight.shape is None or len(weight.shape) != 2:
        return False
    if node.op_type == "MatMul":
        source = node.inputs[0]
        return source is not None and source.shape is not None and len(source.shape) > 1
    plain = not node.attributes.get_int("transB", 0) and not node.attributes.get_int("transA", 0)
    return node.op_type == "Gemm" and plain and node.attributes.get_float("alpha", 1.0) == 1


@ops.lower("MatMul")
def matmul(node: ir.Node, out: Emitter) -> None:
    """Vectors become matrices of one row or column, and lose that axis again."""
    weight = node.inputs[1]
    if weight is not None and out.is_constant(weight) and by_outputs(weight):
        out.emit(node, "linear", x=out.read(node.inputs[0]), weight=out.turned(weight))
        return
    x, y = (out.read(value) for value in node.inputs)
    ranks = [out.rank(value) for value in node.inputs]
    if ranks[0] == 1:
        x = out.op("expand_dims", x=x, axes=np.array([0], np.int32))
    if ranks[1] == 1:
        y = out.op("expand_dims", x=y, axes=np.array([1], np.int32))
    if 1 not in ranks:
        out.emit(node, "matmul", x=x, y=y)
        return
    product = out.op("matmul", x=x, y=y)
    drop = [axis for axis, rank in ((-2, ranks[0]), (-1, ranks[1])) if rank == 1]
    out.emit(node, "squeeze", x=product, axes=np.array(drop, np.int32))


@ops.lower("Gemm")
def gemm(node: ir.Node, out: Emitter) -> None:
    """alpha A' B' + beta C: a ``linear`` where B is constant and A lies as it is."""
    alpha, beta = (node.attributes.get_float(key, 1.0) for key in ("alpha", "beta"))
    x, weight, size = out.read(node.inputs[0]), node.inputs[1], out.shape(node.outputs[0])[-1]
    turned = bool(node.attributes.get_int("transA", 0)), bool(node.attributes.get_int("transB", 0))
    addend = _addend(node, out, beta)
    by_rows = weight is not None and out.is_constant(weight) and (turned[1] or by_outputs(weight))
    if weight is not None and by_rows and not turned[0] and alpha == 1:
        rows = out.read(weight) if turned[1] else out.turned(weight)
        if addend is None:
            out.emit(node, "linear", x=x, weight=rows)
            return
        if isinstance(addend, np.ndarray) and size is not None and addend.shape[-1:] in ((), (1,), (size,)):
            bias = np.ascontiguousarray(np.broadcast_to(addend.reshape(-1), (size,)))
            out.emit(node, "linear", x=x, weight=rows, bias=bias)
            return
        product = out.op("linear", x=x, weight=rows)
    else:
        y = out.read(weight)
        product = out.op("matmul", x=x, y=y, transpose_x=turned[0], transpose_y=turned[1])
        if alpha != 1:
            product = out.op("mul", x=product, y=np.float32(alpha))
    if addend is None:
        out.emit(node, "identity", x=product)
    else:
        out.emit(node, "add", x=product, y=addend)


def _addend(node: ir.Node, out: Emitter, beta: float) -> Var | np.ndarray | None:
    value = out.operand(node, 2)
    if value is None or beta == 0:
        return None
    array = out.array(value)
    if array is not None:
        return (array * beta).astype(np.float32)
    found = out.read(value)
    return found if beta == 1 else out.op("mul", x=found, y=np.float32(beta))
