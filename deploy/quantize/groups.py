"""Scales of groups of weights: so many along the summed axis of a product share one, at 4 bits and at 8.

8 bits  symmetric, codes in [-127, 127], the scale covers the largest magnitude
4 bits  symmetric, codes in [-8, 7], or with a zero point for each group, codes in [0, 15]

At 4 bits the range of a group is that part of what covers it which leaves the least squared error (Banner,
Nahshan and Soudry 2019, "Post training 4-bit quantization"), and for the codes that come of it the scale is
then the least-squares one, <w, q> / <q, q>, by turns with rounding anew as long as that helps (Zhang et al.
2018, "LQ-Nets"). Groups are those of Q-BERT (Shen et al. 2020).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deploy.spec.plan import QuantParams
from deploy.spec.tensors import RANGES, QuantType

_SMALLEST_SCALE = 1e-12
_SHRINK = np.linspace(1.0, 0.6, 17, dtype=np.float32)
"""What is tried of the range that covers a group."""
_REFITS = 2
_ZERO_POINTS_PAY = 0.9
"""Zero points, a number more to each group, are taken where they leave so much of the squared error."""
_AT_ONCE = 1 << 20
"""Weights that are searched together, so that memory stays flat."""


@dataclass(frozen=True)
class _Groups:
    """For each group its codes, scale and zero point, and the squared error that they leave."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    error: np.ndarray


def quantize_groups(
    array: np.ndarray, group: int, bits: int, *, half: bool = False
) -> tuple[QuantParams, np.ndarray]:
    """Parameters and codes of a float32 matrix [K, N], K being summed over; the last group may be shorter.
    ``half``: scales are float16 numbers.

    >>> weights = np.array([[-3.5], [0.5], [0.25], [1.75]], np.float32)
    >>> params, codes = quantize_groups(weights, 2, 4)
    >>> (codes * np.repeat(params.scale, 2)[:, None]).tolist()
    [[-3.5], [0.5], [0.25], [1.75]]
    """
    size, columns = array.shape
    parts = -(-size // group)
    padded = np.zeros((parts * group, columns), np.float32)
    padded[:size] = array
    rows = np.ascontiguousarray(padded.reshape(parts, group, columns).transpose(0, 2, 1)).reshape(-1, group)
    kind: QuantType = "int8" if bits == 8 else "int4"
    found = _searched(rows, kind)
    if bits == 4:
        shifted = _searched(rows, "uint4")
        if shifted.error.sum() < _ZERO_POINTS_PAY * found.error.sum():
            kind, found = "uint4", shifted
    if half:
        low, high = _bounds(kind)
        scale = np.maximum(found.scale.astype(np.float16), np.float16(2.0**-24)).astype(np.float32)
        rounded = _rounded(rows, scale, found.zero, low, high)
        found = replace(rounded, codes=rounded.codes.astype(found.codes.dtype))
    codes = found.codes.reshape(parts, columns, group).transpose(0, 2, 1).reshape(-1, columns)[:size]
    params = QuantParams(
        type=kind,
        scale=tuple(map(float, found.scale)),
        zero_point=tuple(map(int, found.zero)),
        axis=0,
        group=group,
    )
    return params, np.ascontiguousarray(codes)


def quantize_blocks(
    array: np.ndarray, axis: int, group: int, bits: int, *, half: bool = False
) -> tuple[QuantParams, np.ndarray]:
    """As `quantize_groups`, of a tensor that is summed over ``axis``: each place of its other axes has groups
    of its own."""
    moved = np.moveaxis(array, axis, 0)
    params, codes = quantize_groups(
        np.ascontiguousarray(moved.reshape(len(moved), -1)), group, bits, half=half
    )

    def back(numbers: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(numbers.reshape(-1, *moved.shape[1:]), 0, axis))

    lain = params.model_copy(
        update={
            "scale": tuple(back(np.array(params.scale)).ravel().tolist()),
            "zero_point": tuple(back(np.array(params.zero_point)).ravel().tolist()),
            "axis": axis,
        }
    )
    return lain, back(codes)


def _searched(rows: np.ndarray, kind: QuantType) -> _Groups:
    step = max(1, _AT_ONCE // rows.shape[1])
    parts = [_best(rows[start : start + step], kind) for start in range(0, len(rows), step)]
    return _Groups(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in _Groups.__annotations__)
    )


def _best(rows: np.ndarray, kind: QuantType) -> _Groups:
    """Of the ranges tried that which loses least, by group, and its scale fitted to the codes."""
    low, high = _bounds(kind)
    if kind == "uint4":
        least, most = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
        full = np.maximum((most - least) / (high - low), _SMALLEST_SCALE).astype(np.float32)
    else:
        least, full = None, np.maximum(np.abs(rows).max(axis=1) / high, _SMALLEST_SCALE).astype(np.float32)
    best: _Groups | None = None
    for part in _SHRINK if kind != "int8" else _SHRINK[:1]:
        scale = np.asarray(full * part, np.float32)
        zero = (
            np.zeros(len(rows), np.float32)
            if least is None
            else np.clip(np.rint(-least * part / scale), low, high)
        )
        best = _better(best, _rounded(rows, scale, zero, low, high))
    assert best is not None
    for _ in range(_REFITS if kind != "int8" else 0):
        centred = best.codes - best.zero[:, None]
        power = np.square(centred).sum(axis=1)
        fitted = (rows * centred).sum(axis=1) / np.maximum(power, 1)
        scale = np.where(fitted > _SMALLEST_SCALE, fitted, best.scale).astype(np.float32)
        best = _better(best, _rounded(rows, scale, best.zero, low, high))
    codes = np.dtype(np.uint8 if kind == "uint4" else np.int8)
    return _Groups(best.codes.astype(codes), best.scale, best.zero, best.error)


def _bounds(kind: QuantType) -> tuple[int, int]:
    """The codes that are used: weights of 8 bits, which are symmetric, leave out the least."""
    low, high = RANGES[kind]
    return (-high if kind == "int8" else low), high


def _rounded(rows: np.ndarray, scale: np.ndarray, zero: np.ndarray, low: int, high: int) -> _Groups:
    codes = np.clip(np.rint(rows / scale[:, None]) + zero[:, None], low, high)
    error = np.square((codes - zero[:, None]) * scale[:, None] - rows).sum(axis=1)
    return _Groups(codes, scale, zero, error)


def _better(one: _Groups | None, other: _Groups) -> _Groups:
    """Group by group the one that loses less, the first where both lose alike."""
    if one is None:
        return other
    wins = other.error < one.error
    return _Groups(
        np.where(wins[:, None], other.codes, one.codes),
        np.where(wins, other.scale, one.scale),
        np.where(wins, other.zero, one.zero),
        np.where(wins, other.error, one.error),
    )
