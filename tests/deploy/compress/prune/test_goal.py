"""The knapsack against all combinations there are."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from deploy.compress.prune.goal import Choice, least_harm, require_reachable
from deploy.errors import UsageError


def _choices(draw: np.random.Generator, families: int) -> list[Choice]:
    found = []
    for _ in range(families):
        widths = sorted(
            draw.choice(np.arange(1, 17), draw.integers(2, 6), replace=False).tolist(), reverse=True
        )
        harm = np.concatenate([[0.0], np.cumsum(draw.exponential(1.0, len(widths) - 1))])
        found.append(Choice(tuple(widths), tuple(harm.tolist())))
    return found


def _cheapest(choices: Sequence[Choice], amount: object, goal: float) -> float:
    rows = np.array([*itertools.product(*(c.kept for c in choices))], float)
    harms = np.array([sum(h) for h in itertools.product(*(c.harm for c in choices))])
    return float(harms[amount(rows) <= goal * (1 + 1e-9)].min())


def _harm(choices: Sequence[Choice], kept: np.ndarray) -> float:
    return sum(c.harm[c.kept.index(int(n))] for c, n in zip(choices, kept, strict=True))


@pytest.mark.parametrize("seed", range(10))
def test_sums_are_solved_exactly(seed: int) -> None:
    draw = np.random.default_rng(seed)
    choices, costs = _choices(draw, 5), draw.exponential(1.0, 5)

    def amount(kept: np.ndarray) -> np.ndarray:
        return kept @ costs

    whole, least = amount(np.array([[c.kept[0] for c in choices], [c.kept[-1] for c in choices]]))
    goal = float(draw.uniform(least, whole))
    kept = least_harm(choices, amount, goal)
    assert amount(kept[None].astype(float))[0] <= goal * (1 + 1e-9)
    assert _harm(choices, kept) == pytest.approx(_cheapest(choices, amount, goal), rel=1e-4)


@pytest.mark.parametrize("seed", range(10))
def test_products_as_of_layers_in_a_row(seed: int) -> None:
    draw = np.random.default_rng(100 + seed)
    choices, costs = _choices(draw, 5), draw.exponential(1.0, 6)

    def amount(kept: np.ndarray) -> np.ndarray:
        ones = np.ones((len(kept), 1))
        wide = np.concatenate([ones, kept, ones], 1)
        return (wide[:, :-1] * wide[:, 1:]) @ costs

    whole, least = amount(np.array([[c.kept[0] for c in choices], [c.kept[-1] for c in choices]], float))
    goal = float(least + draw.uniform(0.2, 0.9) * (whole - least))
    kept = least_harm(choices, amount, goal)
    assert amount(kept[None].astype(float))[0] <= goal * (1 + 1e-9)
    assert _harm(choices, kept) <= 1.02 * _cheapest(choices, amount, goal) + 1e-9


def test_a_dear_amount_is_asked_seldom_and_the_goal_still_met() -> None:
    draw = np.random.default_rng(3)
    choices, costs, asked = _choices(draw, 6), draw.exponential(1.0, 6), 0

    def amount(kept: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += len(kept)
        return (kept**1.5) @ costs

    whole = float(amount(np.array([[c.kept[0] for c in choices]], float))[0])
    kept = least_harm(choices, amount, 0.6 * whole, dear=True)
    assert asked < 150
    assert amount(kept[None].astype(float))[0] <= 0.6 * whole


def test_of_equal_harm_the_wider_is_taken() -> None:
    choices = [Choice((8, 6, 4, 2), (0.0, 1.0, 1.0, 1.0)), Choice((8, 4), (0.0, 9.0))]
    assert least_harm(choices, lambda kept: kept.sum(1), 14).tolist() == [6, 8]


def test_what_cannot_be_reached_is_refused_with_what_can() -> None:
    with pytest.raises(UsageError, match=r"keep = 0\.5") as refused:
        require_reachable([(10, 5)], lambda kept: kept.sum(1), 4.0, "macs", "keep = 0.5")
    assert "at most macs = 0.50" in (refused.value.hint or "")
    require_reachable([(10, 5)], lambda kept: kept.sum(1), 5.0, "macs", "keep = 0.5")
    with pytest.raises(UsageError) as refused:
        require_reachable([(10, 5)], lambda kept: kept.sum(1), 4.0, "size", "keep = 0.5")
    assert "size = 5 or more" in (refused.value.hint or "")
