"""Rounding to float16, against NumPy's own."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("coremltools")  # the folder is Core ML's
from backends.coreml.interpret.half import half


def require(x: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        got, want = half(x), x.astype(np.float16).astype(np.float32)
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got[~nan].view(np.uint32), want[~nan].view(np.uint32))


def test_every_float16_and_what_lies_half_way() -> None:
    """Signs of zero, too; ties go to even."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(every[np.isfinite(every)])
    middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(middle, np.float32(to)) for to in (-np.inf, np.inf)]
    require(np.concatenate([finite, middle, *near, np.float32([1e-45, -1e-30, -0.0])]))


def test_what_is_too_large_and_what_is_no_number() -> None:
    plain = np.linspace(-3, 3, 4096, dtype=np.float32)
    for one in (65519.99, 65520, -7e4, 3e38, np.inf, -np.inf, np.nan):
        require(np.where(np.arange(4096) == 7, np.float32(one), plain))
    require(plain.reshape(64, 64).T)
    require(np.zeros((0, 3), np.float32))
    require(np.float32(0.1) * np.ones((), np.float32))
