"""The 2:4 pattern: of each four neighbours along an axis at least two are zero.

GPUs since Ampere compute such weights with up to twice the dense rate (Mishra et al. 2021). The axis is the
one that the product sums over: input channels, in ONNX's layouts axis 1 of Conv (O, I, kh, kw) and of Gemm
with transB, axis 0 of Gemm without it and of MatMul's right side. Neighbours lie at the same tap of a kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant, constant_tensor
from deploy.graph.qdq import plain

FOUR = 4
PRODUCTS = ("Conv", "Gemm", "MatMul")
_STORED = ("DequantizeLinear", "Cast", "Identity")
"""What may stand between a weight as it lies in a file and the product that reads it."""


@dataclass(frozen=True)
class Product:
    """A node that multiplies by a constant float weight, its second input, which it sums over ``axis``.
    ``groups`` of output channels have inputs of their own."""

    node: ir.Node
    weight: str
    axis: int
    groups: int


def products(model: ir.Model) -> Iterator[Product]:
    """Conv, Gemm and MatMul with constant float weights that nothing else reads, in graph order."""
    for node in model.graph:
        value = node.inputs[1] if len(node.inputs) > 1 else None
        tensor = constant_tensor(value)
        if node.domain not in ("", "ai.onnx") or value is None or value.name is None or tensor is None:
            continue
        rank = tensor.shape.rank()
        if tensor.dtype != ir.DataType.FLOAT or rank < 2:
            continue
        if not value.is_initializer() or len(value.uses()) != 1 or value.is_graph_output():
            continue
        if node.op_type == "Conv":
            yield Product(node, value.name, 1, node.attributes.get_int("group", 1))
        elif node.op_type == "Gemm":
            yield Product(node, value.name, 1 if node.attributes.get_int("transB", 0) else 0, 1)
        elif node.op_type == "MatMul" and rank == 2:
            yield Product(node, value.name, 0, 1)


def fits(product: Product) -> bool:
    """Whether the summed axis is whole fours: no first layer of three channels, no depthwise convolution."""
    value = product.node.inputs[1]
    assert value is not None and value.shape is not None
    return int(value.shape.numpy()[product.axis]) % FOUR == 0


def sparse_2_4(array: np.ndarray, axis: int) -> bool:
    """The proof, for what is written: every four neighbours along ``axis`` have two zeros or more.

    False where the axis is no multiple of four. Integers are judged as they are: zero points must be 0.

    >>> sparse_2_4(np.array([[0, 3, 0, 5], [0, 0, 0, 1]]), axis=1)
    True
    >>> sparse_2_4(np.array([[0, 3, 4, 5]]), axis=1)
    False
    """
    if array.shape[axis] % FOUR:
        return False
    return bool((np.count_nonzero(fours(array, axis), axis=-1) <= 2).all())


def fours(array: np.ndarray, axis: int) -> np.ndarray:
    """The array with ``axis`` last, cut into fours: (..., fours, 4)."""
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, FOUR)


def mask_2_4(scores: np.ndarray, axis: int) -> np.ndarray:
    """True at the two largest ``scores`` of every four along ``axis``; of equal ones the first two.

    >>> mask_2_4(np.array([[1.0, -3.0, 2.0, 0.0]]) ** 2, axis=1).astype(int)
    array([[0, 1, 1, 0]])
    """
    cut = fours(scores, axis)
    kept = np.zeros(cut.shape, bool)
    np.put_along_axis(kept, np.argsort(-cut, axis=-1, kind="stable")[..., :2], True, axis=-1)
    moved = np.moveaxis(scores, axis, -1)
    return np.ascontiguousarray(np.moveaxis(kept.reshape(moved.shape), -1, axis))


def product_zeros(graph: ir.Model) -> dict[str, bool]:
    """Whether the constant weights of each product are 2:4 sparse, by node."""
    return {name: share == 0.0 for name, (_, _, share) in examined(graph, exact=False)}


def examined(
    model: ir.Model,
    wanted: Collection[str] | None = None,
    *,
    exact: bool = True,
    held: Mapping[str, np.ndarray] | None = None,
) -> Iterator[tuple[str, tuple[str, np.ndarray | None, float]]]:
    """Products by name, with the name of their weight, its codes if it has any, and the share of its fours
    that hold more than two numbers. Not ``exact``: a share above 0 may be any other. ``held`` has the numbers
    that are looked at in place of the graph's; what is not there is left out."""
    for node in model.graph:
        name = node.name or ""
        if node.op_type not in PRODUCTS or node.domain not in ("", "ai.onnx"):
            continue
        if wanted is not None and name not in wanted:
            continue
        stored = _stored(node.inputs[1])
        if stored is None or stored[1].ndim < 2:
            continue
        weight, array, coded = stored
        if held is not None:
            if weight not in held:
                continue
            array = held[weight]
        axis = _summed(node, array.ndim)
        yield name, (weight, array if coded else None, _crowded(array, axis, exact))


def _stored(value: ir.Value | None) -> tuple[str, np.ndarray, bool] | None:
    """The weight's name in plans, its numbers as they lie there, and whether these are codes."""
    if value is None:
        return None
    node = value.producer()
    if node is None:
        array = constant(value)
        return None if array is None else (value.name or "", array, False)
    if node.op_type not in _STORED:
        return None
    inner = _stored(node.inputs[0])
    if inner is None or node.op_type != "DequantizeLinear":
        return inner
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    codes = plain(inner[1])
    if zero is not None and np.any(zero):
        return None
    return value.name or "", codes, True


def _summed(node: ir.Node, rank: int) -> int:
    if node.op_type == "Conv":
        return 1
    if node.op_type == "Gemm":
        return 1 if node.attributes.get_int("transB", 0) else 0
    return rank - 2


def _crowded(array: np.ndarray, axis: int, exact: bool) -> float:
    """The share of fours that hold more than two numbers; 1 where the axis is not whole fours."""
    if array.shape[axis] % FOUR or not array.size:
        return 1.0
    first = array[:1] if axis else array[:, :1]
    if not exact and not sparse_2_4(first, axis):  # most weights are told by their first output
        return 1.0
    return float((np.count_nonzero(fours(array, axis), axis=-1) > FOUR // 2).mean())
