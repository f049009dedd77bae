"""Mixtures by scores that were made up: a choice holds where its harm is below a limit that nobody tells."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.data.interval import Drop
from deploy.progress import SILENT, Silent
from deploy.quantize.knapsack import Border, Option, Problem, fastest
from deploy.quantize.mix import Mixture, float_at_least, harm_of, mixture

MAX_DROP = 0.01


def problem_of(*blocks: tuple[float, float, float], border: float = 0.0) -> Problem:
    """Blocks in a row, each (ms as float, ms in integers, harm), with a border between neighbours."""
    names = [f"b{i}" for i in range(len(blocks))]
    return Problem(
        {n: (Option("float", f), Option("int8", i, h)) for n, (f, i, h) in zip(names, blocks, strict=True)},
        tuple(Border(a, (b,), border) for a, b in pairwise(names)),
    )


class Score:
    """Drops are ``over`` times or half the budget, as harm is above ``limit`` or not."""

    def __init__(self, problem: Problem, limit: float, over: float = 2.0) -> None:
        self.problem, self.limit, self.over = problem, limit, over
        self.seen: list[frozenset[str]] = []

    def __call__(self, float_blocks: frozenset[str], sparse_blocks: frozenset[str] = frozenset()) -> Drop:
        self.seen.append(float_blocks)
        drop = MAX_DROP * (0.5 if harm(self.problem, float_blocks) <= self.limit else self.over)
        return Drop(drop, drop, drop)


def harm(problem: Problem, float_blocks: frozenset[str]) -> float:
    return sum(o.harm for b, options in problem.options.items() for o in options if b not in float_blocks)


def ms(problem: Problem, float_blocks: frozenset[str]) -> float:
    return problem.ms({b: "float" if b in float_blocks else "int8" for b in problem.options})


def searched(problem: Problem, score: Score | None, **settings: float) -> Mixture | None:
    return mixture(problem, frozenset(problem.options), score, MAX_DROP, SILENT, **settings)


def test_the_fastest_is_taken_at_once_where_it_holds() -> None:
    problem = problem_of((2.0, 1.0, 0.1), (1.0, 3.0, 0.0), (2.0, 1.0, 0.1))
    score = Score(problem, math.inf)
    found = searched(problem, score)
    assert found == Mixture(frozenset({"b1"}), Drop(0.005, 0.005, 0.005))
    assert score.seen == [frozenset({"b1"})]


def test_without_a_score_the_fastest_is_taken_as_it_is() -> None:
    problem = problem_of((2.0, 1.0, 0.1), (1.0, 3.0, 0.0))
    assert searched(problem, None) == Mixture(frozenset({"b1"}), None)


@pytest.mark.parametrize("scored", [True, False])
def test_where_no_integers_pay_there_is_no_mixture(scored: bool) -> None:
    problem = problem_of((1.0, 2.0, 0.0), (1.0, 0.9, 0.0), border=0.2)
    score = Score(problem, math.inf)
    assert searched(problem, score if scored else None) is None
    assert score.seen == []


def test_far_over_the_budget_the_least_harmful_block_is_tried_alone() -> None:
    problem = problem_of(*((2.0, 1.0, 0.1 * 4**i) for i in range(6)))
    hopeless = Score(problem, -1.0, over=9.0)
    assert searched(problem, hopeless) is None
    assert hopeless.seen == [frozenset(), frozenset({"b1", "b2", "b3", "b4", "b5"})]
    for limit in (0.1, 0.6, 9.0):
        near, far = Score(problem, limit), Score(problem, limit, over=9.0)
        found, same = searched(problem, near), searched(problem, far)
        assert found is not None and same is not None and found.float_blocks == same.float_blocks


def test_where_nothing_holds_there_is_no_mixture() -> None:
    problem = problem_of((2.0, 1.0, 0.1), (2.0, 1.0, 0.2))
    score = Score(problem, -1.0)
    assert searched(problem, score) is None
    assert len(score.seen) == len(set(score.seen)) <= 7


@pytest.mark.parametrize(
    ("low", "gain", "found"), [(0.0, 0.01, set()), (0.0, 0.2, {"b0", "b1"}), (0.015, 0.01, {"b0", "b1"})]
)
def test_integers_throughout_are_tried_where_chance_refused_what_is_hardly_faster(
    low: float, gain: float, found: set[str]
) -> None:
    """Only the fastest, with b0 in floats, is refused: by its harm, or by few samples."""
    problem = problem_of((1.0, 1.0 + gain, 0.3), (2.0, 1.99, 0.2), (2.0, 1.0, 0.01))
    seen = []

    def score(floats: frozenset[str], sparse: frozenset[str]) -> Drop:
        seen.append(floats)
        drop = 0.02 if floats == {"b0"} else 0.005
        return Drop(drop, low if floats == {"b0"} else drop, drop)

    mixed = mixture(problem, frozenset(problem.options), score, MAX_DROP, SILENT, enough=0.97)
    assert mixed is not None
    assert mixed.float_blocks == found
    assert seen == [frozenset({"b0"}), frozenset(found)]


def test_a_budget_of_harm_comes_before_any_score() -> None:
    problem = problem_of((2.0, 1.0, 0.1), (3.0, 1.0, 0.2))
    score = Score(problem, math.inf)
    found = searched(problem, score, budget=0.25)
    assert found is not None
    assert found.float_blocks == {"b0"}


def test_harm_too_small_for_anything_is_not_the_end() -> None:
    """A quarter of the first choice's harm buys no block here; a half buys the one that holds."""
    problem = problem_of((2.0, 1.0, 0.5), (2.0, 1.0, 0.4))
    found = searched(problem, Score(problem, 0.45))
    assert found is not None
    assert found.float_blocks == {"b0"}


