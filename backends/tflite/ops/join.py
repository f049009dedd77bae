"""Values put together, taken apart and repeated. Integers go through as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES, as_int32, carry, integers, known, size_vector, sizes
from backends.tflite.layout import Order, plain
from backends.tflite.network import Options
from backends.tflite.ops.elementwise import common_order
from backends.tflite.optable import ANY, OpTable
from deploy.adapter.optable import Unsupported
from deploy.graph.symbolic import Known, Size
from deploy.spec.plan import QuantParams

ops = OpTable()

_JOINED_AT_ONCE = 4
"""Operands of a CONCATENATION, and results of a SPLIT, that XNNPACK takes."""
_PRODUCT_RANK = 4


@ops.lower("Concat", types=ANY)
def concat(node: ir.Node, out: Emitter) -> None:
    """CONCATENATION, of four operands at most at a time: more XNNPACK does not take."""
    result = node.outputs[0]
    rank = len(out.shape(result))
    axis = node.attributes.get_int("axis", 0) % rank
    arrays = [known(out, value) for value in node.inputs]
    given = [array for array in arrays if array is not None]
    if len(given) == len(arrays) and all(value in out.carried for value in node.inputs):
        carry(out, result, np.concatenate(given, axis))
        return
    if _added_to(node, out, axis):
        return
    params = out.moved(result, node.inputs)
    order = common_order(out, list(node.inputs), rank)
    read = [out.read(value, order, integer=params is not None) for value in node.inputs]
    emit_joined(out, read, result, order, order.index(axis), params)


def _added_to(node: ir.Node, out: Emitter, axis: int) -> bool:
    """A constant expanded to a free batch and put beside one operand: zeros around that, and a sum.

    So a class token comes before its patches. The expansion itself would need sizes that are only known
    while the network runs, and from there on XNNPACK takes nothing.
    """
    spread = [_spread(out, value) for value in node.inputs]
    computed = [i for i, array in enumerate(spread) if array is None]
    if len(computed) != 1 or len(spread) < 2 or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    place, result = computed[0], node.outputs[0]
    value = node.inputs[place]
    arrays = [
        np.zeros([size if i == axis else 1 for i, size in enumerate(out.shape(value))], np.float32)
        if array is None
        else array
        for array in spread
    ]
    sizes = np.max([array.shape for array in arrays], axis=0)
    arrays = [
        np.broadcast_to(
            a, [n if i == axis else m for i, (n, m) in enumerate(zip(a.shape, sizes, strict=True))]
        )
        for a in arrays
    ]
    source = out.read(value)
    order = out.tensors[source].order
    before, behind = (sum(a.shape[axis] for a in part) for part in (arrays[:place], arrays[place + 1 :]))
    widths = np.zeros((len(order), 2), np.int32)
    widths[order.index(axis)] = before, behind
    shape = [out.shape(result)[held] for held in order]
    pads = out.numbers(widths, f"{node.name}/pads")
    padded = out.step("PAD", [source, pads], shape, ("PadOptions", {}), order=order)
    whole = np.concatenate(arrays, axis).transpose(order)
    added = out.numbers(np.ascontiguousarray(whole), f"{node.name}/added")
    out.emit("ADD", [padded, added], result, ("AddOptions", {}), order=order)
    return True


def _spread(out: Emitter, value: ir.Value | None) -> np.ndarray | None:
    """A constant that is expanded along free axes, those being of size 1; None for everything else."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Expand" or len(out.shape(value)) > _PRODUCT_RANK:
        return None
    array, shape = known(out, node.inputs[0]), out.shape(value)
    if array is None:
        return None
    wide = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if -1 not in shape or any(size < 0 and have != 1 for size, have in zip(shape, wide.shape, strict=True)):
        return None
    return np.broadcast_to(wide, [1 if size < 0 else size for size in shape])


def emit_joined(
    out: Emitter, read: list[int], result: ir.Value, order: Order, place: int, params: QuantParams | None
) -> None:
    """Tensors one behind the other along an axis as stored."""
    if params is not None or out.tensors[read[0]].dtype == "float32":
        read = _in_groups(out, read, place)
    tensor = out.tensors[read[0]]
    if len(read) == 1 and tensor.shape.count(-1) <= 1:
        out.view(read[0], result, order, params)
        return
    options: Options = ("ConcatenationOptions", {"axis": place})
    out.emit("CONCATENATION", read, result, options, order=order, params=params)


def joined_step(out: Emitter, read: Sequence[int], place: int) -> int:
    """As `emit_joined`, on the way to a result; of floats."""
    left = _in_groups(out, read, place)
    return left[0] if len(left) == 1 else _group(out, left, place)


