"""Reshapes and transposes, and which of them need nothing to be done. Integers go through as they are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import (
    as_int32,
    carry,
    known,
    meets_images,
    product_behind,
    readers,
    size_vector,
    sizes,
)
from backends.tflite.layout import Order, channels_last, plain, same_memory
from backends.tflite.network import Flattened
from backends.tflite.optable import ANY, OpTable
from backends.tflite.regroup import regrouped
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import scalar

ops = OpTable()

_ABSORBING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MatMul", "LSTM", "GRU", "RNN"}
"""Operations that read a value in any order, or turn it as they must."""


@ops.lower("Reshape", "Flatten", "Squeeze", "Unsqueeze", types=ANY)
def reshape(node: ir.Node, out: Emitter) -> None:
    """RESHAPE; a transpose before only where axes that become one do not lie together.

    An image flattened for a product with a constant matrix is not even then transposed: the matrix is.
    """
    value, result = node.inputs[0], node.outputs[0]
    array = known(out, value)
    if array is not None and -1 not in out.shape(result):
        carry(out, result, array.reshape(out.shape(result)))
        return
    params = out.moved(result, [value])
    source = out.read(value, integer=params is not None)
    lies = out.tensors[source].order
    have, want = sizes(value), sizes(result)
    found = regrouped(have, want, lies)
    order = plain(len(want)) if found is None else _easiest(out, result, found.result)
    if found is None:
        source = out.reordered(source, plain(len(have)))
    elif not same_memory(out.shape(value), lies, found.source):
        flattened = _flattened(out, value, result, lies)
        if flattened is not None:
            shape = size_vector(out, want, source, [have[axis] for axis in lies])
            if shape is not None:
                made = out.emit("RESHAPE", [source, shape], result, params=params, version=1)
                out.tensors[made].flattened = flattened
                return
        source = out.reordered(source, found.source)
    lies = out.tensors[source].order
    shape = size_vector(out, [want[axis] for axis in order], source, [have[axis] for axis in lies])
    if shape is None:
        source, order = out.reordered(source, plain(len(have))), plain(len(want))
        shape = _given_shape(node, out)
    out.emit("RESHAPE", [source, shape], result, order=order, params=params, version=1)


def _given_shape(node: ir.Node, out: Emitter) -> int:
    """The shape that a Reshape was given, where it is computed from more than the sizes of its source."""
    given = node.inputs[1] if node.op_type == "Reshape" else None
    if given is None or known(out, given) is not None or node.attributes.get_int("allowzero", 0) != 0:
        raise Unsupported(
            "more than one size of its result is free: fix the sizes of the model's inputs (--shape)"
        )
    return as_int32(out, given)


def _easiest(out: Emitter, result: ir.Value, order: Order) -> Order:
    """The order by which the same bytes are best called: channels last before what reads them so."""
    shape = out.shape(result)
    rank = len(shape)
    last = channels_last(rank) if rank > 2 else plain(rank)
    straight = same_memory(shape, order, plain(rank))
    if same_memory(shape, order, last) and (not straight or meets_images(out, result)):
        return last
    return plain(rank) if straight else order


def _flattened(out: Emitter, value: ir.Value | None, result: ir.Value, lies: Order) -> Flattened | None:
    """How a value lies in its flattened result, where that is only the rows of a constant matrix."""
    assert value is not None
    shape, have, want = out.shape(value), sizes(value), sizes(result)
    rows = len(want) - 1
    straight = lies[:rows] == plain(rows) and have[:rows] == want[:rows]
    if product_behind(result) is None or not straight or shape.count(-1) > 1:
        return None
    return Flattened(shape, lies)


@ops.lower("Identity", "Dropout", types=ANY)
def identity(node: ir.Node, out: Emitter) -> None:
    """Nothing: whoever reads its result reads its input."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    ratio = node.inputs[1] if len(node.inputs) > 1 else None
    if training is not None and scalar(training) != 0 and (ratio is None or scalar(ratio) != 0):
        raise Unsupported("it drops numbers at random, as in training: export the model in evaluation mode")
    value, result = node.inputs[0], node.outputs[0]
    array = known(out, value)
    if array is not None:
        carry(out, result, array)
    else:
        passed_on(out, value, result)
    if len(node.outputs) > 1 and node.outputs[1].name:
        if -1 in out.shape(value):
            raise Unsupported("the mask of what was dropped, of a free size")
        carry(out, node.outputs[1], np.ones(out.shape(value), bool))


def passed_on(out: Emitter, value: ir.Value | None, result: ir.Value) -> None:
    """A value under another name: its own tensor, or where that holds integers the result of an operator that
    does nothing, for the file has to tell which node takes them."""
    params = out.moved(result, [value])
    index = out.read(value, integer=params is not None or out.params(value) is None)
    tensor = out.tensors[index]
    if out.params(value) is None or tensor.shape.count(-1) > 1:
        out.carried[result] = out.read(value, integer=True)
    else:
        out.view(index, result, tensor.order, params)


@ops.lower("Transpose", types=ANY)
def transpose(node: ir.Node, out: Emitter) -> None:
    """Nothing where the tensor already lies as its readers want the result; else an operator."""
    value, result = node.inputs[0], node.outputs[0]
    rank = len(out.shape(value))
    perm = tuple(node.attributes.get_ints("perm", tuple(reversed(range(rank)))))
    array = known(out, value)
    if array is not None:
        carry(out, result, np.ascontiguousarray(array.transpose(perm)))
        return
    params = out.moved(result, [value])
    source = out.read(value, integer=params is not None)
    tensor = out.tensors[source]
    lies = tuple(perm.index(axis) for axis in tensor.order)
    order = next((o for o in _welcome(result, rank) if same_memory(out.shape(result), lies, o)), None)
    if order is None and _absorbed(result):
        order = lies
    if order is not None and tensor.shape.count(-1) <= 1:
        stored = tuple(out.shape(result)[axis] for axis in order)
        if stored == tensor.shape:
            out.view(source, result, order, params)
        else:
            shape = out.numbers(np.array(stored, np.int32), f"{node.name}/shape")
            out.emit("RESHAPE", [source, shape], result, order=order, params=params, version=1)
        return
    given = out.numbers(np.array([tensor.order.index(axis) for axis in perm], np.int32), f"{node.name}/perm")
    out.emit("TRANSPOSE", [source, given], result, ("TransposeOptions", {}), params=params)


def _welcome(result: ir.Value, rank: int) -> list[Order]:
    """The orders that readers take as they are: ONNX's, and channels last for images and signals."""
    signals = any(reader is not None and reader.op_type == "Conv" for reader in readers(result))
    return [plain(rank), *([channels_last(rank)] if rank == 4 or (rank > 2 and signals) else [])]


def _absorbed(result: ir.Value) -> bool:
    """Whether all who read a value can do with any order."""
    kinds = {reader.op_type if reader is not None else "" for reader in readers(result)}
    return kinds <= _ABSORBING
