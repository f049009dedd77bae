"""The fastest mixture of float and integer blocks, with 2:4 zeros or without, within an accuracy budget, by
the costs of kernels.

Where a block's integer kernel is slower than its float one, or the changes of form around it cost more than
it wins, the block stays float, whatever its accuracy. How much harm (relative noise power, added up over
blocks) the budget allows is found by bisection: each choice on the way is the exact optimum for its harm,
built and scored for real. Where the first one is far over the budget, and not even the least harmful block
alone holds it, nothing else is tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from deploy.data.interval import Drop
from deploy.progress import Progress
from deploy.quantize.choose import FAR_OVER, UNTRIED
from deploy.quantize.knapsack import Problem, fastest_options

_STEPS = 6
"""Trials of the bisection. After them the harm allowed is known within a factor of four, and better the
sooner a choice held; a model that holds only with 4,096 times less harm than the first choice gets none."""

Score = Callable[[frozenset[str], frozenset[str]], Drop]
"""What a form loses: these blocks float, those with 2:4 zeros."""


@dataclass(frozen=True)
class Mixture:
    """The blocks that stay float, of those that could be integers, and what was measured of it;
    ``sparse_blocks`` are those whose weights get 2:4 zeros."""

    float_blocks: frozenset[str]
    drop: Drop | None
    sparse_blocks: frozenset[str] = frozenset()


def harm_of(sqnr: Mapping[str, float]) -> dict[str, float]:
    """Relative noise power by block, from its signal-to-noise ratio in decibels; 100 at most, as all is lost
    long before.

    >>> harm_of({"a": 20.0, "b": math.inf})
    {'a': 0.01, 'b': 0.0}
    """
    return {block: 0.0 if db == math.inf else float(10 ** min(-db / 10, 2)) for block, db in sqnr.items()}


def float_at_least(sqnr: Mapping[str, float], refused: Iterable[frozenset[str]]) -> int:
    """How many of the noisiest blocks must be float for the others to harm less than any of the forms that
    were ``refused``, given by their float blocks; ``sqnr`` is that of all blocks that may be integers.

    >>> float_at_least({"a": 10.0, "b": 20.0, "c": 30.0}, [frozenset({"a"})])
    2
    """
    harm = harm_of(sqnr)
    # exact sums: where two are equal, the order in which a set is walked must not decide
    least = min(
        (math.fsum(harm[block] for block in harm.keys() - floats) for floats in refused), default=math.inf
    )
    worst_first = sorted(harm, key=harm.__getitem__, reverse=True)
    left = [math.fsum(harm[block] for block in worst_first[count:]) for count in range(len(harm))]
    return sum(one >= least for one in left)


def mixture(
    problem: Problem,
    able: frozenset[str],
    score: Score | None,
    max_drop: float,
    progress: Progress,
    *,
    budget: float = math.inf,
    enough: float = 1.0,
) -> Mixture | None:
    """The fastest choice whose drop is within ``max_drop``, of those that harm no more than ``budget``.

    ``able`` are the blocks that may be integers. Without ``score`` the fastest is taken as it is. The search
    ends early where what is left to be won would take more than ``enough`` of the milliseconds of what holds,
    floats if nothing else does. Where chance may have refused the fastest, integers throughout are tried too,
    if they are about as fast as what comes next: of few samples what harms more in the mean may lose less.
    None where neither integers nor zeros pay, or none hold the budget. Raises BackendError where the solver
    fails.
    """
    tried: dict[_Form, Drop] = {}

    def form(harm: float) -> _Form:
        chosen = fastest_options(problem, harm)
        return _Form(
            frozenset(b for b in able if b in chosen and not chosen[b].integer),
            frozenset(b for b, option in chosen.items() if option.sparsity is not None),
            sum(option.harm for b, option in chosen.items() if b in able),
            problem.ms(chosen),
        )

    def holds(one: _Form) -> bool:
        assert score is not None
        if one not in tried:
            tried[one] = score(one.floats, one.sparse)
            drop = tried[one]
            if not drop.within(max_drop) and drop is not UNTRIED:
                zeros = f", {len(one.sparse)} with 2:4 zeros" if one.sparse else ""
                progress.note(
                    f"{len(one.floats)} of {len(able)} blocks float by cost{zeros}: drop {drop.drop:+.4f}, "
                    f"over the budget of {max_drop:.4f}"
                )
        return tried[one].within(max_drop)

    def wins_nothing(one: _Form) -> bool:
        return one.floats >= able and not one.sparse

    first = form(budget)
    if wins_nothing(first):
        return None
    if score is None:
        return Mixture(first.floats, None, first.sparse)
    if holds(first):
        return Mixture(first.floats, tried[first], first.sparse)
    alone = _least_harmful(problem, able) if tried[first].drop > FAR_OVER * max_drop else None
    if alone is not None and not holds(alone):
        return None
    high, low, best = first.harm, 0.0, None
    least = first.ms  # what harms less takes longer
    plain, whole = form(0.0), _integers(problem, able)
    by_chance = tried[first].low <= max_drop
    for _ in range(_STEPS):
        if least >= enough * (plain if best is None else best).ms:
            break
        middle = high / 4 if low == 0.0 else math.sqrt(low * high)
        candidate = form(middle)
        if by_chance and whole not in tried and enough * whole.ms <= candidate.ms and holds(whole):
            return Mixture(whole.floats, tried[whole], whole.sparse)
        if wins_nothing(candidate):  # so little harm buys nothing, more may
            low = middle
        elif holds(candidate):
            low, best = middle, candidate
        else:
            high, least = min(middle, candidate.harm), candidate.ms
    return None if best is None else Mixture(best.floats, tried[best], best.sparse)


def _least_harmful(problem: Problem, able: frozenset[str]) -> _Form | None:
    """One block alone in integers; None where 2:4 zeros are a choice, too: they may hold where integers do
    not."""
    if any(option.sparsity is not None for options in problem.options.values() for option in options):
        return None
    harm = {b: o.harm for b in sorted(able) for o in problem.options[b] if o.integer}
    block = min(harm, key=harm.__getitem__)
    return _Form(able - {block}, frozenset(), harm[block], math.inf)


def _integers(problem: Problem, able: frozenset[str]) -> _Form:
    """Every block in integers that may be, and what moves their codes."""
    chosen = {
        block: next((o for o in options if o.integer and o.sparsity is None), options[0])
        for block, options in problem.options.items()
    }
    return _Form(frozenset(), frozenset(), sum(chosen[b].harm for b in able), problem.ms(chosen))


@dataclass(frozen=True)
class _Form:
    """A choice: the blocks that stay float, those with 2:4 zeros, what it harms, and what it takes."""

    floats: frozenset[str]
    sparse: frozenset[str]
    harm: float = field(compare=False)
    ms: float = field(compare=False)
