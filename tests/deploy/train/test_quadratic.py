"""Rounding as a quadratic problem, against all roundings there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from deploy.train.quadratic import cost, logits_of, penalty, softly, solve


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(groups: int, rows: int, length: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Weights, neighbours and the Gram matrix of inputs that depend on each other."""
    draw = np.random.default_rng(seed)
    weights = torch.tensor(draw.uniform(-3, 3, (groups, rows, length)).astype(np.float32))
    inputs = draw.standard_normal((groups, length, 50)) + 2 * draw.standard_normal((groups, 1, 50))
    gram = torch.tensor((inputs @ inputs.transpose(0, 2, 1) / 50).astype(np.float32))
    return weights, weights.floor(), weights.ceil(), gram


def best_of_all(
    weights: torch.Tensor, low: torch.Tensor, gram: torch.Tensor, pull: torch.Tensor
) -> np.ndarray:
    """The cost of the best rounding of each row, by trying all of them in float64."""
    found = np.full(weights.shape[:2], np.inf)
    ups = np.array(list(itertools.product((0.0, 1.0), repeat=weights.shape[2])))
    for group, row in np.ndindex(*found.shape):
        change = low[group, row].double().numpy() + ups - weights[group, row].double().numpy()
        form, aim = gram[group].double().numpy(), pull[group, row].double().numpy()
        found[group, row] = (np.einsum("ui,ij,uj->u", change, form, change) - 2 * change @ aim).min()
    return found


def test_a_small_weight_is_rounded_as_well_as_it_can_be() -> None:
    weights, low, high, gram = problem(1, 3, 4)
    pull = torch.zeros_like(weights)
    rounded = solve(weights, low, high, gram)
    change = (
        low[0].double().numpy()[None]
        + np.array(list(itertools.product((0, 1), repeat=12))).reshape(-1, 3, 4)
        - weights[0].double().numpy()
    )
    together = np.einsum("uri,ij,urj->u", change, gram[0].double().numpy(), change).min()
    assert cost(rounded, weights, gram, pull).sum().item() == pytest.approx(together, rel=1e-4)


def test_what_is_to_be_made_up_for_counts() -> None:
    weights, low, high, gram = problem(2, 3, 5, seed=1)
    pull = torch.tensor(np.random.default_rng(2).normal(0, 2, weights.shape).astype(np.float32))
    rounded = solve(weights, low, high, gram, pull)
    np.testing.assert_allclose(
        cost(rounded, weights, gram, pull).numpy(),
        best_of_all(weights, low, gram, pull),
        rtol=1e-3,
        atol=1e-4,
    )


def test_long_rows_come_near_the_optimum() -> None:
    weights, low, high, gram = problem(2, 4, 12, seed=3)
    pull = torch.zeros_like(weights)
    rounded = solve(weights, low, high, gram)
    nearest = cost(weights.round(), weights, gram, pull).sum().item()
    best = best_of_all(weights, low, gram, pull).sum()
    assert cost(rounded, weights, gram, pull).sum().item() < best + 0.1 * (nearest - best)


@pytest.mark.parametrize("length", [7, 40])
def test_each_number_goes_to_a_neighbour_and_no_row_gets_worse(length: int) -> None:
    weights, low, high, gram = problem(1, 6, length, seed=4)
    weights[0, 0] = weights[0, 0].round()  # already there: nothing to choose
    low, high = weights.floor(), weights.ceil()
    pull = torch.zeros_like(weights)
    rounded = solve(weights, low, high, gram)
    assert ((rounded == low) | (rounded == high)).all()
    assert torch.equal(rounded[0, 0], weights[0, 0])
    assert (cost(rounded, weights, gram, pull) <= cost(weights.round(), weights, gram, pull) + 1e-5).all()


def test_inputs_that_never_were_leave_the_nearest() -> None:
    weights, low, high, _ = problem(1, 2, 12)
    rounded = solve(weights, low, high, torch.zeros(1, 12, 12))
    assert torch.equal(rounded, weights.round())


def test_the_relaxation_begins_where_the_weight_is_and_ends_at_a_neighbour() -> None:
    share = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(softly(logits_of(share)), share, atol=1e-6, rtol=0)
    assert penalty(torch.tensor([0.0, 1.0]), 0.0).item() == 0
    assert penalty(torch.tensor([0.5]), 1.0).item() == 1
    assert penalty(torch.tensor([0.2]), 1.0) < penalty(torch.tensor([0.2]), 0.0)
