"""Activations that are rounded to 8 bits by ranges found while running, written out in a graph.

A runtime does that inside of a product whose weights are integers (dynamic range quantization). Here the
rounding stands before the node, so that running the graph says what the runtime computes. The scale covers
what a sample of a convolution, or a row of a product of matrices, holds at that moment. A convolution that
looks at single pixels is such a product: each pixel has a scale (measured: LiteRT 2.3.0 with XNNPACK).

    scale = 255 / (max(x, 0) - min(x, 0))     zero point: the end that is off by less, rounded
    x = (clamp(round(x * scale) + zero, -128, 127) - zero) / scale

The formula is XNNPACK's (src/packing and qd8 kernels: xnn_qd8_asymmetric_quantization_params).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant_tensor, fresh_name, names

_LOW, _HIGH = -128.0, 127.0


def rounded_inputs(model: ir.Model, operations: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Nodes of ``operations`` with integer weights: name -> the axes that share one scale.

    A grouped convolution is none of them: its kernels read floats (measured: a depthwise one in LiteRT is
    four times slower where it rounds, and splits the delegated graph).
    """
    found = {}
    for node in model.graph:
        if node.op_type not in operations or len(node.inputs) < 2 or not _integers(node.inputs[1]):
            continue
        source = node.inputs[0]
        rank = None if source is None or source.shape is None else len(source.shape)
        if rank is None or node.attributes.get_int("group", 1) != 1:
            continue
        if node.op_type == "Conv":
            found[node.name or ""] = (1,) if _pointwise(node) else tuple(range(1, rank))
        elif not node.attributes.get_int("transA", 0):
            found[node.name or ""] = (rank - 1,)
    return found


def _pointwise(node: ir.Node) -> bool:
    """Whether a convolution looks at single pixels, at all of them."""
    weights = node.inputs[1]
    shape = None if weights is None or weights.shape is None else tuple(weights.shape)
    return (
        shape is not None and set(shape[2:]) == {1} and set(node.attributes.get_ints("strides", [1])) == {1}
    )


def _integers(value: ir.Value | None) -> bool:
    """Whether a value is dequantized from a constant of at most two axes, or a convolution's kernel."""
    source = None if value is None else value.producer()
    if source is None or source.op_type != "DequantizeLinear":
        return False
    tensor = constant_tensor(source.inputs[0])
    return tensor is not None and tensor.dtype == ir.DataType.INT8 and len(tensor.shape) in (2, 4)


def rounding_inputs(model: ir.Model, nodes: Mapping[str, tuple[int, ...]]) -> ir.Model:
    """A copy in which what ``nodes`` read is rounded before."""
    copy = model.clone()
    writing = _Writing(copy)
    for node in list(copy.graph):
        axes = nodes.get(node.name or "")
        value = node.inputs[0] if axes is not None else None
        if axes is not None and value is not None:
            node.replace_input_with(0, writing.rounded(node, value, axes))
    return copy


class _Writing:
    """Inserts the rounding before one node after the other."""

    def __init__(self, model: ir.Model) -> None:
        self._model, self._taken = model, names(model)
        self._numbers: dict[float, ir.Value] = {}

    def rounded(self, reader: ir.Node, value: ir.Value, axes: tuple[int, ...]) -> ir.Value:
        def put(op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
            name = fresh_name(self._model, f"{reader.name}/{op.lower()}", self._taken)
            node = ir.node(op, list(inputs), attributes, name=name)
            node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.FLOAT
            self._model.graph.insert_before(reader, node)
            return node.outputs[0]

        zero, low, high = self._number(0.0), self._number(_LOW), self._number(_HIGH)
        over = add_initializer(self._model, f"{reader.name}/axes", np.array(axes, np.int64), self._taken)
        least = put("Min", put("ReduceMin", value, over, keepdims=1), zero)
        most = put("Max", put("ReduceMax", value, over, keepdims=1), zero)
        width = put("Sub", most, least)
        empty = put("Equal", width, zero)
        empty.dtype = ir.DataType.BOOL
        levels = put("Where", empty, self._number(1.0), width)
        scale = put("Div", put("Where", empty, self._number(1.0), self._number(_HIGH - _LOW)), levels)
        from_least, from_most = put("Mul", least, scale), put("Mul", most, scale)
        nearer = put("Greater", put("Add", put("Add", low, from_least), put("Add", high, from_most)), zero)
        nearer.dtype = ir.DataType.BOOL
        end = put("Where", nearer, put("Sub", low, from_least), put("Sub", high, from_most))
        point = put("Round", put("Min", put("Max", end, low), high))
        codes = put("Min", put("Max", put("Add", put("Round", put("Mul", value, scale)), point), low), high)
        result = put("Div", put("Sub", codes, point), scale)
        result.shape = value.shape
        return result

    def _number(self, number: float) -> ir.Value:
        if number not in self._numbers:
            self._numbers[number] = add_initializer(
                self._model, f"dynamic/{number:g}", np.array(number, np.float32), self._taken
            )
        return self._numbers[number]
