import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


WINDOWS = {
    "plain": ((2, 3, 8, 7), {"kernel_shape": [3, 2], "strides": [2, 2]}),
    "padded": ((2, 3, 8, 7), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "asymmetric": ((1, 2, 7, 7), {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0], "strides": [2, 1]}),
    "wide pads": ((1, 2, 7, 7), {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}),
    "ceil": ((1, 2, 8, 7), {"kernel_shape": [3, 3], "strides": [3, 2], "ceil_mode": 1}),
    "ceil padded": (
        (1, 2, 8, 9), {"kernel_shape": [3, 3], "strides": [3, 2], "ceil_mode": 1, "pads": [0, 1, 1, 1]},
    ),
    "same upper": ((1, 2, 8, 7), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ((1, 2, 8, 7), {"kernel_shape": [2, 2], "strides": [1, 1], "auto_pad": "SAME_LOWER"}),
    "valid": ((1, 2, 8, 7), {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "VALID"}),
    "one axis": ((1, 2, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    "three axes": ((1, 2, 5, 4, 4), {"kernel_shape": [2, 2, 2], "pads": [1, 0, 0, 0, 1, 0]}),
    "dilated": ((1, 2, 9, 9), {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [2, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_onnxruntimes(one_node, op, name):
    shape, attributes = WINDOWS[name]
    one_node(op, real(*shape), **attributes, **({"p": 3} if op == "LpPool" else {})).agrees()


@pytest.mark.parametrize("name", WINDOWS)
def test_average_counting_pads_is_onnxruntimes(one_node, name):
    shape, attributes = WINDOWS[name]
    one_node("AveragePool", real(*shape), count_include_pad=1, **attributes).agrees()


@pytest.mark.parametrize(("name", "order"), itertools.product(WINDOWS, (0, 1)))
def test_indices_are_onnxruntimes(one_node, name, order):
    shape, attributes = WINDOWS[name]
    one_node("MaxPool", real(*shape), outputs=2, storage_order=order, **attributes).agrees()


def test_bytes(one_node):
    x = RNG.integers(0, 255, (1, 2, 6, 6), np.uint8)
    one_node("MaxPool", x, kernel_shape=[3, 3], pads=[0, 0, 1, 1]).agrees(0)


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 2, 3, 2, 2)])
def test_global_ones_are_onnxruntimes(one_node, op, shape):
    one_node(op, real(*shape)).agrees()


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("name", ["padded", "asymmetric", "ceil padded", "dilated"])
def test_gradients(one_node, op, name):
    shape, attributes = WINDOWS[name]
    one_node(op, real(1, 1, *[min(size, 7) for size in shape[2:]]), **attributes).gradients()


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
def test_global_gradients(one_node, op):
    one_node(op, real(1, 2, 3, 3)).gradients()


def test_the_root_of_nothing_has_no_slope(one_node):
    node, x = (
        one_node("LpPool", real(1, 1, 4, 4), kernel_shape=[2, 2]),
        torch.zeros(1, 1, 4, 4).requires_grad_(),
    )
    node.torch(x)[0].sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 1, 4, 4))


def test_unpooling_undoes_pooling(one_node):
    x = real(2, 3, 6, 8)
    over = {"kernel_shape": [2, 2], "strides": [2, 2]}
    values, places = one_node("MaxPool", x, outputs=2, **over).torch()
    node = one_node("MaxUnpool", values.numpy(), places.numpy(), **over)
    node.agrees(0)
    assert node.torch()[0].sum() == pytest.approx(values.sum().item(), rel=1e-5)
    node.gradients()


def test_regions_are_onnxruntimes(one_node):
    corners = [[0, 0, 0, 7, 5], [1, 2, 1, 9, 9], [0, -3, 2, 4, 20], [1, 5, 5, 5, 5], [0, 30, 30, 40, 40]]
    rois = np.array(corners, np.float32)
    node = one_node("MaxRoiPool", real(2, 3, 8, 9), rois, pooled_shape=[3, 2], spatial_scale=0.8)
    node.agrees()


def test_region_gradients(one_node):
    rois = np.array([[0, 0, 0, 3, 3]], np.float32)
    node = one_node("MaxRoiPool", real(1, 1, 4, 4), rois, constants=[1], pooled_shape=[2, 2])
    node.gradients()


def test_the_usual_ones_are_torchs_bit_for_bit(one_node):
    x = real(2, 3, 8, 8)
    over = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    given = torch.from_numpy(x)
    assert torch.equal(one_node("MaxPool", x, **over).torch()[0], functional.max_pool2d(given, 3, 2, 1))
    mean = one_node("AveragePool", x, **over).torch()[0]
    assert torch.equal(mean, functional.avg_pool2d(given, 3, 2, 1, count_include_pad=False))
    whole = one_node("GlobalAveragePool", x).torch()[0]
    assert torch.equal(whole, functional.adaptive_avg_pool2d(given, 1))
