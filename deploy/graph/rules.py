"""The rules by which a graph takes the form that one runtime wants: profiles name them (`Runtime.rewrites`).

They come after fusion and before calibration, so that what they write out is calibrated and quantized like
everything else. Each is proved equal like every step of rewriting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from deploy.graph.batches import fold_batches
from deploy.graph.gathered import gather_as_slices
from deploy.graph.group_norm import join_group_norm
from deploy.graph.pointwise import linear_as_convolution
from deploy.graph.rewrite import Prove, Rewritten, rewrite
from deploy.graph.turns import fewer_transposes
from deploy.graph.unroll import unroll_recurrent
from deploy.spec.unit import Rewriting

RULES: Mapping[Rewriting, Callable[[ir.Model], int]] = {
    "join-group-norm": join_group_norm,
    "unroll-recurrent": unroll_recurrent,
    "gather-as-slices": gather_as_slices,
    "fold-batches": fold_batches,
    "linear-as-convolution": linear_as_convolution,
    "fewer-transposes": fewer_transposes,
}
"""By name: changes the model in place and returns how often."""

_RECURRENT = frozenset(("LSTM", "GRU", "RNN"))

_ABOUT: Mapping[Rewriting, frozenset[str]] = {
    "join-group-norm": frozenset(("InstanceNormalization",)),
    "unroll-recurrent": _RECURRENT,
    "gather-as-slices": frozenset(("Gather",)),
    "fold-batches": frozenset(("MatMul",)),
    "linear-as-convolution": _RECURRENT | {"MatMul", "Gemm"},
    "fewer-transposes": frozenset(("Transpose", "MatMul")),
}
"""The operations that a rule rewrites, or that another rule turns into such."""

_GROWTH = 1 << 20
"""Bytes by which constants may grow: shapes, and a bias for each step."""


def rules_for(model: ir.Model, names: Sequence[Rewriting]) -> tuple[Rewriting, ...]:
    """Those of the rules that may find something to rewrite."""
    present = {node.op_type for node in model.graph}
    return tuple(name for name in names if _ABOUT[name] & present)


def apply_rules(model: ir.Model, names: Sequence[Rewriting], prove: Prove) -> Rewritten:
    """A graph rewritten by rules; ``model`` itself stays as it is."""
    return rewrite(model, {name: RULES[name] for name in names}, prove, growth=_GROWTH)
