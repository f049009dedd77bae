"""Weights that stay floats and share few values: what a plan says of them."""

from __future__ import annotations

import onnx_ir as ir

from deploy.graph.edit import constant
from deploy.graph.palette import shared_palette
from deploy.graph.qdq import data_digest
from deploy.graph.weights import large_weights, output_axis
from deploy.spec.plan import PalettePlan


def palettes_of(graph: ir.Model) -> dict[str, PalettePlan]:
    """By name the large float weights of ``graph`` that a codebook and indices say in fewer bytes, found from
    the weights themselves: whatever came between clustering and here, what is found is true."""
    found = {}
    for name, uses in large_weights(graph).items():
        array = constant(graph.graph.initializers[name])
        palette = None if array is None else shared_palette(array, output_axis(*uses[0], array.ndim))
        if array is not None and palette is not None:
            found[name] = PalettePlan(
                values=palette.codebook.shape[1],
                bits=palette.bits,
                axis=palette.axis,
                size=palette.size,
                digest=data_digest(array),
            )
    return found
