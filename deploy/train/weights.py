"""Which weights a training may change, by patterns of their names, and how they come back into the graph."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
from torch import Tensor

from deploy.errors import UsageError
from deploy.execute.module import weight_names
from deploy.train.run import matches, statistics_names


def require_weights(model: ir.Model, patterns: Sequence[str]) -> None:
    """Raises UsageError where one of the ``patterns`` of trainable weights means none, or all mean statistics
    only."""
    weights = weight_names(model)
    known = weights | statistics_names(model)
    for pattern in patterns:
        if not any(map(matches([pattern]), known)):
            raise UsageError(
                f"[recipe] trainable: '{pattern}' is the name of no weight", hint=_near(pattern, known)
            )
    if not any(map(matches(patterns), weights)):
        raise UsageError(
            f"[recipe] trainable = {list(patterns)} are running statistics, which follow the data",
            hint=_near("", weights),
        )


def _near(pattern: str, known: Collection[str]) -> str:
    word = pattern.strip("*?")
    near = [name for name in sorted(known) if word and word.lower() in name.lower()]
    near = near or difflib.get_close_matches(word, sorted(known), n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    some = ", ".join(sorted(known)[:5]) or "none"
    return f"weights that can be trained: {some}{' ...' if len(known) > 5 else ''}"


def with_weights(model: ir.Model, weights: dict[str, Tensor]) -> ir.Model:
    """A copy of ``model`` with these weights by name, as plain arrays of the types that it had."""
    copy = model.clone()
    for name, tensor in weights.items():
        value = copy.graph.initializers[name]
        array = np.array(tensor.detach().cpu().numpy())
        value.const_value = ir.tensor(array, dtype=value.dtype, name=name)
    return copy
