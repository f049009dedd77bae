"""QuantizeLinear and DequantizeLinear: what the plan says of a value becomes what its tensor bears.

They stand in no table of operations, for they are the plan and not the network.
"""

from __future__ import annotations

import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.network import Planned
from backends.tflite.pixels import quantized_input
from backends.tflite.reading import params_of
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import is_constant
from deploy.graph.qdq import planned_name


def quantize(node: ir.Node, out: Emitter) -> None:
    """Nothing where the source is stored by these parameters already, an operator otherwise."""
    source, codes = node.inputs[0], node.outputs[0]
    params = params_of(node)
    if source is None or params.type not in ("int8", "int16") or params.axis is not None:
        raise Unsupported("activations are quantized to int8 or int16, with one scale")
    kept, out.node = out.node, ""
    index = quantized_input(out, source, codes.name or "", params)
    if index is None:
        index = out.carried[source] if source in out.carried else out.read(source, integer=True)
        tensor = out.tensors[index]
        if tensor.params != params:
            index = out.requantized(index, codes.name or "", params)
    out.node = kept
    out.carried[codes] = index
    name = planned_name(source)
    out.planned.append(Planned(name, index, partial=(node.name or "").startswith(name + "@")))


def dequantize(node: ir.Node, out: Emitter) -> None:
    """Who reads the result takes the integers, or asks for floats."""
    codes = node.inputs[0]
    if is_constant(codes):
        params_of(node)
    else:
        assert codes is not None
        out.carried[node.outputs[0]] = out.tensor_of(codes)
