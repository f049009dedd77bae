"""Products whose weights alone are integers in groups, as ONNX Runtime's own MatMulNBits.

ONNX Runtime makes one of a DequantizeLinear and a MatMul itself, but not where it has fused the product with
an activation first, and then it dequantizes the weights in every run. So the file holds what it would make:

    B            codes, [columns, groups, bytes]: those of a group side by side, of 4 bits two in a byte
    scales       [columns, groups]
    zero_points  [columns, groups] in bytes, of 4 bits two in one; without them 8 or 128 is meant, since codes
                 are unsigned there: signed ones are stored with that added
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import add_initializer, constant, fresh_name, names
from deploy.graph.qdq import data_digest, plain
from deploy.spec.plan import Plan, TensorPlan
from deploy.spec.tensors import QuantType

DOMAIN = "com.microsoft"
_TYPES: dict[tuple[int, bool], QuantType] = {
    (4, False): "int4", (4, True): "uint4", (8, False): "int8", (8, True): "uint8",
}  # fmt: skip
_ACCURACY = 4
"""The kernels that multiply integers; the others multiply floats, and are up to 50 times slower (8 bits)."""


class _Packed(NamedTuple):
    """The constants that stand for a matrix, its parameters and its shape."""

    values: list[ir.Value]
    tensor: TensorPlan
    shape: tuple[int, ...]


def grouped_products(graph: ir.Model, plan: Plan) -> ir.Model:
    """A copy in which products by weights in groups are MatMulNBits; the graph itself without any."""
    grouped = {name for name, tensor in plan.tensors.items() if tensor.group is not None and tensor.axis == 0}
    chosen = {n.name for n in graph.graph if _weights(n, grouped) is not None}
    if not chosen:
        return graph
    copy = graph.clone()
    copy.graph.opset_imports[DOMAIN] = 1
    taken = names(copy)
    packed: dict[str, _Packed] = {}
    for node in list(copy.graph):
        if node.name in chosen:
            _replace(copy, node, plan, packed, taken)
    for node in list(copy.graph):
        if node.op_type == "DequantizeLinear" and not node.outputs[0].uses():
            stored = [value for value in node.inputs if value is not None]
            copy.graph.remove(node, safe=True)
            for value in stored:
                if not value.uses() and value.is_initializer() and not value.is_graph_output():
                    copy.graph.initializers.pop(value.name or "", None)
    return copy


def _weights(node: ir.Node, grouped: Collection[str]) -> ir.Node | None:
    """The DequantizeLinear behind the weights of a product."""
    value = node.inputs[1] if node.op_type in ("MatMul", "Gemm") and len(node.inputs) > 1 else None
    if value is None or value.name not in grouped:
        return None
    if node.attributes.get_int("transB", 0):
        return None
    source = value.producer()
    return source if source is not None and source.op_type == "DequantizeLinear" else None


def _replace(model: ir.Model, node: ir.Node, plan: Plan, packed: dict[str, _Packed], taken: set[str]) -> None:
    value = node.inputs[1]
    pair = None if value is None else value.producer()
    assert value is not None and pair is not None
    key = pair.name or ""
    if key not in packed:
        name = value.name or ""
        codes = constant(pair.inputs[0])
        assert codes is not None
        value.name = fresh_name(model, f"{name}/float", taken)
        taken.discard(name)  # the packed codes bear the planned name from here on: by it they are read back
        arrays = pack(plain(codes), plan.tensors[name])
        kinds = ("", "/scales", "/zero_points")
        stored = [add_initializer(model, name + k, a, taken) for k, a in zip(kinds, arrays, strict=False)]
        packed[key] = _Packed(stored, plan.tensors[name], codes.shape)
    weights, tensor, (size, columns) = packed[key]
    bits = 4 if tensor.type.endswith("4") else 8
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    inputs = [node.inputs[0], *weights]
    if bias is not None:
        inputs += [None] * (5 - len(inputs)) + [bias]
    attributes = {
        "K": size, "N": columns, "bits": bits, "block_size": tensor.group, "accuracy_level": _ACCURACY,
    }  # fmt: skip
    made = ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=node.name)
    made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    made.metadata_props.update(node.metadata_props)
    model.graph.insert_before(node, made)
    kept = node.outputs[0].name
    node.outputs[0].replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    made.outputs[0].name = kept


def pack(codes: np.ndarray, plan: TensorPlan) -> list[np.ndarray]:
    """B, scales and, where they are not 0, zero points of ``codes`` [K, N] by the parameters of ``plan``."""
    assert plan.group is not None
    bits = 4 if plan.type.endswith("4") else 8
    size, columns = codes.shape
    parts = -(-size // plan.group)
    middle = 0 if plan.type.startswith("u") else 1 << (bits - 1)
    zeros = np.asarray(plan.zero_point, np.int16).reshape(parts, columns) + middle
    filled = zeros.repeat(plan.group, axis=0)  # what fills the last group up stands for 0
    filled[:size] = codes.astype(np.int16) + middle
    blocks = filled.astype(np.uint8).T.reshape(columns, parts, plan.group)
    scales = np.ascontiguousarray(np.asarray(plan.scale, np.float32).reshape(parts, columns).T)
    arrays = [_paired(blocks) if bits == 4 else blocks, scales]
    if plan.type.startswith("u"):
        points = np.ascontiguousarray(zeros.astype(np.uint8).T)
        arrays.append(_paired(points) if bits == 4 else points)
    return [np.ascontiguousarray(array) for array in arrays]


def unpack(packed: np.ndarray, count: int) -> np.ndarray:
    """Numbers of 4 bits, two in a byte along the last axis, of which there are ``count``."""
    apart = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return apart[..., :count]


def _paired(numbers: np.ndarray) -> np.ndarray:
    """Two in a byte along the last axis, the first in the lower half."""
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros((*numbers.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(numbers[..., ::2] | (numbers[..., 1::2] << 4), np.uint8)


def read_grouped(model: ir.Model) -> dict[str, TensorPlan]:
    """The parameters of weights that MatMulNBits reads, by their names."""
    found: dict[str, TensorPlan] = {}
    for node in model.graph:
        if node.op_type != "MatMulNBits" or node.domain != DOMAIN:
            continue
        weights, scales = constant(node.inputs[1]), constant(node.inputs[2])
        points = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        if weights is None or scales is None:
            raise ValueError(f"{node.name}: weights and scales must be constants")
        size, columns, bits, group = (node.attributes.get_int(n) for n in ("K", "N", "bits", "block_size"))
        parts = -(-size // group)
        blocks = weights.reshape(columns, parts, -1)
        codes = (unpack(blocks, group) if bits == 4 else blocks).reshape(columns, -1)[:, :size].T
        kind = _TYPES[bits, points is not None]
        if points is None:
            zeros = np.zeros((parts, columns), np.int64)
            codes = (codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
        else:
            points = points.reshape(columns, -1)
            zeros = (unpack(points, parts) if bits == 4 else points).T.astype(np.int64)
        name = node.inputs[1].name if node.inputs[1] is not None else ""
        found[name or ""] = TensorPlan(
            type=kind,
            scale=tuple(float(s) for s in scales.reshape(columns, parts).T.ravel()),
            zero_point=tuple(int(z) for z in zeros.ravel()),
            axis=0,
            group=group,
            origin="imported",
            digest=data_digest(codes),
        )
    return found
