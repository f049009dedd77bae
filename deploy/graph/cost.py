"""What a graph costs before anybody measures it: multiply-accumulates, parameters, bytes, peak memory.

Counts follow the operators' definitions and are exact. One MAC is one multiplication with its addition;
products with padded zeros count, as they do in published figures. Biases, pooling, normalisation, activations
and everything else elementwise count none. Sizes come from the inferred shapes: ``batch`` stands for the free
batch dimension, and where any other dimension that matters is free or unknown the figure is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from deploy.graph.blocks import COMPUTE, bodies, reads
from deploy.graph.edit import constant_tensor, is_constant
from deploy.graph.shapes import static_shape

Shape = tuple[int, ...]
_Shapes = Callable[[ir.Value | None], Shape]
"""The shape of a value; raises where it is unknown."""


@dataclass(frozen=True)
class NodeCost:
    """``parameters`` and ``weight_bytes`` of a constant that several nodes read belong to the first of them.

    ``weight_bytes`` counts all constants, statistics and scales too; ``activation_bytes`` what the node reads
    and writes besides, each tensor once.
    """

    node: str
    op: str
    macs: int | None
    parameters: int
    weight_bytes: int
    activation_bytes: int | None


def node_costs(model: ir.Model, batch: int = 1) -> list[NodeCost]:
    """The cost of every node of the main graph, in graph order; a node's bodies count as part of it."""
    costs = []
    counted: set[ir.Value] = set()
    for node in model.graph:
        parameters = weight_bytes = 0
        for part in _with_bodies(node):
            for index, value in enumerate(part.inputs):
                tensor = constant_tensor(value)
                if value is None or tensor is None or value in counted:
                    continue
                counted.add(value)
                weight_bytes += tensor.nbytes
                parameters += tensor.size if is_parameter(part, index, tensor) else 0
        moved = [_bytes(v, batch) for v in dict.fromkeys((*reads(node), *node.outputs)) if not is_constant(v)]
        costs.append(
            NodeCost(
                node=node.name or "",
                op=node.op_type,
                macs=macs_of(node, batch),
                parameters=parameters,
                weight_bytes=weight_bytes,
                activation_bytes=_total(moved),
            )
        )
    return costs


def macs(model: ir.Model, batch: int = 1) -> int | None:
    """MACs of one inference of ``batch`` samples, None where a node's are unknown: see `uncounted`.

    >>> model = ir.from_onnx_text(
    ...     '''<ir_version: 10, opset_import: ["" : 21]> g (float[1, 2] x) => (float[1, 3] y)
    ...     <float[2, 3] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }'''
    ... )
    >>> macs(model)
    6
    """
    return _total([macs_of(node, batch) for node in model.graph])


def uncounted(model: ir.Model, batch: int = 1) -> tuple[str, ...]:
    """The nodes whose MACs cannot be said, by name: free sizes, custom operations, bodies that compute."""
    return tuple(node.name or "" for node in model.graph if macs_of(node, batch) is None)


def parameters(model: ir.Model) -> int:
    """Trained numbers: float constants and integer weights, each once.

    Not counted: the mean and variance of batch norms (statistics), scales and zero points, shapes and
    indices, bounds of Clip, and single numbers in elementwise arithmetic (the 3 of a hard-swish).
    """
    return sum(cost.parameters for cost in node_costs(model))


def peak_activation_bytes(model: ir.Model, batch: int = 1) -> int | None:
    """The most bytes that inputs, outputs and inner values take at once, nodes run in graph order.

    A value lives from the node that makes it to the last that reads it, the graph's inputs from the start,
    its outputs to the end. Nothing is computed in place and workspace is not counted, so a runtime may need
    less or more. None where a size is unknown.
    """
    nodes = tuple(model.graph)
    last: dict[ir.Value, int] = {}
    for i, node in enumerate(nodes):
        last.update((value, i) for value in reads(node))
    last.update((value, len(nodes)) for value in model.graph.outputs)
    dying: list[list[ir.Value]] = [[] for _ in range(len(nodes) + 1)]
    live = 0
    for value in model.graph.inputs:
        size = 0 if value.is_initializer() else _bytes(value, batch)
        if size is None:
            return None
        live += size
        dying[last.get(value, 0)].append(value)
    peak = live
    for i, node in enumerate(nodes):
        for value in node.outputs:
            if is_constant(value):
                continue
            size = _bytes(value, batch)
            if size is None:
                return None
            live += size
            dying[last.get(value, i)].append(value)
        peak = max(peak, live)
        live -= sum(_bytes(value, batch) or 0 for value in dying[i] if not value.is_initializer())
    return peak


# MACs by operator. A formula may ask for any shape: an unknown one ends it, and the count is unknown.


def _conv(node: ir.Node, shape: _Shapes) -> int:
    """Every output element is a dot product over its group's channels and the kernel."""
    weight = shape(node.inputs[3 if node.op_type == "QLinearConv" else 1])
    return math.prod(shape(node.outputs[0])) * math.prod(weight[1:])


def _conv_transpose(node: ir.Node, shape: _Shapes) -> int:
    """Every input element is spread over its group's output channels and the kernel, cropped or not."""
    return math.prod(shape(node.inputs[0])) * math.prod(shape(node.inputs[1])[1:])


def _matmul(node: ir.Node, shape: _Shapes) -> int:
    """numpy.matmul: leading axes broadcast; a vector is a row on the left, a column on the right."""
    left = shape(node.inputs[0])
    right = shape(node.inputs[3 if node.op_type == "QLinearMatMul" else 1])
    rows = left[-2] if len(left) > 1 else 1
    columns = right[-1] if len(right) > 1 else 1
    return math.prod(_broadcast(left[:-2], right[:-2])) * rows * left[-1] * columns


