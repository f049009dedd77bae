"""Sizes that are not numbers yet: products like ``2*n``, and the integer tensors computed from shapes.

ONNX's own inference loses what Reshape, Expand and the like do to a free dimension. Here every small integer
tensor is followed element by element, so ``Concat(Slice(Shape(x)), [-1])`` is known to be ``[n, -1]``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant, constant_tensor

_PRODUCT = re.compile(r"(?:(\d+)\*)?([A-Za-z_][\w.]*(?:\*[A-Za-z_][\w.]*)*)")
_LARGEST = 64
"""Elements. What describes a shape is short; a longer tensor is data."""


@dataclass(frozen=True)
class Size:
    """``factor`` times the product of free dimensions, which are >= 0. A plain number has no ``symbols``."""

    factor: int
    symbols: tuple[str, ...] = ()

    @property
    def number(self) -> int | None:
        return None if self.symbols else self.factor

    def times(self, other: Size) -> Size:
        factor = self.factor * other.factor
        return Size(factor, tuple(sorted(self.symbols + other.symbols)) if factor else ())

    def over(self, other: Size) -> Size | None:
        """The quotient where it is exact for every value of the symbols, else None."""
        if other.factor == 0 or self.factor % other.factor:
            return None
        left = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        return Size(self.factor // other.factor, tuple(left))

    def __str__(self) -> str:
        factor = [] if self.factor == 1 and self.symbols else [str(self.factor)]
        return "*".join(factor + list(self.symbols))


Known = Size | None
Sizes = Sequence[Known]


def size(dimension: int | ir.SymbolicDim) -> Known:
    """A dimension of a shape, None if nothing is known of it."""
    return _read(dimension if isinstance(dimension, int) else dimension.value)


@lru_cache(4096)
def _read(text: int | str | None) -> Known:
    """The same of a number or a text."""
    if isinstance(text, int):
        return Size(text)
    if not text:
        return None
    match = _PRODUCT.fullmatch(text.replace(" ", ""))
    if match is None:  # an expression such as "n + 1" stands for itself
        return Size(1, (text,))
    return Size(int(match[1] or 1), tuple(sorted(match[2].split("*"))))


def sizes(shape: ir.Shape | None) -> tuple[Known, ...] | None:
    """The dimensions of a shape; None where not even their number is known."""
    return None if shape is None else tuple(size(d) for d in shape)


def shape_of(known: Sizes) -> ir.Shape:
    """The ONNX shape that says what is known."""
    return ir.Shape([None if s is None else s.factor if not s.symbols else str(s) for s in known])


def product(known: Iterable[Known]) -> Known:
    """The number of elements of a tensor of these sizes; None where one of them is unknown.

    >>> str(product([Size(2), Size(3, ("n",))]))
    '6*n'
    """
    total: Known = Size(1)
    for s in known:
        total = None if s is None or total is None else total.times(s)
    return total


def values(model: ir.Model) -> dict[ir.Value, np.ndarray]:
    """What is known of every small integer tensor: an object array of `Size`, None for an unknown element.

    Shapes must be inferred as far as ONNX can. Values of which nothing is known are left out.
    """
    found: dict[ir.Value, np.ndarray] = {}

    def known(value: ir.Value | None) -> np.ndarray | None:
        if value is None:
            return None
        if value not in found:
            tensor = constant_tensor(value)
            if tensor is None or tensor.size > _LARGEST or tensor.dtype not in _INTEGERS:
                return None
            array = tensor.numpy()
            found[value] = _objects([Size(int(i)) for i in array.ravel()], array.shape)
        return found[value]

    for node in model.graph:
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain != "" or len(node.outputs) != 1:
            continue
        result = rule(node, [known(v) for v in node.inputs])
        if result is not None and result.size <= _LARGEST and any(s is not None for s in result.flat):
            found[node.outputs[0]] = result
    return found


KEEPING = ("GroupNormalization", "MeanVarianceNormalization")
"""What ONNX's inference gives no type and shape although they are those of the input."""


_BY_SIZES = ("Reshape", "Expand", "ConstantOfShape", "Tile", "Resize")
"""Their last operand says what the result's sizes are, or become."""


