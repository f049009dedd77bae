"""Activations that a product rounds to 8 bits while running, written out in a graph in front of it.

group   so many numbers of a row, one after the other, have one scale: that which covers their largest
        magnitude with 127 steps. ONNX Runtime's MatMulNBits at accuracy level 4 and OpenVINO's dynamic
        quantization both do so (measured: both agree with what is written here to 1e-7 of the output)

            scale = max |x| / 127        x = round(x / scale) * scale

tensor  ONNX's DynamicQuantizeLinear: one scale and zero point for the whole tensor
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, fresh_name, names

_STEPS = 127.0


def rounding_groups(model: ir.Model, nodes: Mapping[str, int]) -> ir.Model:
    """A copy in which what ``nodes`` (name -> size of the groups) read first is rounded within groups."""
    copy = model.clone()
    writing = _Writing(copy)
    for node in list(copy.graph):
        value = node.inputs[0] if node.name in nodes else None
        if value is not None:
            node.replace_input_with(0, writing.grouped(node, value, nodes[node.name or ""]))
    return copy


def rounding_tensors(model: ir.Model, nodes: Collection[str]) -> ir.Model:
    """A copy in which what ``nodes`` read first is rounded by DynamicQuantizeLinear."""
    copy = model.clone()
    writing = _Writing(copy)
    for node in list(copy.graph):
        value = node.inputs[0] if node.name in nodes else None
        if value is not None:
            node.replace_input_with(0, writing.whole(node, value))
    return copy


class _Writing:
    """Inserts the rounding before one node after the other; who reads the same value shares it."""

    def __init__(self, model: ir.Model) -> None:
        self._model, self._taken = model, names(model)
        self._done: dict[tuple[str, int], ir.Value] = {}

    def grouped(self, reader: ir.Node, value: ir.Value, group: int) -> ir.Value:
        key = (value.name or "", group)
        if key in self._done:
            return self._done[key]
        assert value.shape is not None
        *outer, size = value.shape
        assert isinstance(size, int)
        parts = -(-size // group)
        keep = [0] * len(outer)
        source = value
        if parts * group != size:
            ends = [0] * (2 * len(outer) + 1) + [parts * group - size]
            source = self._put(reader, "Pad", value, self._constant(reader, "pads", ends))
        apart = self._put(reader, "Reshape", source, self._constant(reader, "groups", [*keep, parts, group]))
        last = self._constant(reader, "last", [-1])
        most = self._put(reader, "ReduceMax", self._put(reader, "Abs", apart), last, keepdims=1)
        steps, one = self._constant(reader, "steps", _STEPS), self._constant(reader, "one", 1.0)
        nothing = self._put(reader, "Equal", most, self._constant(reader, "nothing", 0.0))
        nothing.dtype = ir.DataType.BOOL
        most = self._put(reader, "Where", nothing, one, most)
        codes = self._put(
            reader, "Round", self._put(reader, "Mul", apart, self._put(reader, "Div", steps, most))
        )
        rounded = self._put(reader, "Mul", codes, self._put(reader, "Div", most, steps))
        whole = self._constant(reader, "row", [*keep, parts * group])
        result = self._put(reader, "Reshape", rounded, whole)
        if parts * group != size:
            bounds = [
                self._constant(reader, n, [v]) for n, v in (("start", 0), ("end", size), ("axis", len(outer)))
            ]
            result = self._put(reader, "Slice", result, *bounds)
        result.shape = value.shape
        self._done[key] = result
        return result

    def whole(self, reader: ir.Node, value: ir.Value) -> ir.Value:
        key = (value.name or "", 0)
        if key not in self._done:
            codes = self._put(reader, "DynamicQuantizeLinear", value)
            node = codes.producer()
            assert node is not None
            node.resize_outputs(3)
            codes.dtype = ir.DataType.UINT8
            for output, kind in zip(node.outputs[1:], ("scale", "zero_point"), strict=True):
                output.name = fresh_name(self._model, f"{codes.name}/{kind}", self._taken)
                output.dtype = ir.DataType.FLOAT if kind == "scale" else ir.DataType.UINT8
                output.shape = ir.Shape(())
            self._done[key] = self._put(reader, "DequantizeLinear", *node.outputs)
            codes.shape = self._done[key].shape = value.shape
        return self._done[key]

    def _put(self, reader: ir.Node, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        name = fresh_name(self._model, f"{reader.name}/{op.lower()}", self._taken)
        node = ir.node(op, list(inputs), attributes, name=name)
        node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.FLOAT
        self._model.graph.insert_before(reader, node)
        return node.outputs[0]

    def _constant(self, reader: ir.Node, name: str, numbers: float | list[int]) -> ir.Value:
        kind = np.float32 if isinstance(numbers, float) else np.int64
        return add_initializer(self._model, f"{reader.name}/{name}", np.array(numbers, kind), self._taken)
