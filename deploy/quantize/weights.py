"""Weights alone as integers: the form for which no ranges of activations are needed.

8 bits  symmetric, per output channel, codes in [-127, 127]
4 bits  the same in [-7, 7], the scale of each channel being that which loses least
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant
from deploy.graph.qdq import data_digest, quantize_array
from deploy.graph.weights import large_weights
from deploy.quantize.assign import Assignment, common_axis, half_scale
from deploy.spec.plan import QuantParams, TensorPlan
from deploy.spec.tensors import QuantType

_SMALLEST_SCALE = 1e-12
_SHRINK = np.linspace(1.0, 0.5, 26)
"""What is tried of the scale that covers a channel: at 4 bits it is better to clip a little."""


def assign_weights(
    model: ir.Model, bits: int, excluded: Collection[str] = (), *, half: bool = False
) -> Assignment:
    """Parameters and integers of every large weight that no node in ``excluded`` reads. ``half``: scales are
    float16 numbers."""
    kind: QuantType = "int8" if bits == 8 else "int4"
    limit = 2 ** (bits - 1) - 1
    tensors, codes = {}, {}
    for name, uses in large_weights(model, excluded).items():
        array = constant(model.graph.initializers[name])
        assert array is not None
        if not np.isfinite(array).all():
            continue
        axis = common_axis(uses, array.ndim)
        scale = weight_scales(array, axis, limit, search=bits < 8)
        scale = half_scale(scale) if half else scale
        params = QuantParams(
            type=kind, scale=tuple(map(float, scale)), zero_point=(0,) * scale.size, axis=axis
        )
        codes[name] = quantize_array(array, params, low=-limit, high=limit)
        tensors[name] = TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes[name]))
    return Assignment(tensors, codes)


def weight_scales(array: np.ndarray, axis: int | None, limit: int, *, search: bool) -> np.ndarray:
    """One float32 for each channel along ``axis``, or a single one; by ``search`` that which loses least."""
    rows = (
        array.reshape(1, -1) if axis is None else np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    )
    full = np.maximum(np.abs(rows).max(axis=1).astype(np.float64) / limit, _SMALLEST_SCALE)
    best, least = full, np.full(len(rows), np.inf)
    for part in _SHRINK if search else _SHRINK[:1]:
        scale = (full * part).astype(np.float32)[:, None]
        error = np.square(np.clip(np.rint(rows / scale), -limit, limit) * scale - rows).sum(axis=1)
        best, least = np.where(error < least, full * part, best), np.minimum(error, least)
    return np.asarray(best, np.float32)
