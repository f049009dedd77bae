"""Channels taken out of a graph: constants sliced, shape arithmetic rewritten, the result checked.

    Conv 64 -> Reshape [0, 8, 8, -1] -> ...        with 16 channels gone: Conv 48, Reshape [0, 8, 6, -1]

What is left computes what the graph computed with the channels zeroed where they are read: `graph/masked.py`.
Only the statistics of normalisations are those of the channels that are left.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from deploy.errors import ModelError, UsageError
from deploy.graph.edit import constant
from deploy.graph.groups import Groups, copied
from deploy.graph.labels import sizes_of, varying
from deploy.graph.shapes import infer, pin
from deploy.graph.shrink_nodes import EDITS, Cut


def shrink(model: ir.Model, groups: Groups, removed: Collection[int]) -> ir.Model:
    """A copy of ``model`` without the atoms ``removed``; ``groups`` are those of this very graph.

    Raises UsageError for an atom that there is not, and where nothing of a constant or value would be left,
    naming it; ModelError where the sizes of the result do not come out as they should: some shape arithmetic
    is spelt in a way that was not understood.
    """
    unknown = set(removed) - set(groups.atoms)
    if unknown:
        raise UsageError(
            f"there is no atom {min(unknown)} to remove", hint="take the labels of `find_groups`' atoms"
        )
    gone = np.zeros(1 + max(groups.atoms, default=0), bool)
    gone[list(removed)] = True
    cut = Cut(copied(model), groups, gone)
    _refuse_empty(cut)
    _slice_constants(cut)
    for node in list(cut.model.graph):
        edit = EDITS.get(node.op_type)
        if edit is not None and node.domain in ("", "ai.onnx"):
            edit(cut, node)
    infer(cut.model)
    _check(cut)
    return cut.model


def _refuse_empty(cut: Cut) -> None:
    for slot in cut.groups.slots:
        if cut.gone[slot.labels].all():
            raise UsageError(
                f"nothing would be left of {slot.tensor}, which {slot.node} reads",
                hint="leave at least one atom of every family",
            )
    for name, ids in cut.groups.values.items():
        if cut.gone[ids].all():
            raise UsageError(
                f"nothing would be left of the value {name}", hint="leave some of the atoms that it holds"
            )


def _slice_constants(cut: Cut) -> None:
    """Each constant once, whoever reads it: its readers agree."""
    kept: dict[str, dict[int, np.ndarray]] = {}
    for slot in cut.groups.slots:
        if cut.gone[slot.labels].any():
            kept.setdefault(slot.tensor, {})[slot.axis] = np.flatnonzero(~cut.gone[slot.labels])
    for name, axes in kept.items():
        old = cut.model.graph.initializers[name]
        array = constant(old)
        assert array is not None
        for axis, indices in axes.items():
            array = np.take(array, indices, axis)
        del cut.model.graph.initializers[name]
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        new = ir.Value(name=name, type=old.type, shape=ir.Shape(array.shape), const_value=tensor)
        old.replace_all_uses_with(new)
        cut.model.graph.register_initializer(new)


def _check(cut: Cut) -> None:
    """With the sizes that the groups were found with, every value has lost just what it should."""
    small = pin(cut.model, cut.groups.inputs)
    for node in small.graph:
        for value in node.outputs:
            before = cut.groups.sizes.get(value.name or "")
            if before is None:
                continue
            ids = cut.groups.values.get(value.name or "")
            wanted = list(before)
            if ids is not None:
                wanted[varying(ids)[0]] = int((~cut.gone[ids.reshape(-1)]).sum())
            known = value.shape is not None and value.shape.is_static()
            if not known or list(sizes_of(value)) != wanted:
                raise ModelError(
                    f"{node.op_type} '{node.name}': {value.name} should have the sizes {wanted} without the "
                    f"channels removed, not {list(sizes_of(value)) if known else 'unknown ones'}",
                    hint="protect the layers before this node, and report the graph",
                )
