"""2:4 zeros: which blocks have them, and the proof that what was written has them too.

Zeros lie along the axis that a product sums over. Every runtime's layout keeps these neighbours together: of
TensorRT and ONNX (outputs, inputs, taps), of OpenVINO the same, of LiteRT (outputs, taps, inputs). So a file
has the pattern where its weights, in ONNX's order, are the ones that were proved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import onnx_ir as ir

from deploy.adapter.protocol import Backend, Unpacks
from deploy.graph.pattern import examined, product_zeros
from deploy.graph.qdq import data_digest
from deploy.spec.artifact import Artifact
from deploy.spec.manifest import SparsityProof
from deploy.spec.plan import BlockPlan


def with_zeros(blocks: Iterable[BlockPlan], graph: ir.Model) -> tuple[BlockPlan, ...]:
    """The blocks, those marked whose products all have 2:4 sparse weights in ``graph``, quantized or not."""
    zeros = product_zeros(graph)
    found = []
    for block in blocks:
        own = [zeros[name] for name in block.nodes if name in zeros]
        sparse = bool(own) and all(own)
        found.append(block.model_copy(update={"sparsity": "2:4"}) if sparse else block)
    return tuple(found)


def prove_zeros(
    blocks: Iterable[BlockPlan], graph: ir.Model, artifact: Artifact, backend: Backend
) -> SparsityProof | None:
    """Whether the artifact's weights are 2:4 sparse in all ``blocks`` that should be; None if none should.

    An ONNX file is opened and its weights are looked at. Of others the integers are compared, by digest, with
    those of ``graph``, which are; floats are looked at where the backend can unpack them, else unproved.
    """
    wanted = {name for block in blocks if block.sparsity == "2:4" for name in block.nodes}
    if not wanted:
        return None
    if artifact.main.suffix == ".onnx":
        return _proof(
            {name: share for name, (_, _, share) in examined(ir.load(artifact.main), wanted)}, "weights"
        )
    held = backend.read_plan(artifact).tensors
    found: dict[str, float | None] = {}
    floats: dict[str, list[str]] = {}
    for name, (weight, codes, share) in examined(graph, wanted):
        stored = held.get(weight)
        same = codes is not None and stored is not None and stored.digest == data_digest(codes)
        found[name] = share if same else None
        if codes is None:
            floats.setdefault(weight, []).append(name)
    digests = len(found) > sum(map(len, floats.values()))
    if floats and isinstance(backend, Unpacks):
        for weight, array in backend.weights(artifact, floats):
            looked = examined(graph, floats[weight], held={weight: array})
            found |= {name: share for name, (_, _, share) in looked}
    return _proof(found, "digests" if digests or not isinstance(backend, Unpacks) else "weights")


def _proof(found: Mapping[str, float | None], by: Literal["weights", "digests"]) -> SparsityProof | None:
    unproved = "unproved, its weights are floats"
    broken = tuple(
        f"{name}: {unproved if share is None else f'{share:.1%} of its fours hold more than two numbers'}"
        for name, share in found.items()
        if share != 0.0
    )
    proved = len(found) - len(broken)
    return SparsityProof(products=len(found), proved=proved, by=by, broken=broken) if found else None
