"""Sizes and order: what moves, joins, cuts or repeats data and computes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter, ends
from backends.coreml.ops.elementwise import is_float
from backends.coreml.optable import ANY, OpTable
from deploy.adapter.optable import Unsupported

ops = OpTable()

_LARGEST_RANK = 5
_TO_THE_END = np.iinfo(np.int32).max


def ints(numbers: object) -> np.ndarray:
    """Numbers as MIL takes sizes and axes."""
    return np.array(numbers, np.int32)


def axis_of(node: ir.Node, out: Emitter, default: int = 0) -> int:
    """The attribute ``axis``, counted from the front."""
    return node.attributes.get_int("axis", default) % out.rank(node.inputs[0])


@ops.lower("Identity", "Dropout", types=ANY)
def identity(node: ir.Node, out: Emitter) -> None:
    """The same value; dropout drops nothing outside of training."""
    training = out.operand(node, 2) if node.op_type == "Dropout" else None
    if training is not None and bool(out.numbers(training, "mode").any()):
        raise Unsupported("in training mode")
    out.emit(node, "identity", x=out.read(node.inputs[0]))


@ops.lower("Reshape", types=ANY)
def reshape(node: ir.Node, out: Emitter) -> None:
    """0 keeps a size, unless it is meant."""
    x, wanted = out.read(node.inputs[0]), out.array(node.inputs[1])
    result = out.shape(node.outputs[0])
    if None not in result:
        out.emit(node, "reshape", x=x, shape=ints(result))
    elif result.count(None) == 1 and (wanted is None or -1 in wanted or 0 in wanted):
        out.emit(node, "reshape", x=x, shape=ints([-1 if size is None else size for size in result]))
    elif wanted is not None and (wanted > 0).sum() + (wanted == -1).sum() == wanted.size:
        out.emit(node, "reshape", x=x, shape=ints(wanted))
    elif wanted is None:
        out.emit(node, "reshape", x=x, shape=out.read(node.inputs[1]))
    else:
        sizes = out.op("shape", x=x)
        parts = [
            out.op("slice_by_size", x=sizes, begin=ints([at]), size=ints([1])) if size == 0 else ints([size])
            for at, size in enumerate(wanted)
        ]
        out.emit(node, "reshape", x=x, shape=out.op("concat", values=parts, axis=np.int32(0)))


@ops.lower("Flatten", types=ANY)
def flatten(node: ir.Node, out: Emitter) -> None:
    """Two axes, joined before and behind ``axis``."""
    shape = out.shape(node.inputs[0])
    axis = node.attributes.get_int("axis", 1)
    axis += len(shape) if axis < 0 else 0
    before, behind = (_product(sizes) for sizes in (shape[:axis], shape[axis:]))
    if behind is not None:
        sizes = [-1, behind]
    elif before is not None:
        sizes = [before, -1]
    else:
        raise Unsupported("sizes before and behind its axis are free: fix those of the inputs (--shape)")
    out.emit(node, "reshape", x=out.read(node.inputs[0]), shape=ints(sizes))


def _product(sizes: Sequence[int | None]) -> int | None:
    return math.prod(size or 0 for size in sizes) if None not in sizes else None


@ops.lower("Transpose", types=ANY)
def transpose(node: ir.Node, out: Emitter) -> None:
    """Axes in another order, reversed where none is given."""
    rank = out.rank(node.inputs[0])
    perm = list(node.attributes.get_ints("perm", ()) or reversed(range(rank)))
    out.emit(node, "transpose", x=out.read(node.inputs[0]), perm=ints(perm))


@ops.lower("Squeeze", types=ANY)
def squeeze(node: ir.Node, out: Emitter) -> None:
    """Axes of size 1 go."""
    shape, given = out.shape(node.inputs[0]), out.operand(node, 1)
    if given is not None:
        axes = sorted(axis % len(shape) for axis in out.integers(given, "axes"))
    else:
        axes = [axis for axis, size in enumerate(out.fixed(node.inputs[0])) if size == 1]
    x = out.read(node.inputs[0])
    if axes:
        out.emit(node, "squeeze", x=x, axes=ints(axes))
    else:
        out.emit(node, "identity", x=x)


@ops.lower("Unsqueeze", types=ANY)
def unsqueeze(node: ir.Node, out: Emitter) -> None:
    """Axes of size 1 come."""
    axes = out.integers(node.inputs[1], "axes")
    rank = out.rank(node.inputs[0]) + len(axes)
    if rank > _LARGEST_RANK:
        raise Unsupported(f"more than {_LARGEST_RANK} axes: join some by a Reshape before it")
    out.emit(node, "expand_dims", x=out.read(node.inputs[0]), axes=ints(sorted(a % rank for a in axes)))


@ops.lower("Concat", types=ANY)
def concat(node: ir.Node, out: Emitter) -> None:
    """Joined along an axis."""
    values = tuple(out.read(value) for value in node.inputs)
    if len(values) == 1:
        out.emit(node, "identity", x=values[0])
    else:
        out.emit(node, "concat", values=values, axis=np.int32(axis_of(node, out)))


@ops.lower("Split", types=ANY)
def split(node: ir.Node, out: Emitter) -> None:
    """Parts along an axis, whose sizes the results have."""
    axis = axis_of(node, out)
    sizes = []
    for value in node.outputs:
        size = out.shape(value)[axis] if value.shape is not None else None
        if size is None:
            raise Unsupported("the sizes of its parts are free: fix those of the inputs (--shape)")
        sizes.append(size)
    x = out.read(node.inputs[0])
    if len(sizes) == 1:
        out.emit(node, "identity", x=x)
        return
    parts = out.op("split", node.outputs[0].name or "", x=x, split_sizes=ints(sizes), axis=np.int32(axis))
    for value, part in zip(node.outputs, parts, strict=True):
        out.give(value, part)


@ops.lower("Slice", types=ANY)
def cut(node: ir.Node, out: Emitter) -> None:
    """From, to and in steps of, along some axes."""
    shape = out.shape(node.inputs[0])
    rank = len(shape)
    given = [out.operand(node, index) for index in range(3, 5)]
    starts, stops = (out.integers(node.inputs[index], "bounds") for index in (1, 2))
    axes = list(range(len(starts))) if given[0] is None else out.integers(given[0], "axes")
    steps = [1] * len(starts) if given[1] is None else out.integers(given[1], "steps")
    begin, end, stride = [0] * rank, [0] * rank, [1] * rank
    from_start, to_end = [True] * rank, [True] * rank
    for axis, first, last, step in zip(axes, starts, stops, steps, strict=True):
        at, size = axis % rank, shape[axis % rank]
        stride[at] = step
        if size is not None:
            first, last, _ = slice(first, last, step).indices(size)
        from_start[at] = first == (0 if step > 0 else (size or 0) - 1) and size is not None
        to_end[at] = (size is not None and last == (size if step > 0 else -1)) or last >= _TO_THE_END
        begin[at], end[at] = int(np.clip(first, -_TO_THE_END, _TO_THE_END)), min(last, _TO_THE_END)
    out.emit(
        node,
        "slice_by_index",
        x=out.read(node.inputs[0]),
        begin=ints(begin),
        end=ints([0 if free else at for free, at in zip(to_end, end, strict=True)]),
        stride=ints(stride),
        begin_mask=np.array(from_start),
        end_mask=np.array(to_end),
    )


@ops.lower("Pad", types=ANY)
def pad(node: ir.Node, out: Emitter) -> None:
    """By a constant, or by what lies next to the border; MIL mirrors the last two axes only."""
    rank, given = out.rank(node.inputs[0]), out.operand(node, 3)
    amounts = out.integers(node.inputs[1], "amounts")
    if given is not None:
        axes = [axis % rank for axis in out.integers(given, "axes")]
        full = [0] * (2 * rank)
        for at, axis in enumerate(axes):
            full[axis], full[axis + rank] = amounts[at], amounts[at + len(axes)]
        amounts = full
    how = node.attributes.get_string("mode", "constant")
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(how)
    if mode is None:
        raise Unsupported(f"in mode '{how}'; there are constant, reflect and edge")
    x, of = out.read(node.inputs[0]), node.inputs[0]
    if any(amount < 0 for amount in amounts):
        raise Unsupported("by negative amounts: say it as a Slice")
    if mode != "constant" and any(amounts[axis] or amounts[axis + rank] for axis in range(rank - 2)):
        raise Unsupported(f"in mode '{how}' of other axes than the last two")
    filled = out.array(out.operand(node, 2))
    value = 0 if filled is None else np.asarray(filled).item()
    first = 0 if mode == "constant" else max(0, rank - 2)
    pairs = ends([*amounts[first:rank], *amounts[rank + first :]])
    if of is not None and of.dtype == ir.DataType.BOOL:
        raise Unsupported("of truth values")
    number = np.float32(value) if is_float(of) else np.int32(value)
    out.emit(node, "pad", x=x, pad=ints(pairs), mode=mode, constant_val=number)


@ops.lower("Expand", types=ANY)
def expand(node: ir.Node, out: Emitter) -> None:
    """Repeated along axes of size 1."""
    before, after = out.fixed(node.inputs[0]), out.fixed(node.outputs[0])
    x = out.read(node.inputs[0])
    wide = (1,) * (len(after) - len(before)) + before
    if len(wide) > len(before):
        x = out.op("reshape", x=x, shape=ints(wide))
    reps = [a // b if b != a else 1 for a, b in zip(after, wide, strict=True)]
    out.emit(node, "tile", x=x, reps=ints(reps))


@ops.lower("Tile", types=ANY)
def tile(node: ir.Node, out: Emitter) -> None:
    """Repeated along every axis."""
    out.emit(node, "tile", x=out.read(node.inputs[0]), reps=ints(out.integers(node.inputs[1], "repeats")))


@ops.lower("DepthToSpace")
def depth_to_space(node: ir.Node, out: Emitter) -> None:
    """Blocks out of channels; MIL's ``pixel_shuffle`` is the order CRD."""
    block, x = node.attributes.get_int("blocksize", 1), out.read(node.inputs[0])
    if node.attributes.get_string("mode", "DCR") == "CRD":
        out.emit(node, "pixel_shuffle", x=x, upscale_factor=np.int32(block))
    else:
        out.emit(node, "depth_to_space", x=x, block_size=np.int32(block))


@ops.lower("SpaceToDepth")
def space_to_depth(node: ir.Node, out: Emitter) -> None:
    """Channels out of blocks."""
    block = node.attributes.get_int("blocksize", 1)
    out.emit(node, "space_to_depth", x=out.read(node.inputs[0]), block_size=np.int32(block))


@ops.lower("Shape", types=ANY)
def shape_of(node: ir.Node, out: Emitter) -> None:
    """All sizes, or those from ``start`` to ``end``."""
    rank = out.rank(node.inputs[0])
    start = node.attributes.get_int("start", 0)
    stop = node.attributes.get_int("end", rank)
    first, last, _ = slice(start, stop).indices(rank)
    sizes = out.op("shape", x=out.read(node.inputs[0]))
    if (first, last) == (0, rank):
        out.emit(node, "identity", x=sizes)
    else:
        out.emit(node, "slice_by_index", x=sizes, begin=ints([first]), end=ints([last]))
