"""Products of matrices: FULLY_CONNECTED with constant weights, BATCH_MATMUL of two activations.

Of two activations XNNPACK computes those in INT8 whose right operand has the zero point 0; any other would be
left to a kernel of LiteRT that takes twenty times as long, and is computed in float.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES
from backends.tflite.layout import Order, plain
from backends.tflite.network import ABSENT, Flattened, Options, Setting
from backends.tflite.ops.conv import bias_scale
from backends.tflite.optable import OpTable
from backends.tflite.reading import stored_constant
from backends.tflite.terms import Term
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import constant, sole_consumer
from deploy.spec.plan import QuantParams

ops = OpTable()

_HYBRID = 12
"""The version of FULLY_CONNECTED that reads floats beside weights with one scale a channel."""
_LARGEST_RANK = 4
"""LiteRT's own BATCH_MATMUL is wrong with five axes (2.3.0), and refuses six."""


@ops.lower("Gemm")
def gemm(node: ir.Node, out: Emitter) -> None:
    """With constant weights alpha and beta go into them and the bias; else they are products."""
    read = node.attributes
    alpha, beta = read.get_float("alpha", 1.0), read.get_float("beta", 1.0)
    turned, order = read.get_int("transA", 0) != 0, (0, 1) if read.get_int("transB", 0) else (1, 0)
    left, right = node.inputs[:2]
    addend = node.inputs[2] if len(node.inputs) > 2 else None
    if right not in out.carried and _is_stored(right):
        units = out.shape(right)[order[0]]
        bias, rest = _bias(addend, units, beta)
        _fully_connected(node, out, order, turned=turned, alpha=alpha, bias=bias, rest=rest, beta=beta)
        return
    a, adj_x = _operand(out, left, turned=turned)
    b, adj_y = _operand(out, right, turned=order == (0, 1))
    shape = out.shape(node.outputs[0])
    options: Options = ("BatchMatMulOptions", {"adjX": adj_x, "adjY": adj_y})
    product = Term(out, out.step("BATCH_MATMUL", [a, b], shape, options))
    _finished(node, out, product * alpha if alpha != 1 else product, addend, beta)


@ops.lower("MatMul")
def matmul(node: ir.Node, out: Emitter) -> None:
    """A sum with a constant for each column behind it becomes the bias."""
    right = node.inputs[1]
    if right not in out.carried and _is_stored(right) and len(out.shape(right)) == 2:
        _fully_connected(node, out, (1, 0))
    else:
        _batched(node, out)


def _is_stored(value: ir.Value | None) -> bool:
    return value is not None and stored_constant(value) is not None


def _bias(
    addend: ir.Value | None, units: int, beta: float
) -> tuple[ir.Value | np.ndarray | None, ir.Value | None]:
    """What of a Gemm's third operand can be its bias, and what has to be added behind."""
    if addend is None or beta == 0:
        return None, None
    array = stored_constant(addend)
    if array is None or array.shape not in ((), (1,), (1, 1), (units,), (1, units)):
        return None, addend
    if array.size == units and beta == 1:
        return addend, None
    numbers = constant(addend)
    return (None, addend) if numbers is None else (np.broadcast_to(numbers.reshape(-1), units) * beta, None)


