"""What a rung of the accuracy ladder hands back: its result, and place by place what it won and cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One change: where, what was done, and the noise there before and after, as a share of the signal's
    power. Both are ``nan`` where nothing was measured, as where a place was passed over and why."""

    place: str
    what: str
    before: float = math.nan
    after: float = math.nan

    @property
    def gain(self) -> float:
        """Decibels won; infinite where nothing is left of the noise, 0 where nothing was measured."""
        if not self.before > 0:
            return 0.0
        return math.inf if self.after == 0 else 10 * math.log10(self.before / self.after)


@dataclass(frozen=True)
class Rung(Generic[T]):
    """What one rung made. ``passes``: samples it ran, over those of one calibration pass of as many samples
    as it was given; 0 for what is computed from the weights and known ranges alone."""

    name: str
    result: T
    steps: tuple[Step, ...]
    passes: float

    @property
    def changed(self) -> bool:
        """Whether anything was changed at all."""
        return any(step.gain != 0 for step in self.steps)