def _in_groups(out: Emitter, read: Sequence[int], place: int) -> list[int]:
    """So few tensors, each joined of some, that one operator takes them."""
    left = list(read)
    while len(left) > _JOINED_AT_ONCE:
        groups = [left[i : i + _JOINED_AT_ONCE] for i in range(0, len(left), _JOINED_AT_ONCE)]
        left = [group[0] if len(group) == 1 else _group(out, group, place) for group in groups]
    return left


def _group(out: Emitter, group: Sequence[int], place: int) -> int:
    tensor = out.tensors[group[0]]
    parts = [out.tensors[index].shape[place] for index in group]
    shape = list(tensor.shape)
    shape[place] = -1 if -1 in parts else sum(parts)
    options: Options = ("ConcatenationOptions", {"axis": place})
    return out.step(
        "CONCATENATION", group, shape, options,
        dtype=tensor.dtype, order=tensor.order, params=tensor.params,
        version=1 if tensor.params is None else 2,
    )  # fmt: skip


@ops.lower("Split", types=ANY)
def split(node: ir.Node, out: Emitter) -> None:
    """SPLIT into 2 to 4 equal parts, which XNNPACK takes; else a slice for each part that is read."""
    value = node.inputs[0]
    shape = out.shape(value)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    lengths = integers(out, node, 1, "lengths")
    count = len(node.outputs)
    if lengths is None and shape[axis] > 0:
        whole = -(-shape[axis] // count)
        lengths = [min(whole, shape[axis] - i * whole) for i in range(count)]
    equal = lengths is None or len(set(lengths)) == 1
    used = [result for result in node.outputs if result.uses() or result.is_graph_output()]
    found = [out.moved(result, [value]) for result in used]
    params = found[0] if found and all(p is not None for p in found) else None
    source = out.read(value, integer=params is not None)
    tensor = out.tensors[source]
    place = tensor.order.index(axis)
    if equal and len(used) == count and 2 <= count <= _JOINED_AT_ONCE and tensor.dtype != "bool":
        where = out.numbers(np.array(place, np.int32), f"{node.name}/axis")
        options = {"numSplits": count}
        out.results(
            "SPLIT", [where, source], node.outputs, ("SplitOptions", {**options}),
            order=tensor.order, params=params,
        )  # fmt: skip
        return
    if lengths is None:
        raise Unsupported(f"a free size in more than 4 parts: {FIX_SIZES}")
    start = 0
    for result, length in zip(node.outputs, lengths, strict=True):
        if result in used:
            begin, end = [0] * len(shape), [max(size, 0) for size in tensor.shape]
            begin[place], end[place] = start, start + length
            emit_slice(out, source, result, begin, end, params)
        start += length


def emit_slice(
    out: Emitter, source: int, result: ir.Value, begin: list[int], end: list[int], params: QuantParams | None
) -> None:
    """From ``begin`` to ``end`` along the axes as stored; axes of a free size whole, and the result alike."""
    tensor = out.tensors[source]
    whole = sum(1 << place for place, size in enumerate(tensor.shape) if size < 0)
    given = [
        out.numbers(np.array(numbers, np.int32), f"{out.node}/{name}")
        for name, numbers in (("begin", begin), ("end", end), ("strides", [1] * len(begin)))
    ]
    options = {"beginMask": whole, "endMask": whole}
    out.emit(
        "STRIDED_SLICE", [source, *given], result, ("StridedSliceOptions", {**options}),
        order=tensor.order, params=params,
    )  # fmt: skip


def cut_step(out: Emitter, source: int, place: int, start: int, stop: int | None) -> int:
    """A part of one axis as stored, on the way to a result; to the end without ``stop``."""
    tensor = out.tensors[source]
    rank = len(tensor.shape)
    begin, end = [0] * rank, [max(size, 0) for size in tensor.shape]
    begin[place], end[place] = start, stop or 0
    others = sum(1 << i for i, size in enumerate(tensor.shape) if size < 0 and i != place)
    given = [
        out.numbers(np.array(numbers, np.int32), f"{out.node}/{name}")
        for name, numbers in (("begin", begin), ("end", end), ("strides", [1] * rank))
    ]
    open_end = others | (1 << place if stop is None else 0)
    options: Options = ("StridedSliceOptions", {"beginMask": others, "endMask": open_end})
    shape = list(tensor.shape)
    shape[place] = -1 if stop is None else stop - start
    return out.step(
        "STRIDED_SLICE", [source, *given], shape, options,
        dtype=tensor.dtype, order=tensor.order, params=tensor.params,
        version=1 if tensor.params is None else 2,
    )  # fmt: skip


@ops.lower("Expand", types=ANY)
def expand(node: ir.Node, out: Emitter) -> None:
    """A product with ones where XNNPACK takes it, else BROADCAST_TO."""
    value, result = node.inputs[0], node.outputs[0]
    array = known(out, value)
    if array is not None and -1 not in out.shape(result):
        carry(out, result, np.ascontiguousarray(np.broadcast_to(array, out.shape(result))))
        return
    params = out.moved(result, [value])
    source = out.read(value, integer=params is not None)
    want, have = sizes(result), sizes(value)
    source, have = _of_rank(out, source, have, len(want))
    order = out.tensors[source].order
    if _repeat_by_ones(out, source, result, have, params):
        return
    shape = size_vector(
        out, [want[axis] for axis in order], source, [have[axis] for axis in order], open_one=False
    )
    if shape is None:
        source, order = out.reordered(source, plain(len(want))), plain(len(want))
        given = as_int32(out, node.inputs[1])
        now = out.step("SHAPE", [source], (len(want),), ("ShapeOptions", {"outType": "INT32"}), dtype="int32")
        shape = out.step("BROADCAST_ARGS", [now, given], (len(want),), dtype="int32")
    version = 2 if params is None else 3
    options: Options = ("BroadcastToOptions", {})
    out.emit("BROADCAST_TO", [source, shape], result, options, order=order, params=params, version=version)


def _of_rank(out: Emitter, source: int, have: tuple[Known, ...], rank: int) -> tuple[int, tuple[Known, ...]]:
    """A tensor with axes of size 1 in front, and its sizes."""
    if len(have) == rank:
        return source, have
    source = out.reordered(source, plain(len(have)))
    wanted = (Size(1),) * (rank - len(have)) + have
    shape = size_vector(out, wanted, source, have)
    if shape is None:
        raise Unsupported(
            "more than one size of what it repeats is free: fix the sizes of the model's inputs (--shape)"
        )
    tensor = out.tensors[source]
    sizes_now = (1,) * (rank - len(have)) + tensor.shape
    source = out.step("RESHAPE", [source, shape], sizes_now, dtype=tensor.dtype, params=tensor.params)
    return source, wanted


def _repeat_by_ones(
    out: Emitter, source: int, result: ir.Value, have: tuple[Known, ...], params: QuantParams | None
) -> bool:
    """A product with ones, or nothing where no size changes; False where it cannot be that."""
    tensor, want = out.tensors[source], out.shape(result)
    grown = [axis for axis, (now, then) in enumerate(zip(have, sizes(result), strict=True)) if now != then]
    if not grown and tensor.shape.count(-1) <= 1:
        out.view(source, result, tensor.order, params)
        return True
    if any(have[axis] != Size(1) or want[axis] < 0 for axis in grown):
        return False
    if params is not None or tensor.dtype != "float32" or len(want) > _PRODUCT_RANK:
        return False
    ones = np.ones([want[axis] if axis in grown else 1 for axis in tensor.order], np.float32)
    factor = out.numbers(ones, f"{out.node}/ones")
    out.emit("MUL", [source, factor], result, ("MulOptions", {}), order=tensor.order)
    return True


@ops.lower("Tile", types=ANY)
def tile(node: ir.Node, out: Emitter) -> None:
    """A few times along one axis CONCATENATION, axes of size 1 a product with ones: XNNPACK takes both."""
    value, result = node.inputs[0], node.outputs[0]
    times = known(out, node.inputs[1])
    array = known(out, value)
    if array is not None and times is not None:
        carry(out, result, np.tile(array, times))
        return
    params = out.moved(result, [value])
    source = out.read(value, integer=params is not None)
    tensor = out.tensors[source]
    if times is None:
        source = out.reordered(source, plain(len(tensor.shape)))
        given = as_int32(out, node.inputs[1])
        out.emit("TILE", [source, given], result, params=params, version=1 if params is None else 3)
        return
    if _repeat_by_ones(out, source, result, sizes(value), params):
        return
    repeated = [axis for axis, count in enumerate(times) if count != 1]
    order = tensor.order
    if len(repeated) == 1 and times[repeated[0]] <= _JOINED_AT_ONCE:
        read = [source] * int(times[repeated[0]])
        emit_joined(out, read, result, order, order.index(repeated[0]), params)
        return
    given = out.numbers(times[list(order)].astype(np.int32), f"{node.name}/times")
    version = 1 if params is None else 3
    out.emit("TILE", [source, given], result, order=order, params=params, version=version)