def _fully_connected(
    node: ir.Node,
    out: Emitter,
    order: Order,
    *,
    turned: bool = False,
    alpha: float = 1.0,
    bias: ir.Value | np.ndarray | None = None,
    rest: ir.Value | None = None,
    beta: float = 1.0,
) -> None:
    """Weights are stored (outputs, inputs). ``rest`` is added behind, times ``beta``."""
    left, right = node.inputs[:2]
    kernel_shape = out.shape(right)
    units, depth = (kernel_shape[axis] for axis in order)
    shape = out.shape(left)
    if shape[0 if turned else -1] != depth:
        raise Unsupported(f"the size of its last axis is free: {FIX_SIZES}")
    result, activation = node.outputs[0], "NONE"
    if rest is None:
        last, sum_bias = _with_sum(node, out, units)
        bias = sum_bias or bias
        result, activation = out.activation(last)
    whole = alpha == 1 and rest is None and not isinstance(bias, np.ndarray)
    params = out.product(result, left, right) if whole and not turned else None
    hybrid = out.hybrid(node, right) and alpha == 1
    order_in = (1, 0) if turned else _rows_as_they_lie(out, left)
    source = out.read(left, order_in, integer=params is not None)
    lies = out.tensors[source].flattened
    columns = None if lies is None else _columns(lies, units, len(shape) - 1)
    kernel = out.weight(right, order, integer=params is not None or hybrid, flattened=columns)
    if alpha != 1:
        kernel = _scaled(out, kernel, alpha)
    if bias is None and (params is None or params.type == "int8"):
        bias_index = ABSENT  # zeros would be other integers for each range of what they are added to
    elif isinstance(bias, np.ndarray):
        bias_index = out.numbers(bias.astype(np.float32), f"{node.name}/bias")
    else:
        bias_index = out.bias(bias, units, None if params is None else bias_scale(out, left, kernel))
    if len(shape) == 1:
        source = _reshaped(out, source, (1, depth))
    keep = len(shape) > 2
    fields: dict[str, Setting] = {"fusedActivationFunction": activation, "keepNumDims": keep}
    if hybrid:
        fields["asymmetricQuantizeInputs"] = True
    options: Options = ("FullyConnectedOptions", fields)
    version = _HYBRID if hybrid else 5 if params or keep else 1
    given = [source, kernel, bias_index]
    if rest is None and len(shape) > 1:
        kept = None if turned else order_in
        out.emit("FULLY_CONNECTED", given, result, options, order=kept, params=params, version=version)
        return
    rows = [shape[1]] if turned else [1] if len(shape) == 1 else list(shape[:-1])
    made = out.step("FULLY_CONNECTED", given, [*rows, units], options, version=version, params=params)
    if rest is not None:
        _finished(node, out, Term(out, made), rest, beta)
    else:
        sizes = out.numbers(np.array(out.shape(result), np.int32), f"{node.name}/shape")
        out.emit("RESHAPE", [made, sizes], result, params=params, version=1)


def _rows_as_they_lie(out: Emitter, value: ir.Value | None) -> Order:
    """The order of an operand whose last axis is multiplied: all others may lie as they do."""
    rank = len(out.shape(value))
    if value is None or value not in out.carried or rank < 3:
        return plain(rank)
    order = out.order(value)
    return order if order[-1] == rank - 1 else plain(rank)


def _with_sum(node: ir.Node, out: Emitter, units: int) -> tuple[ir.Node, ir.Value | None]:
    """The sum with a number for each column behind a product, and those; else the node itself."""
    result = node.outputs[0]
    after = sole_consumer(result)
    if after is None or after.op_type != "Add" or node.op_type != "MatMul":
        return node, None
    other = next((v for v in after.inputs if v is not result), None)
    array = None if other is None else stored_constant(other)
    if array is None or array.shape[-1:] != (units,) or array.size != units:
        return node, None
    if array.ndim > len(out.shape(result)):
        return node, None
    out.fused.add(after)
    return after, other


def _columns(flattened: Flattened, units: int, rows: int) -> Flattened:
    """How the columns of the weights are to lie for what they multiply."""
    order = tuple(axis - rows + 1 for axis in flattened.order[rows:])
    return Flattened((units, *flattened.sizes[rows:]), (0, *order))


def _scaled(out: Emitter, kernel: int, alpha: float) -> int:
    tensor = out.tensors[kernel]
    if tensor.data is None or tensor.dtype != "float32":
        raise Unsupported(f"alpha = {alpha} beside quantized weights: multiply the weights by it")
    return out.numbers((tensor.data * np.float32(alpha)).astype(np.float32), tensor.name)


def _finished(node: ir.Node, out: Emitter, product: Term, addend: ir.Value | None, beta: float) -> None:
    """The node's result: the product, with ``beta`` times the addend added."""
    if addend is None or beta == 0:
        out.view(product.index, node.outputs[0], plain(len(product.shape)), None)
        return
    result, activation = out.activation(node)
    term = Term(out, out.read(addend, plain(len(out.shape(addend)))))
    term = term * beta if beta != 1 else term
    options: Options = ("AddOptions", {"fusedActivationFunction": activation})
    out.emit("ADD", [product.index, term.index], result, options)


# --- of two activations ------------------------------------------------------------------------------------


