"""Convolutions, plain and transposed, over signals, images and volumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploy.errors import UnsupportedError

RNG = np.random.default_rng(0)
Run = Callable[..., Any]


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.5, shape).astype(np.float32)


def agrees(run: Run, text: str, x: np.ndarray, **constants: np.ndarray) -> list[str]:
    """The operators of a graph that computes the same with XNNPACK, without, and in ONNX Runtime."""
    declared = "".join(f", float{list(array.shape)} {name}" for name, array in constants.items())
    for delegate in (True, False):
        found = run(text.replace("CONSTANTS", declared), {"x": x}, constants, delegate=delegate)
        assert found.got["y"].shape == found.want["y"].shape
        np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-4, atol=1e-4)
    operators: list[str] = found.operators
    return operators


@pytest.mark.parametrize(
    "attributes",
    [
        "pads=[1,1,1,1]",
        "strides=[2,2], pads=[1,1,1,1]",
        "dilations=[2,3]",
        "group=2, pads=[1,0,1,0]",
        "group=4, strides=[1,2]",
        'auto_pad="SAME_UPPER", strides=[2,2]',
        'auto_pad="SAME_LOWER", strides=[3,2]',
        "group=4, dilations=[2,2], pads=[2,2,2,2]",
    ],
)
def test_convolutions_of_images(attributes: str, ran: Run) -> None:
    group = int(attributes.partition("group=")[2][:1] or 1)
    text = f"(float[n,4,9,10] x CONSTANTS) => (float[n,8,a,b] y) {{ y = Conv<{attributes}>(x, w, b) }}"
    agrees(ran, text, floats(2, 4, 9, 10), w=floats(8, 4 // group, 3, 3), b=floats(8))


def test_a_grouped_convolution_is_one_operator(ran: Run) -> None:
    text = "(float[1,6,5,5] x CONSTANTS) => (float[1,9,5,5] y) { y = Conv<group=3>(x, w) }"
    found = agrees(ran, text, floats(1, 6, 5, 5), w=floats(9, 2, 1, 1))
    assert found.count("CONV_2D") == 1 and "CONCATENATION" not in found


@pytest.mark.parametrize("length", [("n", 64), ("n", "t"), (3, 64)])
def test_convolutions_of_signals_in_a_row_turn_nothing(length: tuple[Any, Any], ran: Run) -> None:
    batch, time = length
    text = f"""(float[{batch},1,{time}] x CONSTANTS) => (float[{batch},a] y) {{
        a = Conv<strides=[2], pads=[3,3]>(x, u, b) r = Relu(a)
        c = Conv<pads=[2,2], group=6>(r, v) s = Add(r, c)
        d = Conv<pads=[4,4], dilations=[4]>(s, w) p = MaxPool<kernel_shape=[2], strides=[2]>(d)
        g = GlobalAveragePool(p) y = Flatten(g)
    }}"""
    weights = {"u": floats(6, 1, 7), "b": floats(6), "v": floats(6, 1, 5), "w": floats(8, 6, 3)}
    found = agrees(ran, text, floats(3, 1, 64), **weights)
    assert found.count("TRANSPOSE") <= 1, "an input of one channel at most, where RESHAPE takes one free size"


def test_volumes(ran: Run) -> None:
    text = """(float[n,2,6,7,8] x CONSTANTS) => (float[n,4,c,d,e] y) {
        a = Conv<pads=[1,1,1,1,1,1], strides=[1,2,1]>(x, w, b) r = Relu(a) g = Conv<group=2>(r, v)
        y = ConvTranspose<strides=[2,1,2], pads=[1,0,0,1,0,0]>(g, t)
    }"""
    weights = {
        "w": floats(4, 2, 3, 3, 3),
        "b": floats(4),
        "v": floats(4, 2, 2, 1, 1),
        "t": floats(4, 4, 3, 2, 2),
    }
    agrees(ran, text, floats(2, 2, 6, 7, 8), **weights)


@pytest.mark.parametrize(
    ("attributes", "kernel", "group"),
    [
        ("strides=[2,2]", (2, 2), 1),
        ("strides=[2,2], pads=[1,1,1,1]", (4, 4), 1),
        ("strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]", (3, 3), 1),
        ("strides=[2,3], pads=[1,0,0,2]", (3, 5), 1),
        ("pads=[1,1,1,1]", (3, 3), 1),
        ("strides=[3,1], dilations=[2,1]", (3, 2), 1),
        ("strides=[2,2], group=4", (4, 4), 4),
        ("strides=[2,2], group=2, pads=[1,1,0,0]", (3, 3), 2),
        ('strides=[2,2], auto_pad="SAME_UPPER"', (3, 3), 1),
        ("strides=[3,3], output_shape=[16,16]", (3, 3), 1),
    ],
)
def test_transposed_convolutions(attributes: str, kernel: tuple[int, int], group: int, ran: Run) -> None:
    text = f"""(float[n,4,5,6] x CONSTANTS) => (float[n,a,b,c] y) {{
        r = Relu(x) t = ConvTranspose<{attributes}>(r, w, b) y = Relu(t)
    }}"""
    channels = 6 // group if group < 4 else 2
    weights, bias = floats(4, channels, *kernel), floats(channels * group)
    found = agrees(ran, text, floats(2, 4, 5, 6), w=weights, b=bias)
    assert "TRANSPOSE_CONV" not in found and found.count("RELU") == 1, "the second one is part of it"


@pytest.mark.parametrize("shape", ["n,4,9", "2,4,t"])
def test_transposed_convolutions_of_signals(shape: str, ran: Run) -> None:
    text = f"""(float[{shape}] x CONSTANTS) => (float[n,a,b] y) {{
        y = ConvTranspose<strides=[2], pads=[1,1], output_padding=[1]>(x, w)
    }}"""
    agrees(ran, text, floats(2, 4, 9), w=floats(4, 3, 5))


@pytest.mark.parametrize("sides", ["16,24", "h,w"])
def test_a_u_net_turns_its_input_and_output_only(sides: str, ran: Run) -> None:
    text = f"""(float[n,3,{sides}] x CONSTANTS) => (float[n,2,c,d] y) {{
        a = Conv<pads=[1,1,1,1]>(x, u) r = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
        d = Conv<pads=[1,1,1,1]>(p, v) e = Relu(d) t = ConvTranspose<strides=[2,2]>(e, s, b)
        k = Concat<axis=1>(r, t) y = Conv(k, w)
    }}"""
    weights = {"u": floats(6, 3, 3, 3), "v": floats(8, 6, 3, 3), "s": floats(8, 6, 2, 2), "b": floats(6)}
    found = agrees(ran, text, floats(2, 3, 16, 24), w=floats(2, 12, 1, 1), **weights)
    assert sorted(set(found)) == ["CONCATENATION", "CONV_2D", "DEPTH_TO_SPACE", "MAX_POOL_2D", "TRANSPOSE"]
    assert found.count("TRANSPOSE") == 2


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("Conv<pads=[-1,0,0,0]>(x, w)", "negative pads"),
        ('ConvTranspose<strides=[4,4], auto_pad="SAME_UPPER">(x, w)', "smaller than the stride"),
        ("ConvTranspose<pads=[4,4,0,0]>(x, w)", "pads wider"),
    ],
)
def test_what_is_refused(node: str, reason: str, ran: Run) -> None:
    text = f"(float[1,4,9,9] x, float[4,4,3,3] w) => (float[1,4,a,b] y) {{ y = {node} }}"
    with pytest.raises(UnsupportedError, match=reason):
        ran(text, {"x": floats(1, 4, 9, 9)}, {"w": floats(4, 4, 3, 3)})
