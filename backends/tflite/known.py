"""What is known of values while a file is written: their numbers, their sizes, and who reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.layout import channels_last, restored
from backends.tflite.network import Options
from backends.tflite.reading import TYPES, stored_constant
from deploy.adapter.optable import Unsupported
from deploy.graph import symbolic
from deploy.graph.edit import constant, sole_consumer
from deploy.graph.symbolic import Known

FIX_SIZES = "fix the sizes of the model's inputs (--shape)"
"""What to do about a free size that cannot be said."""
_IMAGES = frozenset((
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool",
    "BatchNormalization", "InstanceNormalization", "Resize", "DepthToSpace", "SpaceToDepth", "PRelu",
))  # fmt: skip
"""Operations whose second axis is that of the channels."""
_CHANGES = ("QuantizeLinear", "DequantizeLinear", "Identity", "Dropout")
_OF_ZEROS = frozenset((
    "ConstantOfShape", "Expand", "Slice", "Split", "Gather", "Reshape", "Squeeze", "Unsqueeze", "Transpose",
    "Identity", "Tile", "Cast",
))  # fmt: skip
"""Operations that make zeros of zeros."""
_FARTHEST = 8
"""Steps that are followed to see what becomes of a value."""


def known(out: Emitter, value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a value where they are known already: of a constant, or one that a node made."""
    if value is None:
        return None
    array = constant(value)
    if array is None and value in out.carried:
        tensor = out.tensors[out.carried[value]]
        if tensor.data is not None and tensor.params is None:
            return restored(tensor.data, tensor.order)
    return array


def zeros(out: Emitter, value: ir.Value | None) -> bool:
    """Whether all numbers of a value are zero, even where its sizes are computed."""
    array = known(out, value)
    if value is None or array is not None:
        return array is not None and not array.any()
    node = value.producer()
    if node is None or node.op_type not in _OF_ZEROS:
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get_tensor("value", None)
        return fill is None or not fill.numpy().any()
    return zeros(out, node.inputs[0])


def integers(out: Emitter, node: ir.Node, position: int, what: str) -> list[int] | None:
    """The numbers of an optional operand, None where it is left out. Raises Unsupported where computed."""
    value = node.inputs[position] if position < len(node.inputs) else None
    if value is None:
        return None
    array = known(out, value)
    if array is None:
        raise Unsupported(f"its {what} are computed: make them constants")
    return [int(number) for number in array.reshape(-1)]


def carry(out: Emitter, result: ir.Value, array: np.ndarray) -> None:
    """Let a value be a constant."""
    if array.dtype.name not in TYPES:
        raise Unsupported(f"a constant of {array.dtype}")
    if 0 in array.shape:
        raise Unsupported(f"'{result.name}' has a size of 0, of which TFLite makes no tensor")
    out.carried[result] = out.numbers(array, result.name or "constant")


def sizes(value: ir.Value | None) -> tuple[Known, ...]:
    """The sizes of a value, free ones by name. Raises Unsupported for an unknown rank."""
    found = None if value is None else symbolic.sizes(value.shape)
    if found is None:
        raise Unsupported("the rank of what it reads or makes is unknown")
    return found


def size_vector(
    out: Emitter, wanted: Sequence[Known], source: int, have: Sequence[Known], *, open_one: bool = True
) -> int | None:
    """An int32 tensor of ``wanted`` sizes, free ones taken from the tensor ``source`` while it runs.

    ``have`` are the sizes of that as stored. One that is none of them may be left open as -1, unless not
    ``open_one``; None where that is not enough.
    """
    free = [place for place, size in enumerate(wanted) if size is None or size.symbols]
    if not free or (open_one and len(free) == 1):
        return out.numbers(np.array([_number(size) for size in wanted], np.int32), f"{out.node}/shape")
    at = {place: have.index(wanted[place]) for place in free if wanted[place] and wanted[place] in have}
    if len(free) - len(at) > int(open_one):
        return None
    shape = out.step("SHAPE", [source], (len(have),), ("ShapeOptions", {"outType": "INT32"}), dtype="int32")
    parts = [
        part_of(out, shape, at[place], at[place] + 1)
        if place in at
        else out.numbers(np.array([_number(size)], np.int32), f"{out.node}/size")
        for place, size in enumerate(wanted)
    ]
    return joined(out, parts, len(wanted))