def test_it_ends_where_little_is_left_to_be_won() -> None:
    """Eight blocks are 8 ms faster as integers and harm little, two 0.02 ms faster and harm much."""
    problem = problem_of(*[(2.0, 1.0, 0.001)] * 8, (2.0, 1.99, 0.2), (2.0, 1.99, 0.5))
    whole, short = (Score(problem, 0.1) for _ in range(2))
    assert searched(problem, whole) == searched(problem, short, enough=0.97)
    assert short.seen == [frozenset(), frozenset({"b8", "b9"})]
    assert whole.seen[-1] == {"b9"}


@st.composite
def searches(draw: st.DrawFn) -> tuple[Problem, float]:
    count = draw(st.integers(1, 6))
    unit = st.integers(1, 40).map(lambda n: n / 20)
    blocks = [
        (draw(unit), draw(unit), 10 ** -draw(st.integers(2, 30).map(lambda n: n / 10))) for _ in range(count)
    ]
    problem = problem_of(*blocks, border=draw(st.integers(0, 10).map(lambda n: n / 20)))
    everything = harm(problem, frozenset())
    return problem, everything * draw(st.floats(1e-3, 1.2))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_enough_loses_no_more_than_was_allowed(data: st.DataObject) -> None:
    problem, limit = data.draw(searches())
    enough = data.draw(st.floats(0.5, 1.0))
    best, found = (searched(problem, Score(problem, limit), enough=part) for part in (1.0, enough))
    able = frozenset(problem.options)
    assert best is not None or found is None
    if best is not None:
        chosen = able if found is None else found.float_blocks
        assert enough * ms(problem, chosen) <= ms(problem, best.float_blocks) + 1e-9


@settings(max_examples=60, deadline=None)
@given(searches())
def test_what_is_found_holds_and_is_as_fast_as_a_quarter_of_the_harm_allows(
    case: tuple[Problem, float],
) -> None:
    """Against every subset of blocks: within the harm that the bisection cannot miss none is faster."""
    problem, limit = case
    able = frozenset(problem.options)
    score = Score(problem, limit)
    found = searched(problem, score)
    assert len(score.seen) == len(set(score.seen)) <= 7
    subsets = [
        frozenset(b for b, stays in zip(sorted(able), taken, strict=True) if stays)
        for taken in product((True, False), repeat=len(able))
    ]
    first = harm(problem, frozenset(b for b, p in fastest(problem).items() if p == "float"))
    sure = [s for s in subsets if harm(problem, s) <= max(limit / 4, 0.0)] if limit > first / 4**6 else []
    best = min((ms(problem, s) for s in sure), default=math.inf)
    if found is None:
        assert best >= ms(problem, able) - 1e-5, "a mixture that pays was there to be found"
        return
    assert found.float_blocks < able
    assert harm(problem, found.float_blocks) <= limit
    assert found.drop is not None
    assert found.drop.within(MAX_DROP)
    assert ms(problem, found.float_blocks) <= min(best, ms(problem, able)) + 1e-5


