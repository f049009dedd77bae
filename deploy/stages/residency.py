"""What the accelerators of a runtime would compute of the graph that it compiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from pydantic import JsonValue

from deploy.graph.residency import residency
from deploy.graph.shapes import pin
from deploy.spec.ends import shapes_of
from deploy.spec.profile import Runtime
from deploy.spec.residency import Residency
from deploy.spec.unit import Rewriting


def residencies(
    graph: ir.Model, runtime: Runtime, chosen: Mapping[str, JsonValue] | None = None
) -> tuple[Residency, ...]:
    """For each unit of the profile, by the options that an artifact is made with; ``chosen`` win.

    Where shapes were listed for inputs, every one of them is fixed: the first one stands for them. What would
    take a reason away is left out where the runtime's graph has been through it already.
    """
    listed = {
        name: shapes_of(sizes)[0]
        for name, sizes in runtime.asked.sizes.items()
        if isinstance(sizes[0], tuple)
    }
    graph = pin(graph, listed) if listed else graph
    given = {**runtime.options, **(chosen or {})}
    options = {key: value for key, value in given.items() if isinstance(value, bool | int | str)}
    return tuple(
        _without(residency(graph, name, unit, options), runtime.rewrites)
        for name, unit in runtime.unit.items()
    )


def _without(found: Residency, done: Sequence[Rewriting]) -> Residency:
    rules = tuple(
        rule.model_copy(update={"remedies": tuple(r for r in rule.remedies if r not in done)})
        for rule in found.rules
    )
    return found.model_copy(update={"rules": rules})
