"""Cleaning: the same network with what does nothing taken out and what is constant computed.

Batch normalization stays as it is (compression and training want it); `fuse` folds it later. Inputs and
outputs keep their names and order, every value that survives keeps its name.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from deploy.graph.branches import choose_branches
from deploy.graph.fold import fold_constants, fold_shapes
from deploy.graph.noop import drop_noops, merge_reshapes, merge_slices, merge_transposes
from deploy.graph.rewrite import Prove, Rewrite, Rewritten, Steps, rewrite
from deploy.graph.sequences import split_sequences
from deploy.graph.spelling import (
    drop_zero_biases,
    merge_batched_transposes,
    plain_targets,
    pool_globally,
    settle_casts,
)

__all__ = ["STEPS", "Prove", "Rewrite", "Rewritten", "clean"]

_TINY = 64
"""Bytes. Below that a float constant is a number or two rather than a parameter of one layer."""


def clean(model: ir.Model, prove: Prove) -> Rewritten:
    """Run `STEPS` until nothing changes; each is proved equal, and never makes the model larger."""
    return rewrite(model, STEPS, prove)


def drop_dead_code(model: ir.Model) -> int:
    """Nodes and initializers that no output depends on."""
    return int(passes.RemoveUnusedNodesPass()(model).modified)


def merge_equal_nodes(model: ir.Model) -> int:
    """The same operation on the same values is computed once. Never where it is random."""
    if any(node.op_type == "Bernoulli" for node in model.graph):  # unknown to the pass
        return 0
    return int(passes.CommonSubexpressionEliminationPass()(model).modified)


def merge_equal_constants(model: ir.Model) -> int:
    """Equal constants are stored once: indices, numbers, and tensors of two and more axes.

    Float vectors are left alone. That the biases of two layers are equal, all zero mostly, is chance, and
    what trains or prunes one of them must not change the other.
    """
    alike: dict[tuple[ir.DataType, tuple[int, ...], bytes], list[ir.Value]] = defaultdict(list)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output() or tensor.dtype.is_string():
            continue
        shape = tuple(tensor.shape.numpy())
        if not (tensor.dtype.is_floating_point() and len(shape) < 2 and tensor.nbytes > _TINY):
            start = tensor.numpy().flat[:16].tobytes()  # most differ there already and need not be read
            alike[tensor.dtype, shape, start].append(value)
    merged = 0
    for values in alike.values():
        first: dict[bytes, ir.Value] = {}
        for value in values if len(values) > 1 else ():
            assert value.const_value is not None and value.name is not None
            digest = hashlib.blake2b(np.ascontiguousarray(value.const_value.numpy()).data.cast("B")).digest()
            kept = first.setdefault(digest, value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del model.graph.initializers[value.name]
                merged += 1
    return merged


STEPS: Steps = {
    # First what costs nothing and shortens everything after it.
    "drop dead code": drop_dead_code,
    "drop no-ops": drop_noops,
    # A type that is known is a constant too.
    "settle casts": settle_casts,
    # Before constants: what is computed as zeros is no parameter yet.
    "drop zero biases": drop_zero_biases,
    # Sizes before constants: a computed Reshape target becomes a number, what led to it goes unevaluated.
    "fold shapes": fold_shapes,
    "fold constants": fold_constants,
    # Conditions are constants by now; the next round sees into the branch.
    "choose branches": choose_branches,
    # Sizes and positions are constants by now.
    "split sequences": split_sequences,
    "plain reshape targets": plain_targets,
    "pool globally": pool_globally,
    "merge batched transposes": merge_batched_transposes,
    # Pairs are only seen side by side once what stood between them is gone.
    "merge transposes": merge_transposes,
    "merge reshapes": merge_reshapes,
    "merge slices": merge_slices,
    # Constants before nodes: nodes are equal only if they read the very same constant.
    "merge equal constants": merge_equal_constants,
    "merge equal nodes": merge_equal_nodes,
}
