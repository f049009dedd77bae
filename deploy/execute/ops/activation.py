"""Activations, those along an axis among them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

ops.row("HardSwish", functional.hardswish)
ops.row("Mish", functional.mish)
ops.row("Relu", torch.relu)
ops.row("Sigmoid", torch.sigmoid)
ops.row("Softplus", functional.softplus)
ops.row("Softsign", functional.softsign)
ops.row("Tanh", torch.tanh)

_SELU = 1.67326319217681884765625, 1.05070102214813232421875


@ops.kernel("LeakyRelu")
def leaky_relu(node: Node) -> Kernel:
    alpha = node.real("alpha", 0.01)
    return lambda x: functional.leaky_relu(x, alpha)


@ops.kernel("PRelu")
def prelu(_: Node) -> Kernel:
    def run(x: Tensor, slope: Tensor) -> Tensor:
        per_channel = (
            slope.ndim == x.ndim - 1 and x.ndim > 1 and slope.numel() == slope.shape[0] == x.shape[1]
        )
        if x.is_floating_point() and x.dtype == slope.dtype and (per_channel or slope.numel() == 1):
            return functional.prelu(x, slope.reshape(-1))
        return torch.where(x < 0, x * slope, x)

    return run


@ops.kernel("ThresholdedRelu")
def thresholded_relu(node: Node) -> Kernel:
    alpha = node.real("alpha", 1.0)
    return lambda x: functional.threshold(x, alpha, 0.0)


@ops.kernel("Elu")
def elu(node: Node) -> Kernel:
    alpha = node.real("alpha", 1.0)
    return lambda x: functional.elu(x, alpha)


@ops.kernel("Celu")
def celu(node: Node) -> Kernel:
    alpha = node.real("alpha", 1.0)
    return lambda x: functional.celu(x, alpha)


@ops.kernel("Selu")
def selu(node: Node) -> Kernel:
    alpha, gamma = node.real("alpha", _SELU[0]), node.real("gamma", _SELU[1])
    if (alpha, gamma) == _SELU:
        return functional.selu
    return lambda x: gamma * functional.elu(x, alpha)


@ops.kernel("Gelu")
def gelu(node: Node) -> Kernel:
    approximate = node.string("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


@ops.kernel("HardSigmoid")
def hard_sigmoid(node: Node) -> Kernel:
    alpha, beta = node.real("alpha", 0.2), node.real("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return functional.hardsigmoid
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


@ops.kernel("Shrink")
def shrink(node: Node) -> Kernel:
    bias, limit = node.real("bias"), node.real("lambd", 0.5)

    def run(x: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=x.dtype, device=x.device)
        outer = torch.where(x > limit, x - bias, zero)
        return torch.where(x < -limit, x + bias, outer).to(x.dtype)

    return run


@ops.kernel("Swish")
def swish(node: Node) -> Kernel:
    alpha = node.real("alpha", 1.0)
    if alpha == 1.0:
        return functional.silu
    return lambda x: x * torch.sigmoid(alpha * x)


@ops.kernel("Softmax")
def softmax(node: Node) -> Kernel:
    axis = node.integer("axis", -1)
    return lambda x: torch.softmax(x, axis)


@ops.kernel("LogSoftmax")
def log_softmax(node: Node) -> Kernel:
    axis = node.integer("axis", -1)
    return lambda x: torch.log_softmax(x, axis)


@ops.kernel("Hardmax")
def hardmax(node: Node) -> Kernel:
    axis = node.integer("axis", -1)

    def run(x: Tensor) -> Tensor:
        first = torch.argmax(x, axis, keepdim=True)
        return torch.zeros_like(x).scatter(axis, first, 1)

    return run


@ops.kernel("SwiGLU")
def swiglu(node: Node) -> Kernel:
    gate = swish(node)
    return lambda a, b: gate(a) * b
