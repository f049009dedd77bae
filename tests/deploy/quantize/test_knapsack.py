"""The best of all choices at once, and the solver, against all choices there are, one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.quantize import knapsack
from deploy.quantize.knapsack import Border, Option, Problem, fastest, fastest_options
from deploy.spec.tensors import INTEGER, Precision

PRECISIONS: tuple[Precision, ...] = ("float", "int8", "bf16")


@pytest.fixture(scope="module", autouse=True, params=[knapsack._FEW, 0], ids=["all at once", "solver"])
def few(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "_FEW", request.param)
        yield


def all_choices(problem: Problem) -> Iterator[dict[str, Precision]]:
    for taken in product(*problem.options.values()):
        yield dict(zip(problem.options, (o.precision for o in taken), strict=True))


def cost(problem: Problem, chosen: dict[str, Precision]) -> float:
    """Milliseconds, written anew: every block, and every value one of whose readers wants another form."""
    total = sum(
        o.ms for block, options in problem.options.items() for o in options if o.precision == chosen[block]
    )
    for border in problem.borders:
        made = chosen.get(border.maker) in INTEGER
        read = {chosen.get(reader) in INTEGER for reader in border.readers}
        if border.free and made and not any(read):
            continue
        total += border.ms * (read != {made})
    return total


def harm(problem: Problem, chosen: dict[str, Precision]) -> float:
    return sum(
        o.harm for block, options in problem.options.items() for o in options if o.precision == chosen[block]
    )


@st.composite
def problems(draw: st.DrawFn, least: float = 1e-9) -> tuple[Problem, float]:
    """Up to seven blocks, one more that has no choice, borders anywhere, and a budget that can be held."""
    unit = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    small = draw(st.sampled_from([least, 1e-4, 1.0, 1e9]))
    names = [f"b{i}" for i in range(draw(st.integers(1, 7)))]
    grains = st.integers(0, 40)
    options = {}
    for name in names:
        count = draw(st.integers(2, 3))
        options[name] = tuple(
            Option(p, draw(grains) * unit / 40, draw(grains) * small / 40 if p != "float" else 0.0)
            for p in PRECISIONS[:count]
        )
    known = [*names, "outside"]
    borders = draw(
        st.lists(
            st.builds(
                Border,
                maker=st.sampled_from(known),
                readers=st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True).map(tuple),
                ms=grains.map(lambda n: n * unit / 80),
                free=st.booleans(),
            ),
            max_size=8,
        )
    )
    budget = draw(st.one_of(st.just(math.inf), st.integers(0, 200).map(lambda n: n * small / 40)))
    return Problem(options, tuple(borders)), budget


@settings(max_examples=100, deadline=None)
@given(problems())
def test_no_choice_within_the_budget_is_faster(case: tuple[Problem, float]) -> None:
    problem, budget = case
    chosen = fastest(problem, budget)
    allowed = budget * (1 + 1e-9)
    assert chosen.keys() == problem.options.keys()
    assert harm(problem, chosen) <= allowed
    able = [c for c in all_choices(problem) if harm(problem, c) <= allowed]
    best = min(cost(problem, c) for c in able)
    typical = max(o.ms for options in problem.options.values() for o in options)
    assert cost(problem, chosen) <= best + 2e-6 * len(problem.options) * typical
    assert problem.ms(chosen) == pytest.approx(cost(problem, chosen))
    assert problem.harm(chosen) == pytest.approx(harm(problem, chosen))


@settings(max_examples=60, deadline=None)
@given(problems())
def test_of_equally_fast_choices_the_least_harmful_is_taken(case: tuple[Problem, float]) -> None:
    problem, budget = case
    chosen = fastest(problem, budget)
    mine = cost(problem, chosen)
    equal = [
        harm(problem, c)
        for c in all_choices(problem)
        if math.isclose(cost(problem, c), mine, rel_tol=1e-12, abs_tol=1e-12)
        and harm(problem, c) <= budget * (1 + 1e-9)
    ]
    worst = max(o.harm for options in problem.options.values() for o in options)
    assert harm(problem, chosen) <= min(equal) + 2e-3 * worst


@settings(max_examples=20, deadline=None)
@given(problems(), st.data())
def test_of_sparse_and_dense_forms_the_best_are_chosen_together(
    case: tuple[Problem, float], data: st.DataObject
) -> None:
    dense, budget = case
    names = list(dense.options)[:4]  # two forms, each dense or sparse: 4^4 choices and more
    options = {}
    for name in names:
        more = tuple(
            Option(o.precision, o.ms * data.draw(st.sampled_from([0.5, 0.8])), o.harm + unit, "2:4")
            for o in dense.options[name][:2]
            for unit in [data.draw(st.integers(0, 20)) * max(p.harm for p in dense.options[name]) / 20]
        )
        options[name] = (*dense.options[name][:2], *more)
    problem = Problem(options, dense.borders)
    chosen = fastest_options(problem, budget)
    forms = {name: option.precision for name, option in chosen.items()}
    taken = [dict(zip(options, every, strict=True)) for every in product(*options.values())]
    able = [c for c in taken if sum(o.harm for o in c.values()) <= budget * (1 + 1e-9)]

    def total(choice: dict[str, Option]) -> float:
        """The dense problem's borders, which zeros do not touch, and the options' own times."""
        precisions = {name: option.precision for name, option in choice.items()}
        none = {name: tuple(Option(p, 0.0) for p in PRECISIONS) for name in options}
        return cost(Problem(none, dense.borders), precisions) + sum(o.ms for o in choice.values())

    typical = max(o.ms for every in options.values() for o in every)
    assert sum(o.harm for o in chosen.values()) <= budget * (1 + 1e-9)
    assert total(chosen) <= min(map(total, able)) + 2e-6 * len(options) * typical
    assert problem.ms(chosen) == pytest.approx(total(chosen))
    assert fastest(problem, budget) == forms


def test_a_value_that_many_read_is_changed_once() -> None:
    one = {"a": (Option("float", 1.0), Option("int8", 0.7))}
    readers = ("b", "c", "d")
    assert fastest(Problem(one, (Border("a", readers, 0.2),))) == {"a": "int8"}
    assert Problem(one, (Border("a", readers, 0.2),)).ms({"a": "int8"}) == pytest.approx(0.9)
    each = tuple(Border("a", (reader,), 0.2) for reader in readers)
    assert fastest(Problem(one, each)) == {"a": "float"}


def test_what_can_write_floats_pays_only_for_who_reads_codes_beside_others() -> None:
    blocks = {name: (Option("float", 1.0), Option("int8", 0.0)) for name in "abc"}
    problem = Problem(blocks, (Border("a", ("b", "c"), 5.0, free=True),))
    assert problem.ms({"a": "int8", "b": "float", "c": "float"}) == 2.0
    assert problem.ms({"a": "int8", "b": "int8", "c": "float"}) == 6.0
    assert problem.ms({"a": "float", "b": "int8", "c": "int8"}) == 6.0
    assert problem.ms({"a": "int8", "b": "int8", "c": "int8"}) == 0.0


def test_a_budget_that_no_choice_holds_is_told() -> None:
    problem = Problem({"a": (Option("int8", 1.0, 3.0), Option("w8a16", 2.0, 2.0))}, ())
    with pytest.raises(ValueError, match="the least harm is 2, over the budget of 1"):
        fastest(problem, 1.0)
    assert fastest(problem, 2.0) == {"a": "w8a16"}


def test_harms_far_below_the_solvers_tolerance_count() -> None:
    """Blocks at 80 decibels harm 1e-8; a linear program is right to 1e-6 unless it is told the unit."""
    blocks = {f"b{i}": (Option("float", 1.0), Option("int8", 0.5, 1e-8)) for i in range(6)}
    chosen = fastest(Problem(blocks, ()), budget=3.5e-8)
    assert sum(p == "int8" for p in chosen.values()) == 3


def test_a_block_that_ruins_everything_hides_no_other() -> None:
    """Overflow harms without measure: where it is the fastest for all that, equals are told apart still."""
    blocks = {
        "ruin": (Option("float", 2.0), Option("int8", 1.0, 100.0)),
        "even": (Option("float", 1.0), Option("int8", 1.0, 0.5)),
    }
    assert fastest(Problem(blocks, ())) == {"ruin": "int8", "even": "float"}
    assert fastest(Problem(blocks, ()), budget=50.0) == {"ruin": "float", "even": "float"}


@pytest.mark.parametrize("budget", [math.inf, 1.0, 0.0])
def test_without_blocks_nothing_is_chosen(budget: float) -> None:
    assert fastest(Problem({}, (Border("a", ("b",), 1.0),)), budget) == {}


def test_no_budget_at_all_leaves_what_harms_nothing() -> None:
    blocks = {
        "a": (Option("float", 2.0), Option("int8", 1.0, 1e-12)),
        "b": (Option("float", 2.0), Option("int8", 1.0)),
    }
    assert fastest(Problem(blocks, ()), 0.0) == {"a": "float", "b": "int8"}


def test_what_moves_data_goes_with_who_reads_it() -> None:
    blocks = {name: (Option("float", 1.0), Option("int8", 0.5)) for name in ("pool", "a", "b")}
    blocks["a"] = blocks["b"] = (Option("float", 0.0), Option("int8", 1.0))
    follows = {"pool": ("a", "b")}
    assert fastest(Problem(blocks, ()))["pool"] == "int8"
    assert fastest(Problem(blocks, (), follows)) == dict.fromkeys(blocks, "float")
    blocks["b"] = (Option("float", 3.0), Option("int8", 0.0))
    assert fastest(Problem(blocks, (), follows)) == {"pool": "int8", "a": "float", "b": "int8"}


@settings(deadline=None, max_examples=40)
@given(problems(least=1e-4), st.integers(1, 3))
def test_what_follows_several_is_in_integers_where_one_of_them_is(
    case: tuple[Problem, float], many: int
) -> None:
    problem, _ = case
    first, *others = problem.options
    problem = replace(problem, follows={first: tuple(others[:many])} if others else {})

    def allowed(chosen: dict[str, Precision]) -> bool:
        return all(
            (chosen[b] in INTEGER) == any(chosen[r] in INTEGER for r in readers)
            for b, readers in problem.follows.items()
        )

    chosen = fastest(problem)
    assert allowed(chosen)
    least = min(cost(problem, other) for other in all_choices(problem) if allowed(other))
    assert cost(problem, chosen) <= least * (1 + 1e-4) + 1e-12
