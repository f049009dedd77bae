"""Along one axis: of which old elements ONNX's Resize makes a new one, and of which TFLite's operators do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_Float = type[np.float32] | type[np.float64]
TFLITE_MODES: tuple[tuple[bool, bool], ...] = ((True, False), (False, False), (False, True))
"""Half pixel centers and aligned corners, as TFLite's resizing operators combine them."""


@dataclass(frozen=True)
class Along:
    """An axis that grows or shrinks. ``region`` is what tf_crop_and_resize reads, in parts of the axis."""

    axis: int
    before: int
    after: int
    scale: float
    region: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Filter:
    """How a Resize reads its input; the fields are the node's attributes."""

    mode: str
    coordinates: str
    rounding: str
    antialias: bool
    exclude_outside: bool
    cubic: float

    def places(self, along: Along, kind: _Float = np.float32) -> np.ndarray:
        """Where each new element lies among the old ones; float32, so that ties fall as elsewhere."""
        before, after = along.before, along.after
        x: np.ndarray = np.arange(after).astype(kind)
        places = (x + 0.5) / along.scale - 0.5
        if self.coordinates == "align_corners":
            places = x * (before - 1) / (after - 1) if after > 1 else x * 0
        elif self.coordinates == "asymmetric":
            places = x / along.scale
        elif self.coordinates == "tf_crop_and_resize":
            start, end = along.region
            places = x + 0.5 * (start + end) * (before - 1)
            if after > 1:
                places = start * (before - 1) + x * (end - start) * (before - 1) / (after - 1)
        elif self.coordinates == "pytorch_half_pixel" and after == 1:
            places = x * 0
        elif self.coordinates == "half_pixel_symmetric":
            places = places + before / 2 * (1 - after / (along.scale * before))
        return places

    def nearest(self, along: Along, kind: _Float = np.float32) -> np.ndarray:
        """For mode nearest: the old element of each new one."""
        at = self.places(along, kind)
        if self.rounding == "round_prefer_floor":
            at = np.ceil(at - 0.5)
        elif self.rounding == "round_prefer_ceil":
            at = np.floor(at + 0.5)
        else:
            at = np.floor(at) if self.rounding == "floor" else np.ceil(at)
        return at.astype(np.int64).clip(0, along.before - 1)

    def undecided(self, along: Along) -> bool:
        """Whether the last bit of a place decides which pixel is nearest."""
        return self.mode == "nearest" and not np.array_equal(
            self.nearest(along), self.nearest(along, np.float64)
        )

    def outside(self, along: Along) -> np.ndarray:
        """Which new elements lie outside of the old ones and get the value for that."""
        at = self.places(along)
        crops = self.coordinates == "tf_crop_and_resize"
        return ((at < 0) | (at > along.before - 1)) & crops

    def matrix(self, along: Along) -> np.ndarray:
        """The new elements as sums of old ones, (after, before); rows of elements outside are zero."""
        made = np.zeros((along.after, along.before))
        rows = np.arange(along.after)
        if self.mode == "nearest":
            made[rows, self.nearest(along)] = 1
        else:
            for place, share in zip(*self._taps(along), strict=True):
                np.add.at(made, (rows, place), share)
        made[self.outside(along)] = 0
        return made.astype(np.float32)

    def _taps(self, along: Along) -> tuple[np.ndarray, np.ndarray]:
        """Old elements and their shares, both (taps, after). Beyond the ends the last element goes on."""
        centre = self.places(along).astype(np.float64)
        width = min(along.scale, 1.0) if self.antialias else 1.0
        half = math.ceil((1 if self.mode == "linear" else 2) / width)
        places = np.floor(centre).astype(np.int64) + np.arange(1 - half, half + 1)[:, None]
        distance = np.abs(places - centre) * width
        if self.mode == "linear":
            shares = np.clip(1 - distance, 0, 1)
        else:
            a = self.cubic
            near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
            far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
            shares = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        if self.exclude_outside:
            shares = np.where((places < 0) | (places >= along.before), 0, shares)
        return places.clip(0, along.before - 1), shares / shares.sum(0)


def tflite_nearest(along: Along, *, half: bool, corners: bool) -> np.ndarray:
    """The old element of each new one by RESIZE_NEAREST_NEIGHBOR."""
    at = (np.arange(along.after, dtype=np.float32) + np.float32(0.5 if half else 0)) * _step(along, corners)
    places: np.ndarray = np.floor(at + 0.5 if corners else at)
    return places.astype(np.int64).clip(0, along.before - 1)


def tflite_matrix(along: Along, *, half: bool, corners: bool) -> np.ndarray:
    """As `Filter.matrix`, of RESIZE_BILINEAR."""
    x, step = np.arange(along.after, dtype=np.float32), _step(along, corners)
    at = (x + np.float32(0.5)) * step - np.float32(0.5) if half else x * step
    low = np.floor(at).astype(np.int64)
    share = at - low
    made, rows = np.zeros((along.after, along.before), np.float32), np.arange(along.after)
    np.add.at(made, (rows, low.clip(0, along.before - 1)), 1 - share)
    np.add.at(made, (rows, (low + 1).clip(0, along.before - 1)), share)
    return made


def _step(along: Along, corners: bool) -> np.float32:
    if corners and along.after > 1:
        return np.float32(along.before - 1) / np.float32(along.after - 1)
    return np.float32(along.before) / np.float32(along.after)


def repeats(read: Filter, along: Along) -> int:
    """How often each element stands in a row, 0 where it is not that simple. Also tells of a free size."""
    if along.before > 0:
        factor = along.after // along.before
        whole = factor * along.before == along.after
        simple = whole and np.array_equal(read.nearest(along), np.arange(along.after) // factor)
        return factor if simple else 0
    factor = int(along.scale)
    if factor != along.scale or read.coordinates not in ("asymmetric", "half_pixel", "pytorch_half_pixel"):
        return 0
    some = Along(along.axis, 64, 64 * factor, along.scale)
    return factor if np.array_equal(read.nearest(some), np.arange(64 * factor) // factor) else 0
