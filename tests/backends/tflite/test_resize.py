"""Resize in every mode, and blocks of pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploy.errors import UnsupportedError

RNG = np.random.default_rng(0)
Run = Callable[..., Any]
COORDINATES = ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric"]


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def resized(
    run: Run,
    x: np.ndarray,
    attributes: str,
    sizes: tuple[int, ...] = (),
    scales: tuple[float, ...] = (),
    shape: str = "",
) -> list[str]:
    """Of the last axes to ``sizes`` or by ``scales``: the operators of what agrees with ONNX Runtime."""
    axes = list(range(x.ndim - max(len(sizes), len(scales)), x.ndim))
    constants = {"size": np.array(sizes, np.int64)} if sizes else {"scale": np.array(scales, np.float32)}
    given = "x, , , size" if sizes else "x, , scale"
    declared = f"int64[{len(sizes)}] size" if sizes else f"float[{len(scales)}] scale"
    made = ",".join("abcdef"[: x.ndim])
    text = f"""(float[{shape or ",".join(map(str, x.shape))}] x, {declared}) => (float[{made}] y) {{
        y = Resize<axes={axes}, {attributes}>({given})
    }}"""
    found = run(text, {"x": x}, constants)
    assert found.got["y"].shape == found.want["y"].shape
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-4, atol=1e-4)
    operators: list[str] = found.operators
    return operators


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_nearest_in_every_mode(coordinates: str, rounding: str, ran: Run) -> None:
    mode = f'mode="nearest", coordinate_transformation_mode="{coordinates}", nearest_mode="{rounding}"'
    resized(ran, floats(2, 3, 5, 8), mode, sizes=(9, 6))
    resized(ran, floats(2, 3, 5, 8), mode, sizes=(10, 16))


@pytest.mark.parametrize("mode", ['"linear"', '"cubic"', '"linear", antialias=1'])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_between_pixels_in_every_mode(coordinates: str, mode: str, ran: Run) -> None:
    attributes = f'mode={mode}, coordinate_transformation_mode="{coordinates}"'
    found = resized(ran, floats(2, 3, 5, 8), attributes, sizes=(9, 6))
    assert ("RESIZE_BILINEAR" in found) == (mode == '"linear"')
    resized(ran, floats(2, 3, 5, 8), attributes, sizes=(10, 16))


@pytest.mark.parametrize("shape", [(6, 8), (2, 6, 8), (2, 3, 4, 6, 8)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_signals_volumes_and_matrices(mode: str, shape: tuple[int, ...], ran: Run) -> None:
    resized(ran, floats(*shape), f'mode="{mode}"', scales=(2.0, 0.5)[: 1 if len(shape) == 3 else 2])


@pytest.mark.parametrize("shape", ["n,3,4,6", "n,3,h,w"])
def test_twice_as_large_by_copies_that_xnnpack_takes(shape: str, ran: Run) -> None:
    mode = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
    found = resized(ran, floats(2, 3, 4, 6), mode, scales=(2.0, 2.0), shape=shape)
    assert {"CONCATENATION", "DEPTH_TO_SPACE"} <= set(found)
    assert found.count("TRANSPOSE") == 2


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_a_crop_is_filled_outside(mode: str, ran: Run) -> None:
    text = f"""(float[2,3,5,8] x, float[4] region, int64[2] size) => (float[2,3,a,b] y) {{
        y = Resize<axes=[2,3], mode="{mode}", coordinate_transformation_mode="tf_crop_and_resize",
            extrapolation_value=7.5>(x, region, , size)
    }}"""
    constants = {"region": np.array([-0.2, 0.1, 0.8, 1.3], np.float32), "size": np.array([7, 6])}
    found = ran(text, {"x": floats(2, 3, 5, 8)}, constants)
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-4, atol=1e-4)
    assert (found.got["y"] == 7.5).any()


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, channels: int, block: int, ran: Run) -> None:
    depth = channels * block * block
    text = f"""(float[n,{depth},4,5] x) => (float[n,a,b,c] y) {{
        r = Relu(x) d = DepthToSpace<mode="{mode}", blocksize={block}>(r)
        y = SpaceToDepth<blocksize={block}>(d)
    }}"""
    found = ran(text, {"x": floats(2, depth, 4, 5)})
    np.testing.assert_array_equal(found.got["y"], found.want["y"])


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ('mode="linear"', "free size"),
        ('mode="nearest", coordinate_transformation_mode="align_corners"', "free size"),
    ],
)
def test_what_is_refused(attributes: str, reason: str, ran: Run) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        resized(ran, floats(1, 3, 4, 4), attributes, scales=(2.0, 2.0), shape="1,3,h,w")


def test_a_pooled_image_is_spread_over_sizes_that_are_computed_of_a_free_batch(ran: Run) -> None:
    """As in the pyramid of a segmentation network."""
    text = """(float[n,3,6,8] x, int64[1] zero, int64[1] two, int64[2] sides) => (float[n,3,6,8] y) {
        p = GlobalAveragePool(x)
        all = Shape(p)
        first = Slice(all, zero, two)
        size = Concat<axis=0>(first, sides)
        r = Resize<mode="linear">(p, , , size)
        y = Add(r, x)
    }"""
    constants = {"zero": np.array([0]), "two": np.array([2]), "sides": np.array([6, 8])}
    for batch in (1, 3):
        found = ran(text, {"x": floats(batch, 3, 6, 8)}, constants)
        np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5, atol=1e-5)