def _gemm(node: ir.Node, shape: _Shapes) -> int:
    rows, inner = shape(node.inputs[0])
    if node.attributes.get_int("transA", 0):
        rows, inner = inner, rows
    right = shape(node.inputs[1])
    return rows * inner * right[0 if node.attributes.get_int("transB", 0) else 1]


def _recurrent(node: ir.Node, shape: _Shapes) -> int:
    """W [directions, gates * hidden, input] and R [.., gates * hidden, hidden], once a step and sample.

    The products of gates and states, peepholes included, are elementwise.
    """
    first, second, _ = shape(
        node.inputs[0]
    )  # (sequence, batch) or, by the attribute layout, the other way round
    return first * second * (math.prod(shape(node.inputs[1])) + math.prod(shape(node.inputs[2])))


def _einsum(node: ir.Node, shape: _Shapes) -> int:
    """The product of all indices' extents; with one operand there is nothing to multiply."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    extents: dict[str, int] = {}
    for term, value in zip(equation.split("->")[0].split(","), node.inputs, strict=True):
        sizes = shape(value)
        letters = list(term.replace("...", "."))
        if "." in letters:
            at, hidden = letters.index("."), len(sizes) - len(letters) + 1
            # Ellipses broadcast, so their axes are named from the right.
            letters[at : at + 1] = [f".{i}" for i in range(hidden, 0, -1)]
        for letter, extent in zip(letters, sizes, strict=True):
            extents[letter] = max(extents.get(letter, 1), extent) if extent else 0
    return math.prod(extents.values()) if len(node.inputs) > 1 else 0


def _attention(node: ir.Node, shape: _Shapes) -> int:
    """Q K^T and its product with V, over the keys of the past too. A mask saves nothing here.

    Q, K, V are [batch, heads, length, size] or [batch, length, heads * size].
    """
    query, key, value = (shape(v) for v in node.inputs[:3])
    if len(query) == 3:
        heads = node.attributes["q_num_heads"].as_int()
        per_head = query[2] // heads, value[2] // node.attributes["kv_num_heads"].as_int()
        length, keys = query[1], key[1]
    else:
        heads, length, keys = query[1], query[2], key[2]
        per_head = query[3], value[3]
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        keys += shape(node.inputs[4])[2]
    return query[0] * heads * length * keys * sum(per_head)


_FORMULAS: dict[str, Callable[[ir.Node, _Shapes], int]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "DeformConv": _conv,
    "QLinearConv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Einsum": _einsum,
    "Attention": _attention,
}

_QUANTIZED_WEIGHTS = {
    ("ConvInteger", 1),
    ("MatMulInteger", 1),
    ("QLinearConv", 3),
    ("QLinearConv", 8),
    ("QLinearMatMul", 3),
    ("DequantizeLinear", 0),
}
_SETTINGS = {
    ("BatchNormalization", 3),
    ("BatchNormalization", 4),
    ("Clip", 1),
    ("Clip", 2),
    ("Dropout", 1),
    ("Pad", 2),
    ("Resize", 1),
    ("Resize", 2),
    ("QuantizeLinear", 1),
    ("DequantizeLinear", 1),
    *(("QLinearConv", i) for i in range(9)),
    *(("QLinearMatMul", i) for i in range(8)),
}
"""Operator inputs that are float and yet not trained."""
_SINGLE = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Min",
    "Max",
    "Sum",
    "Mean",
    "Mod",
    "Where",
    "Greater",
    "Less",
    "Equal",
}
"""Elementwise operators: a single number there is arithmetic, not a parameter."""


def is_parameter(node: ir.Node, index: int, tensor: ir.TensorProtocol) -> bool:
    """Whether `parameters` counts a constant that ``node`` reads as its input ``index``."""
    if not tensor.dtype.is_floating_point():
        return (node.op_type, index) in _QUANTIZED_WEIGHTS
    return (node.op_type, index) not in _SETTINGS and (tensor.size != 1 or node.op_type not in _SINGLE)


class _UnknownShapeError(Exception):
    """A shape that a count needs is free or unknown."""


def macs_of(node: ir.Node, batch: int = 1) -> int | None:
    """MACs of one node, None where a size that they depend on is free, or the operation is not ONNX's own."""

    def shape(value: ir.Value | None) -> Shape:
        known = None if value is None else static_shape(value, batch)
        if known is None:
            raise _UnknownShapeError
        return known

    if node.domain not in ("", "ai.onnx"):
        return None
    if bodies(node):  # how often a body runs is not known
        return None if any(n.op_type in COMPUTE for n in _with_bodies(node)) else 0
    if node.op_type not in _FORMULAS:
        return 0
    try:
        return _FORMULAS[node.op_type](node, shape)
    except _UnknownShapeError:
        return None


def _with_bodies(node: ir.Node) -> Sequence[ir.Node]:
    return [node, *(n for body in bodies(node) for n in ir.traversal.RecursiveGraphIterator(body))]


def _bytes(value: ir.Value, batch: int) -> int | None:
    if not value.name:  # an optional output that is not wanted
        return 0
    shape = static_shape(value, batch)
    if shape is None or value.dtype is None or value.dtype.is_string():
        return None
    return math.ceil(math.prod(shape) * value.dtype.itemsize)


def _broadcast(left: Shape, right: Shape) -> Shape:
    rank = max(len(left), len(right))
    pairs = zip((1,) * (rank - len(left)) + left, (1,) * (rank - len(right)) + right, strict=True)
    return tuple(b if a == 1 else a for a, b in pairs)


def _total(counts: Sequence[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total
