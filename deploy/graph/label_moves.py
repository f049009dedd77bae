"""What operations that move data do to labels: the labels move as the numbers do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from deploy.graph import symbolic
from deploy.graph.edit import constant
from deploy.graph.labels import Found, Labels, compact, rank_of, sizes_of, varying
from deploy.graph.symbolic import Size


def _transpose(labels: Labels, node: ir.Node) -> Found:
    return [np.transpose(labels.operand(node, 0), node.attributes.get_ints("perm", None))]


def _reshape(labels: Labels, node: ir.Node) -> Found:
    """Reshape, Flatten, Squeeze, Unsqueeze: axes whose sizes do not take part keep their labels."""
    ids = labels.operand(node, 0)
    before, after = _dimensions(node.inputs[0]), _dimensions(node.outputs[0])
    if before is None or after is None or ids.ndim != len(before):
        return None
    wide: list[int] = []
    moved: list[int] = []
    for old, new in segments(before, after):
        here = ids.shape[old]
        sizes = [size.number for size in (*before[old], *after[new])]
        if all(size == 1 for size in here):
            wide += [1] * len(here)
            moved += [1] * (new.stop - new.start)
        elif any(size is None for size in sizes):
            return None  # a free size among channels: nothing is known of where they go
        else:
            numbers = [size for size in sizes if size is not None]
            if np.prod(numbers[: len(here)]) != np.prod(numbers[len(here) :]):
                return None
            wide += numbers[: len(here)]
            moved += numbers[len(here) :]
    return [compact(np.broadcast_to(ids, wide).reshape(moved))]


def segments(before: Sequence[Size], after: Sequence[Size]) -> list[tuple[slice, slice]]:
    """The runs of axes that a reshape turns into one another, as short as they can be.

    >>> segments([Size(2), Size(3), Size(4)], [Size(6), Size(4)])
    [(slice(0, 2, None), slice(0, 1, None)), (slice(2, 3, None), slice(1, 2, None))]
    """
    whole = len(before), len(after)
    cuts = [(0, 0), *_equal_products(before, after)]
    if cuts[-1] != whole:  # something unknown is in between: the same from behind
        rest = before[cuts[-1][0] :][::-1], after[cuts[-1][1] :][::-1]
        cuts += [(whole[0] - a, whole[1] - b) for a, b in _equal_products(*rest)[::-1]] + [whole]
    return [(slice(a, c), slice(b, d)) for (a, b), (c, d) in pairwise(cuts)]


def _equal_products(before: Sequence[Size], after: Sequence[Size]) -> list[tuple[int, int]]:
    """How many sizes of each, from the first on, have the same product."""
    ends: list[dict[Size, int]] = [{}, {}]
    for sizes, last in zip((before, after), ends, strict=True):
        total = Size(1)
        for position, size in enumerate(sizes, 1):
            total = total.times(size)
            last[total] = position
    return [(at, ends[1][total]) for total, at in ends[0].items() if total in ends[1]]


def _dimensions(value: ir.Value | None) -> list[Size] | None:
    found = None if value is None else symbolic.sizes(value.shape)
    if found is None:
        return None
    # What is not known is a size of its own, equal to no other.
    return [Size(1, (f"?{id(value)}/{i}",)) if s is None else s for i, s in enumerate(found)]


def _concat(labels: Labels, node: ir.Node) -> Found:
    rank = rank_of(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % rank
    parts = [labels.operand(node, i) for i in range(len(node.inputs))]
    if all(p.shape[axis] == 1 for p in parts) and len({(p.shape, p.tobytes()) for p in parts}) == 1:
        return [parts[0]]
    sizes = [sizes_of(v)[axis] for v in node.inputs]
    if sizes_of(node.outputs[0])[axis] != sum(sizes):
        return None
    if all(p.shape[axis] == 1 for p in parts) and any(varying(p) for p in parts):
        merged = parts[0]  # put together along another axis than that of the channels
        for part in parts[1:]:
            merged = labels.merge(merged, part)
        return [merged]
    shape = np.broadcast_shapes(*((*p.shape[:axis], 1, *p.shape[axis + 1 :]) for p in parts))
    wide = [
        np.broadcast_to(p, (*shape[:axis], size, *shape[axis + 1 :]))
        for p, size in zip(parts, sizes, strict=True)
    ]
    return [compact(np.concatenate(wide, axis))]


def pick(labels: Labels, node: ir.Node) -> Found:
    """Slice, Gather with constant indices, Split: some of the numbers."""
    ids = labels.operand(node, 0)
    if node.op_type == "Split":
        axis = node.attributes.get_int("axis", 0) % ids.ndim
        if ids.shape[axis] == 1:
            return [ids for _ in node.outputs]
        ends = np.cumsum([sizes_of(v)[axis] for v in node.outputs])
        whole = ends[-1] == sizes_of(node.inputs[0])[axis]
        return [compact(p) for p in np.split(ids, ends[:-1], axis)] if whole else None
    if node.op_type == "Gather":
        index = constant(node.inputs[1])
        axis = node.attributes.get_int("axis", 0) % ids.ndim
        if index is None:
            return None
        return [compact(np.take(ids, index if ids.shape[axis] > 1 else np.zeros_like(index), axis))]
    places = positions(node, ids.shape)
    if places is None:
        return None
    for axis, index in places.items():
        ids = np.take(ids, index, axis)
    return [compact(ids)]


def positions(node: ir.Node, shape: Sequence[int]) -> dict[int, np.ndarray] | None:
    """What a Slice takes along each axis of a size over 1; None where that is computed.

    ``shape`` may have size 1 along axes that do not matter: nothing is said of those.
    """
    places = [constant(v) if v is not None else None for v in node.inputs[1:]]
    if any(p is None for p, v in zip(places, node.inputs[1:], strict=True) if v is not None):
        axes = places[2] if len(places) > 2 else None
        if axes is None or any(shape[int(axis) % len(shape)] > 1 for axis in axes.reshape(-1)):
            return None
        return {}
    starts, ends = (np.asarray(p) for p in places[:2])
    axes = np.arange(len(starts)) if len(places) < 3 or places[2] is None else places[2]
    steps = np.ones_like(starts) if len(places) < 4 or places[3] is None else places[3]
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[int(axis) % len(shape)]
        if size > 1:
            stop = None if step < 0 and end < -size else int(end)
            found[int(axis) % len(shape)] = np.arange(size)[int(start) : stop : int(step)]
    return found


def _pad(labels: Labels, node: ir.Node) -> Found:
    """Zeros may stand beside any channels, other padding only along axes where the labels stay the same."""
    ids = labels.operand(node, 0)
    number = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    mode = node.attributes.get_string("mode", "constant")
    amounts = padding_of(node)
    if amounts is None or number is None or (mode == "constant" and number.any()):
        return None
    for axis, (begin, end) in amounts.items():
        if not (begin or end) or ids.shape[axis] == 1:
            continue
        if mode != "constant" or begin < 0 or end < 0:
            return None
        shape = [1] * ids.ndim
        parts = []
        for count in (begin, end):
            shape[axis] = count
            ring = labels.padding(count).reshape(shape)
            parts.append(np.broadcast_to(ring, (*ids.shape[:axis], count, *ids.shape[axis + 1 :])))
        ids = np.concatenate([parts[0], ids, parts[1]], axis)
    return [ids]


def padding_of(node: ir.Node) -> dict[int, tuple[int, int]] | None:
    """What a Pad puts before and behind each axis that it names; None where that is computed."""
    pads, rank = constant(node.inputs[1]), rank_of(node.inputs[0])
    axes = (
        constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else np.arange(rank)
    )
    if pads is None or axes is None:
        return None
    return {
        int(axis) % rank: (int(begin), int(end))
        for axis, (begin, end) in zip(axes, pads.reshape(2, -1).T, strict=True)
    }


MOVES: Mapping[str, Callable[[Labels, ir.Node], Found]] = {
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Concat": _concat,
    **dict.fromkeys(("Slice", "Gather", "Split"), pick),
    "Pad": _pad,
}
