"""The search for the fewest float blocks, on scores known in advance."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.data.interval import Drop
from deploy.progress import SILENT, Silent
from deploy.quantize.choose import UNTRIED, hold_budget

BUDGET = 0.01


def drop(value: float) -> Drop:
    return Drop(value, value - 0.001, value + 0.001)


class Scores:
    """A drop by the number of float blocks; counts how often it was asked."""

    def __init__(self, names: list[str], drops: list[float]) -> None:
        self.names, self.drops, self.asked = names, drops, []

    def __call__(self, float_blocks: frozenset[str]) -> Drop:
        count = len(float_blocks)
        assert float_blocks == frozenset(self.names[:count]), "the worst go first"
        self.asked.append(count)
        return drop(self.drops[count])


def search(drops: list[float], start: int = 0):
    names = [f"block{i}" for i in range(len(drops) - 1)]
    scores = Scores(names, drops)
    return hold_budget(names, scores, BUDGET, SILENT, start=start), scores


@given(st.integers(0, 200), st.integers(0, 200), st.sampled_from([0.02, 0.5]))
def test_monotone_scores_give_the_minimum_in_few_trials(total, needed, over):
    needed = min(needed, total)
    decision, scores = search([over] * needed + [0.001] * (total - needed + 1))
    assert len(decision.float_blocks) == needed
    assert decision.within_budget
    assert decision.drop == drop(0.001)
    assert len(scores.asked) <= 2 * math.log2(max(total, 1)) + 4
    assert len(scores.asked) == len(set(scores.asked)), "nothing is scored twice"


def test_where_not_even_the_most_harmless_block_holds_nothing_else_is_tried():
    decision, scores = search([0.5] * 100 + [0.0])
    assert len(decision.float_blocks) == 100 and decision.within_budget
    assert scores.asked == [0, 99, 100]
    decision, scores = search([0.03] * 100 + [0.0])
    assert len(decision.float_blocks) == 100 and len(scores.asked) > 10, (
        "a little over is no reason to give up"
    )


@given(st.lists(st.sampled_from([0.0, 0.5]), min_size=1, max_size=60), st.integers(0, 60))
def test_any_scores_end_within_budget_or_all_float(drops, start):
    start = min(start, len(drops) - 1)
    decision, scores = search(drops, start)
    count = len(decision.float_blocks)
    assert count >= start
    assert decision.drop == drop(drops[count])
    assert decision.within_budget == (drops[count] <= BUDGET)
    assert decision.within_budget or count == len(drops) - 1
    assert len(scores.asked) <= 2 * math.log2(len(drops)) + 3


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 12))
def test_where_time_ends_the_best_so_far_is_taken(total, needed, tries):
    """Against a search with time for all: as many blocks float or more, and nothing that was not seen."""
    needed, told = min(needed, total), []
    names = [f"block{i}" for i in range(total)]
    scores = Scores(names, [0.02] * needed + [0.001] * (total - needed + 1))

    def score(float_blocks: frozenset[str]) -> Drop:
        if len(scores.asked) >= tries and len(float_blocks) < total:
            return UNTRIED
        return scores(float_blocks)

    class Told(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    decision = hold_budget(names, score, BUDGET, Told())
    assert decision.within_budget
    assert decision.drop == drop(0.001)
    assert len(decision.float_blocks) in scores.asked
    assert len(decision.float_blocks) >= needed
    assert len(scores.asked) <= tries + 1
    assert not any("inf" in text for text in told)


def test_exactly_on_budget_is_within():
    assert search([BUDGET, 0.0])[0].float_blocks == frozenset()


def test_a_drop_that_is_no_number_is_not_within():
    decision, _ = search([math.nan, math.nan, 0.0])
    assert len(decision.float_blocks) == 2
    assert search([math.nan])[0].within_budget is False


def test_a_gain_is_within():
    assert search([-0.2, 0.0])[0].float_blocks == frozenset()


def test_whatever_it_costs():
    names = ["a", "b"]
    decision = hold_budget(names, Scores(names, [0.7, 0.0, 0.0]), math.inf, SILENT)
    assert decision.float_blocks == frozenset()
    assert "inf" not in decision.choices[0].reason


def test_the_choice_says_what_was_found():
    (choice,) = search([0.5, 0.002, 0.001])[0].choices
    assert choice.chosen == "1 of 2"
    assert "0.0020" in choice.reason
    assert "0.0100" in choice.reason


@pytest.mark.parametrize("total", [1, 2, 3, 5, 8, 100])
def test_starting_at_the_end(total):
    decision, scores = search([0.5] * total + [0.0], start=total)
    assert len(decision.float_blocks) == total
    assert scores.asked == [total]
