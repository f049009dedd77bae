"""Rounds: how much is left after each, so that none takes away more than it may."""

from __future__ import annotations

import math


def milestones(whole: float, goal: float, per_round: float) -> list[float]:
    """What is left after each round, ``goal`` after the last: the same share of what is there goes in each,
    at most ``per_round``.

    >>> [round(m, 1) for m in milestones(100.0, 64.0, per_round=0.2)]
    [80.0, 64.0]
    >>> milestones(100, 100, per_round=0.2)
    []
    """
    if goal >= whole:
        return []
    rounds = math.ceil(math.log(goal / whole) / math.log(1 - per_round) - 1e-9) if goal > 0 else 1
    ratio = goal / whole
    return [whole * ratio ** (number / rounds) for number in range(1, rounds)] + [goal]
