"""QuantizeLinear and DequantizeLinear: what the plan says of a value, in MIL's own operations.

Activations are quantized and dequantized where the plan says so (iOS 17); Core ML's compiler makes integer
kernels of what stands between. Weights are stored as integers and dequantized by a constexpr operation: one
scale and zero point per channel from iOS 16 on, 4 bits and blocks from iOS 18 on.

They stand in no table of operations, for they are the plan and not the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter, quantization
from backends.coreml.ops.matmul import by_outputs
from backends.coreml.sdk import mil
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import constant
from deploy.graph.qdq import planned_name
from deploy.spec.plan import QuantParams

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Var

_NUMPY = {"int8": np.int8, "uint8": np.uint8}


def quantize(node: ir.Node, out: Emitter) -> None:
    """An operation that rounds an activation."""
    source, codes = node.inputs[0], node.outputs[0]
    params = quantization(node)
    if source is None or params.type not in _NUMPY or params.group:
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
        _constant(array, params, result, out)
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
            params.zero_point[0] if single else params.zero_point, _NUMPY[params.type]
        )
    if not single:
        assert params.axis is not None
        given["axis"] = np.int32(params.axis % rank)
    return given


def _constant(array: np.ndarray, params: QuantParams, result: ir.Value, out: Emitter) -> None:
    """Integers at rest; single numbers and biases of int32 are stored as the floats that they stand for."""
    if params.type == "int32" or array.ndim == 0:
        return  # whoever reads it takes the floats
    scale, zero = _beside(array.shape, params)
    if array.ndim == 2 and by_outputs(result):
        array, scale, zero = array.T, scale.T, zero.T
        out.stored_by_outputs.add(result)
    name, small = result.name or "", params.type.endswith("int4")
    if not small and params.group is None and out.level < 18:
        axis = max(range(array.ndim), key=lambda at: scale.shape[at])
        single = scale.size == 1
        made = out.op(
            "constexpr_affine_dequantize",
            name,
            quantized_data=np.ascontiguousarray(array.astype(_NUMPY[params.type])),
            scale=scale.reshape(()) if single else scale.reshape(-1),
            zero_point=(zero.reshape(()) if single else zero.reshape(-1)).astype(_NUMPY[params.type]),
            axis=np.int32(axis),
        )
    else:
        out.need(18, "weights of 4 bits" if small else "weights with a scale for each block")
        made = _in_blocks(array, scale, zero, params, name, out)
    out.give(result, made)
    out.planned.append((name, made, False))


def _beside(shape: tuple[int, ...], params: QuantParams) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points with as many axes as the tensor, 1 where they do not vary."""
    along = list((1,) * len(shape))
    if params.axis is not None and params.group is None:
        along[params.axis % len(shape)] = -1
    elif params.group is not None:
        along = list(params.scale_shape(shape))
    return (
        np.array(params.scale, np.float32).reshape(along),
        np.array(params.zero_point, np.int64).reshape(along),
    )


def _in_blocks(
    array: np.ndarray, scale: np.ndarray, zero: np.ndarray, params: QuantParams, name: str, out: Emitter
) -> Var:
    if any(size % count for size, count in zip(array.shape, scale.shape, strict=True)):
        raise Unsupported(f"blocks of {params.group} that do not go into its sizes {list(array.shape)}")
    types = mil().types
    dtype = types.nptype_from_builtin(types.string_to_builtin(params.type))
    given: dict[str, object] = {"offset": zero.astype(dtype)} if zero.any() else {}
    codes = np.ascontiguousarray(array.astype(np.int8 if params.type.startswith("int") else np.uint8))
    return out.op("constexpr_blockwise_shift_scale", name, data=codes.astype(dtype), scale=scale, **given)
