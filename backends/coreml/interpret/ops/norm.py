"""Normalisations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Refused, axis_of
from backends.coreml.interpret.ops.activation import along_channels
from backends.coreml.interpret.ops.windows import padded


def batch_norm(call: Call) -> np.ndarray:
    x = call.array("x")
    mean, variance = (along_channels(call.array(name), x) for name in ("mean", "variance"))
    factor = 1 / np.sqrt(variance + np.float32(call.number("epsilon", 1e-5)))
    gamma, beta = call.maybe("gamma"), call.maybe("beta")
    if gamma is not None:
        factor = factor * along_channels(gamma, x)
    y = (x - mean) * factor
    return y if beta is None else y + along_channels(beta, x)


def _standardised(x: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    y = x - x.mean(axis=axes, keepdims=True)
    variance = np.mean(y * y, axis=axes, keepdims=True)
    y /= np.sqrt(variance + np.float32(epsilon))
    return y


def instance_norm(call: Call) -> np.ndarray:
    x = call.array("x")
    y = _standardised(x, tuple(range(2, x.ndim)), call.number("epsilon", 1e-5))
    gamma, beta = call.maybe("gamma"), call.maybe("beta")
    y = y if gamma is None else y * along_channels(gamma, x)
    return y if beta is None else y + along_channels(beta, x)


def layer_norm(call: Call) -> np.ndarray:
    x = call.array("x")
    axes = sorted({axis_of(axis, x.ndim) for axis in call.integers("axes", range(x.ndim))})
    y = _standardised(x, tuple(axes), call.number("epsilon", 1e-5))
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    gamma, beta = call.maybe("gamma"), call.maybe("beta")
    y = y if gamma is None else y * gamma.reshape(shape)
    return y if beta is None else y + beta.reshape(shape)


def l2_norm(call: Call) -> np.ndarray:
    x = call.array("x")
    if x.ndim < 3:
        raise Refused(f"a tensor of rank {x.ndim}")
    squares = np.sum(x * x, axis=(-3, -2, -1), keepdims=True)
    return x / np.sqrt(squares + np.float32(call.number("epsilon", 1e-6)))


def local_response_norm(call: Call) -> np.ndarray:
    """Over neighbouring channels, the second axis; of rank 3 the first.

    So coremltools' tests have it, which Core ML passes; its page says the second one for rank 3, too.
    """
    x, size = call.array("x"), call.integer("size")
    if x.ndim < 3:
        raise Refused(f"a tensor of rank {x.ndim}")
    axis = 0 if x.ndim == 3 else 1
    count = x.shape[axis]
    if size < 1:
        raise Refused(f"size {size}")
    before, behind = (min(reach, count - 1) for reach in (size // 2, (size - 1) // 2))
    alpha, beta = np.float32(call.number("alpha", 1e-4)), np.float32(call.number("beta", 0.75))
    k = np.float32(call.number("k", 1.0))
    squares = padded(np.moveaxis(x * x, axis, 0), [(before, behind), *[(0, 0)] * (x.ndim - 1)])
    total = np.zeros_like(squares[:count])
    for at in range(before + behind + 1):
        total += squares[at : at + count]
    return x / np.power(k + alpha / size * np.moveaxis(total, 0, axis), beta)


KERNELS: Mapping[str, Kernel] = {
    "batch_norm": batch_norm, "instance_norm": instance_norm, "layer_norm": layer_norm, "l2_norm": l2_norm,
    "local_response_norm": local_response_norm,
}  # fmt: skip
