"""Where a graph is computed, by the rules of a unit in the profile: a prediction, nothing was measured."""

from __future__ import annotations

from datetime import date
from typing import Literal

from deploy.spec.document import Frozen
from deploy.spec.unit import Effect, Rewriting

State = Literal["stays", "unknown", "may leave", "leaves"]
"""Whether something is computed on the unit; the later ones outweigh those before."""

STATES: tuple[State, ...] = ("stays", "unknown", "may leave", "leaves")


class RuleFound(Frozen):
    """A rule that holds of some of the graph, as the profile has it."""

    name: str
    effect: Effect
    words: str
    said: Literal["vendor", "developer"]
    remedies: tuple[Rewriting, ...] = ()
    source: str
    date: date


class BlockResidency(Frozen):
    """A block that does not simply stay, or is slower. Its state is that of its worst node, ``macs`` those of
    nodes that do not stay; ``rules`` by name, and ``unlisted`` operations of which nothing is known."""

    id: str
    kind: str
    state: State
    macs: int
    rules: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


class Residency(Frozen):
    """What is computed on ``unit``: ``blocks`` and ``macs`` by state, those of one sample; nodes whose MACs
    are not known are ``uncounted``. ``crossings`` are values that change between it and ``otherwise``.

    ``apart`` are the blocks that do not simply stay, or are slower, in the order of the graph.
    """

    unit: str
    otherwise: str
    blocks: dict[State, int]
    macs: dict[State, int]
    uncounted: int = 0
    crossings: int = 0
    apart: tuple[BlockResidency, ...] = ()
    rules: tuple[RuleFound, ...] = ()

    @property
    def share(self) -> float | None:
        """Of the MACs those that stay, 0 to 1; None where there are none."""
        total = sum(self.macs.values())
        return self.macs.get("stays", 0) / total if total else None
