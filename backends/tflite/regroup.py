"""A reshape as TFLite's memory sees it: which axes become which, and what must move before.

Axes of the source that become axes of the result form a group. A source that lies channels last needs no
transpose where each group lies together and in ONNX's order; the result then lies channels last, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backends.tflite.layout import Order
from deploy.graph.symbolic import Known, Size

_ONE = Size(1)


@dataclass(frozen=True)
class Regrouped:
    """How the source must lie, and how the result lies then."""

    source: Order
    result: Order


def groups(source: Sequence[Known], result: Sequence[Known]) -> list[tuple[list[int], list[int]]] | None:
    """The axes that go together, those of size 1 left out; None where sizes are not known well enough.

    >>> groups([Size(1, ("n",)), Size(8), Size(6)], [Size(1, ("n",)), Size(2), Size(4), Size(1), Size(6)])
    [([0], [0]), ([1], [1, 2]), ([2], [4])]
    """
    left, right = ([axis for axis, size in enumerate(s) if size != _ONE] for s in (source, result))
    found: list[tuple[list[int], list[int]]] = []
    while left or right:
        if not left or not right:
            return None
        mine, theirs = [left.pop(0)], [right.pop(0)]
        have, want = source[mine[0]], result[theirs[0]]
        while have != want:
            if have is None or want is None:
                return None
            if want.over(have) is not None and left:
                mine.append(left.pop(0))
                have = _times(have, source[mine[-1]])
            elif have.over(want) is not None and right:
                theirs.append(right.pop(0))
                want = _times(want, result[theirs[-1]])
            elif left and right:
                mine.append(left.pop(0))
                theirs.append(right.pop(0))
                have, want = _times(have, source[mine[-1]]), _times(want, result[theirs[-1]])
            else:
                return None
        found.append((mine, theirs))
    return found


def regrouped(source: Sequence[Known], result: Sequence[Known], lies: Order) -> Regrouped | None:
    """For a source that ``lies`` in an order; groups keep the order in which their last axes lie."""
    found = groups(source, result)
    if found is None:
        return None
    found.sort(key=lambda group: lies.index(group[0][-1]))
    before = [axis for mine, _ in found for axis in mine]
    after = [axis for _, theirs in found for axis in theirs]
    return Regrouped(_with_ones(before, source, lies), _with_ones(after, result, range(len(result))))


def _with_ones(order: list[int], sizes: Sequence[Known], like: Sequence[int]) -> Order:
    """The order with axes of size 1 put in: each behind the axis that it follows in ``like``."""
    made = list(order)
    for place, axis in enumerate(like):
        if sizes[axis] == _ONE:
            made.insert(0 if place == 0 else made.index(like[place - 1]) + 1, axis)
    return tuple(made)


def _times(one: Known, other: Known) -> Known:
    return None if one is None or other is None else one.times(other)