def output_sizes(node: ir.Node, found: dict[ir.Value, np.ndarray]) -> tuple[Known, ...] | None:
    """The shape a Reshape, Expand, ConstantOfShape, Tile, Resize or normalisation makes; None if unknown.

    ``found`` is what `values` tells.
    """
    if node.domain == "" and node.op_type in KEEPING and node.inputs[0] is not None:
        known = sizes(node.inputs[0].shape)
        return None if known is None else tuple(known)
    if node.domain != "" or node.op_type not in _BY_SIZES:
        return None
    if node.op_type == "Resize" and (len(node.inputs) < 4 or not _stretches(node)):
        return None
    argument, source = node.inputs[-1], node.inputs[0]
    if argument is None or source is None:
        return None
    array = found.get(argument)
    if array is None and (tensor := constant(argument)) is not None and tensor.size <= _LARGEST:
        array = _objects([Size(int(i)) for i in tensor.ravel()], tensor.shape)
    if array is None or array.ndim != 1:
        return None
    wanted: list[Known] = list(array)
    if node.op_type in ("ConstantOfShape", "Resize"):
        return tuple(wanted)
    dims = sizes(source.shape)
    if dims is None:
        return None
    if node.op_type == "Tile":
        return tuple(_both(d, w, Size.times) for d, w in zip(dims, wanted, strict=True))
    if node.op_type == "Expand":
        rank = max(len(dims), len(wanted))
        left, right = ([*[Size(1)] * (rank - len(s)), *s] for s in (dims, wanted))
        return tuple(_broadcast(a, b) for a, b in zip(left, right, strict=True))
    return _reshape_sizes(dims, wanted, copies_zero=node.attributes.get_int("allowzero", 0) == 0)


def _stretches(node: ir.Node) -> bool:
    """Whether the sizes given to a Resize are those of its result, all of them."""
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    return policy == "stretch" and "axes" not in node.attributes


def _both(a: Known, b: Known, combine: Callable[[Size, Size], Known]) -> Known:
    return None if a is None or b is None else combine(a, b)


def _broadcast(a: Known, b: Known) -> Known:
    if a == Size(1):
        return b
    if b == Size(1) or a == b:
        return a
    # One that is a number other than 1 wins, whatever the other is.
    return next((s for s in (a, b) if s is not None and s.number is not None), None)


def _reshape_sizes(dims: Sizes, wanted: Sizes, *, copies_zero: bool) -> tuple[Known, ...]:
    result: list[Known] = []
    for axis, w in enumerate(wanted):
        copied = copies_zero and w == Size(0)
        result.append((dims[axis] if axis < len(dims) else None) if copied else w)
    # An unknown element may be -1, 0 or a size: in each case the number of elements decides.
    open_axes = [axis for axis, s in enumerate(result) if s is None or s == Size(-1)]
    if len(open_axes) == 1:
        whole = product(dims)
        rest = product(s for axis, s in enumerate(result) if axis != open_axes[0])
        result[open_axes[0]] = _both(whole, rest, Size.over)
    else:
        result = [None if axis in open_axes else s for axis, s in enumerate(result)]
    return tuple(result)


_INTEGERS = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL}
_Inputs = list[np.ndarray | None]
_Rule = Callable[[ir.Node, _Inputs], np.ndarray | None]


