"""Reductions, extremes and running sums over any axes, of what is stored channels last too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

RNG = np.random.default_rng(0)
W = RNG.normal(0, 0.5, (8, 3, 3, 3)).astype(np.float32)
IMAGE = RNG.normal(0, 1, (2, 3, 6, 6)).astype(np.float32)
Run = Callable[..., Any]
REDUCTIONS = [
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceL1",
    "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
]  # fmt: skip


def reduced(axes: tuple[int, ...], keep: int) -> str:
    sizes = ["n", "8", "4", "4"]
    gone = {axis % 4 for axis in axes}
    return ",".join("1" if i in gone else s for i, s in enumerate(sizes) if keep or i not in gone)


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(
    ("op", "axes"),
    [(op, (1, 3)) for op in REDUCTIONS]
    + [("ReduceMean", axes) for axes in ((2, 3), (1,), (-1,), (0,), (0, 1, 2, 3))],
)
def test_behind_a_convolution(op: str, axes: tuple[int, ...], keep: int, ran: Run) -> None:
    """Only a small result is transposed, if it has to be."""
    made = reduced(axes, keep)
    text = f"""(float[n,3,6,6] x, float[8,3,3,3] w, int64[{len(axes)}] axes) => (float[{made}] y) {{
        a = Conv(x, w) b = Abs(a) y = {op}<keepdims={keep}>(b, axes)
    }}"""
    found = ran(text, {"x": IMAGE}, {"w": W, "axes": np.array(axes)})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-4, atol=1e-5)
    reduces = next(i for i, code in enumerate(found.operators) if code.startswith(("SUM", "MEAN", "REDUCE")))
    assert found.operators[1:reduces].count("TRANSPOSE") == 0


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("noop", [0, 1])
def test_no_axes_are_all_or_none(op: str, noop: int, ran: Run) -> None:
    x = np.abs(IMAGE[0])
    shape = "3,6,6" if noop else "1,1,1"
    text = f"(float[3,6,6] x) => (float[{shape}] y) {{ y = {op}<noop_with_empty_axes={noop}>(x) }}"
    found = ran(text, {"x": x})
    steps = {"SumSquare": np.square, "LogSum": np.log}.get(op.removeprefix("Reduce"), lambda a: a)
    want = steps(x) if noop else found.want["y"]
    np.testing.assert_allclose(found.got["y"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize(
    "op", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceL1"]
)
def test_integers(op: str, dtype: str, ran: Run) -> None:
    x = RNG.integers(-5, 5, (2, 3, 4)).astype(dtype)
    text = f"({dtype}[2,3,4] x, int64[1] axes) => ({dtype}[2,1,4] y) {{ y = {op}(x, axes) }}"
    found = ran(text, {"x": x}, {"axes": np.array([1])})
    function = {"Sum": np.sum, "Max": np.max, "Min": np.min, "Prod": np.prod}.get(op.removeprefix("Reduce"))
    given = {"ReduceSumSquare": np.square, "ReduceL1": np.abs}.get(op, lambda a: a)(x)
    np.testing.assert_array_equal(found.got["y"], (function or np.sum)(given, axis=1, keepdims=True))


def test_sums_of_exponentials_do_not_overflow(ran: Run) -> None:
    x = np.array([[1000, 1000], [-1000, -1000], [-np.inf, -np.inf], [np.inf, 0]], np.float32)
    text = "(float[4,2] x, int64[1] axes) => (float[4,1] y) { y = ReduceLogSumExp(x, axes) }"
    found = ran(text, {"x": x}, {"axes": np.array([1])}).got["y"].reshape(-1)
    np.testing.assert_allclose(found, [1000 + np.log(2), -1000 + np.log(2), -np.inf, np.inf], rtol=1e-6)


@pytest.mark.parametrize(("op", "last", "keep"), [("ArgMax", 0, 0), ("ArgMax", 1, 1), ("ArgMin", 1, 0)])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_where_the_extremes_are(op: str, axis: int, last: int, keep: int, ran: Run) -> None:
    """Rounded, so that many are equal; of the channels without a transpose."""
    text = f"""(float[n,3,6,6] x, float[8,3,3,3] w) => (int64[{reduced((axis,), keep)}] y) {{
        a = Conv(x, w) b = Round(a) y = {op}<axis={axis}, keepdims={keep}, select_last_index={last}>(b)
    }}"""
    if axis == 0:
        text = text.replace("n,", "2,")
    found = ran(text, {"x": IMAGE}, {"w": W})
    np.testing.assert_array_equal(found.got["y"], found.want["y"])
    if axis == 1:
        assert found.operators.count("TRANSPOSE") == 1, "the input"


@pytest.mark.parametrize("dtype", ["float", "int32", "int64"])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_greatest_and_the_least(axis: int, largest: int, dtype: str, ran: Run) -> None:
    x = RNG.integers(-5, 5, (5, 4, 6)).astype(np.float32 if dtype == "float" else dtype)
    shape = [5, 4, 6]
    shape[axis] = 3
    text = f"""({dtype}[5,4,6] x, int64[1] k) => ({dtype}{shape} v, int64{shape} i) {{
        v, i = TopK<axis={axis}, largest={largest}>(x, k)
    }}"""
    found = ran(text, {"x": x}, {"k": np.array([3])})
    np.testing.assert_array_equal(found.got["v"], found.want["v"])
    np.testing.assert_array_equal(found.got["i"], found.want["i"])


@pytest.mark.parametrize("dtype", ["float", "int32", "int64"])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_running_sums(axis: int, exclusive: int, reverse: int, dtype: str, ran: Run) -> None:
    x = RNG.integers(-5, 5, (3, 4, 5)).astype(np.float32 if dtype == "float" else dtype)
    text = f"""({dtype}[3,4,5] x, int64 axis) => ({dtype}[3,4,5] y) {{
        y = CumSum<exclusive={exclusive}, reverse={reverse}>(x, axis)
    }}"""
    found = ran(text, {"x": x}, {"axis": np.array(axis)})
    np.testing.assert_array_equal(found.got["y"], found.want["y"])


def test_the_mean_of_an_image_as_integers(ran: Run) -> None:
    text = """(float[1,6,8,8] x, float one, int8 zp, float scale, int8 zero, int64[2] axes)
    => (float[1,6,1,1] y) {
        q = QuantizeLinear(x, one, zp) d = DequantizeLinear(q, one, zp)
        a = ReduceMean(d, axes)
        r = QuantizeLinear(a, scale, zero) y = DequantizeLinear(r, scale, zero)
    }"""
    constants = {"one": np.float32(0.05), "zp": np.int8(-3), "scale": np.float32(0.01), "zero": np.int8(9)}
    x = RNG.normal(0, 2, (1, 6, 8, 8)).astype(np.float32)
    found = ran(text, {"x": x}, {**constants, "axes": np.array([2, 3])}, device="microcontroller")
    assert found.operators.count("DEQUANTIZE") == 1 and "MEAN" in found.operators
    assert np.abs(found.got["y"] - found.want["y"]).max() <= 0.0101
