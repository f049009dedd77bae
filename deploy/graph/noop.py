"""Operations that do nothing, or nothing together with their neighbour. All steps work in place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from deploy.graph import symbolic
from deploy.graph.edit import add_initializer, constant, remove, scalar, sole_consumer, substitute

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""The same elements in the same order under another shape."""
_END = 2**31 - 1
"""Exporters write "to the end" as this or as the largest 64-bit number."""


def drop_noops(model: ir.Model) -> int:
    """Let the readers of an operation that does nothing read its input, and take it out.

    One stays where it alone gives an output of the graph its name: directly behind an input, an initializer
    or another output.
    """
    dropped = 0
    for node in list(model.graph):
        rule = _NOOPS.get(node.op_type)
        if rule is None or node.domain != "" or not node.inputs:
            continue
        source = rule(node)
        if source is not None and substitute(node.outputs[0], source):
            remove([node])
            dropped += 1
    return dropped


def merge_transposes(model: ir.Model) -> int:
    """Transpose after Transpose > one Transpose of the first one's input."""
    merged = 0
    for node in _behind(model, ("Transpose",), ("Transpose",)):
        first = _producer(node)
        inner, outer = _permutation(first), _permutation(node)
        if inner is None or outer is None:
            continue
        node.attributes["perm"] = ir.AttrInt64s("perm", [inner[axis] for axis in outer])
        _bypass(node, first)
        merged += 1
    return merged


def merge_reshapes(model: ir.Model) -> int:
    """Reshape after Flatten, Squeeze, Unsqueeze or another Reshape > one Reshape of the first one's input."""
    merged = 0
    for node in _behind(model, ("Reshape",), _RESHAPES):
        target = constant(node.inputs[1])
        # A 0 copies a dimension of the shape in between, which goes.
        if target is None or (0 in target and not node.attributes.get_int("allowzero", 0)):
            continue
        _bypass(node, _producer(node))
        merged += 1
    return merged


def merge_slices(model: ir.Model) -> int:
    """Slice after Slice along other axes, all bounds constant > one Slice along all of them."""
    merged = 0
    for node in _behind(model, ("Slice",), ("Slice",)):
        first = _producer(node)
        inner, outer = _bounds(first), _bounds(node)
        if inner is None or outer is None or set(inner[2]) & set(outer[2]):
            continue
        stems = ("starts", "ends", "axes", "steps")
        for position, (stem, a, b) in enumerate(zip(stems, inner, outer, strict=True), start=1):
            value = add_initializer(model, f"{node.name}_{stem}", np.concatenate([a, b]))
            if position >= len(node.inputs):
                node.resize_inputs(position + 1)
            node.replace_input_with(position, value)
        _bypass(node, first)
        merged += 1
    return merged


def _behind(model: ir.Model, ops: tuple[str, ...], producers: tuple[str, ...]) -> list[ir.Node]:
    """Nodes of ``ops`` that are the only reader of a node of ``producers``."""
    found = []
    for node in model.graph:
        source = node.inputs[0] if node.op_type in ops and node.domain == "" else None
        first = source.producer() if source is not None and sole_consumer(source) is node else None
        if first is not None and first.op_type in producers and first.domain == "":
            found.append(node)
    return found


def _producer(node: ir.Node) -> ir.Node:
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    assert producer is not None
    return producer


def _bypass(node: ir.Node, first: ir.Node) -> None:
    node.replace_input_with(0, first.inputs[0])
    remove([first])


def _permutation(node: ir.Node) -> list[int] | None:
    given = node.attributes.get_ints("perm", None)
    if given is not None:
        return list(given)
    shape = node.outputs[0].shape
    return None if shape is None else list(reversed(range(shape.rank())))