def test_zeros_are_chosen_with_the_precision() -> None:
    """Against every choice of options: those that hold are those within a limit of harm that nobody tells."""
    options = {
        name: (
            Option("float", ms),
            Option("int8", 0.6 * ms, 0.01),
            Option("float", 0.5 * ms, harm, "2:4"),
            Option("int8", 0.3 * ms, 0.01 + harm, "2:4"),
        )
        for name, ms, harm in (("a", 2.0, 0.05), ("b", 3.0, 0.4), ("c", 1.0, 0.02))
    }
    problem = Problem(options, (Border("a", ("b",), 0.1), Border("b", ("c",), 0.1)))
    every = [dict(zip(options, taken, strict=True)) for taken in product(*options.values())]

    def taken(floats: frozenset[str], sparse: frozenset[str]) -> dict[str, Option]:
        wanted = {b: (b not in floats, b in sparse) for b in options}
        return {
            b: next(o for o in own if (o.integer, o.sparsity is not None) == wanted[b])
            for b, own in options.items()
        }

    for limit in (1.0, 0.2, 0.1, 0.04, 0.02):

        def score(floats: frozenset[str], sparse: frozenset[str], limit: float = limit) -> Drop:
            drop = MAX_DROP * (0.5 if problem.harm(taken(floats, sparse)) <= limit else 2.0)
            return Drop(drop, drop, drop)

        found = mixture(problem, frozenset(options), score, MAX_DROP, SILENT)
        assert found is not None and found.drop is not None and found.drop.within(MAX_DROP)
        chosen = taken(found.float_blocks, found.sparse_blocks)
        assert problem.harm(chosen) <= limit
        sure = [one for one in every if problem.harm(one) <= limit / 4]
        assert problem.ms(chosen) <= min(map(problem.ms, sure)) + 1e-6
    assert mixture(problem, frozenset(options), None, MAX_DROP, SILENT) == Mixture(
        frozenset(), None, frozenset(options)
    )


def test_floats_with_zeros_are_a_choice_where_integers_are_slow() -> None:
    slow = (Option("float", 1.0), Option("int8", 3.0, 0.1), Option("float", 0.6, 0.1, "2:4"))
    problem = Problem({"a": slow}, ())
    assert mixture(problem, frozenset("a"), None, MAX_DROP, SILENT) == Mixture(
        frozenset("a"), None, frozenset("a")
    )


def test_refusals_are_told() -> None:
    said: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    problem = problem_of((2.0, 1.0, 0.1), (2.0, 1.0, 0.01))
    assert mixture(problem, frozenset({"b0", "b1"}), Score(problem, 0.05), MAX_DROP, Told()) is not None
    assert said == ["0 of 2 blocks float by cost: drop +0.0200, over the budget of 0.0100"]


def test_harm_is_noise_over_signal() -> None:
    found = harm_of({"good": 60.0, "even": 0.0, "exact": math.inf, "lost": -math.inf, "huge": -4000.0})
    assert found == pytest.approx({"good": 1e-6, "even": 1.0, "exact": 0.0, "lost": 100.0, "huge": 100.0})


@given(
    st.lists(st.floats(0, 60), min_size=1, max_size=8),
    st.lists(st.sets(st.integers(0, 7)), max_size=3),
)
def test_so_many_float_blocks_that_the_rest_harms_less_than_what_was_refused(
    sqnr: list[float], refused: list[set[int]]
) -> None:
    named = {f"b{i}": db for i, db in enumerate(sqnr)}
    harm = harm_of(named)
    forms = [frozenset(f"b{i}" for i in floats) for floats in refused]
    count = float_at_least(named, forms)
    least = min((math.fsum(h for b, h in harm.items() if b not in form) for form in forms), default=math.inf)
    left = sorted(harm.values(), reverse=True)[count:]
    assert math.fsum(left) < least or not left
    assert count == 0 or math.fsum(sorted(harm.values(), reverse=True)[count - 1 :]) >= least
