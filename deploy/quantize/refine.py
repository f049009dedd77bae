"""What rungs of the accuracy ladder decide beside the graph itself, and how that enters a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from deploy.graph.qdq import data_digest
from deploy.quantize.assign import Assignment
from deploy.quantize.correct import Corrected
from deploy.quantize.ranges import Range
from deploy.spec.ladder import RungName

Correction = Callable[[Assignment], Corrected]
"""Finds the biases that go with an assignment of the subject's graph."""


@dataclass(frozen=True)
class Refinement:
    """``rungs`` that were climbed, and what they left.

    ``ranges`` by the leader of a group of values; ``apart`` are nodes that move no integers; ``rounded``
    holds tensors and codes of weights, which count where the scales are still theirs; ``correction`` comes
    after all of these. ``trained`` is the whole assignment with every block quantized, learned together.
    ``sparse`` are the blocks whose weights have got 2:4 zeros after the rungs, ``wide`` those whose
    activations have 16 bits where others have 8.
    """

    rungs: tuple[RungName, ...] = ()
    ranges: Mapping[str, Range] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    rounded: Assignment | None = None
    correction: Correction | None = None
    trained: Assignment | None = None
    sparse: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()

    def with_rounding(self, assignment: Assignment) -> Assignment:
        """The assignment with the codes that were chosen for its weights."""
        if self.rounded is None:
            return assignment
        tensors, codes = dict(assignment.tensors), dict(assignment.codes)
        for name, plan in self.rounded.tensors.items():
            mine = tensors.get(name)
            if name in codes and mine is not None and mine.scale == plan.scale and not plan.bias_of:
                codes[name] = self.rounded.codes[name]
                tensors[name] = mine.model_copy(update={"digest": data_digest(codes[name])})
        return Assignment(tensors, codes)


NOTHING_REFINED = Refinement()


def remembered(correction: Correction) -> Correction:
    """The same, which does not find what it found last a second time."""
    last: dict[tuple[object, ...], Corrected] = {}

    def found(assignment: Assignment) -> Corrected:
        key = tuple(sorted((n, t.scale, t.zero_point, t.digest or "") for n, t in assignment.tensors.items()))
        if key not in last:
            result = correction(assignment)
            last.clear()
            last[key] = result
        return last[key]

    return found
