"""Along which axes of a graph channels may change places without changing what the network computes.

Every axis of every value gets a number. Axes with one number must keep one order: what is added, summed over
each other or normalised together. Number 0 stands for the order that must stay as it is: inputs and outputs
of the graph, what is cut, padded or joined along the axis, and all that an operation reads that is not known
here. Constants have numbers like everything else, so weights, biases and statistics turn together.

    Conv(x, W)    W's axis 1 has the number of x's channels, its axis 0 that of the result's
    Add(x, y)     axis by axis one number; a size of 1 has none of its own
    Softmax(x)    every axis keeps its number: the same values in another order

A residual stream thus has one number for all layers that write to it and all that read from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from deploy.graph.blocks import ACTIVATION, bodies, reads
from deploy.graph.edit import constant, is_constant

FIXED = 0

Numbers = tuple[int, ...]
Found = list[Numbers] | None
"""The numbers of a node's outputs; None where the operation, or this form of it, is not followed."""


@dataclass(frozen=True)
class Axes:
    """The numbers of the axes of all values, by name. ``sizes`` says how long the axes of a number are; those
    that are not free to turn are not in it."""

    values: Mapping[str, Numbers]
    sizes: Mapping[int, int]


def follow(model: ir.Model) -> Axes:
    """Number the axes of ``model``, whose shapes are inferred."""
    walk = _Walk()
    for value in model.graph.inputs:
        walk.known[value] = (FIXED,) * _rank(value)
    for node in model.graph:
        walk.visit(node)
    for value in model.graph.outputs:
        walk.pin(walk.numbers(value))
    return walk.result()


@dataclass
class _Walk:
    """Numbers in the making, joined by union-find; ``lengths`` are the sizes of axes by number."""

    parent: list[int] = field(default_factory=lambda: [FIXED])
    lengths: list[int] = field(default_factory=lambda: [0])
    known: dict[ir.Value, Numbers] = field(default_factory=dict)

    def find(self, one: int) -> int:
        while self.parent[one] != one:
            self.parent[one] = self.parent[self.parent[one]]
            one = self.parent[one]
        return one

    def join(self, one: int, other: int) -> int:
        """One number for both. Axes of different sizes are never alike: they stay as they are."""
        one, other = self.find(one), self.find(other)
        if FIXED not in (one, other) and self.lengths[one] != self.lengths[other]:
            self.parent[one] = self.parent[other] = FIXED
            return FIXED
        self.parent[max(one, other)] = min(one, other)
        return min(one, other)

    def pin(self, numbers: Sequence[int]) -> None:
        for one in numbers:
            self.join(one, FIXED)

    def fresh(self, size: int) -> int:
        self.parent.append(len(self.parent))
        self.lengths.append(size)
        return len(self.parent) - 1

    def numbers(self, value: ir.Value | None) -> Numbers:
        """Those of a value; a constant has some of its own from when it is first read."""
        if value is None:
            return ()
        if value not in self.known:
            sizes = _sizes(value)
            if is_constant(value) and value.is_initializer() and value.dtype == ir.DataType.FLOAT:
                self.known[value] = tuple(self.fresh(n) if isinstance(n, int) else FIXED for n in sizes)
            else:
                self.known[value] = (FIXED,) * len(sizes)
        return self.known[value]

    def visit(self, node: ir.Node) -> None:
        known = node.domain in ("", "ai.onnx") and not bodies(node) and node.op_type in _RULES
        whole = all(v is None or v.shape is not None for v in (*node.inputs, *node.outputs))
        found = _RULES[node.op_type](self, node) if known and whole else None
        if found is None:
            for value in reads(node):
                self.pin(self.numbers(value))
        for index, value in enumerate(node.outputs):
            rank = _rank(value)
            numbers = found[index] if found is not None and index < len(found) else (FIXED,) * rank
            assert len(numbers) == rank or value.shape is None, (node.name, numbers)
            self.known[value] = numbers

    def broadcast(self, values: Sequence[ir.Value | None]) -> Numbers:
        """The numbers of an elementwise result: axes are aligned from the last, sizes of 1 have no say."""
        given = [(self.numbers(v), _sizes(v)) for v in values if v is not None]
        rank = max((len(numbers) for numbers, _ in given), default=0)
        found = []
        for back in range(rank, 0, -1):
            here = [(n[-back], s[-back]) for n, s in given if len(n) >= back and s[-back] != 1]
            one = here[0][0] if here else FIXED
            for number, _ in here[1:]:
                one = self.join(one, number)
            found.append(one)
        return tuple(found)

    def result(self) -> Axes:
        values = {v.name: tuple(map(self.find, n)) for v, n in self.known.items() if v.name}
        roots = {n for numbers in values.values() for n in numbers} - {FIXED}
        return Axes(values, {n: self.lengths[n] for n in sorted(roots)})


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else value.shape.rank()


