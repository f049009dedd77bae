"""The plan as it stands in an OpenVINO IR file, seen from its operations alone.

    activation   v -> FakeQuantize(range) -> Convert(u8) -> Convert(f32) -> Subtract(zero) -> Multiply(scale)
    constant     Constant(i8) -> Convert(f32) -> Subtract(zero) -> Multiply(scale), whose result is called v
    groups       the same with an axis more, [groups, size of each, ...] -> Reshape, whose result is called v

Scale and zero point are taken from the second half, where they stand exactly. The range of the FakeQuantize
must say the same; where it does not, what it says is returned: it is what the plugin computes by.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from deploy.graph.qdq import data_digest
from deploy.spec.plan import QuantParams, TensorPlan, with_overrides
from deploy.spec.tensors import RANGES, QuantType

if TYPE_CHECKING:
    import openvino

_TYPES: dict[str, QuantType] = {
    "i4": "int4", "u4": "uint4", "i8": "int8", "u8": "uint8", "i16": "int16", "u16": "uint16", "i32": "int32",
}  # fmt: skip
_RANGE_ROUNDING = 1e-6
"""Relative error of a scale recovered from float32 bounds of a range."""


def read_tensors(model: openvino.Model) -> dict[str, TensorPlan]:
    """The parameters of every quantized value, by its name; origins read ``imported``.

    Raises ValueError where scales or zero points are not constants.
    """
    tensors: dict[str, TensorPlan] = {}
    overrides: dict[str, dict[str, QuantParams]] = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Convert":
            continue
        if _is_constant(op.input_value(0)) and (end := _dequantized(op)) is not None:
            codes = op.input_value(0).get_node()
            joined = _joined(end)
            params = _params(end, _TYPES[_element(codes.output(0))], codes.output(0).get_shape(), joined)
            digest = data_digest(_content(codes))
            tensors[_name((end if joined is None else joined).output(0))] = TensorPlan(
                **params.model_dump(), origin="imported", digest=digest
            )
        elif _is_quantize(op):
            ends = [end for end in map(_dequantized, _readers(op.output(0))) if end is not None]
            if not ends:
                continue
            source = op.input_value(0).get_node().input_value(0)
            params = _activation(op, ends[0], source)
            name = _planned_name(source, op, ends)
            readers = tuple(sorted({r for end in ends for r in _reading_nodes(end.output(0))}))
            if op.get_friendly_name().startswith(name + "@"):
                overrides.setdefault(name, {}).update(dict.fromkeys(readers, params))
                continue
            floats = any(not _leads_to_quantize(reader) for reader in _readers(source))
            whole = any(_is_output(end.output(0)) for end in ends)
            if floats and not readers and not whole:
                continue  # nobody reads it quantized
            tensors[name] = TensorPlan(
                **params.model_dump(), origin="imported", readers=readers if floats else ()
            )
    return with_overrides(tensors, overrides)


def read_codes(model: openvino.Model) -> dict[str, np.ndarray]:
    """The integers of every constant by the name of its value; of groups with the axis more."""
    found = {}
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Convert" and _is_constant(op.input_value(0)):
            end = _dequantized(op)
            if end is not None:
                named = _joined(end) or end
                found[_name(named.output(0))] = _content(op.input_value(0).get_node())
    return found


def _is_quantize(op: openvino.Node) -> bool:
    source = op.input_value(0).get_node()
    return source.get_type_name() == "FakeQuantize" and _element(op.output(0)) in _TYPES


def _leads_to_quantize(op: openvino.Node) -> bool:
    return op.get_type_name() == "FakeQuantize" and any(
        reader.get_type_name() == "Convert" and _is_quantize(reader) for reader in _readers(op.output(0))
    )


def _dequantized(op: openvino.Node) -> openvino.Node | None:
    """The Multiply that ends what begins with this Convert to float, None where it is something else."""
    if op.get_type_name() != "Convert" or _element(op.output(0)) not in ("f32", "f16"):
        return None
    if _element(op.input_value(0)) not in _TYPES:
        return None
    for kind in ("Subtract", "Multiply"):
        targets = list(op.output(0).get_target_inputs())
        if len(targets) != 1 or targets[0].get_index() != 0:
            return None
        if targets[0].get_node().get_type_name() == kind:
            op = targets[0].get_node()
    return op if op.get_type_name() == "Multiply" else None


def _joined(end: openvino.Node) -> openvino.Node | None:
    """The Reshape that makes one axis of groups and what is in them; None where there are none."""
    readers = _readers(end.output(0))
    if end.output(0).get_names() or len(readers) != 1 or readers[0].get_type_name() != "Reshape":
        return None
    return readers[0]


def _params(
    end: openvino.Node, kind: QuantType, shape: openvino.Shape | None, joined: openvino.Node | None = None
) -> QuantParams:
    """What stands in Subtract and Multiply; the axis is where their constants are reshaped to lie."""
    scale = _numbers(end.input_value(1), end)
    before = end.input_value(0).get_node()
    zero = (
        _numbers(before.input_value(1), before)
        if before.get_type_name() == "Subtract"
        else np.zeros(scale.size)
    )
    axis, group = _axis(scale, end, shape), None
    if joined is not None and shape is not None:
        whole = [size.get_length() for size in joined.output(0).get_partial_shape()]
        axis = next(i for i, size in enumerate(whole) if shape[i] != size)
        group = int(shape[axis + 1])
    return QuantParams(
        type=kind,
        scale=tuple(float(s) for s in scale.astype(np.float32).ravel()),
        zero_point=tuple(int(z) for z in np.broadcast_to(zero.ravel(), (scale.size,))),
        axis=axis,
        group=group,
    )


def _activation(op: openvino.Node, end: openvino.Node, source: openvino.Output) -> QuantParams:
    fake = op.input_value(0).get_node()
    kind = _TYPES[_element(op.output(0))]
    rank = source.get_partial_shape().rank
    shape = None if rank.is_dynamic else source.get_partial_shape()
    params = _params(end, kind, shape)
    low, high, bottom, top = (_numbers(fake.input_value(i), fake).ravel() for i in range(1, 5))
    least, most = RANGES[kind]
    levels = int(fake.get_attributes()["levels"])
    scale = (high - low) / (top - bottom)
    zero = np.rint(bottom - low / scale)
    stated = np.asarray(params.scale)
    agrees = (
        (bottom == least).all()
        and (top == most).all()
        and levels == most - least + 1
        and np.allclose(scale, stated, rtol=_RANGE_ROUNDING, atol=0)
        and np.array_equal(np.broadcast_to(zero, stated.shape), np.asarray(params.zero_point))
    )
    if agrees:
        return params
    codes = np.clip(np.broadcast_to(zero, stated.shape), least, most).astype(int)
    return QuantParams(
        type=kind,
        scale=tuple(float(s) for s in np.broadcast_to(scale, stated.shape).astype(np.float32)),
        zero_point=tuple(int(z) for z in codes),
        axis=params.axis,
    )


def _axis(scale: np.ndarray, end: openvino.Node, shape: openvino.PartialShape | None) -> int | None:
    """Where the scales lie. For a single channel the file does not say it: it follows from the reader."""
    if scale.ndim == 0:
        return None
    rank = scale.ndim if shape is None else len(shape)
    long = [axis + rank - scale.ndim for axis, size in enumerate(scale.shape) if size > 1]
    if long:
        return long[0]
    for reader in _past_reshapes(end.output(0)):
        if reader.get_type_name() == "ConvolutionBackpropData":
            return 1
        if reader.get_type_name() == "MatMul":
            return 0 if reader.get_attributes()["transpose_b"] else rank - 1
    ones = [] if shape is None else [axis for axis, size in enumerate(shape) if size == 1]
    return ones[0] if ones else 0


def _past_reshapes(output: openvino.Output) -> Iterator[openvino.Node]:
    for reader in _readers(output):
        if reader.get_type_name() in ("Reshape", "Unsqueeze"):
            yield from _past_reshapes(reader.output(0))
        else:
            yield reader


def _numbers(value: openvino.Output, op: openvino.Node) -> np.ndarray:
    """A constant, through the Convert and Reshape that the reader puts behind it."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        return _numbers(node.input_value(0), op)
    if node.get_type_name() in ("Reshape", "Unsqueeze") and node.output(0).get_partial_shape().is_static:
        sizes = [size.get_length() for size in node.output(0).get_partial_shape()]
        return _numbers(node.input_value(0), op).reshape(sizes)
    if node.get_type_name() == "Reshape":
        shape = _numbers(node.input_value(1), op)
        return _numbers(node.input_value(0), op).reshape([int(size) for size in shape])
    if node.get_type_name() != "Constant":
        raise ValueError(f"{op.get_friendly_name()}: scale and zero point must be constants")
    return _content(node)


