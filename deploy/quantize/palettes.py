"""Weights that stay floats and share few values: what a plan says of them."""

from __future__ import annotations

import onnx_ir as ir

from deploy.adapter.protocol import Backend, Palettizes
from deploy.graph.edit import constant
from deploy.graph.palette import ANY_PALETTE, PaletteForms, shared_palette
from deploy.graph.qdq import data_digest
from deploy.graph.weights import large_weights, output_axis
from deploy.spec.plan import PalettePlan
from deploy.spec.profile import Runtime


def palettes_of(graph: ir.Model, forms: PaletteForms = ANY_PALETTE) -> dict[str, PalettePlan]:
    """By name the large float weights of ``graph`` that a codebook and indices say in fewer bytes, as
    ``forms`` allow. They are found from the weights themselves: whatever came between clustering and here,
    what is found is true."""
    found = {}
    for name, uses in large_weights(graph).items():
        array = constant(graph.graph.initializers[name])
        shared = None if array is None else shared_palette(array, output_axis(*uses[0], array.ndim), forms)
        if shared is not None:
            palette = shared.palette
            found[name] = PalettePlan(
                values=palette.codebook.shape[1],
                bits=shared.bits,
                axis=palette.axis,
                size=palette.size,
                masked=shared.masked,
                digest=data_digest(palette.values()),
            )
    return found


def palette_forms(backend: Backend, runtime: Runtime) -> PaletteForms:
    """The palettes that a runtime stores; any where it stores the floats that they stand for."""
    return backend.palette_forms(runtime) if isinstance(backend, Palettizes) else ANY_PALETTE
