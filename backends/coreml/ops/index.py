"""Elements taken, put and counted by index. ONNX's indices may count from behind; MIL's are wrapped here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter
from backends.coreml.ops.elementwise import is_float
from backends.coreml.ops.shape import axis_of, ints
from backends.coreml.optable import ANY, NUMBERS, OpTable
from deploy.adapter.optable import Unsupported

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Var

ops = OpTable()

_SCATTERED = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


def wrapped(out: Emitter, places: ir.Value | None, size: int | np.ndarray | None) -> Var | np.ndarray:
    """Indices with those that count from behind brought to the front."""
    known = out.array(places)
    if known is not None and (known >= 0).all():
        return ints(known)
    if size is None:
        raise Unsupported("its indices may count from behind an axis of free size: fix it (--shape)")
    if known is not None:
        return ints(np.where(known < 0, known + size, known))
    given = out.read(places)
    behind = out.op("add", x=given, y=ints(size))
    return out.op("select", cond=out.op("less", x=given, y=np.int32(0)), a=behind, b=given)


def unchecked(out: Emitter) -> dict[str, object]:
    return {"validate_indices": False} if out.level >= 17 else {}


@ops.lower("Gather", types=ANY)
def gather(node: ir.Node, out: Emitter) -> None:
    axis = axis_of(node, out)
    places = wrapped(out, node.inputs[1], out.shape(node.inputs[0])[axis])
    x = out.read(node.inputs[0])
    out.emit(node, "gather", x=x, indices=places, axis=np.int32(axis), **unchecked(out))


@ops.lower("GatherElements", types=ANY)
def gather_elements(node: ir.Node, out: Emitter) -> None:
    axis = axis_of(node, out)
    sizes, taken = out.fixed(node.inputs[0]), out.fixed(node.inputs[1])
    others = [a for a in range(len(sizes)) if a != axis]
    x = out.read(node.inputs[0])
    if any(sizes[a] != taken[a] for a in others):
        end = [size if a == axis else taken[a] for a, size in enumerate(sizes)]
        x = out.op("slice_by_index", x=x, begin=ints([0] * len(sizes)), end=ints(end))
    places = wrapped(out, node.inputs[1], sizes[axis])
    out.emit(node, "gather_along_axis", x=x, indices=places, axis=np.int32(axis), **unchecked(out))


@ops.lower("GatherND", types=ANY)
def gather_nd(node: ir.Node, out: Emitter) -> None:
    batch = node.attributes.get_int("batch_dims", 0)
    if batch:
        out.need(16, "GatherND with batch_dims")
    sizes, depth = out.shape(node.inputs[0]), out.fixed(node.inputs[1])[-1]
    reached = sizes[batch : batch + depth]
    known = [size for size in reached if size is not None]
    places = wrapped(out, node.inputs[1], np.array(known) if len(known) == len(reached) else None)
    given = unchecked(out) | ({"batch_dims": np.int32(batch)} if batch else {})
    out.emit(node, "gather_nd", x=out.read(node.inputs[0]), indices=places, **given)


@ops.lower("ScatterND", types=NUMBERS)
def scatter_nd(node: ir.Node, out: Emitter) -> None:
    depth = out.fixed(node.inputs[1])[-1]
    sizes = np.array(out.fixed(node.inputs[0])[:depth])
    out.emit(
        node,
        "scatter_nd",
        data=out.read(node.inputs[0]),
        indices=wrapped(out, node.inputs[1], sizes),
        updates=out.read(node.inputs[2]),
        mode=_how(node),
        **unchecked(out),
    )


@ops.lower("ScatterElements", "Scatter", types=NUMBERS)
def scatter_elements(node: ir.Node, out: Emitter) -> None:
    axis = axis_of(node, out)
    sizes, put = out.fixed(node.inputs[0]), out.fixed(node.inputs[1])
    if any(size != given for a, (size, given) in enumerate(zip(sizes, put, strict=True)) if a != axis):
        raise Unsupported("its indices do not reach along the other axes; Core ML's do")
    out.emit(
        node,
        "scatter_along_axis",
        data=out.read(node.inputs[0]),
        indices=wrapped(out, node.inputs[1], sizes[axis]),
        updates=out.read(node.inputs[2]),
        axis=np.int32(axis),
        mode=_how(node),
        **unchecked(out),
    )


def _how(node: ir.Node) -> str:
    how = node.attributes.get_string("reduction", "none")
    if how not in _SCATTERED:
        raise Unsupported(f"joined by '{how}'; there are {', '.join(_SCATTERED)}")
    return _SCATTERED[how]


@ops.lower("OneHot", types=NUMBERS)
def one_hot(node: ir.Node, out: Emitter) -> None:
    depth = int(out.numbers(node.inputs[1], "depth").reshape(-1)[0])
    off, on = out.numbers(node.inputs[2], "values").reshape(-1)
    places = node.inputs[0]
    given = out.read(places)
    if is_float(places):
        given = out.op("cast", x=given, dtype="int32")
    behind = out.op("add", x=given, y=np.int32(depth))
    given = out.op("select", cond=out.op("less", x=given, y=np.int32(0)), a=behind, b=given)
    number = np.float32 if is_float(node.outputs[0]) else np.int32
    rank = out.rank(node.outputs[0])
    out.emit(
        node,
        "one_hot",
        indices=given,
        one_hot_vector_size=np.int32(depth),
        axis=np.int32(node.attributes.get_int("axis", -1) % rank),
        on_value=number(on),
        off_value=number(off),
    )


@ops.lower("TopK", types=NUMBERS)
def top_k(node: ir.Node, out: Emitter) -> None:
    count = int(out.numbers(node.inputs[1], "number").reshape(-1)[0])
    values, places = out.op(
        "topk",
        node.outputs[0].name or "",
        x=out.read(node.inputs[0]),
        k=np.int32(count),
        axis=np.int32(axis_of(node, out, -1)),
        ascending=not node.attributes.get_int("largest", 1),
    )
    out.give(node.outputs[0], values)
    out.give(node.outputs[1], places)


@ops.lower("CumSum", types=NUMBERS)
def cumulative_sum(node: ir.Node, out: Emitter) -> None:
    axis = int(out.numbers(node.inputs[1], "axis").reshape(-1)[0]) % out.rank(node.inputs[0])
    out.emit(
        node,
        "cumsum",
        x=out.read(node.inputs[0]),
        axis=np.int32(axis),
        exclusive=bool(node.attributes.get_int("exclusive", 0)),
        reverse=bool(node.attributes.get_int("reverse", 0)),
    )


@ops.lower("NonZero", types=ANY)
def non_zero(node: ir.Node, out: Emitter) -> None:
    source = node.inputs[0]
    given = out.read(source)
    if source is not None and source.dtype == ir.DataType.BOOL:
        given = out.op("cast", x=given, dtype="int32")
    out.emit(node, "transpose", x=out.op("non_zero", x=given), perm=ints([1, 0]))


@ops.lower("Trilu", types=NUMBERS)
def triangle(node: ir.Node, out: Emitter) -> None:
    """MIL keeps bands, of which those that end on the wrong side of the diagonal are said by a mask."""
    given = out.operand(node, 1)
    k = 0 if given is None else int(out.numbers(given, "diagonal").reshape(-1)[0])
    rows, columns = out.fixed(node.inputs[0])[-2:]
    kept = np.tri(rows, columns, k if not node.attributes.get_int("upper", 1) else k - 1, dtype=bool)
    mask = kept if not node.attributes.get_int("upper", 1) else ~kept
    zero = np.float32(0) if is_float(node.inputs[0]) else np.int32(0)
    out.emit(node, "select", cond=mask, a=out.read(node.inputs[0]), b=zero)


@ops.lower("ReverseSequence", types=NUMBERS)
def reverse_sequence(node: ir.Node, out: Emitter) -> None:
    out.emit(
        node,
        "reverse_sequence",
        x=out.read(node.inputs[0]),
        lengths=out.read(node.inputs[1]),
        seq_axis=np.int32(node.attributes.get_int("time_axis", 0)),
        batch_axis=np.int32(node.attributes.get_int("batch_axis", 1)),
    )


@ops.lower("Compress", types=ANY)
def compress(node: ir.Node, out: Emitter) -> None:
    """By a constant condition."""
    taken = np.flatnonzero(out.numbers(node.inputs[1], "condition"))
    x = out.read(node.inputs[0])
    if "axis" not in node.attributes:
        x, axis = out.op("reshape", x=x, shape=ints([-1])), 0
    else:
        axis = axis_of(node, out)
    out.emit(node, "gather", x=x, indices=ints(taken), axis=np.int32(axis), **unchecked(out))


@ops.lower("Size", types=ANY)
def size_of(node: ir.Node, out: Emitter) -> None:
    sizes = out.op("shape", x=out.read(node.inputs[0]))
    out.emit(node, "reduce_prod", x=sizes, axes=ints([0]), keep_dims=False)


@ops.lower("ConstantOfShape", types=ANY)
def constant_of_shape(node: ir.Node, out: Emitter) -> None:
    filled = node.attributes.get_tensor("value").numpy().reshape(-1)[0] if "value" in node.attributes else 0.0
    number = bool(filled) if node.outputs[0].dtype == ir.DataType.BOOL else np.int32(filled)
    value = np.float32(filled) if is_float(node.outputs[0]) else number
    known = out.array(node.inputs[0])
    shape = out.read(node.inputs[0]) if known is None else ints(known)
    out.emit(node, "fill", shape=shape, value=value)


@ops.lower("Range", types=NUMBERS)
def progression(node: ir.Node, out: Emitter) -> None:
    start, limit, step = (out.read(value) for value in node.inputs)
    out.emit(node, "range_1d", start=start, end=limit, step=step)


@ops.lower("EyeLike", types=ANY)
def eye_like(node: ir.Node, out: Emitter) -> None:
    rows, columns = out.fixed(node.outputs[0])
    diagonal = np.eye(rows, columns, node.attributes.get_int("k", 0))
    dtype = np.float32 if is_float(node.outputs[0]) else np.int32
    out.emit(node, "identity", x=out.op("const", val=diagonal.astype(dtype)))
