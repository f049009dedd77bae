"""Weights that stay floats and share few values: what a plan says of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.adapter.protocol import Backend, Palettizes
from deploy.graph.edit import constant, constant_tensor, weight_bytes
from deploy.graph.palette import ANY_PALETTE, PaletteForms, shared_palette
from deploy.graph.qdq import data_digest
from deploy.graph.weights import fits_half, large_weights, output_axis
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


def stored_bytes(graph: ir.Model, backend: Backend, runtime: Runtime) -> int:
    """Bytes of all constants of a float graph as a runtime stores them: where its format has palettes these
    count, zeros that it leaves out do not, and floats are float16 where it computes so."""
    total = weight_bytes(graph)
    if not isinstance(backend, Palettizes):
        return total
    forms = backend.palette_forms(runtime)
    large = large_weights(graph)
    for name, value in graph.graph.initializers.items():
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        if name not in large:
            total -= tensor.nbytes // 2 if forms.half else 0
            continue
        array = constant(value)
        assert array is not None
        shared = shared_palette(array, output_axis(*large[name][0], array.ndim), forms)
        stored = array.astype(np.float16) if forms.half and fits_half(array) else array
        total -= array.nbytes - (forms.plain_bytes(stored) if shared is None else shared.bytes)
    return total


def palette_forms(backend: Backend, runtime: Runtime) -> PaletteForms:
    """The palettes that a runtime stores; any where it stores the floats that they stand for."""
    return backend.palette_forms(runtime) if isinstance(backend, Palettizes) else ANY_PALETTE
