"""The graph for a device that takes no free sizes."""

from __future__ import annotations

import onnx_ir as ir

from deploy.errors import UnsupportedError
from deploy.graph.fold import fold_shapes
from deploy.graph.shapes import batch_axis, free_dimensions, pin


def fix_batch(graph: ir.Model) -> ir.Model:
    """The graph with a free batch fixed at 1; itself where nothing is free.

    Raises UnsupportedError where another size is free, with the flag that fixes it.
    """
    free = free_dimensions(graph)
    batch = batch_axis(graph)
    others = [f"'{name}' of {places[0][0]}" for name, places in free.items() if name != batch]
    if others:
        raise UnsupportedError(
            f"this device takes fixed sizes only, and these are free: {', '.join(others)}",
            hint=f"fix them, for example --shape {_example(graph)}",
        )
    return pin_batch(graph)


def pin_batch(graph: ir.Model) -> ir.Model:
    """The graph with a free batch fixed at 1; itself where it has none."""
    free, batch = free_dimensions(graph), batch_axis(graph)
    if batch is None:
        return graph
    fixed = pin(graph, {name: _ones(graph, name, axis) for name, axis in free[batch]})
    fold_shapes(fixed)  # what was computed from the batch is a number now
    return fixed


def _ones(graph: ir.Model, name: str, axis: int) -> list[int | None]:
    shape = next(v.shape for v in graph.graph.inputs if v.name == name)
    return [1 if i == axis else None for i in range(len(shape or ()))]


def _example(graph: ir.Model) -> str:
    """How the sizes of the first input with free ones could be given."""
    name = next(places[0][0] for places in free_dimensions(graph).values())
    shape = next(v.shape for v in graph.graph.inputs if v.name == name)
    return f"{name}=" + ",".join(
        str(d) if isinstance(d, int) else "1" if i == 0 else "N" for i, d in enumerate(shape or ())
    )
