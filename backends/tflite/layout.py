"""The order in which a tensor of the file stores a value of the graph.

It is written as a permutation: ``stored = value.transpose(order)``. Convolutions and poolings of TFLite read
channels last; a value of rank 3 to 5 is stored so from the first of them on, until something needs ONNX's
order. A signal is stored as an image of one row: its order then names an axis of size 1 that it lacks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

Order = tuple[int, ...]

NHWC: Order = (0, 2, 3, 1)
"""Of a value whose axes are batch, channels, height, width."""


LACKING = -1
"""Stands in an order for an axis of size 1 that the value does not have."""

ONE_ROW: Order = (0, LACKING, 2, 1)
"""Of a signal whose axes are batch, channels, time, stored as an image."""


def channels_last(rank: int) -> Order:
    """Of a value whose axes are batch, channels and any number of spatial ones."""
    return (0, *range(2, rank), 1)


@cache
def own_axes(order: Order) -> Order:
    """The order without axes that the value lacks."""
    return tuple(axis for axis in order if axis != LACKING)


def stored_sizes(shape: Sequence[int], order: Order) -> tuple[int, ...]:
    """The sizes by which a value of ``shape`` is stored."""
    return tuple(1 if axis == LACKING else shape[axis] for axis in order)


def stored(array: np.ndarray, order: Order) -> np.ndarray:
    """An array in ONNX's order as it is stored."""
    moved = np.ascontiguousarray(array.transpose(own_axes(order)))
    return moved.reshape(stored_sizes(array.shape, order))


def restored(array: np.ndarray, order: Order) -> np.ndarray:
    """What is stored by ``order``, in ONNX's own."""
    lacking = tuple(place for place, axis in enumerate(order) if axis == LACKING)
    return array.squeeze(lacking).transpose(inverse(own_axes(order)))


def unflattened(array: np.ndarray, sizes: Sequence[int], order: Order) -> np.ndarray:
    """An array whose last axis was several of ``sizes`` in another order, with its elements in ONNX's."""
    apart = array.reshape([sizes[axis] for axis in order])
    return apart.transpose(inverse(order)).reshape(array.shape)


def reflattened(array: np.ndarray, sizes: Sequence[int], order: Order) -> np.ndarray:
    """What `unflattened` undoes."""
    return array.reshape(sizes).transpose(order).reshape(array.shape)


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
    one, other = ([axis for axis in own_axes(order) if shape[axis] != 1] for order in (have, want))
    return one == other


@dataclass(frozen=True)
class Blocks:
    """How a constant of a transposed convolution was cut up for a convolution that makes blocks of pixels.

    One small filter for each element of a block (as large as the strides), all of them over the same places,
    backwards; stored (elements, O, taps, taps, I). Of the bias, which has no kernel, a copy for each element.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements of a block."""
        return math.prod(self.strides)

    @property
    def channels(self) -> int:
        """The axis of the channels that come out, in ONNX's order."""
        return 1 if self.kernel else 0

    def whole(self, array: np.ndarray) -> np.ndarray:
        """The constant as it was: (I, O, height, width), or (O)."""
        outputs = array.shape[0] // self.count
        if not self.kernel:
            return array[:outputs]
        down, right = array.shape[1:3]
        cut = array.reshape(*self.strides, outputs, down, right, -1)[:, :, :, ::-1, ::-1]
        sizes = (down * self.strides[0], right * self.strides[1])
        wide = cut.transpose(5, 2, 3, 0, 4, 1).reshape(-1, outputs, *sizes)
        return wide[:, :, : self.kernel[0], : self.kernel[1]]
