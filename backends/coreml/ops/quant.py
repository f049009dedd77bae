"""QuantizeLinear and DequantizeLinear: what the plan says of a value, in MIL's own operations.

Activations are quantized and dequantized where the plan says so (iOS 17); Core ML's compiler makes integer
kernels of what stands between. How weights lie is said in `stored.py`.

They stand in no table of operations, for they are the plan and not the network.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter, quantization
from backends.coreml.ops.stored import BYTES, integers
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import constant
from deploy.graph.qdq import planned_name
from deploy.spec.plan import QuantParams


def quantize(node: ir.Node, out: Emitter) -> None:
    """An operation that rounds an activation."""
    source, codes = node.inputs[0], node.outputs[0]
    params = quantization(node)
    if source is None or params.type not in BYTES or params.group:
        raise Unsupported("activations are quantized to int8 or uint8, in no blocks")
    out.need(17, "rounding activations")
    made = out.op(
        "quantize",
        codes.name or "",
        input=out.read(source),
        output_dtype=params.type,
        **_affine(params, out.rank(source)),
    )
    out.give(codes, made)
    name = planned_name(source)
    out.planned.append((name, made, (node.name or "").startswith(f"{name}@")))


def dequantize(node: ir.Node, out: Emitter) -> None:
    """A constant that is stored as integers, or an operation that makes floats of an activation's."""
    codes, result = node.inputs[0], node.outputs[0]
    params = quantization(node)
    array = constant(codes)
    if array is not None:
        integers(array, params, result, out)
        return
    assert codes is not None
    out.need(17, "rounding activations")
    out.emit(node, "dequantize", input=out.read(codes), **_affine(params, out.rank(codes)))


def _affine(params: QuantParams, rank: int) -> dict[str, object]:
    """Scale, zero point and axis as MIL's operations take them; a zero point of 0 is left out."""
    single = params.axis is None or len(params.scale) == 1
    scale = np.array(params.scale[0] if single else params.scale, np.float32)
    given: dict[str, object] = {"scale": scale}
    if any(params.zero_point):
        given["zero_point"] = np.array(
            params.zero_point[0] if single else params.zero_point, BYTES[params.type]
        )
    if not single:
        assert params.axis is not None
        given["axis"] = np.int32(params.axis % rank)
    return given
