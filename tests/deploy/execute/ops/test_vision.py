import itertools

import numpy as np
import pytest

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("mode", "padding", "corners"),
    itertools.product(["linear", "nearest", "cubic"], ["zeros", "border", "reflection"], [0, 1]),
)
def test_grid_sample_is_onnxruntimes(one_node, mode, padding, corners):
    grid = RNG.uniform(-1.4, 1.4, (2, 4, 3, 2)).astype(np.float32)
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    one_node("GridSample", real(2, 3, 5, 6), grid, **attributes).agrees(1e-4)
    one_node("GridSample", real(1, 1, 3, 4), grid[:1] * 0.6, **attributes).gradients()


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_grid_sample_of_volumes(one_node, mode):
    grid = RNG.uniform(-1.2, 1.2, (1, 2, 4, 3, 3)).astype(np.float32)
    one_node("GridSample", real(1, 2, 3, 5, 4), grid, mode=mode, opset=20).agrees(1e-4)


def test_cubic_volumes_are_refused(one_node):
    node = one_node("GridSample", real(1, 2, 3, 5, 4), real(1, 2, 4, 3, 3), mode="cubic")
    with pytest.raises(Exception, match="cubic over 3 spatial axes"):
        node.torch()


@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 3, 4, 5, 2)])
@pytest.mark.parametrize("corners", [0, 1])
def test_affine_grid(one_node, size, corners):
    rank = len(size) - 2
    one_node("AffineGrid", real(2, rank, rank + 1), np.array(size), align_corners=corners).agrees()
    small = (1, 1, *[2] * rank)
    one_node("AffineGrid", real(1, rank, rank + 1), np.array(small), align_corners=corners).gradients()


ROIS = np.array([[1, 2, 9, 7], [0, 0, 3, 3], [4, -3, 20, 5], [5, 5, 5, 5]], np.float32)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("samples", [0, 2])
def test_regions_are_onnxruntimes(one_node, mode, coordinates, samples):
    node = one_node(
        "RoiAlign", real(2, 3, 8, 10), ROIS, np.array([0, 1, 1, 0]), mode=mode, output_height=3,
        output_width=2, coordinate_transformation_mode=coordinates, sampling_ratio=samples, spatial_scale=0.7,
    )  # fmt: skip
    node.agrees()


def test_region_gradients(one_node):
    rois = np.array([[0.3, 0.4, 3.3, 2.7]], np.float32)
    node = one_node(
        "RoiAlign", real(1, 1, 4, 4), rois, np.array([0]), output_height=2, output_width=2, sampling_ratio=2
    )
    node.gradients()


def test_no_regions(one_node):
    node = one_node("RoiAlign", real(1, 2, 4, 4), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert node.torch()[0].shape == (0, 2, 1, 1)


@pytest.mark.parametrize("centred", [0, 1])
def test_suppression_is_onnxruntimes(one_node, centred):
    corner = RNG.uniform(0, 10, (2, 40, 2))
    boxes = np.concatenate([corner, RNG.uniform(1, 5, (2, 40, 2)) + (0 if centred else corner)], -1)
    node = one_node(
        "NonMaxSuppression", boxes.astype(np.float32), RNG.uniform(size=(2, 3, 40)).astype(np.float32),
        np.array([6]), np.array([0.3], np.float32), np.array([0.4], np.float32), center_point_box=centred,
    )  # fmt: skip
    node.agrees(0)
    assert len(node.torch()[0]) > 12


def test_suppression_that_keeps_nothing(one_node):
    boxes, scores = real(1, 3, 4), real(1, 1, 3)
    assert one_node("NonMaxSuppression", boxes, scores).torch()[0].shape == (0, 3)
