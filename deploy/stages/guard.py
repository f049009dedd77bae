"""What a step of a recipe may cost, and with which smaller goal it is tried again where it costs more.

A step is judged after the trainings right behind it: they are there to make up for it, and go with it. It may
cost its own ``max_drop``. Without one it may cost an even share of what is left of the project's budget: of
this step, the steps still to come that have none of their own, and quantization where the build quantizes.
Of what costs more as much is kept as the judge allows, by bisection: over the share of the goal, over the
error that is left of 2:4 sparsity, of which those layers are left out first that add most to it at the
outputs. Where nothing holds, the step is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import escape
from typing import Protocol

from deploy.spec.ablation import PlaceRecord
from deploy.spec.compression import GOALS, Cluster, LowRank, Prune, Shrink, Sparsify
from deploy.spec.finetune import Finetune
from deploy.spec.recipe import Step

TRIES = 4
"""How often a step is tried at most: with its goal, and with three smaller ones."""
_MOST_BITS = 8
_ROUNDING = 1e-9
"""By how much the difference of two scores may be off."""


@dataclass(frozen=True)
class Stretch:
    """A step with the trainings right behind it. ``number`` is its place in the recipe, from 1."""

    number: int
    head: Step
    trainings: tuple[Finetune, ...] = ()

    @property
    def guarded(self) -> bool:
        """Whether it is undone where it costs too much: not a training, which keeps the better graph itself,
        nor a student of its own shape, unless that is asked for."""
        if isinstance(self.head, Finetune):
            return False
        return not isinstance(self.head, Shrink) or self.head.max_drop is not None

    @property
    def shares(self) -> bool:
        """Whether it lives on the project's budget."""
        return self.guarded and own_limit(self.head) is None


def stretches(steps: Sequence[Step]) -> Iterator[Stretch]:
    """The steps in order, each with the trainings behind it; trainings in front stand alone."""
    at = 0
    while at < len(steps):
        head, end = steps[at], at + 1
        trainings: list[Finetune] = []
        while not isinstance(head, Finetune) and end < len(steps):
            behind = steps[end]
            if not isinstance(behind, Finetune):
                break
            trainings.append(behind)
            end += 1
        yield Stretch(at + 1, head, tuple(trainings))
        at = end


def own_limit(step: Step) -> float | None:
    """What the step itself says that it may cost."""
    return None if isinstance(step, Finetune) else step.max_drop


def allowed(
    stretch: Stretch, coming: Sequence[Stretch], lost: float, budget: float, quantizes: bool
) -> float:
    """What the step may cost in the metric's unit, where ``lost`` is gone already.

    ``coming`` are the stretches behind it.
    """
    own = own_limit(stretch.head)
    if own is not None:
        return own
    sharing = 1 + sum(other.shares for other in coming) + quantizes
    return max(0.0, budget - lost) / sharing


def within(cost: float, limit: float) -> bool:
    """Whether a cost is allowed; 0.89 - 0.88 is 0.01."""
    return cost <= limit + _ROUNDING


def softened(step: Step, share: float, weight_bytes: int) -> Step:
    """The step with so much of its goal, itself where there is no less of it.

    ``weight_bytes`` are those of the graph that it gets: a size to reach moves from them towards it. Bits of
    shared weights go from eight to those of the goal; 2:4 sparsity has no share, but there is `Narrowing`.
    """
    if share == 1:
        return step
    changed: dict[str, object]
    match step:
        case Prune(size=int(size)):
            changed = {"size": round(weight_bytes - share * (weight_bytes - size))}
        case Prune():
            changed = {name: share * value for name in GOALS if (value := getattr(step, name)) is not None}
        case Shrink():
            widths = {pattern: 1 - share * (1 - width) for pattern, width in step.widths.items()}
            changed = {"width": 1 - share * (1 - step.width), "widths": widths}
        case Sparsify(sparsity=float(sparsity)):
            changed = {"sparsity": share * sparsity}
        case LowRank():
            changed = {"lost": share * step.lost}
        case Cluster():
            bits = _MOST_BITS - share * (_MOST_BITS - math.log2(step.centres))
            changed = {"centres": max(step.centres, 2 ** math.ceil(bits))}
        case _:
            return step
    return step.model_copy(update=changed)


class Softening(Protocol):
    """A search for the most of a step that costs no more than is allowed."""

    share: float
    """Of the goal, in what `next` gave."""

    def next(self) -> Step | None:
        """What to try now; None where nothing lies between what held and what did not."""

    def judged(self, held: bool) -> None:
        """Whether what `next` gave costs no more than is allowed."""


def softening(step: Step, weight_bytes: int, places: Sequence[PlaceRecord]) -> Softening:
    """How a step is softened of which all costs too much; ``places`` are those of that try."""
    if isinstance(step, Sparsify) and step.pattern == "2:4":
        return Narrowing(step, places)
    return Halving(step, weight_bytes)


class Halving:
    """The search for the largest share of a goal that holds, by bisection."""

    def __init__(self, step: Step, weight_bytes: int) -> None:
        self._step, self._bytes = step, weight_bytes
        self._held, self._failed = 0.0, 1.0
        self.share = 1.0

    def next(self) -> Step | None:
        """What to try now; None where that is nothing else."""
        known = [softened(self._step, share, self._bytes) for share in (self._failed, self._held) if share]
        self.share = (self._held + self._failed) / 2
        found = softened(self._step, self.share, self._bytes)
        return None if found in known else found

    def judged(self, held: bool) -> None:
        """Whether what `next` gave costs no more than is allowed."""
        if held:
            self._held = self.share
        else:
            self._failed = self.share


class Narrowing:
    """The search for the layers that may be 2:4 sparse, from what each of them added to the error at the
    outputs when all were. Those that add least go first; how much they may add together is bisected."""

    share = 1.0

    def __init__(self, step: Sparsify, places: Sequence[PlaceRecord]) -> None:
        """``places`` are those of a try with all layers that fit, which costs too much."""
        rises = {p.place: p.rise for p in places if p.kept and p.rise is not None}
        dear = (escape(p.place) for p in places if not p.kept and p.rise is not None)
        self._protect = (*step.protect, *dear)  # dense for what they alone cost: not to be found out again
        self._step = step
        self._order = sorted(rises, key=rises.__getitem__)
        added = [max(0.0, rises[name]) for name in self._order]  # some make up for others
        self._sums = [sum(added[:count]) for count in range(len(added) + 1)]
        self._held, self._failed = 0, len(added)

    def next(self) -> Sparsify | None:
        """What to try now; None where nothing lies between what held and what did not."""
        if self._failed - self._held < 2:
            return None
        middle = (self._sums[self._held] + self._sums[self._failed]) / 2
        most = sum(added <= middle for added in self._sums) - 1
        self._tried = min(max(most, self._held + 1), self._failed - 1)
        dense = tuple(escape(name) for name in self._order[self._tried :])
        return self._step.model_copy(update={"protect": (*self._protect, *dense)})

    def judged(self, held: bool) -> None:
        """Whether what `next` gave costs no more than is allowed."""
        if held:
            self._held = self._tried
        else:
            self._failed = self._tried
