"""What operations must be told when channels are gone: sizes, amounts, indices, numbers of groups.

Only what stands in constants and attributes is rewritten. What a graph computes from its own sizes follows by
itself; `shrink` checks that it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import (
    add_initializer,
    constant,
    fresh_name,
    insert_before,
    insert_behind,
    is_constant,
    names,
    replace_node,
    replace_weight,
)
from deploy.graph.groups import Groups
from deploy.graph.label_moves import padding_of, positions
from deploy.graph.labels import varying
from deploy.graph.tie_rules import reduced


@dataclass(frozen=True)
class Cut:
    """A copy that is being cut: ``gone`` says of every label whether it goes."""

    model: ir.Model
    groups: Groups
    gone: np.ndarray

    def kept(self, value: ir.Value | None, axis: int | None = None) -> tuple[int, np.ndarray] | None:
        """The axis along which a value loses channels, and which of them it keeps; None if it loses none."""
        ids = None if value is None else self.groups.values.get(value.name or "")
        if ids is None:
            return None
        where = varying(ids)
        keep = ~self.gone[ids.reshape(-1)]
        if keep.all() or (axis is not None and where[0] != axis):
            return None
        return where[0], keep


def _target(cut: Cut, node: ir.Node) -> None:
    """Reshape and Expand: the size of the axis that lost channels, where a number stands for it."""
    found, shape = cut.kept(node.outputs[0]), node.inputs[1]
    if found is None or shape is None:
        return
    axis, keep = found
    length = shape.shape[0] if shape.shape is not None else None
    if isinstance(length, int):  # Expand may name the last axes alone
        axis -= cut.groups.values[node.outputs[0].name or ""].ndim - length
    if axis >= 0:
        _set(cut, node, 1, axis, keep.size, int(keep.sum()))


def _set(cut: Cut, node: ir.Node, index: int, at: int, old: int, new: int) -> None:
    """Element ``at`` of a shape that is constant, or put together from parts one of which is."""
    value = node.inputs[index]
    array = constant(value)
    if array is not None:
        if array[at] == old:
            replace_weight(cut.model, node, index, np.concatenate([array[:at], [new], array[at + 1 :]]))
        return
    parts = value.producer() if value is not None else None
    if parts is None or parts.op_type != "Concat":
        return
    start = 0
    for position, part in enumerate(parts.inputs):
        length = part.shape[0] if part is not None and part.shape is not None else None
        if part is None or not isinstance(length, int):
            return
        if start <= at < start + length:
            numbers = constant(part)
            if numbers is None or numbers[at - start] != old:
                return
            changed = numbers.copy()
            changed[at - start] = new
            stem = f"{node.name}/shape"
            given: list[ir.Value | None] = list(parts.inputs)
            given[position] = add_initializer(cut.model, stem, changed)
            taken = names(cut.model)
            joined = insert_before(
                node, "Concat", given, {"axis": 0},
                name=fresh_name(cut.model, stem, taken), output=fresh_name(cut.model, f"{stem}_out", taken),
            )  # fmt: skip
            node.replace_input_with(index, joined.outputs[0])
            return
        start += length


def _resize(cut: Cut, node: ir.Node) -> None:
    found = cut.kept(node.outputs[0])
    if found is None or len(node.inputs) < 4 or node.inputs[3] is None:
        return
    axis, keep = found
    given = node.attributes.get_ints("axes")
    listed = list(range(len(cut.groups.sizes[node.outputs[0].name or ""]))) if given is None else list(given)
    if axis in listed:
        _set(cut, node, 3, listed.index(axis), keep.size, int(keep.sum()))


def _slice(cut: Cut, node: ir.Node) -> None:
    """Where what is taken of the channels is no longer a run with one step, it is gathered."""
    found, value = cut.kept(node.inputs[0]), node.inputs[0]
    if found is None or value is None:
        return
    axis, keep = found
    shape = [keep.size if i == axis else 1 for i in range(cut.groups.values[value.name or ""].ndim)]
    picked = (positions(node, shape) or {}).get(axis)
    if picked is None:
        return
    now = (np.cumsum(keep) - 1)[picked[keep[picked]]]
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    rank = len(shape)
    listed = list(range(rank)) if axes is None else [int(a) % rank for a in axes]
    others = [i for i in listed if i != axis]
    steps = np.unique(np.diff(now))
    if steps.size > 1 and not others:
        index = add_initializer(cut.model, f"{node.name}/indices", now.astype(np.int64))
        replace_node(node, "Gather", [value, index], {"axis": axis})
        return
    if steps.size > 1:  # the other axes stay with the slice, which takes all channels
        _range(cut, node, listed.index(axis), 0, int(keep.sum()), 1)
        index = add_initializer(cut.model, f"{node.name}/indices", now.astype(np.int64))
        insert_behind(cut.model, node, "Gather", index, {"axis": axis})
        return
    step = int(steps[0]) if steps.size else 1
    stop = int(now[-1]) + (1 if step > 0 else -1)
    _range(cut, node, listed.index(axis), int(now[0]), stop if stop >= 0 else -keep.size - 1, step)


def _range(cut: Cut, node: ir.Node, at: int, start: int, stop: int, step: int) -> None:
    numbers = {1: start, 2: stop, 4: step}
    for index, number in numbers.items():
        array = constant(node.inputs[index]) if index < len(node.inputs) else None
        if array is not None and array[at] != number:
            changed = array.copy()
            changed[at] = number
            replace_weight(cut.model, node, index, changed)


def _split(cut: Cut, node: ir.Node) -> None:
    found = cut.kept(node.inputs[0])
    if found is None:
        return
    axis, keep = found
    rank = len(cut.groups.sizes[node.outputs[0].name or ""])
    if node.attributes.get_int("axis", 0) % rank != axis:
        return
    sizes = [cut.groups.sizes[v.name or ""][axis] for v in node.outputs]
    parts = np.split(keep, np.cumsum(sizes)[:-1])
    lengths = add_initializer(cut.model, f"{node.name}/split", np.array([p.sum() for p in parts], np.int64))
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, lengths)


def _gather(cut: Cut, node: ir.Node) -> None:
    value, index = node.inputs[0], constant(node.inputs[1])
    if value is None or is_constant(value) or index is None:
        return
    rank = len(cut.groups.sizes.get(value.name or "", ()))
    axis = node.attributes.get_int("axis", 0) % max(rank, 1)
    found = cut.kept(value, axis)
    if found is None:
        return
    keep = found[1]
    chosen = index % keep.size
    now = (np.cumsum(keep) - 1)[chosen[keep[chosen]]]
    replace_weight(cut.model, node, 1, now.reshape(index.shape if index.ndim != 1 else -1))


def _pad(cut: Cut, node: ir.Node) -> None:
    """Channels that were padded are channels: those that are gone are not padded."""
    result, amounts = cut.kept(node.outputs[0]), padding_of(node)
    if result is None or amounts is None:
        return
    axis, keep = result
    begin, end = amounts.get(axis, (0, 0))
    if not begin and not end:
        return
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    pads = constant(node.inputs[1])
    assert pads is not None
    half = pads.size // 2
    at = axis if axes is None else [int(a) % keep.ndim for a in axes].index(axis)
    changed = pads.copy()
    changed[at], changed[half + at] = keep[:begin].sum(), keep[keep.size - end :].sum()
    replace_weight(cut.model, node, 1, changed)


def _conv(cut: Cut, node: ir.Node) -> None:
    """The weights are cut already: their sizes say how many groups are left."""
    group = node.attributes.get_int("group", 1)
    value = node.inputs[0] if node.op_type == "Conv" else node.outputs[0]
    found, weight = cut.kept(value), node.inputs[1]
    if group == 1 or found is None or weight is None or weight.shape is None:
        return
    each = weight.shape[1]
    assert isinstance(each, int)
    node.attributes["group"] = ir.AttrInt64("group", int(found[1].sum()) // each)


def _mean(cut: Cut, node: ir.Node) -> None:
    """Over fewer channels, as if the others were zero, unless it is of a normalisation."""
    found, axes = cut.kept(node.inputs[0]), reduced(node)
    if found is None or axes is None or found[0] not in axes or node.name in cut.groups.statistics:
        return
    keep = found[1]
    dtype = node.outputs[0].dtype or ir.DataType.FLOAT
    factor = np.array(keep.sum() / keep.size).astype(dtype.numpy())
    share = add_initializer(cut.model, f"{node.name}/share", factor)
    insert_behind(cut.model, node, "Mul", share)


EDITS: Mapping[str, Callable[[Cut, ir.Node], None]] = {
    **dict.fromkeys(("Reshape", "Expand"), _target),
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Pad": _pad,
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    "ReduceMean": _mean,
}
