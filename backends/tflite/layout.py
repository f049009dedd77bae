"""The order in which a tensor of the file stores a value of the graph.

It is written as a permutation: ``stored = value.transpose(order)``. Convolutions and poolings of TFLite read
channels last; a value of rank 4 is stored so from the first of them on, until something needs ONNX's order.
"""

from __future__ import annotations

from collections.abc import Sequence

Order = tuple[int, ...]

NHWC: Order = (0, 2, 3, 1)
"""Of a value whose axes are batch, channels, height, width."""


def plain(rank: int) -> Order:
    """ONNX's own order."""
    return tuple(range(rank))


def inverse(order: Order) -> Order:
    """The permutation that leads back.

    >>> inverse((0, 2, 3, 1))
    (0, 3, 1, 2)
    """
    return tuple(order.index(axis) for axis in range(len(order)))


def between(have: Order, want: Order) -> Order:
    """The permutation that turns what is stored by ``have`` into what is stored by ``want``.

    >>> between((0, 2, 3, 1), (0, 1, 2, 3))
    (0, 3, 1, 2)
    """
    return tuple(have.index(axis) for axis in want)


def same_memory(shape: Sequence[int], have: Order, want: Order) -> bool:
    """Whether both orders lay the elements out alike: axes of size 1 may stand anywhere.

    ``shape`` is the value's, in ONNX's order, -1 for a free size.

    >>> same_memory((-1, 64, 1, 1), (0, 2, 3, 1), (0, 1, 2, 3))
    True
    """
    return [axis for axis in have if shape[axis] != 1] == [axis for axis in want if shape[axis] != 1]
