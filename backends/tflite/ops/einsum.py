"""Einsum: of one operand a transpose and a sum, of two a product of matrices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES
from backends.tflite.layout import Order
from backends.tflite.network import Options
from backends.tflite.ops.recurrent import product
from backends.tflite.optable import OpTable
from backends.tflite.reading import stored_constant
from deploy.adapter.optable import Unsupported

ops = OpTable()

_ELLIPSIS = "ABCDEFGH"
"""Labels for the axes that an ellipsis stands for; equations are lowered in small letters here."""
_LARGEST_RANK = 4


@ops.lower("Einsum")
def einsum(node: ir.Node, out: Emitter) -> None:
    """Axes in both operands and the result are batches, those in one and the result rows or columns."""
    operands, wanted = _labels(node, out)
    if any(len(set(labels)) < len(labels) for labels in (*operands, wanted)):
        raise Unsupported("a diagonal (a letter twice in one operand): take it by GatherND before")
    if len(operands) > 2:
        raise Unsupported("more than two operands: write it as several Einsums")
    sizes: dict[str, int] = {}
    for labels, value in zip(operands, node.inputs, strict=True):
        for label, size in zip(labels, out.shape(value), strict=True):
            sizes[label] = size if sizes.get(label, 1) == 1 else sizes[label]
            if size == 1 and sizes[label] != 1:
                raise Unsupported("operands that are broadcast: expand them before it")
    summed = [
        _summed(out, value, labels, "".join({*wanted, *"".join(operands[:i] + operands[i + 1 :])}))
        for i, (labels, value) in enumerate(zip(operands, node.inputs, strict=True))
    ]
    if len(summed) == 1:
        index, labels = summed[0]
        _named(out, index, labels, node.outputs[0], wanted, sizes)
    else:
        _product(node, out, summed, wanted, sizes)


def _labels(node: ir.Node, out: Emitter) -> tuple[list[str], str]:
    """A letter for every axis of every operand, and of the result; those of an ellipsis in capitals."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    if any(letter.isupper() for letter in equation):
        letters = sorted({letter for letter in equation if letter.isalpha()})
        small = "abcdefghijklmnopqrstuvwxyz"
        if len(letters) > len(small):
            raise Unsupported("more than 26 letters: use fewer")
        table = str.maketrans(dict(zip(letters, small, strict=False)))
        left, right = left.translate(table), right.translate(table)
    terms = left.split(",")
    most = 0
    for place, (term, value) in enumerate(zip(terms, node.inputs, strict=True)):
        if "..." in term:
            hidden = len(out.shape(value)) - len(term) + 3
            most = max(most, hidden)
            terms[place] = term.replace("...", _ELLIPSIS[len(_ELLIPSIS) - hidden :])
    if not arrow:
        every = "".join(terms)
        right = "..." + "".join(sorted(c for c in set(every) if every.count(c) == 1 and c.islower()))
    return terms, right.replace("...", _ELLIPSIS[len(_ELLIPSIS) - most :])


def _summed(out: Emitter, value: ir.Value | None, labels: str, kept: str) -> tuple[int, str]:
    """An operand without the axes that nothing else has, and the labels of its axes as stored."""
    index = out.read(value)
    lies = "".join(labels[axis] for axis in out.tensors[index].order)
    gone = [place for place, label in enumerate(lies) if label not in kept]
    if not gone:
        return index, lies
    axes = out.numbers(np.array(gone, np.int32), f"{out.node}/axes")
    shape = [size for place, size in enumerate(out.tensors[index].shape) if place not in gone]
    index = out.step("SUM", [index, axes], shape, ("ReducerOptions", {"keepDims": False}))
    return index, "".join(label for label in lies if label in kept)


