"""Which numbers are greatest, and sums from one end of an axis on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import known
from backends.tflite.network import Operator, Options, Tensor
from backends.tflite.ops.softmax import last, number
from backends.tflite.optable import NUMBERS, OpTable
from backends.tflite.terms import Term, without
from deploy.adapter.optable import Unsupported

ops = OpTable()

_EXPAND: Options = ("ExpandDimsOptions", {})


@ops.lower("ArgMax", "ArgMin", types=NUMBERS)
def arg_max(node: ir.Node, out: Emitter) -> None:
    """Of equal numbers TFLite takes the first; the last is the first from behind."""
    value, result = node.inputs[0], node.outputs[0]
    rank = len(out.shape(value))
    axis = node.attributes.get_int("axis", 0) % max(rank, 1)
    code = {"ArgMax": "ARG_MAX", "ArgMin": "ARG_MIN"}[node.op_type]
    x = Term(out, out.read(value))
    if rank == 0 or x.dtype == "int64":
        raise Unsupported(f"{code} knows float32 and int32 with at least one axis")
    order = out.tensors[x.index].order
    place = order.index(axis)
    size = x.shape[place]
    from_behind = bool(node.attributes.get_int("select_last_index", 0))
    if from_behind and size < 0:
        raise Unsupported("the last index on an axis of free size")
    if from_behind:
        turned = out.numbers(np.array([place], np.int32), f"{node.name}/turned")
        x = Term(out, out.step("REVERSE_V2", [x.index, turned], x.shape, dtype=x.dtype, order=order))
    left = tuple(sizes for at, sizes in enumerate(x.shape) if at != place)
    given: Options = (f"{node.op_type}Options", {"outputType": "INT64"})
    found = out.step(
        code, [x.index, number(out, place, "axis")], left, given, dtype="int64", order=without(order, {axis})
    )
    made = Term(out, found)
    if from_behind:
        made = made.number(size - 1) - made
    if node.attributes.get_int("keepdims", 1):
        kept = tuple(1 if at == place else sizes for at, sizes in enumerate(x.shape))
        there = [made.index, number(out, place, "axis")]
        made = Term(out, out.step("EXPAND_DIMS", there, kept, _EXPAND, dtype="int64", order=order))
    made.becomes(result)


@ops.lower("CumSum", types=NUMBERS)
def cum_sum(node: ir.Node, out: Emitter) -> None:
    axis = known(out, node.inputs[1])
    if axis is None:
        raise Unsupported("its axis must be a constant")
    source = out.read(node.inputs[0])
    order = out.tensors[source].order
    place = order.index(int(axis.reshape(())) % len(order))
    options: Options = (
        "CumsumOptions",
        {name: bool(node.attributes.get_int(name, 0)) for name in ("exclusive", "reverse")},
    )
    out.emit("CUMSUM", [source, number(out, place, "axis")], node.outputs[0], options, order=order)


@ops.lower("TopK", types=NUMBERS)
def top_k(node: ir.Node, out: Emitter) -> None:
    """TOPK_V2 takes the greatest along the last axis; the smallest are the greatest of the negated."""
    value = node.inputs[0]
    rank = len(out.shape(value))
    count = known(out, node.inputs[1])
    if count is None:
        raise Unsupported("how many must be a constant")
    order = last(out, value, node.attributes.get_int("axis", -1) % rank)
    x = Term(out, out.read(value, order))
    smallest = not node.attributes.get_int("largest", 1)
    if smallest:
        x = -x
    k = int(count.reshape(()))
    shape = (*x.shape[:-1], k)
    made = [
        out.add(Tensor(f"{node.name}/{name}", shape, dtype, order))
        for name, dtype in (("values", x.dtype), ("indices", "int32"))
    ]
    given = (x.index, number(out, k, "k"))
    out.operators.append(Operator("TOPK_V2", 1, given, tuple(made), ("TopKV2Options", {}), out.node))
    values, indices = (Term(out, index) for index in made)
    results = [*node.outputs, None]
    if results[0] is not None and results[0].name:
        (-values if smallest else values).becomes(results[0])
    if results[1] is not None and results[1].name:
        indices.cast("int64").becomes(results[1])
