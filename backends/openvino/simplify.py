"""Fewer operations for the same computation: what OpenVINO's ONNX reader writes out although it is constant.

A scale per channel comes as a vector and a Reshape, scales of groups as a matrix and an Unsqueeze, a bias
with eight operations that compute its shape, a zero point of 0 as a Subtract. In a small network they take
more room than the weights. Integer weights keep their Convert and Multiply: folded, they would be floats.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backends.openvino.sdk import sdk

if TYPE_CHECKING:
    import openvino

_SHARED_SIZE = 1
"""Constants of so many elements at most are stored once for all who read that number."""


def simplify(model: openvino.Model) -> None:
    """Change the model in place; no value that has a name is lost."""
    for op in model.get_ordered_ops():
        kind = op.get_type_name()
        if kind in ("Reshape", "Unsqueeze"):
            _fix_shape(op)
        elif kind == "Subtract":
            _drop_zero_point(op)
        elif kind in ("ShapeOf", "Squeeze", "Range"):
            _fix_sizes(op)
    _share_numbers(model)


def _fix_shape(op: openvino.Node) -> None:
    """Reshape a constant now; else let the shape be a constant where it is known."""
    shape = op.output(0).get_partial_shape()
    if not shape.is_static or op.input_value(0).get_partial_shape().is_dynamic:
        return
    data = op.input_value(0).get_node()
    sizes = [size.get_length() for size in shape]
    if (
        data.get_type_name() == "Constant"
        and not op.output(0).get_names()
        and (_plain(data) or _nibbles(data))
    ):
        op.output(0).replace(_reshaped(data, sizes).output(0))
    elif op.get_type_name() == "Unsqueeze":
        return
    elif op.input_value(1).get_node().get_type_name() != "Constant":
        op.input(1).replace_source_output(sdk().opset13.constant(np.asarray(sizes, np.int64)).output(0))


def _reshaped(data: openvino.Node, sizes: list[int]) -> openvino.Node:
    """A constant of the same numbers in another shape; two of 4 bits lie in a byte and stay there."""
    if not _nibbles(data):
        return sdk().opset13.constant(np.array(data.get_data()).reshape(sizes))
    tensor = sdk().Tensor(data.output(0).get_element_type(), sdk().Shape(sizes))  # it owns its memory
    tensor.data.view(np.uint8)[:] = np.array(data.get_data()).view(np.uint8).ravel()
    return sdk().op.Constant(tensor)


def _fix_sizes(op: openvino.Node) -> None:
    """A rank, or all axes from the third on, where they do not depend on the data."""
    if op.output(0).get_names() or op.output(0).get_element_type().get_type_name() != "i64":
        return
    sources = [value.get_node() for value in op.input_values()]
    if op.get_type_name() == "ShapeOf":
        shape = op.input_value(0).get_partial_shape()
        numbers = np.asarray(shape.to_shape(), np.int64) if shape.is_static else None
    elif any(source.get_type_name() != "Constant" for source in sources):
        numbers = None
    elif op.get_type_name() == "Squeeze":
        numbers = np.squeeze(sources[0].get_data()) if sources[0].get_data().size == 1 else None
    else:
        numbers = np.arange(*(int(source.get_data().item()) for source in sources), dtype=np.int64)
    if numbers is not None:
        op.output(0).replace(sdk().opset13.constant(np.asarray(numbers, np.int64)).output(0))


def _drop_zero_point(op: openvino.Node) -> None:
    """Take out the Subtract of a DequantizeLinear whose zero points are all 0; else store them as floats."""
    zero = op.input_value(1).get_node()
    if zero.get_type_name() == "Reshape":
        zero = zero.input_value(0).get_node()
    if op.output(0).get_names() or zero.get_type_name() != "Convert":
        return
    stored = zero.input_value(0).get_node()
    if stored.get_type_name() != "Constant" or not (_plain(stored) or _nibbles(stored)):
        return
    if not np.any(stored.get_data()):
        op.output(0).replace(op.input_value(0))
    elif stored.get_data().ndim == 0 and _plain(stored):
        op.input(1).replace_source_output(sdk().opset13.constant(np.float32(stored.get_data())).output(0))


def _share_numbers(model: openvino.Model) -> None:
    kept: dict[tuple[str, tuple[int, ...], bytes], openvino.Node] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Constant" or not _plain(op) or op.output(0).get_names():
            continue
        data = np.array(op.get_data())
        if data.size > _SHARED_SIZE:
            continue
        first = kept.setdefault((data.dtype.name, data.shape, data.tobytes()), op)
        if first is not op:
            op.output(0).replace(first.output(0))


def _nibbles(constant: openvino.Node) -> bool:
    return constant.output(0).get_element_type().get_type_name() in ("i4", "u4")


def _plain(constant: openvino.Node) -> bool:
    """Whether numpy holds this constant as it is."""
    name = constant.output(0).get_element_type().get_type_name()
    return name in ("f32", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
