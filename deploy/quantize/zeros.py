"""2:4 zeros: which blocks have them, and the proof that what was written has them too.

Zeros lie along the axis that a product sums over. Every runtime's layout keeps these neighbours together: of
TensorRT and ONNX (outputs, inputs, taps), of OpenVINO the same, of LiteRT (outputs, taps, inputs). So a file
has the pattern where its weights, in ONNX's order, are the ones that were proved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploy.adapter.protocol import Backend
from deploy.compress.pattern import FOUR, fours, sparse_2_4
from deploy.graph.edit import constant
from deploy.graph.qdq import data_digest, plain
from deploy.spec.artifact import Artifact
from deploy.spec.manifest import SparsityProof
from deploy.spec.plan import BlockPlan

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_STORED = ("DequantizeLinear", "Cast", "Identity")
"""What may stand between a weight as it lies in a file and the product that reads it."""


def with_zeros(blocks: Iterable[BlockPlan], graph: ir.Model) -> tuple[BlockPlan, ...]:
    """The blocks, those marked whose products all have 2:4 sparse weights in ``graph``, quantized or not."""
    zeros = product_zeros(graph)
    found = []
    for block in blocks:
        own = [zeros[name] for name in block.nodes if name in zeros]
        sparse = bool(own) and all(own)
        found.append(block.model_copy(update={"sparsity": "2:4"}) if sparse else block)
    return tuple(found)


def product_zeros(graph: ir.Model) -> dict[str, bool]:
    """Whether the constant weights of each product are 2:4 sparse, by node."""
    return {name: share == 0.0 for name, (_, _, share) in _examined(graph, exact=False)}


def prove_zeros(
    blocks: Iterable[BlockPlan], graph: ir.Model, artifact: Artifact, backend: Backend
) -> SparsityProof | None:
    """Whether the artifact's weights are 2:4 sparse in all ``blocks`` that should be; None if none should.

    An ONNX file is opened and its weights are looked at. Of others the integers are compared, by digest, with
    those of ``graph``, which are; floats there stay unproved.
    """
    wanted = {name for block in blocks if block.sparsity == "2:4" for name in block.nodes}
    if not wanted:
        return None
    if artifact.main.suffix == ".onnx":
        return _proof(
            {name: share for name, (_, _, share) in _examined(ir.load(artifact.main), wanted)}, "weights"
        )
    held = backend.read_plan(artifact).tensors
    found: dict[str, float | None] = {}
    for name, (weight, codes, share) in _examined(graph, wanted):
        stored = held.get(weight)
        same = codes is not None and stored is not None and stored.digest == data_digest(codes)
        found[name] = share if same else None
    return _proof(found, "digests")


def _proof(found: Mapping[str, float | None], by: Literal["weights", "digests"]) -> SparsityProof | None:
    unproved = "unproved, its weights are floats"
    broken = tuple(
        f"{name}: {unproved if share is None else f'{share:.1%} of its fours hold more than two numbers'}"
        for name, share in found.items()
        if share != 0.0
    )
    proved = len(found) - len(broken)
    return SparsityProof(products=len(found), proved=proved, by=by, broken=broken) if found else None


def _examined(
    model: ir.Model, wanted: Collection[str] | None = None, *, exact: bool = True
) -> Iterator[tuple[str, tuple[str, np.ndarray | None, float]]]:
    """Products by name, with the name of their weight, its codes if it has any, and the share of its fours
    that hold more than two numbers. Not ``exact``: a share above 0 may be any other."""
    for node in model.graph:
        name = node.name or ""
        if node.op_type not in _PRODUCTS or node.domain not in ("", "ai.onnx"):
            continue
        if wanted is not None and name not in wanted:
            continue
        stored = _stored(node.inputs[1])
        if stored is None or stored[1].ndim < 2:
            continue
        weight, array, coded = stored
        axis = _axis(node, array.ndim)
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


def _axis(node: ir.Node, rank: int) -> int:
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
