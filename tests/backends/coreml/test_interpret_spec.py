"""Corners of the operations' specification where one reading of it is easily taken for another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as nn

pytest.importorskip("coremltools")
from coreml_packages import evaluated, results, saved

from deploy.errors import BackendError

RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def test_sums_before_each_number_do_not_depend_on_it(tmp_path: Path) -> None:
    x = np.array([[1.0, 1e8, 1.0, -1e8]], np.float32)

    def build(mb, x):
        return (
            mb.cumsum(x=x, axis=1, exclusive=True, reverse=False),
            mb.cumsum(x=x, axis=-1, exclusive=True, reverse=True),
        )

    ahead, back = results(build, {"x": x}, tmp_path / "p.mlpackage")
    assert ahead.tolist() == [[0, 1, 1e8, 1e8]]
    assert back.tolist() == [[0, -1e8, -1e8, 0]]


def test_a_range_has_as_many_numbers_as_its_type_says(tmp_path: Path) -> None:
    """0.6 is a little more than 6 times 0.1 where both are float32, and divided in float32 it is not."""

    def build(mb, start, end, step):
        start, end, step = (mb.squeeze(x=one) for one in (start, end, step))
        return mb.range_1d(start=start, end=end, step=step)

    feeds = {"start": [0.0], "end": [0.6], "step": [0.1]}
    arrays = {name: np.array(value, np.float32) for name, value in feeds.items()}
    (found,) = results(build, arrays, tmp_path / "p.mlpackage")
    np.testing.assert_allclose(found, torch.arange(0, 0.6, 0.1), atol=1e-7)
    path = saved(build, dict.fromkeys(feeds, (1,)), tmp_path / "h.mlpackage", half=True, passes=True)
    (found,) = evaluated(path, arrays | {"end": np.array([1.0], np.float32)}).values()
    assert len(found) == 11, "10 times float16's 0.1 is less than 1"
    assert np.array_equal(found, found.astype(np.float16)), "what lies between float16's numbers is rounded"


def test_more_neighbours_than_channels(tmp_path: Path) -> None:
    x = normal(1, 2, 3, 4)

    def build(mb, x):
        return (
            mb.local_response_norm(x=x, size=9, alpha=0.3),
            mb.local_response_norm(x=x, size=2, alpha=0.3),
        )

    for got, size in zip(results(build, {"x": x}, tmp_path / "p.mlpackage"), (9, 2), strict=True):
        np.testing.assert_allclose(got, nn.local_response_norm(torch.from_numpy(x), size, 0.3), atol=1e-6)


@pytest.mark.parametrize("wanted", [5, 6])
def test_a_transposed_convolution_is_a_gradient(wanted: int, tmp_path: Path) -> None:
    """Of sizes that a stride of 2 brings to 3, each is padded otherwise."""
    x, weight = normal(1, 2, 3, 3), normal(2, 4, 3, 3)

    def build(mb, x):
        shape = np.array([1, 4, wanted, wanted], np.int32)
        return mb.conv_transpose(x=x, weight=weight, strides=[2, 2], pad_type="same", output_shape=shape)

    (got,) = results(build, {"x": x}, tmp_path / "p.mlpackage")
    image = torch.zeros(1, 4, wanted, wanted, requires_grad=True)
    total = (3 - 1) * 2 + 3 - wanted
    ends = (total // 2, total - total // 2)
    made = nn.conv2d(nn.pad(image, (*ends, *ends)), torch.from_numpy(weight), stride=2)
    (want,) = torch.autograd.grad(made, image, torch.from_numpy(x))
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_places_before_the_first(tmp_path: Path) -> None:
    x, last = normal(3, 4), np.array([[-1]], np.int32)

    def build(mb, x, i):
        return mb.gather_nd(x=x, indices=i)

    (found,) = results(build, {"x": x, "i": last}, tmp_path / "old.mlpackage", target="iOS16")
    assert np.array_equal(found, x[-1:])
    with pytest.raises(BackendError, match="place -1, and from iOS 17 on negative ones are none"):
        results(build, {"x": x, "i": last}, tmp_path / "new.mlpackage", target="iOS17")


def test_what_lies_around_an_image(tmp_path: Path) -> None:
    """The border is repeated or not as the mode says, whatever the corners mean."""
    x = normal(1, 1, 4, 4)
    rows, columns = np.meshgrid(np.arange(-3, 7), np.arange(-3, 7), indexing="ij")
    places = np.stack([columns, rows], -1)[None].astype(np.float32)

    def build(mb, x, places):
        def sample(mode: str, corners: bool):
            return mb.resample(
                x=x, coordinates=places, sampling_mode="bilinear", padding_mode=mode, padding_value=0.0,
                coordinates_mode="unnormalized", align_corners=corners,
            )  # fmt: skip

        return tuple(
            sample(mode, corners) for mode in ("reflection", "symmetric") for corners in (True, False)
        )

    found = results(build, {"x": x, "places": places}, tmp_path / "p.mlpackage")
    for got, mode in zip(found, ("reflect", "reflect", "symmetric", "symmetric"), strict=True):
        np.testing.assert_allclose(got[0, 0], np.pad(x[0, 0], 3, mode), atol=1e-6)
