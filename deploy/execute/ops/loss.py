"""Losses: NegativeLogLikelihoodLoss, SoftmaxCrossEntropyLoss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_NONE_IGNORED = -(2**31)
"""No class has this index; torch's own default, -100, could be one that somebody ignores."""


@ops.kernel("NegativeLogLikelihoodLoss")
def negative_log_likelihood(node: Node) -> Kernel:
    ignored, reduction = node.integer("ignore_index", _NONE_IGNORED), node.string("reduction", "mean")

    def run(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return functional.nll_loss(
            x, target.to(torch.int64), weight, ignore_index=ignored, reduction=reduction
        )

    return run


@ops.kernel("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(node: Node) -> Kernel:
    ignored, reduction = node.integer("ignore_index", _NONE_IGNORED), node.string("reduction", "mean")
    with_log = node.wants(1)

    def run(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        target = target.to(torch.int64)
        if not with_log:
            return functional.cross_entropy(x, target, weight, ignore_index=ignored, reduction=reduction)
        log = torch.log_softmax(x, 1)
        return functional.nll_loss(log, target, weight, ignore_index=ignored, reduction=reduction), log

    return run