def _bounds(node: ir.Node) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Starts, ends, axes (>= 0) and steps of a Slice, None unless all are constant."""
    shape = node.outputs[0].shape
    given = [constant(v) for v in node.inputs[1:]]
    if shape is None or any(v is not None and a is None for v, a in zip(node.inputs[1:], given, strict=True)):
        return None
    starts, ends = given[0], given[1]
    if starts is None or ends is None:
        return None
    axes = given[2] if len(given) > 2 and given[2] is not None else np.arange(starts.size)
    steps = given[3] if len(given) > 3 and given[3] is not None else np.ones(starts.size)
    a, b, c, d = (np.asarray(v, dtype=np.int64) for v in (starts, ends, axes, steps))
    return a, b, c % shape.rank(), d


# What follows are the rules of drop_noops: the value that a node's first output equals, or None.


def _always(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _same_size(node: ir.Node) -> ir.Value | None:
    """For what does nothing where it does not change the size."""
    source = node.inputs[0]
    return source if source is not None and _equal_sizes(source, node.outputs[0]) else None


def _equal_sizes(a: ir.Value, b: ir.Value) -> bool:
    left, right = symbolic.sizes(a.shape), symbolic.sizes(b.shape)
    return left is not None and left == right and None not in left


def _reshape(node: ir.Node) -> ir.Value | None:
    """The nearest value before a run of reshapes that has the size of their result."""
    source = node.inputs[0]
    while source is not None and not _equal_sizes(source, node.outputs[0]):
        producer = source.producer()
        if producer is None or producer.op_type not in _RESHAPES or producer.domain != "":
            return None
        source = producer.inputs[0]
    return source


def _dropout(node: ir.Node) -> ir.Value | None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    mask_is_read = any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    off = training is None or scalar(training) == 0
    return node.inputs[0] if off and not mask_is_read else None


def _cast(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    if source is None or source.dtype is None or node.outputs[0].dtype is None:
        return None
    return source if source.dtype == node.outputs[0].dtype else None


def _pad(node: ir.Node) -> ir.Value | None:
    pads = constant(node.inputs[1])
    return node.inputs[0] if pads is not None and not pads.any() else None


def _slice(node: ir.Node) -> ir.Value | None:
    bounds = _bounds(node)
    if bounds is None or not (bounds[3] > 0).all():
        return None
    starts, ends, _, steps = bounds
    if (starts == 0).all() and (ends >= _END).all() and (steps == 1).all():
        return node.inputs[0]
    return _same_size(node)


def _transpose(node: ir.Node) -> ir.Value | None:
    permutation = _permutation(node)
    return node.inputs[0] if permutation is not None and permutation == sorted(permutation) else None


def _single(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _split(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.outputs) == 1 else None


def _clip(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if all(v is None for v in node.inputs[1:]) else None


def _resize(node: ir.Node) -> ir.Value | None:
    """Scales of exactly 1; equal sizes are not enough, 1.01 is rounded to them."""
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    crops = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    return (
        node.inputs[0] if scales is not None and scales.size and (scales == 1).all() and not crops else None
    )


def _neutral(number: float, *, either: bool) -> Callable[[ir.Node], ir.Value | None]:
    """Arithmetic with a single neutral number. A whole tensor of them is a parameter and stays trainable."""

    def rule(node: ir.Node) -> ir.Value | None:
        left, right = node.inputs[0], node.inputs[1]
        for kept, other in ((left, right), (right, left))[: 2 if either else 1]:
            if kept is not None and scalar(other) == number and _equal_sizes(kept, node.outputs[0]):
                return kept if kept.dtype == node.outputs[0].dtype else None
        return None

    return rule


def _twice(node: ir.Node) -> ir.Value | None:
    """For what changes nothing the second time."""
    source = node.inputs[0]
    producer = source.producer() if source is not None else None
    again = producer is not None and producer.op_type == node.op_type and producer.domain == ""
    return source if again else None


_NOOPS: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    "Pad": _pad,
    "Slice": _slice,
    "Transpose": _transpose,
    "Resize": _resize,
    "Clip": _clip,
    "Split": _split,
    **dict.fromkeys(_RESHAPES, _reshape),
    **dict.fromkeys(("Expand", "Tile", "GlobalAveragePool", "GlobalMaxPool"), _same_size),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), _same_size),
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _single),
    **dict.fromkeys(("Relu", "Abs", "Floor", "Ceil", "Round", "Sign"), _twice),
    "Add": _neutral(0, either=True),
    "Sub": _neutral(0, either=False),
    "Mul": _neutral(1, either=True),
    "Div": _neutral(1, either=False),
    "Pow": _neutral(1, either=False),
}
