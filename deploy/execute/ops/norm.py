"""Normalisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()


@ops.kernel("BatchNormalization")
def batch_norm(node: Node) -> Kernel:
    """While training, and if :class:`~deploy.execute.optable.Mode` says so, with the batch's own statistics.

    The running ones are then moved in place, as torch does it (the variance unbiased): they are the graph's.
    """
    epsilon, keep, mode = node.real("epsilon", 1e-5), node.real("momentum", 0.9), node.mode
    if node.flag("training_mode"):
        return _batch_statistics(epsilon, keep)
    learns = node.constant(3) is not None and node.constant(4) is not None

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        if learns and mode.training and mode.batch_statistics:
            share = 1.0 - keep if mode.momentum is None else mode.momentum
            return functional.batch_norm(x, mean, variance, scale, bias, True, share, epsilon)
        return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    return run


def _batch_statistics(epsilon: float, keep: float) -> Kernel:
    """ONNX's own training mode, which returns the running statistics instead of changing them."""

    def run(
        x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        y = functional.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
        with torch.no_grad():
            axes = [axis for axis in range(x.ndim) if axis != 1]
            batch_variance, batch_mean = torch.var_mean(x.to(mean.dtype), axes, correction=0)
            moved = mean * keep + batch_mean * (1 - keep), variance * keep + batch_variance * (1 - keep)
        return y, *moved

    return run


@ops.kernel("InstanceNormalization")
def instance_norm(node: Node) -> Kernel:
    epsilon = node.real("epsilon", 1e-5)
    # torch.group_norm, other than functional's instance_norm, takes planes of one element too.
    return lambda x, scale, bias: torch.group_norm(x, x.shape[1], scale, bias, epsilon)


@ops.kernel("GroupNormalization")
def group_norm(node: Node) -> Kernel:
    epsilon, groups = node.real("epsilon", 1e-5), node.integer("num_groups", 1)
    by_group = node.version < 21  # scale and bias had one value a group

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if by_group and groups != x.shape[1]:
            scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
        return torch.group_norm(x, groups, scale, bias, epsilon)

    return run


@ops.kernel("LayerNormalization")
def layer_norm(node: Node) -> Kernel:
    epsilon, axis = node.real("epsilon", 1e-5), node.integer("axis", -1)
    statistics = node.wants(1) or node.wants(2)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            y = functional.layer_norm(x, shape, scale, bias, epsilon)
        else:
            y = functional.layer_norm(x, shape, None, None, epsilon) * scale
            y = y if bias is None else y + bias
        if not statistics:
            return y
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        variance, mean = torch.var_mean(wide, tuple(range(axis % x.ndim, x.ndim)), correction=0, keepdim=True)
        return y, mean, torch.rsqrt(variance + epsilon)

    return run


@ops.kernel("RMSNormalization")
def rms_norm(node: Node) -> Kernel:
    epsilon, axis = node.real("epsilon", 1e-5), node.integer("axis", -1)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        shape = list(x.shape[axis:])
        if list(scale.shape) == shape and scale.dtype == x.dtype:
            return functional.rms_norm(x, shape, scale, epsilon)
        return functional.rms_norm(x, shape, None, epsilon) * scale

    return run


@ops.kernel("LpNormalization")
def lp_normalization(node: Node) -> Kernel:
    p, axis = node.integer("p", 2), node.integer("axis", -1)

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
        return x / torch.where(norm == 0, 1, norm)

    return run


@ops.kernel("MeanVarianceNormalization")
def mean_variance_normalization(node: Node) -> Kernel:
    axes = node.integers("axes", (0, 2, 3))

    def run(x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        some = variance > 0  # the root has no slope at nought
        return (x - mean) / (torch.where(some, variance, 1).sqrt() * some + 1e-9)

    return run


@ops.kernel("LRN")
def lrn(node: Node) -> Kernel:
    alpha, beta, bias = node.real("alpha", 1e-4), node.real("beta", 0.75), node.real("bias", 1.0)
    size = node.integer("size", 1)

    def run(x: Tensor) -> Tensor:
        squares = (x * x).reshape(x.shape[0], 1, x.shape[1], -1)
        squares = functional.pad(squares, (0, 0, (size - 1) // 2, size // 2))
        mean = functional.avg_pool2d(squares, (size, 1), 1).reshape(x.shape)
        return x / (bias + alpha * mean).pow(beta)

    return run
