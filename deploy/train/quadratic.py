"""The rounding of a matrix, each number up or down, whose products with given inputs change least.

A row w of weights in units of its scale, rounded to q, changes the products with inputs x by (q - w) x. Over
all inputs their mean square is a quadratic form, so a row is a problem of its own:

    (q - w) H (q - w)' - 2 (q - w) r'        H = E[x x'],   r = E[(what is to be made up for) x']

For short rows all roundings are tried. For long ones two ways are gone and each row keeps the better:

relaxed      AdaRound (Nagel et al., ICML 2020): between down and up stands a rectified sigmoid, which a
             penalty that hardens drives to one of them
in sequence  column after column, the columns still to come making up for the error (GPTQ, Frantar et al.,
             ICLR 2023), never leaving the two neighbours

Then single numbers are turned over as long as that helps.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = 10
"""Rows of so many numbers are tried in all 2^n roundings."""
STEPS = 600
"""Steps in which a rounding hardens."""
_RATE, _PENALTY = 1e-2, 5.0
_WARM = 0.2
_SHARP, _BLUNT = 2.0, 20.0
_STRETCH = (1.1, -0.1)
_MEAN, _SQUARE = 0.9, 0.999
_DAMP = 0.01


def solve(
    weights: Tensor,
    low: Tensor,
    high: Tensor,
    gram: Tensor,
    pull: Tensor | None = None,
    *,
    relax: bool = True,
) -> Tensor:
    """Rounded ``weights``, each number its ``low`` or its ``high`` neighbour.

    ``weights`` (groups, rows, n) are in units of their scales, ``gram`` is H (groups, n, n), ``pull`` is r
    (groups, rows, n), 0 if not given. ``relax`` goes the first way too, which takes longest. No row comes
    out worse than rounded to nearest.
    """
    pull = torch.zeros_like(weights) if pull is None else pull
    nearest = torch.minimum(torch.maximum(weights.round(), low), high)
    length = weights.shape[2]
    if length <= EXACT:
        return _all(weights, low, high, gram, pull)
    found = [nearest, _in_sequence(weights, low, high, gram, pull)]
    if relax:
        found.append(_relaxed(weights, low, high, gram, pull))
    turned = [turn(one, weights, low, high, gram, pull) for one in found[1:]]
    return _best([nearest, *turned], weights, gram, pull)


def cost(rounded: Tensor, weights: Tensor, gram: Tensor, pull: Tensor) -> Tensor:
    """The quadratic form of every row: (groups, rows), up to what does not depend on the rounding."""
    change = rounded - weights
    return ((change @ gram - 2 * pull) * change).sum(2)


def _best(found: list[Tensor], weights: Tensor, gram: Tensor, pull: Tensor) -> Tensor:
    costs = torch.stack([cost(one, weights, gram, pull) for one in found])
    choice = costs.argmin(0)[None, :, :, None].expand(1, *weights.shape)
    return torch.stack(found).gather(0, choice)[0]


def _all(weights: Tensor, low: Tensor, high: Tensor, gram: Tensor, pull: Tensor) -> Tensor:
    length = weights.shape[2]
    numbers = torch.arange(2**length)
    ups = ((numbers[:, None] >> torch.arange(length)) & 1).to(weights.dtype)
    best, least = low, torch.full(weights.shape[:2], torch.inf)
    for up in ups:
        tried = low + up * (high - low)
        costs = cost(tried, weights, gram, pull)
        better = costs < least
        best, least = torch.where(better[:, :, None], tried, best), torch.where(better, costs, least)
    return best


def softly(logits: Tensor) -> Tensor:
    """The rectified sigmoid: from 0, down, to 1, up, both of which it reaches."""
    top, bottom = _STRETCH
    return (torch.sigmoid(logits) * (top - bottom) + bottom).clamp(0, 1)


def logits_of(share: Tensor) -> Tensor:
    """What `softly` makes ``share`` of, as far as it is inside."""
    top, bottom = _STRETCH
    return torch.logit((share - bottom) / (top - bottom), eps=0.01)


def penalty(share: Tensor, progress: float) -> Tensor:
    """What stands between down and up costs, summed: at first only around the middle, at last everywhere.
    ``progress`` runs from 0 to 1."""
    return (1 - (2 * share - 1).abs().pow(_power(progress))).sum()


def _power(progress: float) -> float:
    return _SHARP + (_BLUNT - _SHARP) * (1 - progress)


def _relaxed(weights: Tensor, low: Tensor, high: Tensor, gram: Tensor, pull: Tensor) -> Tensor:
    """By hand what autograd and Adam (Kingma and Ba, ICLR 2015) would do: most layers are so small that
    these take longer than the arithmetic."""
    logits, width = logits_of(weights - low), high - low
    nearest = torch.minimum(torch.maximum(weights.round(), low), high)
    # Every row in units of what rounding it to nearest costs.
    unit = ((nearest - weights) @ gram * (nearest - weights)).sum(2, keepdim=True).clamp_min(1e-12)
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(STEPS):
        steep = torch.sigmoid(logits)
        stretched = steep * (_STRETCH[0] - _STRETCH[1]) + _STRETCH[1]
        share = stretched.clamp(0, 1)
        gradient = 2 * width * ((low + share * width - weights) @ gram - pull) / unit
        if step >= _WARM * STEPS:
            power = _power((step / STEPS - _WARM) / (1 - _WARM))
            side = 2 * share - 1
            gradient -= _PENALTY / weights.shape[2] * 2 * power * side.abs().pow(power - 1) * side.sign()
        inside = (stretched > 0) & (stretched < 1)
        gradient *= inside * (_STRETCH[0] - _STRETCH[1]) * steep * (1 - steep)
        mean.lerp_(gradient, 1 - _MEAN)
        square.mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
        size = (square / (1 - _SQUARE ** (step + 1))).sqrt_().add_(1e-8)
        logits.addcdiv_(mean, size, value=-_RATE / (1 - _MEAN ** (step + 1)))
    return torch.where(softly(logits) >= 0.5, high, low)


def _in_sequence(weights: Tensor, low: Tensor, high: Tensor, gram: Tensor, pull: Tensor) -> Tensor:
    rounded = torch.empty_like(weights)
    for group in range(len(weights)):
        order = torch.argsort(torch.diagonal(gram[group]), descending=True, stable=True)
        form = gram[group][order][:, order].double()
        form.diagonal().add_(_DAMP * form.diagonal().mean().clamp_min(1e-12))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(form))
        # What is to be made up for moves the aim of the whole row.
        aim = (weights[group][:, order] + (pull[group][:, order].double() @ inverse)).to(weights.dtype)
        upper = torch.linalg.cholesky(inverse, upper=True).to(weights.dtype)
        floor, ceiling = low[group][:, order], high[group][:, order]
        for column in range(len(order)):
            code = torch.minimum(torch.maximum(aim[:, column].round(), floor[:, column]), ceiling[:, column])
            rounded[group][:, order[column]] = code
            off = (aim[:, column] - code) / upper[column, column]
            aim[:, column + 1 :] -= off[:, None] * upper[column, column + 1 :]
    return rounded


def turn(rounded: Tensor, weights: Tensor, low: Tensor, high: Tensor, gram: Tensor, pull: Tensor) -> Tensor:
    """``rounded`` after turning over, in every row, the number that wins most, until none wins."""
    rounded, other = rounded.clone(), torch.where(rounded == low, high, low)
    slope = (rounded - weights) @ gram - pull
    diagonal = torch.diagonal(gram, dim1=1, dim2=2)[:, None]
    groups = torch.arange(len(weights))[:, None]
    least = 1e-6 * (cost(rounded, weights, gram, torch.zeros_like(pull)))
    for _ in range(4 * weights.shape[2]):
        step = other - rounded
        gain, place = (step * (2 * slope + step * diagonal)).min(2)
        wins = gain < -least
        if not wins.any():
            break
        index = place[:, :, None]
        moved = torch.where(wins[:, :, None], step.gather(2, index), 0.0)
        rounded.scatter_add_(2, index, moved)
        other.scatter_add_(2, index, -moved)
        slope += moved * gram[groups, place]
    return rounded
