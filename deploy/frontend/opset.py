"""One pinned opset: whatever version a graph was written for, what stands above reads only this one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

OPSET = 21
IR_VERSION = 10


def upgrade(model: ir.Model) -> ir.Model:
    """The graph at the pinned opset."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type.startswith("Reduce") and "axes" in node.attributes:
            axes = np.array(node.attributes.pop("axes").as_ints(), np.int64)
            value = ir.val(f"{node.name}_axes", const_value=ir.tensor(axes))
            value.shape, value.dtype = ir.Shape(axes.shape), ir.DataType.INT64
            model.graph.register_initializer(value)
            node.resize_inputs(2)
            node.replace_input_with(1, value)
    model.opset_imports[""] = OPSET
    model.ir_version = IR_VERSION
    return model
