"""What a way of compressing hands back: the graph, and place by place what was done and what it cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Step:
    """One place: where, what was done, and whether it was kept.

    ``before`` and ``after`` are the error there, as a share of the signal's power: without this change, but
    with all those in front of it, and with it. ``rise`` is what it adds to the error at the network's
    outputs, after those in front of it. All are ``nan`` where nothing was measured.
    """

    place: str
    what: str
    kept: bool = True
    before: float = math.nan
    after: float = math.nan
    rise: float = math.nan


@dataclass(frozen=True)
class Compressed:
    """A graph that shares with the given one what was not changed, and the steps that led to it."""

    graph: ir.Model
    steps: tuple[Step, ...]

    @property
    def changed(self) -> bool:
        """Whether anything was kept at all."""
        return any(step.kept for step in self.steps)
