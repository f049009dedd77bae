"""How many channels each family keeps so that the goal is met: at the least harm, or by rank.

By harm it is a multiple-choice knapsack, solved as an integer program. What widths save multiplies, so
savings are said next to others half-way between what they are and what they become: for products of two
widths these add up exactly. By rank it is the smallest share that suffices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.compress.prune.amount import NAMES, SLACK, Amount
from deploy.errors import UsageError
from deploy.milp import Rows, least_cost
from deploy.spec.compression import Goal

_TRIES, _TRIES_DEAR = 12, 3
"""Solutions that are corrected; fewer where every amount is a graph to be built."""
_SECONDS = 10.0
"""What solving once may take."""
_PAIRS = 30_000
"""Exchanges between two families that are looked at in a turn."""
_TURNS = 50
_TIES = 1e-6
"""Of the largest harm, what all channels of a family cost extra."""


@dataclass(frozen=True)
class Choice:
    """What a family may keep, from all of it down, and what each costs, from 0 up."""

    kept: tuple[int, ...]
    harm: tuple[float, ...]


def require_reachable(
    allowed: Sequence[Sequence[int]], amount: Amount, goal: float, resource: Goal, bounds: str
) -> None:
    """Raises UsageError where even the least that may be kept is more than ``goal``, and says what can be.
    ``bounds`` are the settings that keep it."""
    whole, least = amount(np.array([[max(a) for a in allowed], [min(a) for a in allowed]], float))
    if least > goal * (1 + SLACK):
        asked = f"{goal:,.0f}" if resource == "size" else f"{1 - goal / whole:.0%} less"
        can = f"size = {math.ceil(least)} or more" if resource == "size" else f"at most {resource} = "
        can += "" if resource == "size" else f"{_below(1 - least / whole):.2f}"
        raise UsageError(
            f"prune: {asked} {NAMES[resource]} cannot be reached: with {bounds} at least {least:,.4g} of "
            f"{whole:,.4g} stay",
            hint=f"ask for {can}, or let less be kept",
        )


def _below(share: float) -> float:
    return math.floor(max(0.0, share) * 100) / 100


def least_harm(choices: Sequence[Choice], amount: Amount, goal: float, dear: bool = False) -> np.ndarray:
    """How many atoms each family keeps, (families,), so that ``amount`` is at most ``goal``: at the least sum
    of harm that is found, which is the least there is where amounts add up.

    Amounts that are ``dear`` are asked for some hundred times, others some hundred thousand times. The least
    that the choices allow must suffice (`require_reachable`). Raises BackendError where the solver fails.
    """
    goal *= 1 + SLACK
    choices = [_told_apart(choice, choices) for choice in choices]
    full = np.array([c.kept[0] for c in choices], float)
    whole = float(amount(full[None])[0])
    if whole <= goal:
        return full.astype(int)
    best = [len(c.kept) - 1 for c in choices]
    least = _harm(choices, best)
    at, wanted = [0] * len(choices), whole - goal
    seen: set[tuple[int, ...]] = set()
    for _ in range(_TRIES_DEAR if dear else _TRIES):
        middle = (full + _widths(choices, at)) / 2
        savings = _savings(choices, amount, middle)
        found = _knapsack(choices, savings, min(wanted, sum(max(s) for s in savings) * (1 - 1e-9)))
        left = float(amount(_widths(choices, found)[None])[0])
        harm = _harm(choices, found)
        if left <= goal and harm < least:
            best, least = found, harm
        said = sum(s[i] for s, i in zip(savings, found, strict=True))
        if tuple(found) in seen and left <= goal:
            break
        seen.add(tuple(found))
        wanted = (whole - goal) * min(4.0, max(0.25, said / max(whole - left, 1e-9 * whole)))
        if found == at and left > goal:
            wanted *= 1.02
        at = found
    best = _improved(choices, amount, goal, best, dear)
    return _widths(choices, best).astype(int)


def _told_apart(choice: Choice, all_of_them: Sequence[Choice]) -> Choice:
    """Of two widths that harm alike, the wider one is better."""
    unit = _TIES * (max(c.harm[-1] for c in all_of_them) or 1.0)
    harm = tuple(h + unit * (1 - k / choice.kept[0]) for k, h in zip(choice.kept, choice.harm, strict=True))
    return Choice(choice.kept, harm)


def _widths(choices: Sequence[Choice], at: Sequence[int]) -> np.ndarray:
    return np.array([c.kept[i] for c, i in zip(choices, at, strict=True)], float)


def _harm(choices: Sequence[Choice], at: Sequence[int]) -> float:
    return sum(c.harm[i] for c, i in zip(choices, at, strict=True))


def _savings(choices: Sequence[Choice], amount: Amount, middle: np.ndarray) -> list[list[float]]:
    """What each width of each family saves while the others have those of ``middle``."""
    rows = []
    for index, choice in enumerate(choices):
        for kept in choice.kept:
            row = middle.copy()
            row[index] = kept
            rows.append(row)
    left = amount(np.array(rows)).tolist()
    savings, at = [], 0
    for choice in choices:
        own = left[at : at + len(choice.kept)]
        savings.append([own[0] - one for one in own])
        at += len(choice.kept)
    return savings


def _knapsack(choices: Sequence[Choice], savings: Sequence[Sequence[float]], wanted: float) -> list[int]:
    """One width of each family, the sum of harm least among those that save ``wanted``."""
    harm = np.concatenate([c.harm for c in choices])
    saved = np.concatenate(savings) / wanted
    owner = np.repeat(np.arange(len(choices)), [len(c.kept) for c in choices])
    rows = Rows()
    for index in range(len(choices)):
        rows.add(dict.fromkeys(np.flatnonzero(owner == index).tolist(), 1.0), 1.0, 1.0)
    rows.add(dict(enumerate(saved.tolist())), 1.0, np.inf)
    taken = least_cost(
        harm / (float(harm.max()) or 1.0),
        rows,
        whole=len(harm),
        seconds=_SECONDS,
        finding="choosing widths",
        hint='set scope = "global"',
    )
    return [int(np.argmax(taken[owner == index])) for index in range(len(choices))]


def _improved(choices: Sequence[Choice], amount: Amount, goal: float, at: list[int], dear: bool) -> list[int]:
    """Widths changed alone, or two at a time, as long as that is less harm and still meets the goal. Where
    amounts are dear, widths are only given back."""
    count = len(choices)
    alone = [(f, i) for f, choice in enumerate(choices) for i in range(len(choice.kept))]
    moves: list[tuple[tuple[int, int], ...]] = [(move,) for move in alone]
    if not dear and len(alone) ** 2 // 2 <= _PAIRS:
        moves += [(a, b) for a in alone for b in alone if a[0] < b[0]]
    table = np.zeros((count, max(len(c.kept) for c in choices)))
    harms = np.zeros_like(table)
    for f, choice in enumerate(choices):
        table[f, : len(choice.kept)], harms[f, : len(choice.kept)] = choice.kept, choice.harm
    first = np.array([(m[0], m[-1]) for m in moves])
    for _ in range(_TURNS):
        now = np.array(at)
        own, other = first[:, 0], first[:, 1]
        change = harms[own[:, 0], own[:, 1]] - harms[own[:, 0], now[own[:, 0]]]
        two = own[:, 0] != other[:, 0]
        change += two * (harms[other[:, 0], other[:, 1]] - harms[other[:, 0], now[other[:, 0]]])
        less = change < -1e-12 * float(harms.max())
        near = own[:, 1] == now[own[:, 0]] - 1
        better = np.flatnonzero(less & near if dear else less)
        better = better[np.argsort(change[better], kind="stable")]
        chosen = None
        for part in np.array_split(better, max(1, len(better) // 512)):
            rows = np.repeat(table[np.arange(count), now][None], len(part), 0)
            index = np.arange(len(part))
            rows[index, own[part, 0]] = table[own[part, 0], own[part, 1]]
            rows[index, other[part, 0]] = table[other[part, 0], other[part, 1]]
            meets = part[amount(rows) <= goal] if part.size else part
            if meets.size:
                chosen = moves[int(meets[0])]
                break
        if chosen is None:
            break
        for family, index_of in chosen:
            at[family] = index_of
    return at
