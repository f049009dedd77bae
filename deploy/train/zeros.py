"""Zeros that a weight came with and that training keeps: those of 2:4 sparsity, and of magnitudes cut off."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

NO_CHANCE = 0.25
"""Share of exact zeros from which they are not chance; what is all zeros is only at its beginning."""


def sparse(weight: Tensor) -> bool:
    """Whether the zeros of a weight are there on purpose: every weight that is 2:4 sparse is such.

    >>> import torch
    >>> sparse(torch.tensor([[0.0, 3.0, 0.0, 5.0]])), sparse(torch.zeros(2, 4))
    (True, False)
    """
    return weight.ndim > 1 and NO_CHANCE <= (weight == 0).double().mean().item() < 1


def keep_zeros(weights: Mapping[str, nn.Parameter]) -> list[str]:
    """From now on no gradient reaches the zeros of those that are `sparse`; their names.

    No optimizer moves what is zero and has never had a gradient, and its average stays zero.
    """
    kept = []
    for name, parameter in weights.items():
        if parameter.requires_grad and sparse(parameter.detach()):
            alive = (parameter.detach() != 0).to(parameter.dtype)
            parameter.register_hook(alive.mul)  # type: ignore[no-untyped-call]  # torch declares it so
            kept.append(name)
    return kept