def _batched(node: ir.Node, out: Emitter) -> None:
    left, right = node.inputs[:2]
    result = node.outputs[0]
    a_shape, b_shape = out.shape(left), out.shape(right)
    params = _integers(node, out)
    if params is not None:
        a = out.read(left, plain(len(a_shape)), integer=True)
        options: Options = ("BatchMatMulOptions", {"adjX": False, "adjY": True})
        out.emit("BATCH_MATMUL", [a, _turned(out, right)], result, options, params=params)
        return
    a, adj_x = _operand(out, left)
    b, adj_y = _operand(out, right)
    if len(a_shape) == 1:
        a = _reshaped(out, a, (1, *a_shape))
    if len(b_shape) == 1:
        b = _reshaped(out, b, (*b_shape, 1))
    options = ("BatchMatMulOptions", {"adjX": adj_x, "adjY": adj_y})
    wide = max(len(a_shape), len(b_shape)) > _LARGEST_RANK
    if not wide and min(len(a_shape), len(b_shape)) > 1:
        out.emit("BATCH_MATMUL", [a, b], result, options)
        return
    if wide:
        a, b = _folded(out, a, b)
    rows, columns = out.tensors[a].shape[-1 if adj_x else -2], out.tensors[b].shape[-2 if adj_y else -1]
    batches = _same_rank(out.tensors[a].shape[:-2], out.tensors[b].shape[:-2])
    batch = [one if other == 1 else other for one, other in zip(*batches, strict=True)]
    made = out.step("BATCH_MATMUL", [a, b], (*batch, rows, columns), options)
    shape = out.shape(result)
    if shape.count(-1) > 1:
        raise Unsupported(f"more than one size of its result is free: {FIX_SIZES}")
    sizes = out.numbers(np.array(shape, np.int32), f"{node.name}/shape")
    out.emit("RESHAPE", [made, sizes], result, version=1)


def _integers(node: ir.Node, out: Emitter) -> QuantParams | None:
    """The result's parameters where XNNPACK computes the product of two activations in INT8."""
    left, right = node.inputs[:2]
    ranks = [len(out.shape(value)) for value in (left, right)]
    if not out.listed(node) or left not in out.carried or right not in out.carried:
        return None
    if min(ranks) < 2 or max(ranks) > _LARGEST_RANK:
        return None
    params, read = out.product(node.outputs[0], left, right), out.params(right)
    centred = read is not None and not any(read.zero_point)
    return params if params is not None and params.type == "int8" and centred else None


def _turned(out: Emitter, value: ir.Value | None) -> int:
    """A matrix as integers, columns first: as these XNNPACK packs it in a third of the time or less.

    A transpose just before the product would be undone by XNNPACK, so a reshape that does nothing stands
    between them. What lies so anyway (a graph's own transpose of keys) is read as it is.
    """
    rank = len(out.shape(value))
    straight = plain(rank)
    index = out.read(value, (*straight[:-2], rank - 1, rank - 2), integer=True)
    shape = out.tensors[index].shape
    lies = out.order(value)[-1] == rank - 2
    return index if lies or shape.count(-1) > 1 else _reshaped(out, index, shape)


def _operand(out: Emitter, value: ir.Value | None, *, turned: bool = False) -> tuple[int, bool]:
    """A matrix, and whether BATCH_MATMUL has to turn it: so it is where that moves less memory."""
    assert value is not None
    rank = len(out.shape(value))
    straight = plain(rank)
    if rank < 2:
        return out.read(value, straight), False
    crossed = (*straight[:-2], rank - 1, rank - 2)
    if value not in out.carried:
        return out.read(value, crossed if turned else straight), False
    across = out.order(value)[-1] == rank - 2
    return out.read(value, crossed if across else straight), across != turned


def _folded(out: Emitter, a: int, b: int) -> tuple[int, int]:
    """Operands whose batches are joined where both have them, or only one: two axes of these can be said."""
    shapes = _same_rank(out.tensors[a].shape[:-2], out.tensors[b].shape[:-2])
    joined: list[tuple[str, list[int], list[int]]] = []
    for one, other in zip(*shapes, strict=True):
        if one == other == 1:
            continue
        kind = "both" if one == other else "right" if one == 1 else "left"
        if not joined or joined[-1][0] != kind:
            joined.append((kind, [], []))
        joined[-1][1].append(one)
        joined[-1][2].append(other)
    if len(joined) > _LARGEST_RANK - 2:
        raise Unsupported("batches that alternate between its operands: expand one of them before it")
    batches = [_product(left) for _, left, _ in joined], [_product(right) for _, _, right in joined]
    one, other = (
        _reshaped(out, index, (*batch, *out.tensors[index].shape[-2:]))
        for index, batch in zip((a, b), batches, strict=True)
    )
    return one, other


def _same_rank(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = max(len(one), len(other))
    return (1,) * (rank - len(one)) + one, (1,) * (rank - len(other)) + other


def _product(sizes: Sequence[int]) -> int:
    return -1 if -1 in sizes else int(np.prod(sizes))


def _reshaped(out: Emitter, index: int, shape: tuple[int, ...]) -> int:
    if shape.count(-1) > 1:
        raise Unsupported(f"more than one size of what it reads is free: {FIX_SIZES}")
    sizes = out.numbers(np.array(shape, np.int32), f"{out.node}/shape")
    params = out.tensors[index].params
    return out.step("RESHAPE", [index, sizes], shape, params=params, dtype=out.tensors[index].dtype)
