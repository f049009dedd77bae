"""The fastest mixture of float and integer blocks within an accuracy budget, by the costs of kernels.

Where a block's integer kernel is slower than its float one, or the changes of form around it cost more than
it wins, the block stays float, whatever its accuracy. How much harm (relative noise power, added up over
blocks) the budget allows is found by bisection: each choice on the way is the exact optimum for its harm,
built and scored for real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.data.interval import Drop
from deploy.progress import Progress
from deploy.quantize.knapsack import Problem, fastest

_STEPS = 6
"""Trials of the bisection. After them the harm allowed is known within a factor of four, and better the
sooner a choice held; a model that holds only with 4,096 times less harm than the first choice gets none."""


@dataclass(frozen=True)
class Mixture:
    """The blocks that stay float, of those that could be integers, and what was measured of it."""

    float_blocks: frozenset[str]
    drop: Drop | None


def harm_of(sqnr: Mapping[str, float]) -> dict[str, float]:
    """Relative noise power by block, from its signal-to-noise ratio in decibels; 100 at most, as all is lost
    long before.

    >>> harm_of({"a": 20.0, "b": math.inf})
    {'a': 0.01, 'b': 0.0}
    """
    return {block: 0.0 if db == math.inf else float(10 ** min(-db / 10, 2)) for block, db in sqnr.items()}


def mixture(
    problem: Problem,
    able: frozenset[str],
    score: Callable[[frozenset[str]], Drop] | None,
    max_drop: float,
    progress: Progress,
    *,
    budget: float = math.inf,
) -> Mixture | None:
    """The fastest choice whose drop is within ``max_drop``, of those that harm no more than ``budget``.

    ``able`` are the blocks that may be integers. Without ``score`` the fastest is taken as it is. None where
    no integers pay, or none hold the budget. Raises BackendError where the solver fails.
    """
    tried: dict[frozenset[str], Drop] = {}

    def floats(harm: float) -> frozenset[str]:
        chosen = fastest(problem, harm)
        return frozenset(b for b in able if b in chosen and not _integer(problem, b, chosen))

    def harm_in(float_blocks: frozenset[str]) -> float:
        """What the able blocks that are not float harm."""
        return sum(o.harm for b in able - float_blocks for o in problem.options[b] if o.integer)

    def holds(float_blocks: frozenset[str]) -> bool:
        assert score is not None
        if float_blocks not in tried:
            tried[float_blocks] = score(float_blocks)
            drop = tried[float_blocks]
            if not drop.within(max_drop):
                progress.note(
                    f"{len(float_blocks)} of {len(able)} blocks float by cost: drop {drop.drop:+.4f}, "
                    f"over the budget of {max_drop:.4f}"
                )
        return tried[float_blocks].within(max_drop)

    first = floats(budget)
    if first >= able:
        return None
    if score is None:
        return Mixture(first, None)
    if holds(first):
        return Mixture(first, tried[first])
    high, low, best = harm_in(first), 0.0, None
    for _ in range(_STEPS):
        middle = high / 4 if low == 0.0 else math.sqrt(low * high)
        candidate = floats(middle)
        if candidate >= able:  # so little harm buys nothing, more may
            low = middle
        elif holds(candidate):
            low, best = middle, candidate
        else:
            high = min(middle, harm_in(candidate))
    return None if best is None else Mixture(best, tried[best])


def _integer(problem: Problem, block: str, chosen: Mapping[str, str]) -> bool:
    return next(o for o in problem.options[block] if o.precision == chosen[block]).integer
