import numpy as np
import pytest
import torch
from torch.nn import functional

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


CONV = {
    "plain": ((2, 3, 7, 6), (4, 3, 3, 3), {}),
    "one axis": ((2, 3, 9), (4, 3, 3), {"strides": [2], "pads": [2, 1]}),
    "three axes": ((1, 2, 4, 5, 4), (3, 2, 2, 2, 2), {"dilations": [1, 2, 1]}),
    "depthwise": ((2, 4, 6, 6), (4, 1, 3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),
    "asymmetric": ((1, 2, 6, 7), (3, 2, 3, 3), {"pads": [0, 1, 2, 1], "strides": [2, 1]}),
    "same upper": ((1, 2, 6, 7), (3, 2, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((1, 2, 6, 7), (3, 2, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    "valid": ((1, 2, 6, 7), (3, 2, 4, 3), {"auto_pad": "VALID"}),
    "empty batch": ((0, 2, 6, 7), (3, 2, 3, 3), {}),
}
TRANSPOSED = {
    "plain": ((2, 3, 4, 3), (3, 4, 3, 3), {}),
    "one axis": ((1, 2, 5), (2, 3, 4), {"strides": [3]}),
    "three axes": ((1, 2, 3, 3, 2), (2, 1, 2, 2, 2), {"strides": [2, 1, 2]}),
    "groups": ((1, 4, 4, 4), (4, 2, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "output padding": ((1, 2, 4, 4), (2, 3, 3, 3), {"strides": [3, 2], "output_padding": [2, 1]}),
    "asymmetric, end less": ((1, 2, 4, 4), (2, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 0, 0]}),
    "asymmetric, end more": ((1, 2, 4, 4), (2, 3, 3, 3), {"strides": [2, 2], "pads": [0, 0, 1, 2]}),
    "output shape": ((1, 2, 4, 4), (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [8, 7]}),
    "same upper": ((1, 2, 4, 4), (2, 3, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ((1, 2, 4, 4), (2, 3, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "dilated": ((1, 2, 4, 4), (2, 3, 3, 3), {"dilations": [2, 3]}),
}


@pytest.mark.parametrize("name", CONV)
def test_conv_is_onnxruntimes(one_node, name):
    x, w, attributes = CONV[name]
    one_node("Conv", real(*x), real(*w), real(w[0]), **attributes).agrees()


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_is_onnxruntimes(one_node, name):
    x, w, attributes = TRANSPOSED[name]
    channels = w[1] * attributes.get("group", 1)
    one_node("ConvTranspose", real(*x), real(*w), real(channels), **attributes).agrees()


def test_gradients(one_node):
    one_node("Conv", real(1, 2, 3, 3), real(2, 1, 2, 2), real(2), group=2, pads=[1, 0, 1, 2]).gradients()
    one_node(
        "ConvTranspose", real(1, 2, 2, 3), real(2, 1, 3, 2), real(1), strides=[2, 2], pads=[0, 1, 2, 1]
    ).gradients()
    one_node(
        "CausalConvWithState", real(1, 2, 4), real(2, 1, 3), real(2), real(1, 2, 2), outputs=2
    ).gradients()


def deform_inputs() -> list[np.ndarray]:
    offset = RNG.uniform(0.1, 0.4, (1, 2 * 2 * 4, 3, 3)).astype(np.float32)  # away from whole places
    return [real(1, 4, 4, 4), real(2, 2, 2, 2), offset, real(2), real(1, 2 * 4, 3, 3)]


def test_deformed_gradients(one_node):
    one_node("DeformConv", *deform_inputs(), group=2, offset_group=2).gradients()


def test_not_deformed_is_a_convolution(one_node):
    x, w = real(2, 4, 6, 5), real(6, 2, 3, 2)
    offset = np.zeros((2, 2 * 6, 3, 6), np.float32)
    node = one_node("DeformConv", x, w, offset, group=2, strides=[2, 1], pads=[1, 2, 1, 1], dilations=[1, 2])
    padded = functional.pad(torch.from_numpy(x), (2, 1, 1, 1))
    expected = functional.conv2d(padded, torch.from_numpy(w), stride=(2, 1), dilation=(1, 2), groups=2)
    torch.testing.assert_close(node.torch()[0], expected)


def test_deformed_is_onnxruntimes(one_node):
    node = one_node("DeformConv", *deform_inputs(), group=2, offset_group=2, opset=19)
    node.agrees()


def test_integers_are_exact_with_both_zero_points(one_node):
    x, w = RNG.integers(0, 256, (1, 3, 6, 6), np.uint8), RNG.integers(0, 256, (2, 3, 3, 3), np.uint8)
    one_node("ConvInteger", x, w, np.uint8(7), np.uint8(9), pads=[1, 1, 0, 0]).agrees(0)


def test_a_usual_convolution_is_torchs_bit_for_bit(one_node):
    x, w, b = real(2, 3, 8, 8), real(4, 3, 3, 3), real(4)
    found = one_node("Conv", x, w, b, strides=[2, 2], pads=[1, 1, 1, 1]).torch()[0]
    assert torch.equal(found, functional.conv2d(*map(torch.from_numpy, (x, w, b)), stride=2, padding=1))


def test_autocast(one_node):
    node = one_node("Conv", real(1, 2, 4, 4), real(2, 2, 3, 3), real(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert node.torch()[0].dtype == torch.bfloat16


def test_an_unknown_activation_is_refused(one_node):
    with pytest.raises(Exception, match="activation 'tanh'"):
        one_node("CausalConvWithState", real(1, 2, 4), real(2, 1, 3), outputs=2, activation="tanh")
