"""2:4 zeros as a choice of single blocks: what weights become, what that harms, the graph that has them.

The weights are made once, each by itself (optimal brain surgeon on calibration samples), so that any blocks
may be chosen. Whether they are is up to the knapsack (`pays.py`, `mix.py`), together with the precisions.
Ranges stay those of the dense graph, whose values the sparse one is to make.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

import numpy as np

from deploy.data.dataset import Dataset
from deploy.errors import UsageError
from deploy.frontend.onnx_file import digest
from deploy.graph.edit import replace_weight
from deploy.progress import SILENT, Progress
from deploy.quantize.candidate import Subject
from deploy.quantize.place import find_chains
from deploy.spec.compression import Sparsify

_SAMPLES = 128
"""Fewer than a step of a recipe takes: here nobody asked for zeros."""


@dataclass(frozen=True)
class SparseWeights:
    """By block the weights with 2:4 zeros that its products may have, by node; ``harm`` is relative noise
    power at the block's end, as `mix.harm_of` counts it."""

    weights: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    harm: Mapping[str, float] = field(default_factory=dict)


NO_SPARSE_WEIGHTS = SparseWeights()


def why_dense(subject: Subject) -> str:
    """Why 2:4 zeros are no option for a subject whose runtime has something for them; empty where they are,
    or where it has nothing."""
    name, sparsity, refined = subject.runtime.name, subject.runtime.sparsity, subject.refinement
    if sparsity is None:
        return ""
    if subject.runtime.sparsity_gain <= 1:
        unknown = sparsity.gain == "unknown"
        known = "how much faster they are is unknown" if unknown else "they are no faster there"
        return f"2:4 zeros are not chosen for {name}: {known}"
    if refined.rounded is not None or refined.trained is not None or refined.correction is not None:
        return f"2:4 zeros are not chosen for {name}: weights or biases were fitted to the dense ones"
    if find_spec("torch") is None:
        return f"2:4 zeros are not chosen for {name}: PyTorch is not installed"
    return ""


def sparse_weights(
    subject: Subject,
    calibration: Dataset,
    *,
    seed: int,
    threads: int,
    progress: Progress = SILENT,
) -> SparseWeights:
    """Those of all blocks in which all products that are not excluded can have them; none where the runtime
    does not gain by them. Raises DataError where there are fewer than two batches of samples."""
    if subject.runtime.sparsity_gain <= 1 or subject.imported or why_dense(subject):
        return NO_SPARSE_WEIGHTS
    from deploy.compress.sparsify import each_alone

    step = Sparsify(samples=_SAMPLES, permute=False)
    found = each_alone(subject.graph, calibration, step, seed=seed, threads=threads, progress=progress)
    weights: dict[str, dict[str, np.ndarray]] = {}
    harm: dict[str, float] = {}
    for block in subject.blocks:
        own = [name for name in block.nodes if name in found]
        if own and subject.excluded.isdisjoint(block.nodes):
            weights[block.id] = {name: found[name][0] for name in own}
            harm[block.id] = sum(found[name][1] for name in own)
    return SparseWeights(weights, harm)


def with_sparse(subject: Subject, sparse: SparseWeights, blocks: Collection[str]) -> Subject:
    """The subject with 2:4 zeros in the weights of ``blocks``. Raises UsageError where one can have none."""
    if not blocks:
        return subject
    unknown = sorted(set(blocks) - sparse.weights.keys())
    if unknown:
        raise UsageError(
            f"the lock has 2:4 zeros in block '{unknown[0]}', which can have none here",
            hint="build without --lock and keep the new deploy.lock",
        )
    graph = subject.graph.clone()
    nodes = {node.name or "": node for node in graph.graph}
    for block in blocks:
        for name, array in sparse.weights[block].items():
            replace_weight(graph, nodes[name], 1, array)
    return replace(
        subject,
        graph=graph,
        graph_sha256=digest(graph),
        chains=find_chains(graph, subject.blocks, subject.runtime),
        refinement=replace(subject.refinement, sparse=frozenset(blocks)),
    )