def part_of(out: Emitter, vector: int, start: int, stop: int) -> int:
    """A part of a vector that is computed."""
    bounds = [
        out.numbers(np.array([bound], np.int32), f"{out.node}/{name}")
        for name, bound in (("begin", start), ("end", stop), ("strides", 1))
    ]
    dtype = out.tensors[vector].dtype
    options: Options = ("StridedSliceOptions", {})
    return out.step("STRIDED_SLICE", [vector, *bounds], (stop - start,), options, dtype=dtype)


def joined(out: Emitter, parts: Sequence[int], length: int) -> int:
    """Vectors one behind the other."""
    if len(parts) == 1:
        return parts[0]
    dtype = out.tensors[parts[0]].dtype
    return out.step("CONCATENATION", parts, (length,), ("ConcatenationOptions", {"axis": 0}), dtype=dtype)


def as_int32(out: Emitter, value: ir.Value | None) -> int:
    """The tensor of integers in ONNX's order, as int32: sizes and bounds are read so."""
    array = known(out, value)
    assert value is not None
    if array is not None:
        bounds = np.iinfo(np.int32)
        return out.numbers(
            np.clip(array, bounds.min, bounds.max).astype(np.int32), f"{out.node}/{value.name}"
        )
    index = out.read(value, tuple(range(len(out.shape(value)))))
    return cast(out, index, "int32")


def cast(out: Emitter, index: int, dtype: str) -> int:
    """A tensor with its numbers as another type."""
    tensor = out.tensors[index]
    if tensor.dtype == dtype:
        return index
    options: Options = ("CastOptions", {"inDataType": tensor.dtype.upper(), "outDataType": dtype.upper()})
    return out.step("CAST", [index], tensor.shape, options, dtype=dtype, order=tensor.order)


# --- who reads a value ------------------------------------------------------------------------------------


def readers(value: ir.Value) -> Iterator[ir.Node | None]:
    """The nodes that read a value, through changes of type; None for whoever reads an output."""
    if value.is_graph_output():
        yield None
    for node, _ in value.uses():
        if node.op_type in _CHANGES:
            yield from readers(node.outputs[0])
        else:
            yield node


def product_behind(value: ir.Value) -> ir.Node | None:
    """The only reader of a value where that is a product with a constant matrix, whose rows it numbers."""
    node = sole_consumer(value)
    while node is not None and node.op_type in _CHANGES:
        value = node.outputs[0]
        node = sole_consumer(value)
    if node is None or node.op_type not in ("Gemm", "MatMul") or node.attributes.get_int("transA", 0) != 0:
        return None
    weights = node.inputs[1]
    if node.inputs[0] is not value or weights is None or stored_constant(weights) is None:
        return None
    return node if weights.shape is not None and weights.shape.rank() == 2 else None


def meets_images(out: Emitter, value: ir.Value) -> bool:
    """Whether a value soon meets something that is stored channels last."""
    rank = len(out.shape(value))
    seen, front = {value}, [value]
    for _ in range(_FARTHEST):
        after: list[ir.Value] = []
        for node in (reader for v in front for reader, _ in v.uses()):
            if node.op_type in _IMAGES:
                return True
            others = [v for v in node.inputs if v in out.carried and v not in seen]
            if any(len(out.shape(v)) == rank and out.order(v) == channels_last(rank) for v in others):
                return True
            after += [v for v in node.outputs if v.shape is not None and v.shape.rank() == rank]
        front = [v for v in after if v not in seen]
        seen.update(front)
    return False


def _number(size: Known) -> int:
    return -1 if size is None or size.symbols else size.factor