def _sizes(value: ir.Value | None) -> tuple[int | str | None, ...]:
    """Sizes, names of those that are free."""
    if value is None or value.shape is None:
        return ()
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def _elementwise(walk: _Walk, node: ir.Node) -> Found:
    return [walk.broadcast(node.inputs)]


def _pointwise(walk: _Walk, node: ir.Node) -> Found:
    """One value, whatever else is read (bounds, types) being single numbers."""
    if any(v is not None and any(n != 1 for n in _sizes(v)) for v in node.inputs[1:]):
        return None
    return [walk.numbers(node.inputs[0])] * len(node.outputs)


def _softmax(walk: _Walk, node: ir.Node) -> Found:
    return [walk.numbers(node.inputs[0])]


def _conv(walk: _Walk, node: ir.Node) -> Found:
    x, w = walk.numbers(node.inputs[0]), walk.numbers(node.inputs[1])
    sizes, group = _sizes(node.inputs[1]), node.attributes.get_int("group", 1)
    turned = node.op_type == "ConvTranspose"
    walk.pin(x[2:])
    walk.pin(w[2:])
    if group == 1:
        walk.join(x[1], w[0 if turned else 1])
        made = w[1 if turned else 0]
    elif sizes[1] == 1 and sizes[0] == group:  # depthwise, one output for each input
        walk.pin(w[1:2])
        made = walk.join(x[1], w[0])
    else:
        walk.pin((x[1], w[0], w[1]))
        made = FIXED
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        made = walk.join(made, walk.numbers(node.inputs[2])[0])
    return [(x[0], made, *(FIXED,) * (len(x) - 2))]


def _gemm(walk: _Walk, node: ir.Node) -> Found:
    a, b = walk.numbers(node.inputs[0]), walk.numbers(node.inputs[1])
    a = a[::-1] if node.attributes.get_int("transA", 0) else a
    b = b[::-1] if node.attributes.get_int("transB", 0) else b
    walk.join(a[1], b[0])
    made = [a[0], b[1]]
    third = node.inputs[2] if len(node.inputs) > 2 else None
    for back, (number, size) in enumerate(
        zip(reversed(walk.numbers(third)), reversed(_sizes(third)), strict=True)
    ):
        if size != 1:
            made[1 - back] = walk.join(made[1 - back], number)
    return [(made[0], made[1])]


def _matmul(walk: _Walk, node: ir.Node) -> Found:
    a, b = walk.numbers(node.inputs[0]), walk.numbers(node.inputs[1])
    if len(a) < 2 or len(b) < 2:
        return None
    walk.join(a[-1], b[-2])
    rank = max(len(a), len(b))
    shapes = [_sizes(v) for v in node.inputs]
    batch = []
    for back in range(rank, 2, -1):
        here = [n[-back] for n, s in zip((a, b), shapes, strict=True) if len(n) >= back and s[-back] != 1]
        one = here[0] if here else FIXED
        batch.append(walk.join(one, here[1]) if len(here) > 1 else one)
    return [(*batch, a[-2], b[-1])]


def _batch_norm(walk: _Walk, node: ir.Node) -> Found:
    x = walk.numbers(node.inputs[0])
    if len(node.outputs) > 1 or len(x) < 2:
        return None
    one = x[1]
    for value in node.inputs[1:]:
        one = walk.join(one, walk.numbers(value)[0])
    return [x]


def _layer_norm(walk: _Walk, node: ir.Node) -> Found:
    """Statistics over whole axes do not depend on the order; scale and bias turn with it."""
    if len([v for v in node.outputs if v.name and v.uses()]) > 1:
        return None
    x = walk.numbers(node.inputs[0])
    for value in node.inputs[1:]:
        for back, (number, size) in enumerate(
            zip(reversed(walk.numbers(value)), reversed(_sizes(value)), strict=True), start=1
        ):
            if size != 1:
                walk.join(x[-back], number)
    return [x]


def _pool(walk: _Walk, node: ir.Node) -> Found:
    if len([v for v in node.outputs if v.name and v.uses()]) > 1:
        return None
    x = walk.numbers(node.inputs[0])
    if not node.op_type.startswith("Global"):
        walk.pin(x[2:])
    return [(*x[:2], *(FIXED,) * (len(x) - 2))]


def _reduce(walk: _Walk, node: ir.Node) -> Found:
    x = walk.numbers(node.inputs[0])
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and axes is None:
        return None
    if axes is None and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return None
    gone = {int(a) % len(x) for a in axes.reshape(-1)} if axes is not None else set(range(len(x)))
    if node.attributes.get_int("keepdims", 1):
        return [tuple(FIXED if i in gone else n for i, n in enumerate(x))]
    return [tuple(n for i, n in enumerate(x) if i not in gone)]


