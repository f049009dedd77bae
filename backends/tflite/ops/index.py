"""Elements taken by index. Integers go through as they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES, carry, cast, known, size_vector, sizes
from backends.tflite.layout import Order, plain
from backends.tflite.network import Options
from backends.tflite.ops.join import emit_slice
from backends.tflite.optable import ANY, OpTable
from backends.tflite.terms import Term
from deploy.adapter.optable import Unsupported
from deploy.spec.plan import QuantParams

ops = OpTable()

_COORDINATE_RANK = 6
_COUNTING = ("ArgMax", "ArgMin", "TopK")
"""What makes indices that are never negative."""
_REVERSED = ("float32", "uint8", "int32", "int64")


@ops.lower("Gather", types=ANY)
def gather(node: ir.Node, out: Emitter) -> None:
    """A slice where the indices follow each other, which XNNPACK takes; else GATHER."""
    value, result = node.inputs[0], node.outputs[0]
    shape = out.shape(value)
    rank = len(shape)
    axis = node.attributes.get_int("axis", 0) % rank
    indices, array = known(out, node.inputs[1]), known(out, value)
    if indices is not None and array is not None and value in out.carried:
        carry(out, result, np.asarray(np.take(array, indices, axis)))
        return
    params = out.moved(result, [value])
    source = out.read(value, integer=params is not None)
    if indices is not None:
        size = shape[axis]
        if size < 0 and indices.size > 1 and indices.min() < 0:
            raise Unsupported(
                "negative indices into a free axis: fix the sizes of the model's inputs (--shape)"
            )
        indices = np.where(indices < 0, indices + size, indices) if size >= 0 else indices
        if size >= 0 and (indices.min() < 0 or indices.max() >= size):
            raise Unsupported("an index beyond its axis: correct it in the model")
        if _sliced(out, source, result, axis, indices, params):
            return
        where = out.numbers(indices.astype(np.int32), f"{node.name}/indices")
    else:
        given = node.inputs[1]
        assert given is not None
        where = _wrapped(out, out.read(given, plain(len(out.shape(given)))), shape[axis], given)
    taken = len(out.shape(node.inputs[1]))
    order: Order = ()
    for held in out.tensors[source].order:
        if held == axis:
            order += tuple(range(axis, axis + taken))
        else:
            order += (held if held < axis else held + taken - 1,)
    place = out.tensors[source].order.index(axis)
    options: Options = ("GatherOptions", {"axis": place})
    out.emit("GATHER", [source, where], result, options, order=order, params=params)


def _sliced(
    out: Emitter, source: int, result: ir.Value, axis: int, indices: np.ndarray, params: QuantParams | None
) -> bool:
    """One element, or several in a row, as STRIDED_SLICE; False where GATHER must do it."""
    tensor = out.tensors[source]
    place = tensor.order.index(axis)
    flat = indices.reshape(-1)
    if indices.ndim > 1 or not np.array_equal(flat, np.arange(flat.size) + flat[0]):
        return False
    rank = len(tensor.shape)
    begin, end = [0] * rank, [max(size, 0) for size in tensor.shape]
    begin[place], end[place] = int(flat[0]), int(flat[-1]) + 1
    free = [i for i, size in enumerate(tensor.shape) if size < 0 and i != place]
    if indices.ndim == 1 and tensor.shape[place] >= 0:
        emit_slice(out, source, result, begin, end, params)
        return True
    if indices.ndim == 1:
        return False
    whole = sum(1 << i for i in free)
    last = (1 << place) if flat[0] == -1 else 0
    shape = [1 if i == place else size for i, size in enumerate(tensor.shape)]
    given = [
        out.numbers(np.array(numbers, np.int32), f"{out.node}/{name}")
        for name, numbers in (("begin", begin), ("end", end), ("strides", [1] * rank))
    ]
    options: Options = ("StridedSliceOptions", {"beginMask": whole, "endMask": whole | last})
    order = tuple(held - (held > axis) for held in tensor.order if held != axis)
    version = 1 if params is None else 2
    if len(free) > 1:  # a reshape cannot leave two sizes open; XNNPACK does not take this form
        options[1]["shrinkAxisMask"] = 1 << place
        out.emit("STRIDED_SLICE", [source, *given], result, options, order=order, params=params)
        return True
    cut = out.step(
        "STRIDED_SLICE", [source, *given], shape, options,
        dtype=tensor.dtype, order=tensor.order, params=params, version=version,
    )  # fmt: skip
    sizes_left = out.numbers(
        np.array([s for i, s in enumerate(shape) if i != place], np.int32), f"{out.node}/shape"
    )
    out.emit("RESHAPE", [cut, sizes_left], result, order=order, params=params, version=1)
    return True


@ops.lower("Compress", types=ANY)
def compress(node: ir.Node, out: Emitter) -> None:
    """By a constant condition: GATHER of what it lets through."""
    value, result = node.inputs[0], node.outputs[0]
    condition = known(out, node.inputs[1])
    if condition is None:
        raise Unsupported("the size of its result depends on its condition: let a constant decide")
    taken = np.flatnonzero(condition)
    if not taken.size:
        raise Unsupported("it lets nothing through, and TFLite makes no empty tensor: remove what reads it")
    where = out.numbers(taken.astype(np.int32), f"{node.name}/taken")
    params = out.moved(result, [value])
    if "axis" not in node.attributes:
        flat = out.flat(value, integer=params is not None)
        tensor = out.tensors[flat]
        shape = out.numbers(np.array([-1], np.int32), f"{node.name}/shape")
        count = -1 if -1 in tensor.shape else int(np.prod(tensor.shape))
        source = out.step("RESHAPE", [flat, shape], (count,), dtype=tensor.dtype, params=params)
        place = 0
    else:
        source = out.read(value, integer=params is not None)
        axis = node.attributes.get_int("axis", 0) % len(out.shape(value))
        place = out.tensors[source].order.index(axis)
    order = out.tensors[source].order
    options: Options = ("GatherOptions", {"axis": place})
    out.emit("GATHER", [source, where], result, options, order=order, params=params)


@ops.lower("GatherND", types=ANY)
def gather_nd(node: ir.Node, out: Emitter) -> None:
    """GATHER_ND; batches are indices of their own in front of the others."""
    value, result = node.inputs[0], node.outputs[0]
    shape, given = out.shape(value), out.shape(node.inputs[1])
    batches = node.attributes.get_int("batch_dims", 0)
    params = out.moved(result, [value])
    source = out.read(value, plain(len(shape)), integer=params is not None)
    where = coordinates(out, node.inputs[1], shape[batches:], "GatherND")
    if batches:
        where = _with_grid(out, where, given, batches)
    out.emit("GATHER_ND", [source, where], result, ("GatherNdOptions", {}), params=params, version=1)


@ops.lower("GatherElements", types=ANY)
def gather_elements(node: ir.Node, out: Emitter) -> None:
    """GATHER_ND by all coordinates of each element."""
    value, result = node.inputs[0], node.outputs[0]
    shape = out.shape(value)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    params = out.moved(result, [value])
    source = out.read(value, plain(len(shape)), integer=params is not None)
    where = element_coordinates(out, node.inputs[1], shape, axis)
    out.emit("GATHER_ND", [source, where], result, ("GatherNdOptions", {}), params=params, version=1)


def element_coordinates(out: Emitter, value: ir.Value | None, shape: tuple[int, ...], axis: int) -> int:
    """For every element of the indices all its coordinates, of which they are that along ``axis``."""
    given = out.shape(value)
    if -1 in given:
        raise Unsupported(f"indices of a free size: {FIX_SIZES}")
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in given), indexing="ij"), -1)
    array = known(out, value)
    if array is not None:
        grid[..., axis] = _counted(array, shape[axis])
        return out.numbers(grid.astype(np.int32), f"{out.node}/coordinates")
    if len(given) + 1 > _COORDINATE_RANK:
        raise Unsupported(
            f"computed indices of more than {_COORDINATE_RANK - 1} axes: join some by a Reshape before it"
        )
    index = _wrapped(out, cast(out, out.read(value, plain(len(given))), "int32"), shape[axis])
    column = out.numbers(np.array((*given, 1), np.int32), f"{out.node}/shape")
    parts = [out.step("RESHAPE", [index, column], (*given, 1), dtype="int32")]
    if axis > 0:
        parts.insert(0, out.numbers(grid[..., :axis].astype(np.int32), f"{out.node}/before"))
    if axis + 1 < len(given):
        parts.append(out.numbers(grid[..., axis + 1 :].astype(np.int32), f"{out.node}/behind"))
    if len(parts) == 1:
        return parts[0]
    options: Options = ("ConcatenationOptions", {"axis": len(given)})
    return out.step("CONCATENATION", parts, grid.shape, options, dtype="int32")


def coordinates(out: Emitter, value: ir.Value | None, shape: tuple[int, ...], what: str) -> int:
    """Indices whose last axis are coordinates into the first axes of ``shape``, none of them negative."""
    array = known(out, value)
    given = out.shape(value)
    depth = given[-1]
    if array is not None:
        counted = np.stack([_counted(array[..., i], shape[i]) for i in range(depth)], -1)
        return out.numbers(counted.astype(np.int32), f"{out.node}/coordinates")
    if depth < 0:
        raise Unsupported(
            f"{what} with a free number of coordinates: fix the sizes of the model's inputs (--shape)"
        )
    index = cast(out, out.read(value, plain(len(given))), "int32")
    return _wrapped(out, index, shape[:depth])


def _counted(indices: np.ndarray, size: int) -> np.ndarray:
    """Constant indices from the start of their axis."""
    if size < 0 and indices.min() < 0:
        raise Unsupported(f"negative indices into a free axis: {FIX_SIZES}")
    return np.where(indices < 0, indices + size, indices)


def _wrapped(out: Emitter, index: int, size: int | tuple[int, ...], given: ir.Value | None = None) -> int:
    """Computed indices from the start of their axis; LiteRT refuses to run with those beyond it."""
    maker = None if given is None else given.producer()
    if np.min(size) < 0 or (maker is not None and maker.op_type in _COUNTING):
        return index
    term = Term(out, index)
    sizes = Term(out, out.numbers(np.array(size, term.dtype), f"{out.node}/sizes"))
    negative = term.apply("LESS", 0, dtype="bool")
    return (term + sizes).where(negative, term).index


def _with_grid(out: Emitter, where: int, given: tuple[int, ...], batches: int) -> int:
    """Coordinates with those of the first axes of the indices themselves before them."""
    if -1 in given:
        raise Unsupported(f"batches of indices of a free size: {FIX_SIZES}")
    axes = np.meshgrid(*(np.arange(n) for n in given[:-1]), indexing="ij")
    grid = np.stack(axes[:batches], -1).astype(np.int32)
    data = out.tensors[where].data
    if data is not None:
        return out.numbers(np.concatenate([grid, data], -1), f"{out.node}/coordinates")
    before = out.numbers(grid, f"{out.node}/batches")
    options: Options = ("ConcatenationOptions", {"axis": len(given) - 1})
    shape = (*given[:-1], given[-1] + batches)
    return out.step("CONCATENATION", [before, where], shape, options, dtype="int32")


@ops.lower("OneHot", types=ANY)
def one_hot(node: ir.Node, out: Emitter) -> None:
    """ONE_HOT; negative indices count from the end, those beyond both ends give a row without a one."""
    indices, result = node.inputs[0], node.outputs[0]
    depth, values = known(out, node.inputs[1]), known(out, node.inputs[2])
    if depth is None or values is None:
        raise Unsupported("its depth and values are computed: make them constants")
    rank = len(out.shape(indices))
    count = int(depth.reshape(-1)[0])
    index = _wrapped(out, cast(out, out.read(indices, plain(rank)), "int32"), count)
    size = out.numbers(np.array(count, np.int32), f"{node.name}/depth")
    off, on = (out.numbers(values[i], f"{node.name}/{name}") for i, name in ((0, "off"), (1, "on")))
    axis = node.attributes.get_int("axis", -1)
    options: Options = ("OneHotOptions", {"axis": axis + rank + 1 if axis < -1 else axis})
    out.emit("ONE_HOT", [index, size, on, off], result, options)


@ops.lower("ReverseSequence", types=_REVERSED)
def reverse_sequence(node: ir.Node, out: Emitter) -> None:
    value, lengths = node.inputs[:2]
    source = out.read(value)
    order = out.tensors[source].order
    batch, time = node.attributes.get_int("batch_axis", 1), node.attributes.get_int("time_axis", 0)
    options: Options = (
        "ReverseSequenceOptions",
        {"seqDim": order.index(time), "batchDim": order.index(batch)},
    )
    out.emit("REVERSE_SEQUENCE", [source, out.read(lengths)], node.outputs[0], options, order=order)


@ops.lower("Trilu", types=ANY)
def trilu(node: ir.Node, out: Emitter) -> None:
    """SELECT_V2 by a constant triangle."""
    value, result = node.inputs[0], node.outputs[0]
    shape = out.shape(value)
    given = node.inputs[1] if len(node.inputs) > 1 else None
    k = known(out, given)
    if given is not None and k is None:
        raise Unsupported("its diagonal is computed: make it a constant")
    diagonal = 0 if k is None else int(k.reshape(-1)[0])
    upper = bool(node.attributes.get_int("upper", 1))
    array = known(out, value)
    cut = np.triu if upper else np.tril
    if array is not None:
        carry(out, result, cut(array, diagonal))
        return
    if -1 in shape[-2:]:
        raise Unsupported(f"a matrix of a free size: {FIX_SIZES}")
    mask = cut(np.ones(shape[-2:], bool), diagonal)
    source = out.read(value, plain(len(shape)))
    condition = out.numbers(mask, f"{node.name}/mask")
    zero = out.numbers(np.zeros((), out.tensors[source].dtype), f"{node.name}/zero")
    out.emit("SELECT_V2", [condition, source, zero], result, ("SelectV2Options", {}))


def whole_shape(out: Emitter, value: ir.Value | None, source: int) -> int:
    """The sizes of a tensor in ONNX's order, as int32."""
    have = sizes(value)
    found = size_vector(out, have, source, have, open_one=False)
    assert found is not None
    return found
