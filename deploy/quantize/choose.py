"""Which blocks stay float so that the budget holds.

The search knows neither backends nor devices. It is handed a function that scores a candidate: the set of
blocks that stay float. While the drop is over budget, the blocks with the worst signal-to-noise ratio go back
to float. How many is found by doubling and then halving the interval, so that n blocks cost about 2 log2(n)
trials. Where the first candidate is far over, the block with the best ratio is tried alone: if not even that
holds the budget, nothing would, and all stay float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.data.interval import Drop
from deploy.progress import Progress
from deploy.spec.manifest import Choice

FAR_OVER = 4.0
"""Times the budget that a candidate loses for its network to be taken as hopeless until shown otherwise."""
UNTRIED = Drop(math.inf, math.inf, math.inf)
"""Of a candidate that nobody built, as the time for searching was over: it counts as refused."""
_FEW = 4
"""Blocks whose search takes hardly more trials than to show that."""


@dataclass(frozen=True)
class Decision:
    """The blocks that stay float, the drop that was measured, and why. ``None``: nothing was measured."""

    float_blocks: frozenset[str]
    drop: Drop | None
    within_budget: bool
    choices: tuple[Choice, ...]


def hold_budget(
    worst_first: Sequence[str],
    score: Callable[[frozenset[str]], Drop],
    max_drop: float,
    progress: Progress,
    *,
    start: int = 0,
    form: str = "float",
) -> Decision:
    """The fewest of ``worst_first`` to keep float so that the drop is within ``max_drop``.

    ``start`` blocks are float from the outset. If even all of them do not hold it, all stay float. ``form``
    is what they are instead of INT8, if that is not float.
    """
    tried: dict[int, Drop] = {}

    def holds(count: int) -> bool:
        if count not in tried:
            tried[count] = score(frozenset(worst_first[:count]))
            if not tried[count].within(max_drop) and tried[count] is not UNTRIED:
                float_blocks = f"{count} of {len(worst_first)} blocks {form}" if count else "all blocks INT8"
                progress.note(
                    f"{float_blocks}: drop {tried[count].drop:+.4f}, over the budget of {max_drop:.4f}"
                )
        return tried[count].within(max_drop)

    total = len(worst_first)
    if total - start > _FEW and not holds(start) and tried[start].drop > FAR_OVER * max_drop:
        start = start if holds(total - 1) else total
    count, step, failed = start, 1, start - 1
    while not holds(count):
        failed = count
        if count == total:
            break
        count, step = min(total, count + step), step * 2
    while holds(count) and count - failed > 1:
        middle = (count + failed) // 2
        if holds(middle):
            count = middle
        else:
            failed = middle
    drop = tried[count]
    budget = f"budget {max_drop:.4f}" if math.isfinite(max_drop) else "whatever it costs"
    reason = f"drop {drop.drop:.4f} while choosing, {budget}"
    return Decision(
        frozenset(worst_first[:count]),
        drop,
        drop.within(max_drop),
        (Choice(what="INT8 blocks", chosen=f"{total - count} of {total}", reason=reason),),
    )
