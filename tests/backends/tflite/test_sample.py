"""Sampling at computed places, for any batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

RNG = np.random.default_rng(0)
Run = Callable[..., Any]


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grid_sample(mode: str, corners: int, padding: str, ran: Run) -> None:
    text = f"""(float[n,3,5,7] x, float[n,4,6,2] g) => (float[n,3,4,6] y) {{
        r = Relu(x)
        y = GridSample<mode="{mode}", padding_mode="{padding}", align_corners={corners}>(r, g)
    }}"""
    x = RNG.normal(0, 1, (2, 3, 5, 7)).astype(np.float32)
    found = ran(text, {"x": x, "g": RNG.uniform(-1.4, 1.4, (2, 4, 6, 2)).astype(np.float32)})
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-4)


@pytest.mark.parametrize("corners", [0, 1])
def test_a_spatial_transformer(corners: int, ran: Run) -> None:
    text = f"""(float[3,3,6,8] x, float[3,2,3] theta, int64[4] size) => (float[3,3,5,4] y) {{
        g = AffineGrid<align_corners={corners}>(theta, size) y = GridSample(x, g)
    }}"""
    feeds = {"x": RNG.normal(0, 1, (3, 3, 6, 8)), "theta": RNG.normal(0, 0.5, (3, 2, 3))}
    found = ran(text, {k: v.astype(np.float32) for k, v in feeds.items()}, {"size": np.array([3, 3, 5, 4])})
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-4)


@pytest.mark.parametrize("sizes", [[4, 9], [7, 3], [6, 8]])
def test_the_middle_of_an_image(sizes: list[int], ran: Run) -> None:
    text = """(float[n,3,6,8] x, int64[2] size) => (float[n,3,a,b] y) {
        r = Neg(x) y = CenterCropPad<axes=[-2,-1]>(r, size)
    }"""
    x = RNG.normal(0, 1, (2, 3, 6, 8)).astype(np.float32)
    found = ran(text, {"x": x}, {"size": np.array(sizes)})
    np.testing.assert_array_equal(found.got["y"], found.want["y"])