def _product(
    node: ir.Node, out: Emitter, operands: Sequence[tuple[int, str]], wanted: str, sizes: dict[str, int]
) -> None:
    (a, a_labels), (b, b_labels) = operands
    batch = "".join(label for label in a_labels if label in b_labels and label in wanted)
    inner = "".join(label for label in a_labels if label in b_labels and label not in wanted)
    rows = "".join(label for label in a_labels if label not in b_labels)
    columns = "".join(label for label in b_labels if label not in a_labels)
    right = node.inputs[1]
    fixed = right is not None and right not in out.carried and stored_constant(right) is not None
    if fixed and not batch and inner:
        weights = _constant(out, b, b_labels, columns + inner, sizes, len(columns))
        bias = out.numbers(np.zeros(len(weights), np.float32), f"{node.name}/bias")
        given = out.numbers(weights, f"{node.name}/weights")
        a = _matrix(out, a, a_labels, [*rows, inner], sizes)
        shape = (*(sizes[label] for label in rows), len(weights))
        made = product(out, a, given, bias, shape if rows else (1, len(weights)))
        _named(out, made, rows + columns, node.outputs[0], wanted, sizes)
        return
    batches = [*batch] if len(batch) <= _LARGEST_RANK - 2 else [batch]
    a = _matrix(out, a, a_labels, [*batches, rows, inner], sizes)
    b = _matrix(out, b, b_labels, [*batches, inner, columns], sizes)
    shape = tuple(_size(group, sizes) for group in (*batches, rows, columns))
    made = out.step("BATCH_MATMUL", [a, b], shape, ("BatchMatMulOptions", {}))
    _named(out, made, batch + rows + columns, node.outputs[0], wanted, sizes)


def _constant(
    out: Emitter, index: int, labels: str, order: str, sizes: dict[str, int], rows_of: int
) -> np.ndarray:
    """A constant operand as a matrix: the first ``rows_of`` axes of ``order`` are its rows."""
    data = out.tensors[index].data
    if data is None:
        raise Unsupported("quantized weights: use MatMul")
    turned = data.transpose([labels.index(label) for label in order])
    rows = int(np.prod([sizes[label] for label in order[:rows_of]], dtype=np.int64))
    return np.ascontiguousarray(turned.reshape(rows, -1))


def _matrix(out: Emitter, index: int, labels: str, groups: Sequence[str], sizes: dict[str, int]) -> int:
    """An operand with its axes in the order of ``groups``, each group one axis."""
    order = "".join(groups)
    tensor = out.tensors[index]
    if labels != order:
        perm = [labels.index(label) for label in order]
        given = out.numbers(np.array(perm, np.int32), f"{out.node}/perm")
        shape = [tensor.shape[place] for place in perm]
        index = out.step("TRANSPOSE", [index, given], shape, ("TransposeOptions", {}))
    whole = [_size(group, sizes) for group in groups]
    return index if len(whole) == len(order) else _reshaped(out, index, whole)


def _named(
    out: Emitter, index: int, labels: str, result: ir.Value, wanted: str, sizes: dict[str, int]
) -> None:
    """The result, whose axes lie in the order of ``labels``."""
    shape = [sizes[label] for label in labels]
    if shape.count(-1) > 1 and list(out.tensors[index].shape) != shape:
        raise Unsupported(f"more than one size of its result is free: {FIX_SIZES}")
    order: Order = tuple(wanted.index(label) for label in labels)
    if shape.count(-1) > 1:
        turn = out.numbers(np.array([labels.index(label) for label in wanted], np.int32), f"{out.node}/perm")
        out.emit("TRANSPOSE", [index, turn], result, ("TransposeOptions", {}))
        return
    given = out.numbers(np.array(shape, np.int32), f"{out.node}/shape")
    out.emit("RESHAPE", [index, given], result, order=order, version=1)


def _reshaped(out: Emitter, index: int, shape: Sequence[int]) -> int:
    if list(shape).count(-1) > 1:
        raise Unsupported(f"more than one size of what it reads is free: {FIX_SIZES}")
    given = out.numbers(np.array(shape, np.int32), f"{out.node}/shape")
    options: Options = ("", {})
    return out.step("RESHAPE", [index, given], shape, options)


def _size(group: str, sizes: dict[str, int]) -> int:
    numbers = [sizes[label] for label in group]
    return -1 if -1 in numbers else int(np.prod(numbers, dtype=np.int64))
