import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

RNG = np.random.default_rng(0)
COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def scales(*values: float) -> list[np.ndarray | None]:
    return [None, np.array([1, 1, *values], np.float32)]


def sizes(x: np.ndarray, *values: int) -> list[np.ndarray | None]:
    return [None, None, np.array([*x.shape[:2], *values])]


@pytest.mark.parametrize(("coordinates", "rounding"), itertools.product(COORDINATES, ROUNDINGS))
def test_nearest_is_onnxruntimes(one_node, coordinates, rounding):
    x = real(1, 2, 5, 7)
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    for given in (scales(2, 3), sizes(x, 8, 5), scales(0.7, 1.4)):
        one_node("Resize", x, *given, constants=[len(given)], mode="nearest", **attributes).agrees()


@pytest.mark.parametrize(("mode", "coordinates"), itertools.product(["linear", "cubic"], COORDINATES))
@pytest.mark.parametrize("antialias", [0, 1])
def test_smooth_modes_are_onnxruntimes(one_node, mode, coordinates, antialias):
    x = real(1, 2, 6, 8)
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "antialias": antialias}
    for given in (scales(2, 3), sizes(x, 9, 4), sizes(x, 3, 1)):
        if mode == "cubic" and coordinates == "pytorch_half_pixel" and given[-1][-1] == 1:
            continue  # ONNX Runtime does not look at the size of one there
        one_node("Resize", x, *given, constants=[len(given)], **attributes).agrees(3e-5)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("coordinates", ["half_pixel", "align_corners", "asymmetric"])
def test_linear_over_one_and_three_axes(one_node, rank, coordinates):
    x = real(1, 2, *[5, 4, 6][:rank])
    given = sizes(x, *[7, 8, 3][:rank])
    node = one_node("Resize", x, *given, mode="linear", coordinate_transformation_mode=coordinates)
    node.agrees() if rank == 3 else node.torch()
    axes = one_node(
        "Resize", x, None, None, given[-1][2:], mode="linear", axes=list(range(-rank, 0)),
        coordinate_transformation_mode=coordinates,
    )  # fmt: skip
    torch.testing.assert_close(axes.torch(), node.torch())


@pytest.mark.parametrize("antialias", [0, 1])
def test_excluded_outside_and_another_cubic(one_node, antialias):
    x = real(1, 2, 6, 8)
    for given in (scales(1.5, 2), sizes(x, 4, 3)):
        attributes = {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5, "antialias": antialias}
        one_node("Resize", x, *given, **attributes).agrees(3e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_crop_and_resize_is_onnxruntimes(one_node, mode):
    roi = np.array([0, 0, 0.2, -0.31, 1, 1, 0.9, 1.2], np.float32)
    x = real(1, 1, 5, 6)
    node = one_node(
        "Resize", x, roi, None, np.array([1, 1, 4, 7]), mode=mode, extrapolation_value=9.0,
        coordinate_transformation_mode="tf_crop_and_resize",
    )  # fmt: skip
    node.agrees()
    assert (node.torch()[0] == 9).any()


@pytest.mark.parametrize(("policy", "shape"), [("not_larger", (6, 9)), ("not_smaller", (8, 12))])
def test_aspect_ratio_is_kept(one_node, policy, shape):
    x = real(1, 1, 4, 6)
    node = one_node(
        "Resize", x, None, None, np.array([8, 9]), mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy
    )
    assert node.torch()[0].shape[2:] == shape


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric"])
def test_gradients(one_node, mode, coordinates):
    x = real(1, 1, 3, 4)
    node = one_node("Resize", x, *sizes(x, 5, 3), mode=mode, coordinate_transformation_mode=coordinates)
    torch.autograd.gradcheck(
        lambda y: node.program.run([y, torch.tensor([1, 1, 5, 3])])[0],
        torch.from_numpy(x).double().requires_grad_(),
    )


def test_the_usual_ones_are_torchs_bit_for_bit(one_node):
    x = real(2, 3, 5, 6)
    given, twice = torch.from_numpy(x), scales(2, 2)
    floor = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    nearest = one_node("Resize", x, *twice, mode="nearest", **floor).torch()[0]
    assert torch.equal(nearest, functional.interpolate(given, scale_factor=2, mode="nearest"))
    for name, corners in (("pytorch_half_pixel", False), ("align_corners", True)):
        found = one_node("Resize", x, *twice, mode="linear", coordinate_transformation_mode=name).torch()[0]
        assert torch.equal(
            found, functional.interpolate(given, size=(10, 12), mode="bilinear", align_corners=corners)
        )


def test_bytes_stay_bytes(one_node):
    x = RNG.integers(0, 255, (1, 1, 4, 4), np.uint8)
    found = one_node("Resize", x, *scales(2, 2), mode="linear").torch()[0]
    expected = functional.interpolate(torch.from_numpy(x).float(), scale_factor=2, mode="bilinear").round()
    assert found.dtype == torch.uint8
    assert torch.equal(found.float(), expected)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(one_node, mode):
    node = one_node("DepthToSpace", real(2, 12, 2, 3), blocksize=2, mode=mode)
    node.agrees(0)
    node.gradients()
    x = real(1, 3, 4, 6)
    deep = one_node("SpaceToDepth", x, blocksize=2, **({"mode": mode} if mode == "CRD" else {}), opset=28)
    back = one_node("DepthToSpace", deep.torch()[0].numpy(), blocksize=2, mode=mode).torch()[0]
    np.testing.assert_array_equal(back, x)


def test_columns_to_image_is_the_adjoint_of_unfolding(one_node):
    columns = real(2, 3 * 2 * 2, 16)
    node = one_node(
        "Col2Im",
        columns,
        np.array([6, 5]),
        np.array([2, 2]),
        strides=[2, 1],
        pads=[1, 0, 1, 1],
        dilations=[1, 2],
    )
    padded = functional.fold(torch.from_numpy(columns), (8, 6), 2, stride=(2, 1), dilation=(1, 2))
    torch.testing.assert_close(node.torch()[0], padded[:, :, 1:7, :5])
    small = one_node("Col2Im", real(1, 4, 4), np.array([3, 3]), np.array([2, 2]), constants=[1, 2])
    small.gradients()


def test_center_crop_and_pad(one_node):
    x = real(4, 7, 5)
    node = one_node("CenterCropPad", x, np.array([4, 8]), axes=[-2, 2])
    node.agrees(0)
    assert node.torch()[0].shape == (4, 4, 8)
    one_node("CenterCropPad", x, np.array([2, 9, 5]), constants=[1]).gradients()
