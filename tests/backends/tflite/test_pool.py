"""Pooling with every form of padding, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploy.errors import UnsupportedError

RNG = np.random.default_rng(0)
Run = Callable[..., Any]


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def agrees(run: Run, text: str, x: np.ndarray, **constants: np.ndarray) -> list[str]:
    """The operators of a graph that computes the same with XNNPACK, without, and in ONNX Runtime."""
    declared = "".join(f", float{list(array.shape)} {name}" for name, array in constants.items())
    for delegate in (True, False):
        found = run(text.replace("CONSTANTS", declared), {"x": x}, constants, delegate=delegate)
        for name, want in found.want.items():
            assert found.got[name].shape == want.shape
            np.testing.assert_allclose(found.got[name], want, rtol=1e-4, atol=1e-5)
    operators: list[str] = found.operators
    return operators


WINDOWS = [
    "kernel_shape=[2,2], strides=[2,2]",
    "kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]",
    "kernel_shape=[3,2], strides=[2,1], pads=[1,0,0,1]",
    "kernel_shape=[3,3], strides=[2,2], ceil_mode=1",
    "kernel_shape=[3,3], strides=[2,2], pads=[0,1,1,0], ceil_mode=1",
    'kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_LOWER"',
    "kernel_shape=[2,3], dilations=[3,2]",
    "kernel_shape=[3,3], dilations=[2,1], strides=[2,2], pads=[1,1,1,1]",
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    "op", ["MaxPool<", "AveragePool<", "AveragePool<count_include_pad=1, ", "LpPool<p=2, ", "LpPool<p=3, "]
)
def test_windows_over_images(op: str, window: str, ran: Run) -> None:
    text = f"(float[n,3,9,10] x) => (float[n,3,a,b] y) {{ y = {op}{window}>(x) }}"
    agrees(ran, text, floats(2, 3, 9, 10))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((4, 11), "kernel_shape=[3], strides=[2], pads=[1,0]"),
        ((4, 5, 6, 7), "kernel_shape=[2,3,2], strides=[2,1,2], pads=[0,1,1,1,0,0]"),
        ((4, 5, 6, 7), "kernel_shape=[2,2,3], dilations=[2,1,2]"),
    ],
)
def test_windows_over_signals_and_volumes(op: str, shape: tuple[int, ...], window: str, ran: Run) -> None:
    sizes = ",".join(map(str, shape))
    made = ",".join("abcd"[: len(shape)])
    agrees(ran, f"(float[n,{sizes}] x) => (float[n,{made}] y) {{ y = {op}<{window}>(x) }}", floats(2, *shape))


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "GlobalLpPool<p=1>"])
@pytest.mark.parametrize("shape", [(4, 9), (4, 5, 6), (4, 3, 4, 5)])
def test_pooling_over_everything(op: str, shape: tuple[int, ...], ran: Run) -> None:
    sizes, made = ",".join(map(str, shape)), ",".join("abcd"[: len(shape)])
    agrees(ran, f"(float[n,{sizes}] x) => (float[n,{made}] y) {{ y = {op}(x) }}", floats(3, *shape))


def test_after_a_relu_zeros_stand_for_what_lies_outside(ran: Run) -> None:
    """PAD goes to XNNPACK, PADV2 does not."""
    pool = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"
    text = f"(float[n,3,8,8] x) => (float[n,3,a,b] y) {{ r = Relu(x) y = {pool}(r) }}"
    assert "PAD" in agrees(ran, text, floats(2, 3, 8, 8))
    assert "PADV2" in agrees(ran, text.replace("Relu", "Neg"), floats(2, 3, 8, 8))


def test_sides_may_be_free(ran: Run) -> None:
    text = """(float[n,3,h,w] x) => (float[n,3,a,b] y) {
        a = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)
        b = AveragePool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(a)
        c = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(b)
        y = AveragePool<kernel_shape=[2,2]>(c)
    }"""
    agrees(ran, text, floats(2, 3, 31, 20))


@pytest.mark.parametrize(
    "window", ["kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]", "kernel_shape=[2,2], dilations=[2,3]"]
)
def test_places_of_maxima(window: str, ran: Run) -> None:
    """Of equal ones the first."""
    text = f"""(float[2,3,7,8] x) => (float[2,3,a,b] y, int64[2,3,a,b] places) {{
        y, places = MaxPool<{window}>(x)
    }}"""
    agrees(ran, text, np.round(floats(2, 3, 7, 8)))


def test_unpooling_puts_back_without_places_for_any_batch(ran: Run) -> None:
    text = """(float[n,3,8,12] x CONSTANTS) => (float[n,4,8,12] y) {
        a = Conv<pads=[1,1,1,1]>(x, u) r = Relu(a) p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
        c = Conv<pads=[1,1,1,1]>(p, v) t = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(c, i) y = Conv(t, w)
    }"""
    weights = {"u": floats(5, 3, 3, 3), "v": floats(5, 5, 3, 3), "w": floats(4, 5, 1, 1)}
    found = agrees(ran, text, floats(3, 3, 8, 12), **weights)
    assert found.count("TRANSPOSE") == 2
    assert not {"SCATTER_ND", "ARG_MAX", "EQUAL"} & set(found), "all of it goes to XNNPACK"


def test_unpooling_of_windows_apart_scatters(ran: Run) -> None:
    text = """(float[2,3,8,11] x) => (float[2,3,8,11] y) {
        p, i = MaxPool<kernel_shape=[2,2], strides=[2,3]>(x) n = Neg(p)
        y = MaxUnpool<kernel_shape=[2,2], strides=[2,3]>(n, i)
    }"""
    assert "SCATTER_ND" in agrees(ran, text, floats(2, 3, 8, 11))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "p, i = MaxPool<kernel_shape=[2,2]>(x) y = MaxUnpool<kernel_shape=[2,2]>(p, i)",
            "SCATTER_ND would add up",
        ),
        (
            'y = MaxPool<kernel_shape=[2,2], dilations=[2,2], auto_pad="SAME_UPPER">(x)',
            "does not count the gaps",
        ),
        ("y = MaxPool<kernel_shape=[2,2], pads=[2,2,2,2]>(x)", "pads as wide"),
    ],
)
def test_what_is_refused(body: str, reason: str, ran: Run) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        ran(f"(float[1,2,6,6] x) => (float[1,2,a,b] y) {{ {body} }}", {"x": floats(1, 2, 6, 6)})


def test_zeros_stand_for_what_lies_outside_where_what_was_rectified_is_only_moved(ran: Run) -> None:
    pool = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>"
    text = f"""(float[n,3,4,8] x) => (float[n,3,a,b] y) {{
        p = Relu(x) q, s = Split<axis=3, num_outputs=2>(p) t = Transpose<perm=[0,1,3,2]>(s)
        r = Concat<axis=3>(q, t, q) y = {pool}(r)
    }}"""
    assert "PAD" in agrees(ran, text, floats(2, 3, 4, 8))