def _transpose(walk: _Walk, node: ir.Node) -> Found:
    x = walk.numbers(node.inputs[0])
    return [tuple(x[i] for i in node.attributes.get_ints("perm", list(reversed(range(len(x))))))]


def _reshaped(walk: _Walk, node: ir.Node) -> Found:
    """Axes that a Reshape, Flatten, Squeeze or Unsqueeze leaves whole: the same from the front, the same from
    the back, and in between the same but for sizes of 1."""
    x, old, new = walk.numbers(node.inputs[0]), _sizes(node.inputs[0]), _sizes(node.outputs[0])
    found = [FIXED] * len(new)
    front = 0
    while front < min(len(old), len(new)) and old[front] == new[front] is not None:
        found[front] = x[front]
        front += 1
    left = [i for i in range(front, len(old)) if old[i] != 1]
    right = [i for i in range(front, len(new)) if new[i] != 1]
    while left and right and old[left[-1]] == new[right[-1]] is not None:
        found[right.pop()] = x[left.pop()]
    walk.pin([x[i] for i in left])
    return [tuple(found)]


def _concat(walk: _Walk, node: ir.Node) -> Found:
    every = [walk.numbers(v) for v in node.inputs]
    axis = node.attributes.get_int("axis") % len(every[0])
    found = []
    for i, numbers in enumerate(zip(*every, strict=True)):
        one = numbers[0]
        for other in numbers[1:]:
            one = walk.join(one, other)
        if i == axis:
            walk.pin([one])
        found.append(FIXED if i == axis else one)
    return [tuple(found)]


def _cut(walk: _Walk, node: ir.Node) -> Found:
    """Slice, Split, Pad and Resize: axes whose sizes stay are taken as they are, others must not turn."""
    x, old = walk.numbers(node.inputs[0]), _sizes(node.inputs[0])
    results = []
    named = set()
    if node.op_type == "Split":
        named = {node.attributes.get_int("axis", 0) % len(x)}
    elif node.op_type == "Slice":
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        if axes is None:
            return None
        named = {int(a) % len(x) for a in axes.reshape(-1)}
    elif node.op_type == "Pad":  # what is cut in front may come back at the end
        pads = constant(node.inputs[1])
        if pads is None or len(node.inputs) > 3:
            return None
        named = {i for i in range(len(x)) if pads[i] or pads[i + len(x)]}
    elif node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return None
    for value in node.outputs:
        new = _sizes(value)
        keep = [i not in named and a == b is not None for i, (a, b) in enumerate(zip(old, new, strict=True))]
        walk.pin([n for n, k in zip(x, keep, strict=True) if not k])
        results.append(tuple(n if k else FIXED for n, k in zip(x, keep, strict=True)))
    return results


def _gather(walk: _Walk, node: ir.Node) -> Found:
    """Picking along one axis leaves the others alone: a class token, an embedding's width."""
    x, indices = walk.numbers(node.inputs[0]), walk.numbers(node.inputs[1])
    axis = node.attributes.get_int("axis", 0) % len(x)
    walk.pin([x[axis]])
    walk.pin(indices)
    return [(*x[:axis], *(FIXED,) * len(indices), *x[axis + 1 :])]


def _expand(walk: _Walk, node: ir.Node) -> Found:
    x, old, new = walk.numbers(node.inputs[0]), _sizes(node.inputs[0]), _sizes(node.outputs[0])
    found = [FIXED] * len(new)
    for back in range(1, len(old) + 1):
        if old[-back] == new[-back] is not None:
            found[-back] = x[-back]
        else:
            walk.pin([x[-back]])
    return [tuple(found)]


def _shape(_walk: _Walk, _node: ir.Node) -> Found:
    """Sizes do not depend on any order."""
    return [(FIXED,)]


_RULES: dict[str, Callable[[_Walk, ir.Node], Found]] = {
    **dict.fromkeys(sorted(ACTIVATION - {"PRelu"}), _pointwise),
    **dict.fromkeys(
        ("Identity", "Dropout", "Cast", "Sqrt", "Exp", "Log", "Erf", "Neg", "Abs", "Reciprocal", "Sign"),
        _pointwise,
    ),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "PRelu"), _elementwise),
    **dict.fromkeys(("Where", "Equal", "Less", "Greater"), _elementwise),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _batch_norm,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), _reduce),
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshaped),
    "Concat": _concat,
    **dict.fromkeys(("Slice", "Split", "Pad", "Resize"), _cut),
    "Gather": _gather,
    "Expand": _expand,
    "Shape": _shape,
}  # fmt: skip
