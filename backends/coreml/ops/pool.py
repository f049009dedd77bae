"""Pooling: windows of one to three axes, and all that there is of them at once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter, ends
from backends.coreml.ops.conv import paddings, window
from backends.coreml.optable import OpTable
from deploy.adapter.optable import Unsupported

ops = OpTable()


@ops.lower("MaxPool", "AveragePool", "LpPool")
def pool(node: ir.Node, out: Emitter) -> None:
    """MIL pads with what does not count; a rounding up is said as padding at the end."""
    x, kernel = node.inputs[0], window(node, 0, "kernel_shape", 1)
    rank = len(kernel)
    if not 1 <= rank <= 3:
        raise Unsupported(f"over {rank} axes; Core ML has one to three")
    if len(node.outputs) > 1 and node.outputs[1].uses():
        raise Unsupported("the places of the largest are read; MIL's pooling gives none")
    if any(d != 1 for d in window(node, rank, "dilations", 1)):
        raise Unsupported("with dilations; MIL's windows have none")
    strides = window(node, rank, "strides", 1)
    pads = paddings(node, out.shape(x)[2:], kernel)
    counted = bool(node.attributes.get_int("count_include_pad", 0))
    if node.attributes.get_int("ceil_mode", 0):
        sizes = out.fixed(x)[2:]
        result = [  # a window that would begin behind the data is none (ONNX MaxPool-22)
            min(found, (size + pads[axis] - 1) // strides[axis] + 1)
            for axis, (found, size) in enumerate(zip(out.fixed(node.outputs[0])[2:], sizes, strict=True))
        ]
        more = [
            max(0, (r - 1) * s + k - size - pads[axis] - pads[axis + rank])
            for axis, (r, s, k, size) in enumerate(zip(result, strides, kernel, sizes, strict=True))
        ]
        if any(more) and counted and any(pads):
            raise Unsupported("counting padding and rounding sizes up at once; MIL has one padding for both")
        pads = pads[:rank] + [pad + m for pad, m in zip(pads[rank:], more, strict=True)]
        counted = counted and not any(more)
    kind = {"MaxPool": "max_pool", "AveragePool": "avg_pool", "LpPool": "l2_pool"}[node.op_type]
    if kind == "l2_pool" and node.attributes.get_int("p", 2) != 2:
        raise Unsupported("with p other than 2")
    given: dict[str, object] = {}
    if kind == "avg_pool":
        given["exclude_padding_from_average"] = not counted
    out.emit(
        node,
        kind,
        x=out.read(x),
        kernel_sizes=np.array(kernel, np.int32),
        strides=np.array(strides, np.int32),
        pad_type="custom",
        pad=np.array(ends(pads), np.int32),
        **given,
    )


@ops.lower("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(node: ir.Node, out: Emitter) -> None:
    """A reduction of all spatial axes."""
    kind = {
        "GlobalAveragePool": "reduce_mean",
        "GlobalMaxPool": "reduce_max",
        "GlobalLpPool": "reduce_l2_norm",
    }
    if node.op_type == "GlobalLpPool" and node.attributes.get_int("p", 2) != 2:
        raise Unsupported("with p other than 2")
    axes = np.arange(2, out.rank(node.inputs[0]), dtype=np.int32)
    out.emit(node, kind[node.op_type], x=out.read(node.inputs[0]), axes=axes, keep_dims=True)
