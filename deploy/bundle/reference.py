"""The reference of a bundle made again: the graph that says, node by node, what its artifact computes.

It is the Q/DQ graph of the bundle's float graph, by its plan. The plan has the digests of the weights'
integers, so that what is made is what was planned, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from deploy.bundle.read import GRAPH, Bundle
from deploy.errors import VerificationError
from deploy.graph.edit import constant
from deploy.graph.qdq import data_digest, insert, quantize_array
from deploy.graph.shapes import infer
from deploy.quantize.forms import BY_THE_USER, WeightForm, store_weights
from deploy.spec.plan import Plan, TensorPlan
from deploy.spec.profile import Runtime

_LIMITS = ((None, None), (-127, 127), (-64, 64), (-7, 7))
"""Ranges of the integers of weights, by a runtime's rules."""


def reference_of(
    bundle: Bundle, plan: Plan, runtime: Runtime, stored: Callable[[], Mapping[str, np.ndarray]]
) -> ir.Model:
    """The graph that a bundle's artifact was verified against.

    Integers of weights that are not simply rounded are taken from those ``stored`` in the artifact. Raises
    VerificationError where what comes of it is not what the plan says.
    """
    graph = infer(ir.load(bundle.folder / GRAPH))
    form = form_of(plan, runtime)
    if form is not None:
        return _in_form(graph, plan, form, runtime, bundle)
    codes = {}
    for name, tensor in plan.tensors.items():
        value = graph.graph.initializers.get(name)
        if value is None:
            continue
        array = constant(value)
        assert array is not None
        codes[name] = _codes(array, name, tensor, stored, bundle)
    return insert(graph, plan.tensors, codes) if plan.tensors else graph


def _codes(
    array: np.ndarray,
    name: str,
    tensor: TensorPlan,
    stored: Callable[[], Mapping[str, np.ndarray]],
    bundle: Bundle,
) -> np.ndarray:
    for low, high in _LIMITS:
        found = quantize_array(array, tensor, low=low, high=high)
        if data_digest(found) == tensor.digest:
            return found
    kept = stored()
    if name in kept and data_digest(kept[name]) == tensor.digest:
        return kept[name]
    raise VerificationError(
        f"{bundle.folder}: the integers that were planned for '{name}' are neither its rounded numbers nor "
        "those in the artifact",
        hint="build again",
    )


def form_of(plan: Plan, runtime: Runtime) -> WeightForm | None:
    """The form of the weights, where that is all that was asked for; ``dynamic`` stores others as ``w8``."""
    precisions = {block.precision for block in plan.blocks} - {runtime.float_precision}
    return next((form for form in ("dynamic", "fp16", "w8", "w4") if form in precisions), None)


def _in_form(graph: ir.Model, plan: Plan, form: WeightForm, runtime: Runtime, bundle: Bundle) -> ir.Model:
    excluded = {name for block in plan.blocks if block.reason == BY_THE_USER for name in block.nodes}
    made = store_weights(graph, form, runtime, excluded)
    if {n: (t.scale, t.digest) for n, t in made.tensors.items()} != {
        n: (t.scale, t.digest) for n, t in plan.tensors.items()
    }:
        raise VerificationError(
            f"{bundle.folder}: weights in the form {form} are not what was planned", hint="build again"
        )
    return made.literal()
