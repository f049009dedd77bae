"""Activations, and softmax."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Ready, Refused, axis_of
from backends.coreml.interpret.ops.elementwise import erf, ready_unary, unary


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, x.dtype.type(0))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def gelu(call: Call) -> np.ndarray:
    x, mode = call.array("x"), call.text("mode", "EXACT")
    if mode == "EXACT":
        return np.float32(0.5) * x * (1 + erf(x * np.float32(np.sqrt(0.5))))
    if mode == "TANH_APPROXIMATION":
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.float32(0.5) * x * (1 + np.tanh(inner))
    if mode == "SIGMOID_APPROXIMATION":
        return x * sigmoid(np.float32(1.702) * x)
    raise Refused(f"mode {mode}")


def leaky_relu(call: Call) -> np.ndarray:
    x = call.array("x")
    return np.where(x >= 0, x, x * np.float32(call.number("alpha")))


def elu(call: Call) -> np.ndarray:
    x = call.array("x")
    return np.where(x > 0, x, np.float32(call.number("alpha")) * np.expm1(np.minimum(x, 0)))


def prelu(call: Call) -> np.ndarray:
    x = call.array("x")
    return np.where(x > 0, x, x * along_channels(call.array("alpha"), x))


def along_channels(vector: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A number for each channel, the second axis, or one for all."""
    return vector.reshape((-1,) + (1,) * (x.ndim - 2))


def clamped_relu(call: Call) -> np.ndarray:
    x = call.array("x")
    alpha, beta = np.float32(call.number("alpha")), np.float32(call.number("beta"))
    return np.minimum(np.where(x >= 0, x, x * alpha), beta)


def linear_activation(call: Call) -> np.ndarray:
    return call.array("x") * np.float32(call.number("alpha")) + np.float32(call.number("beta"))


def scaled_tanh(call: Call) -> np.ndarray:
    return np.float32(call.number("alpha")) * np.tanh(call.array("x") * np.float32(call.number("beta")))


def sigmoid_hard(call: Call) -> np.ndarray:
    x = call.array("x") * np.float32(call.number("alpha")) + np.float32(call.number("beta"))
    return np.minimum(np.maximum(x, 0), 1)


def softplus_parametric(call: Call) -> np.ndarray:
    x = call.array("x")
    alpha, beta = (along_channels(call.array(name), x) for name in ("alpha", "beta"))
    return alpha * softplus(x * beta)


def thresholded_relu(call: Call) -> np.ndarray:
    x = call.array("x")
    return np.where(x >= np.float32(call.number("alpha")), x, 0)


def relu6(x: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(x, 0), 6)


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def softsign(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.abs(x))


def softmax_of(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    powers /= powers.sum(axis=axis, keepdims=True)
    return powers


def softmax(call: Call) -> np.ndarray:
    x = call.array("x")
    return softmax_of(x, axis_of(call.integer("axis", -1), x.ndim))


_UNARY = {
    "relu": relu, "relu6": relu6, "sigmoid": sigmoid, "silu": silu, "softplus": softplus,
    "softsign": softsign,
}  # fmt: skip
KERNELS: Mapping[str, Kernel] = {
    **{name: unary(compute) for name, compute in _UNARY.items()},
    "gelu": gelu, "leaky_relu": leaky_relu, "elu": elu, "prelu": prelu, "clamped_relu": clamped_relu,
    "linear_activation": linear_activation, "scaled_tanh": scaled_tanh, "sigmoid_hard": sigmoid_hard,
    "softplus_parametric": softplus_parametric, "thresholded_relu": thresholded_relu, "softmax": softmax,
}  # fmt: skip
READY: Mapping[str, Ready] = {name: ready_unary(compute) for name, compute in _UNARY.items()}