def _content(constant: openvino.Node) -> np.ndarray:
    """The numbers of a constant; those of 4 bits, of which two lie in a byte, a byte each."""
    data, kind = np.array(constant.get_data()), _element(constant.output(0))
    if kind not in ("i4", "u4"):
        return data
    packed = data.view(np.uint8).ravel()
    codes = np.stack([packed & 15, packed >> 4], axis=-1).ravel().astype(np.int8)
    shape = tuple(constant.output(0).get_shape())
    codes = codes[: int(np.prod(shape))].reshape(shape)
    return np.where(codes > 7, codes - 16, codes).astype(np.int8) if kind == "i4" else codes.astype(np.uint8)


def _planned_name(source: openvino.Output, op: openvino.Node, ends: list[openvino.Node]) -> str:
    """The planned name of what is quantized; a quantized output of the graph has passed it on."""
    for end in ends:
        if _is_output(end.output(0)):
            return _name(end.output(0))
    names: list[str] = sorted(source.get_names())
    own = op.get_friendly_name()
    return next((name for name in names if own.startswith((name + "/q", name + "@"))), names[0])


def _reading_nodes(output: openvino.Output) -> Iterator[str]:
    """Nodes of the graph that read a value: what they became makes a named value, at once or further on."""
    for reader in _readers(output):
        if reader.get_type_name() == "Result":
            continue
        if any(out.get_names() for out in reader.outputs()):
            yield reader.get_friendly_name()
        else:
            for out in reader.outputs():
                yield from _reading_nodes(out)


def _readers(output: openvino.Output) -> list[openvino.Node]:
    return [target.get_node() for target in output.get_target_inputs()]


def _is_output(output: openvino.Output) -> bool:
    return any(reader.get_type_name() == "Result" for reader in _readers(output))


def _is_constant(output: openvino.Output) -> bool:
    return bool(output.get_node().get_type_name() == "Constant")


def _element(output: openvino.Output) -> str:
    return str(output.get_element_type().get_type_name())


def _name(output: openvino.Output) -> str:
    return str(min(output.get_names(), default=output.get_node().get_friendly_name()))
