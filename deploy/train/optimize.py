"""How weights move: parameter groups, learning rate, averages of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from deploy.spec.finetune import Finetune

_MATRICES = {
    "Conv": (1,), "ConvTranspose": (1,), "DeformConv": (1,), "Gemm": (0, 1), "MatMul": (0, 1),
    "Einsum": (0, 1), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "Gather": (0,),
}  # fmt: skip
"""Where weights are read that decay; biases, scales and shifts do not (He et al. 2019, section 3.1)."""
_ON_THE_WAY = ("QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Identity", "Cast")

_ONE_CYCLE_START, _ONE_CYCLE_END = 1 / 25, 1 / 1e4


def decaying(model: ir.Model) -> set[str]:
    """The initializers that weight decay applies to: those read as a matrix or a filter."""
    found: set[str] = set()
    for name, value in model.graph.initializers.items():
        seen, waiting = {value}, [value]
        while waiting:
            for node, index in waiting.pop().uses():
                if index in _MATRICES.get(node.op_type, ()):
                    found.add(name)
                elif node.op_type in _ON_THE_WAY and index == 0 and node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    waiting.append(node.outputs[0])
    return found


def make_optimizer(
    weights: Mapping[str, nn.Parameter], decayed: set[str], step: Finetune
) -> torch.optim.Optimizer:
    """SGD or AdamW over two groups, with and without weight decay."""
    groups = [
        {"params": [w for n, w in weights.items() if n in decayed], "weight_decay": step.weight_decay},
        {"params": [w for n, w in weights.items() if n not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if step.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=step.lr)
    return torch.optim.SGD(groups, lr=step.lr, momentum=step.momentum, nesterov=step.nesterov)


def learning_rate(step: Finetune, position: int, total: int) -> float:
    """The learning rate of batch ``position`` (from 0) of ``total``.

    ``constant`` and ``cosine`` rise in a straight line over the first ``rise`` of all batches; ``cosine``
    then falls to 0 along half a cosine (Loshchilov and Hutter 2017). ``onecycle`` rises from 1/25 and falls
    to 1/250,000 along half cosines (Smith and Topin 2018, as torch's OneCycleLR).
    """
    if step.schedule == "onecycle":
        low, lowest = step.lr * _ONE_CYCLE_START, step.lr * _ONE_CYCLE_START * _ONE_CYCLE_END
        top, end = step.rise * total - 1, total - 1
        if position <= top:
            return _between(low, step.lr, position / top if top > 0 else 1.0)
        return _between(step.lr, lowest, (position - top) / (end - top) if end > top else 1.0)
    rise = round(step.rise * total)
    if position < rise:
        return step.lr * (position + 1) / (rise + 1)
    if step.schedule == "constant":
        return step.lr
    return _between(step.lr, 0.0, (position - rise) / max(1, total - rise))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step use this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@dataclass(frozen=True)
class Average:
    """An exponential moving average of tensors by name: a = decay * a + (1 - decay) * w after every batch."""

    decay: float
    tensors: dict[str, Tensor]

    @torch.no_grad()
    def update(self, current: Mapping[str, Tensor]) -> None:
        names = list(self.tensors)
        torch._foreach_lerp_(
            [self.tensors[n] for n in names], [current[n].detach() for n in names], 1 - self.decay
        )


def average(decay: float, current: Mapping[str, Tensor]) -> Average | None:
    """An average that starts at ``current``; None where ``decay`` is 0."""
    if not decay:
        return None
    return Average(decay, {name: tensor.detach().clone() for name, tensor in current.items()})
