"""Weights that make up for those that go, against solutions by brute force and closed forms."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch

from deploy.compress import obs

PAIRS = list(combinations(range(4), 2))


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights, a Gram matrix of inputs that are alike, and what is to be made up for."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=draw) / columns**0.5
    inputs = (mix + 0.3 * torch.eye(columns)) @ torch.randn(columns, 8 * columns, generator=draw)
    lacking = 0.1 * torch.randn(rows, 8 * columns, generator=draw)
    weights = torch.randn(rows, columns, generator=draw)
    count = 8 * columns
    return weights, inputs @ inputs.T / count, lacking @ inputs.T / count


def least(weights: torch.Tensor, form: torch.Tensor, pull: torch.Tensor, kept: list[int]) -> float:
    """The quadratic form of one row, solved in float64 for what is kept."""
    w, h, r = (t.double().numpy() for t in (weights, form, pull))
    aim = h @ w + r
    v = np.zeros_like(w)
    v[kept] = np.linalg.solve(h[np.ix_(kept, kept)], aim[kept])
    return float((v - w) @ h @ (v - w) - 2 * (v - w) @ r)


def two_of_four(found: torch.Tensor) -> bool:
    return bool(((found.reshape(len(found), -1, 4) != 0).sum(2) == 2).all())


def test_a_single_four_is_decided_exactly() -> None:
    weights, gram, pull = problem(16, 4)
    form = obs.damped(gram, 0.01)
    found = obs.sequence(weights, form, pull)
    assert two_of_four(found)
    costs = obs.cost(found, weights, form, pull)
    for row in range(16):
        best = min(least(weights[row], form, pull[row], list(pair)) for pair in PAIRS)
        assert float(costs[row]) == pytest.approx(best, rel=1e-3, abs=1e-5)


def test_two_fours_come_near_the_best_of_all_thirty_six_masks() -> None:
    weights, gram, pull = problem(24, 8)
    form = obs.damped(gram, 0.01)
    costs = obs.cost(obs.solve(weights, gram, pull, damp=0.01), weights, form, pull)
    masks = [[*a, *(4 + i for i in b)] for a, b in product(PAIRS, PAIRS)]
    every = np.array([[least(weights[i], form, pull[i], m) for m in masks] for i in range(24)])
    best, usual = every.min(axis=1), np.median(every, axis=1)
    assert (costs.numpy() >= best - 1e-4).all()
    assert costs.mean() - best.mean() < 0.1 * (usual.mean() - best.mean())
    assert (costs.numpy() < best + 1e-3).mean() > 0.5


def test_refitting_is_least_squares_on_what_is_kept() -> None:
    weights, gram, pull = problem(6, 40)
    form = obs.damped(gram, 0.05)
    found = obs.solve(weights, gram, pull, damp=0.05)
    assert two_of_four(found)
    for row in range(6):
        kept = torch.nonzero(found[row]).flatten().tolist()
        exact = least(weights[row], form, pull[row], kept)
        cost = float(obs.cost(found[row : row + 1], weights[row : row + 1], form, pull[row : row + 1]))
        assert cost == pytest.approx(exact, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("columns", [64, 260])
def test_each_part_lowers_the_error(columns) -> None:
    """Across borders of the blocks, too, in which the columns are worked on."""
    weights, gram, _ = problem(32, columns)
    nothing = torch.zeros_like(weights)
    form = obs.damped(gram, 0.01)
    order = weights.abs().reshape(32, -1, 4).argsort(-1).argsort(-1)
    largest = weights * (order >= 2).reshape(32, columns)
    in_turn = obs.sequence(weights, form, nothing)
    ways = [largest, in_turn, obs.refit(in_turn, weights, form, nothing)]
    costs = [float(obs.cost(w, weights, form, nothing).mean()) for w in ways]
    assert costs[0] > 1.5 * costs[1]
    assert costs[1] > 1.1 * costs[2]


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weights, gram, pull = problem(4, 16)
    gram[5] = gram[:, 5] = pull[:, 5] = 0
    found = obs.solve(weights, gram, pull)
    assert torch.isfinite(found).all()
    assert (found.reshape(4, -1, 4) != 0).sum(2).max() <= 2


def test_fours_of_channels_at_one_tap_are_neighbours() -> None:
    """Packed weights count channel by channel and tap by tap."""
    array = np.arange(8 * 9).reshape(8, 9)
    fours = array.reshape(-1)[obs.fours_first(8, 9).numpy()].reshape(-1, 4)
    assert {tuple(four) for four in fours} == {
        tuple(array[start : start + 4, tap]) for start in (0, 4) for tap in range(9)
    }
