"""Which weights of each four go, and what the others become (SparseGPT, Frantar and Alistarh, ICML 2023).

Changing a row w of weights into v changes its products with inputs x. Their mean square is a quadratic form:

    (v - w) H (v - w)' - 2 (v - w) r'        H = E[x x'],   r = E[(what is to be made up for) x']

Fours are decided one after the other. All six pairs that could go are compared by what the form loses when
every weight that is not yet decided makes up for them (optimal brain surgeon, Hassibi and Stork 1993), where
SparseGPT adds up two losses as if they were independent. Once all pairs are chosen, the weights that stay are
solved for again, those of the first fours too: conjugate gradients, all rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from deploy.graph.pattern import FOUR

DAMP = 0.01
"""Of the mean of H's diagonal, added to it: weights stay near where they were in directions not seen."""
_BLOCK = 128
_STEPS = 24
_ENOUGH = 1e-6
"""Of the first residual's square: conjugate gradients end there."""
_PAIRS = tuple(combinations(range(FOUR), 2))


def fours_first(channels: int, taps: int) -> Tensor:
    """Positions of a packed row (channel by channel, tap by tap), so that fours of channels are neighbours.

    >>> fours_first(4, 2)
    tensor([0, 2, 4, 6, 1, 3, 5, 7])
    """
    return torch.arange(channels * taps).reshape(-1, FOUR, taps).transpose(1, 2).reshape(-1)


def solve(weights: Tensor, gram: Tensor, pull: Tensor, *, damp: float = DAMP) -> Tensor:
    """``weights`` (rows, n), fours side by side, with two of each four zero, by `sequence` and `refit`.

    ``gram`` (n, n) is H, ``pull`` (rows, n) is r.
    """
    form = damped(gram, damp)
    return refit(sequence(weights, form, pull), weights, form, pull)


def damped(gram: Tensor, damp: float) -> Tensor:
    """H with ``damp`` times its mean diagonal added to the diagonal."""
    form = gram.clone()
    form.diagonal().add_(damp * form.diagonal().mean().clamp_min(1e-12))
    return form


def sequence(weights: Tensor, form: Tensor, pull: Tensor) -> Tensor:
    """Four after four two weights go, and those still to come make up for them. ``form`` is definite."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(form.double()))
    # What is to be made up for moves the aim of the whole row.
    aim = (weights.double() + pull.double() @ inverse).to(weights.dtype)
    upper = torch.linalg.cholesky(inverse, upper=True)
    del inverse
    found = torch.empty_like(weights)
    for start in range(0, weights.shape[1], _BLOCK):
        end = min(start + _BLOCK, weights.shape[1])
        block = aim[:, start:end].clone()
        corner = upper[start:end, start:end]
        spread = torch.zeros_like(block)
        inner = corner.to(weights.dtype)
        for i in range(0, end - start, FOUR):
            own = corner[i : i + FOUR, i : i + FOUR]
            # The inverse of H over what is not decided yet begins with this block.
            near = own.T @ own
            removal = _removals(near).to(weights.dtype)
            here = block[:, i : i + FOUR]
            pushed = torch.einsum("rk,pkl->rpl", here, removal)
            pair = (pushed * here[:, None]).sum(2).argmin(1)
            push = pushed[torch.arange(len(here)), pair]
            kept = _KEPT.to(here.device)[pair]
            found[:, start + i : start + i + FOUR] = torch.where(kept, here - push @ near.to(here.dtype), 0.0)
            spread[:, i : i + FOUR] = push @ own.T.to(here.dtype)
            block[:, i + FOUR :] -= spread[:, i : i + FOUR] @ inner[i : i + FOUR, i + FOUR :]
        aim[:, end:] -= spread @ upper[start:end, end:].to(weights.dtype)
    return found


_KEPT = torch.tensor([[i not in pair for i in range(FOUR)] for pair in _PAIRS])


def _removals(near: Tensor) -> Tensor:
    """For each pair the inverse of its part of ``near`` (4, 4), zeros around it: (pairs, 4, 4)."""
    found = near.new_zeros(len(_PAIRS), FOUR, FOUR)
    for index, pair in enumerate(_PAIRS):
        place = torch.tensor(pair)
        found[index][place[:, None], place] = torch.linalg.inv(near[place[:, None], place])
    return found


def refit(sparse: Tensor, weights: Tensor, form: Tensor, pull: Tensor, steps: int = _STEPS) -> Tensor:
    """What is not zero in ``sparse`` moved to where the quadratic form is least, zeros kept.

    Conjugate gradients with the diagonal as preconditioner; no row comes out worse than it went in.
    """
    kept = sparse != 0
    scale = torch.diagonal(form)
    found = sparse.clone()
    residual = (pull - (found - weights) @ form) * kept
    towards = residual / scale
    direction, power = towards.clone(), (residual * towards).sum(1, keepdim=True)
    first = power.clone()
    for _ in range(steps):
        image = direction @ form * kept
        length = power / (direction * image).sum(1, keepdim=True).clamp_min(1e-30)
        found += length * direction
        residual -= length * image
        towards = residual / scale
        after = (residual * towards).sum(1, keepdim=True)
        if not (after > _ENOUGH * first).any():
            break
        direction = towards + after / power.clamp_min(1e-30) * direction
        power = after
    return found


def leanest(weights: Tensor, forms: Sequence[Tensor], share: float) -> Tensor:
    """True at what stays of ``weights`` (groups, rows, n) when those that the layer misses least go, each by
    itself made up for by its row (optimal brain surgeon): w^2 over the diagonal of the inverse of H.

    ``forms`` are H by group, definite. So many as ``share`` of all go, rounded down.
    """
    scores = []
    for own, form in zip(weights, forms, strict=True):
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(form.double()))
        scores.append(own.double().square() / torch.diagonal(inverse))
    flat = torch.stack(scores).reshape(-1)
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[torch.argsort(flat, stable=True)[: int(share * len(flat))]] = False
    return kept.reshape(weights.shape)


def cost(found: Tensor, weights: Tensor, form: Tensor, pull: Tensor) -> Tensor:
    """The quadratic form of every row, up to what does not depend on ``found``."""
    change = found - weights
    return ((change @ form - 2 * pull) * change).sum(1)