def _objects(items: Sequence[Known], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


def numbers(array: np.ndarray | None) -> np.ndarray | None:
    """The int64 array behind known sizes, None unless every element is a number."""
    if array is None or any(s is None or s.symbols for s in array.flat):
        return None
    return np.array([s.factor for s in array.flat], dtype=np.int64).reshape(array.shape)


def _axes(node: ir.Node, position: int) -> list[int] | None:
    """The integers of an optional input; empty if it is left out, None if they are not constant."""
    if len(node.inputs) <= position or node.inputs[position] is None:
        return []
    array = constant(node.inputs[position])
    return None if array is None else [int(i) for i in array.ravel()]


def _shape(node: ir.Node, _: _Inputs) -> np.ndarray | None:
    source = node.inputs[0]
    dims = sizes(source.shape) if source is not None else None
    if dims is None:
        return None
    cut = dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
    return _objects(cut, (len(cut),))


def _size(node: ir.Node, _: _Inputs) -> np.ndarray | None:
    source = node.inputs[0]
    dims = sizes(source.shape) if source is not None else None
    return None if dims is None else _objects([product(dims)], ())


def _gather(node: ir.Node, inputs: _Inputs) -> np.ndarray | None:
    data, where = inputs[0], numbers(inputs[1])
    if data is None or where is None or node.attributes.get_int("axis", 0) not in (0, -1) or data.ndim != 1:
        return None
    if where.size and not (-data.size <= where.min() and where.max() < data.size):
        return None
    return np.asarray(data[where], dtype=object)


def _slice(node: ir.Node, inputs: _Inputs) -> np.ndarray | None:
    data = inputs[0]
    starts, ends = numbers(inputs[1]), numbers(inputs[2])
    axes, steps = _axes(node, 3), _axes(node, 4)
    if data is None or starts is None or ends is None or axes is None or steps is None:
        return None
    if data.ndim != 1 or starts.size != 1 or axes not in ([], [0], [-1]):
        return None
    start, end, step = int(starts[0]), int(ends[0]), steps[0] if steps else 1
    if step < 0:
        # Python cannot say "down to and including element 0" with a number.
        return data[start : (None if end < -data.size else end) : step]
    return data[start:end:step]


def _concat(node: ir.Node, inputs: _Inputs) -> np.ndarray | None:
    parts = []
    for value, known in zip(node.inputs, inputs, strict=True):
        if known is None:  # an unknown part still has a length
            dims = value.shape if value is not None else None
            if dims is None or dims.rank() != 1 or not isinstance(dims[0], int) or dims[0] > _LARGEST:
                return None
            known = _objects([None] * dims[0], (dims[0],))
        parts.append(known)
    return np.concatenate(parts) if all(p.ndim == 1 for p in parts) else None


def _reshaped(node: ir.Node, inputs: _Inputs) -> np.ndarray | None:
    """Squeeze, Unsqueeze and Reshape of short tensors, whose own shape is known."""
    data = inputs[0]
    shape = node.outputs[0].shape
    if data is None or shape is None or not shape.is_static() or math.prod(shape.numpy()) != data.size:
        return None
    return data.reshape(shape.numpy())


def _cast(node: ir.Node, inputs: _Inputs) -> np.ndarray | None:
    data, to = inputs[0], node.attributes.get_int("to", 0)
    if data is None or to == ir.DataType.INT64:
        return data
    fits = all(s is None or abs(s.factor) < 2**31 for s in data.flat)
    return data if to == ir.DataType.INT32 and fits else None


def _same(_: ir.Node, inputs: _Inputs) -> np.ndarray | None:
    return inputs[0]


def _elementwise(combine: Callable[[Size, Size], Known]) -> _Rule:
    def rule(_: ir.Node, inputs: _Inputs) -> np.ndarray | None:
        left, right = inputs[0], inputs[1]
        if left is None or right is None:
            return None
        left, right = np.broadcast_arrays(left, right)
        pairs = zip(left.flat, right.flat, strict=True)
        return _objects([None if a is None or b is None else combine(a, b) for a, b in pairs], left.shape)

    return rule


def _plus(sign: int) -> Callable[[Size, Size], Known]:
    def combine(a: Size, b: Size) -> Known:
        if a.symbols == b.symbols:
            total = a.factor + sign * b.factor
            return Size(total, a.symbols if total else ())
        return a if b == Size(0) else b if a == Size(0) and sign > 0 else None

    return combine


def _divide(a: Size, b: Size) -> Known:
    if a.symbols or b.symbols:
        return a.over(b)
    # ONNX divides integers towards zero; shapes are not negative, and -1 is not divided.
    return Size(a.factor // b.factor) if b.factor > 0 and a.factor >= 0 else None


def _equal(a: Size, b: Size) -> Known:
    if a == b:
        return Size(1)
    # A free dimension is no negative number, but it may be any other one.
    if (not a.symbols and not b.symbols) or (a.symbols and b.factor < 0) or (b.symbols and a.factor < 0):
        return Size(0)
    return None


def _where(_: ir.Node, inputs: _Inputs) -> np.ndarray | None:
    condition, yes, no = inputs
    if condition is None or yes is None or no is None:
        return None
    condition, yes, no = np.broadcast_arrays(condition, yes, no)
    rows = zip(condition.flat, yes.flat, no.flat, strict=True)
    return _objects([None if c is None else y if c.factor else n for c, y, n in rows], condition.shape)


def _fill(node: ir.Node, inputs: _Inputs) -> np.ndarray | None:
    shape = numbers(inputs[0])
    fill = node.attributes.get_tensor("value", None)
    if shape is None or fill is None or fill.dtype not in _INTEGERS or math.prod(shape) > _LARGEST:
        return None
    return _objects([Size(int(fill.numpy().ravel()[0]))] * math.prod(shape), tuple(shape))


def _reduce_product(node: ir.Node, inputs: _Inputs) -> np.ndarray | None:
    data, axes = inputs[0], _axes(node, 1)
    if data is None or data.ndim != 1 or axes not in ([], [0], [-1]):
        return None
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
        return data
    return _objects([product(data.flat)], (1,) if node.attributes.get_int("keepdims", 1) else ())


_RULES: dict[str, _Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Squeeze": _reshaped,
    "Unsqueeze": _reshaped,
    "Reshape": _reshaped,
    "Cast": _cast,
    "Identity": _same,
    "Add": _elementwise(_plus(1)),
    "Sub": _elementwise(_plus(-1)),
    "Mul": _elementwise(Size.times),
    "Div": _elementwise(_divide),
    "Equal": _elementwise(_equal),
    "Where": _where,
    "ConstantOfShape": _fill,
    "ReduceProd": _reduce_product,
}
