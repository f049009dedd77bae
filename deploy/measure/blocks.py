"""The time of each block, from what a runtime's profiler says of single operations."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from deploy.adapter.protocol import Arrays, Backend
from deploy.graph.blocks import Block
from deploy.spec.artifact import Artifact, Options
from deploy.spec.plan import BlockPlan

OUTSIDE = ""
"""Under this id stands what belongs to no block: changes of layout, copies."""


def block_times(
    graph: ir.Model,
    blocks: Sequence[Block] | Sequence[BlockPlan],
    backend: Backend,
    artifact: Artifact,
    options: Options,
    feeds: Arrays,
) -> dict[str, float]:
    """Milliseconds of one inference by block id; empty where the runtime does not say.

    ``graph`` is the one that ``artifact`` was lowered from, Q/DQ pairs included. A pair that is a kernel of
    its own counts for the block that makes its value, or reads it where none makes it. A block all of whose
    nodes became part of others' kernels has 0. Raises BackendError where the runtime fails.
    """
    times = backend.operation_times(artifact, options, feeds)
    if not times:
        return {}
    owners = {name: block.id for block in blocks for name in block.nodes}
    named = {node.name or "": node for node in graph.graph}
    total = {block.id: 0.0 for block in blocks}
    for name, ms in times.items():
        block = owners.get(name) or _beside(named.get(name), owners)
        total[block] = total.get(block, 0.0) + ms
    return total


def _beside(node: ir.Node | None, owners: dict[str, str]) -> str:
    """The block that makes what an inserted node reads, through other inserted ones; else the next after."""
    if node is None:
        return OUTSIDE
    before: ir.Node | None = node
    while before is not None:
        source = before.inputs[0] if before.inputs else None
        before = None if source is None else source.producer()
        if before is not None and (before.name or "") in owners:
            return owners[before.name or ""]
    waiting = list(node.successors())
    for after in waiting:
        if (after.name or "") in owners:
            return owners[after.name or ""]
        waiting.extend(after.successors())
    return OUTSIDE
