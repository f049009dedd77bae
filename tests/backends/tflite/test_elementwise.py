"""Arithmetic between operands that lie differently, of every type and number of axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

RNG = np.random.default_rng(0)
W1 = RNG.normal(0, 0.3, (6, 3, 3, 3)).astype(np.float32)
W2 = RNG.normal(0, 0.3, (4, 6, 3, 3)).astype(np.float32)
IMAGE = RNG.normal(0, 1, (2, 3, 8, 8)).astype(np.float32)
Run = Callable[..., Any]


def floats(*shape: int) -> np.ndarray:
    return RNG.uniform(0.5, 2, shape).astype(np.float32)


def between_convolutions(run: Run, body: str, more: dict[str, np.ndarray], inputs: str = "") -> Any:
    """What ``body`` makes of a convolution's result ``a``, and ``b`` is convolved again."""
    text = f"""(float[n,3,8,8] x, float[6,3,3,3] w1, float[4,6,3,3] w2{inputs}) => (float[n,4,4,4] y) {{
        a = Conv(x, w1) {body} y = Conv(b, w2)
    }}"""
    found = run(text, {"x": IMAGE}, {"w1": W1, "w2": W2, **more})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-4, atol=1e-4)
    return found.operators


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (6,), (1, 1, 6, 1), (6, 6, 6), (1,), ()])
@pytest.mark.parametrize("op", ["Add", "Div"])
def test_a_constant_of_any_shape_beside_an_image_moves_nothing(op: str, shape: tuple, ran: Run) -> None:
    name = f", float{list(shape)} c" if shape else ", float c"
    body = f"p = Relu(a) b = {op}(p, c)"
    found = between_convolutions(ran, body, {"c": floats(*shape)}, name)
    assert found.count("TRANSPOSE") == 2, "input and output"


def test_a_constant_on_the_left_and_one_for_each_sample(ran: Run) -> None:
    found = between_convolutions(ran, "b = Sub(c, a)", {"c": floats(2, 1, 6, 6)}, ", float[2,1,6,6] c")
    assert found.count("TRANSPOSE") == 2


def test_squeeze_and_excite_moves_only_numbers_of_channels(ran: Run) -> None:
    body = "g = GlobalAveragePool(a) s = Sigmoid(g) b = Mul(a, s)"
    assert between_convolutions(ran, body, {}).count("TRANSPOSE") == 2


def test_a_gate_computed_without_the_axes_of_the_image(ran: Run) -> None:
    """(6, 1, 1), a lower rank than the image's."""
    text = """(float[1,3,8,8] x, float[6,3,3,3] w1, float[6,1,1] g) => (float[1,6,6,6] y) {
        a = Conv(x, w1) s = Sigmoid(g) m = Mul(a, s) y = Relu(m)
    }"""
    found = ran(text, {"x": IMAGE[:1], "g": floats(6, 1, 1)}, {"w1": W1})
    np.testing.assert_allclose(found.got["y"], found.want["y"], atol=1e-5)
    assert found.operators.count("TRANSPOSE") == 2, "input and output"


def test_the_small_operand_is_turned_and_not_the_large_one(ran: Run) -> None:
    text = """(float[1,6,6,6] x, float[1,3,3,3] z, float[6,3,1,1] w) => (float[1,6,6,6] y) {
        a = Conv<pads=[1,1,2,2]>(z, w) p = GlobalMaxPool(a) s = Add(x, p) y = Neg(s)
    }"""
    found = ran(text, {"x": floats(1, 6, 6, 6), "z": floats(1, 3, 3, 3)}, {"w": floats(6, 3, 1, 1)})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5)
    assert found.operators.count("TRANSPOSE") == 1, "that of the small image"


@pytest.mark.parametrize(("op", "rank"), [("Mul", rank) for rank in range(7)] + [(op, 6) for op in (
    "Add", "Sub", "Div", "Max", "Min", "Pow", "Mod",
)])  # fmt: skip
def test_broadcasting_up_to_six_axes(op: str, rank: int, ran: Run) -> None:
    left, right = (2, 1, 3, 1, 4, 2)[:rank], (1, 3, 1, 2, 4, 1)[:rank]
    shapes = [f"float{list(s)}" if s else "float" for s in (left, right)]
    made = np.broadcast_shapes(left, right)
    attribute = "<fmod=1>" if op == "Mod" else ""
    text = f"""({shapes[0]} x, {shapes[1]} z) => (float{list(made) if made else ""} y) {{
        y = {op}{attribute}(x, z)
    }}"""
    found = ran(text, {"x": floats(*left), "z": floats(*right)})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize(
    "body",
    [
        "y = Add(x, z)", "y = Sub(x, z)", "y = Mul(x, z)", "y = Max(x, z, x)", "y = Min(x, z)", "y = Abs(x)",
        "y = Neg(x)", "y = Sign(x)", "y = Mod(x, z)", "y = Mod<fmod=1>(x, z)", "y = Pow(x, two)",
        "y = Clip(x, two)",
    ],
)  # fmt: skip
def test_integers(body: str, dtype: str, ran: Run) -> None:
    x = RNG.integers(-9, 9, (2, 3, 4)).astype(dtype)
    z = np.array([-3, -2, 2, 5], dtype)
    kept = f", {dtype}[4] z" if "z" in body else ""
    text = f"({dtype}[2,3,4] x{kept}, {dtype} two) => ({dtype}[2,3,4] y) {{ {body} }}"
    feeds = {"x": x, "z": z} if kept else {"x": x}
    found = ran(text, feeds, {"two": np.array(2, dtype)})
    np.testing.assert_array_equal(found.got["y"], found.want["y"])


def test_whole_numbers_divide_towards_zero(ran: Run) -> None:
    x, z = np.array([7, -7, 7, -7], np.int32), np.array([2, 2, -2, -2], np.int32)
    found = ran("(int32[4] x, int32[4] z) => (int32[4] y) { y = Div(x, z) }", {"x": x, "z": z})
    np.testing.assert_array_equal(found.got["y"], [3, -3, -3, 3])


def test_powers_that_networks_use_are_operators_of_their_own(ran: Run) -> None:
    x = floats(1, 5)
    numbers = {"two": 2.0, "three": 3.0, "half": 0.5, "root": -0.5, "over": -1.0}
    names = ", ".join(f"float {name}" for name in numbers)
    steps = " ".join(f"{n}_ = Pow(x, {n})" for n in numbers)
    text = f"""(float[1,5] x, {names}) => (float[1,5] y) {{
        {steps} y = Sum({", ".join(f"{n}_" for n in numbers)})
    }}"""
    found = ran(text, {"x": x}, {name: np.float32(number) for name, number in numbers.items()})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5)
    assert {"SQUARE", "SQRT", "RSQRT"} <= set(found.operators) and "POW" not in found.operators


@pytest.mark.parametrize("call", ["Reciprocal(a)", "Div(one, a)"])
def test_one_over_a_root_is_one_operator(call: str, ran: Run) -> None:
    given = ", float one" if "one" in call else ""
    text = f"(float[1,5] x{given}) => (float[1,5] y) {{ a = Sqrt(x) y = {call} }}"
    found = ran(text, {"x": floats(1, 5)}, {"one": np.float32(1)})
    assert found.operators == ["RSQRT"]
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5)


# ---------------------------------------------------------------------------------------------- as integers


PAIR = """(float[1,6,8,8] x, float[1,6,SIZE] z, float a, int8 b, float s, int8 t) => (float[1,6,8,8] y) {
    q = QuantizeLinear(x, a, b) d = DequantizeLinear(q, a, b)
    r = QuantizeLinear(z, a, b) e = DequantizeLinear(r, a, b)
    m = OP(d, e)
    u = QuantizeLinear(m, s, t) y = DequantizeLinear(u, s, t)
}"""


@pytest.mark.parametrize("size", [(8, 8), (1, 1)])
@pytest.mark.parametrize("delegate", [True, False])
@pytest.mark.parametrize(
    ("op", "code", "scale", "zero"),
    [("Add", "ADD", 0.07, 5), ("Sub", "SUB", 0.07, 5), ("Mul", "MUL", 0.11, 5), ("Max", "MAXIMUM", 0.05, -3)],
)
def test_int8_is_off_by_a_code_at_most(
    op: str, code: str, scale: float, zero: int, delegate: bool, size: tuple[int, int], ran: Run
) -> None:
    constants = {"a": np.float32(0.05), "b": np.int8(-3), "s": np.float32(scale), "t": np.int8(zero)}
    feeds = {n: RNG.normal(0, 2, (1, 6, *s)).astype(np.float32) for n, s in (("x", (8, 8)), ("z", size))}
    text = PAIR.replace("OP", op).replace("SIZE", f"{size[0]},{size[1]}")
    found = ran(text, feeds, constants, delegate=delegate)
    assert code in found.operators and found.operators.count("DEQUANTIZE") == 1
    assert np.abs(found.got["y"] - found.want["y"]).max() <= scale * 1.01


@pytest.mark.parametrize(("zero", "activation"), [(-128, 0), (-20, 1)])
def test_an_activation_that_rounding_does_already_is_left_out(zero: int, activation: int, ran: Run) -> None:
    """XNNPACK would run a kernel of its own for it."""
    constants = {"a": np.float32(0.05), "b": np.int8(-3), "s": np.float32(0.05), "t": np.int8(zero)}
    feeds = {name: RNG.normal(0, 2, (1, 6, 8, 8)).astype(np.float32) for name in "xz"}
    text = PAIR.replace("m = OP(d, e)", "n = Add(d, e) m = Relu(n)").replace("SIZE", "8,8")
    for clipped in (
        text,
        text.replace("Relu(n)", "Clip(n, lo, hi)").replace("float a,", "float lo, float hi, float a,"),
    ):
        given = constants | {"lo": np.float32(0), "hi": np.float32(6)} if "Clip" in clipped else constants
        found = ran(clipped, feeds, given)
        assert np.abs(found.got["y"] - found.want["y"]).max() <= 0.05 * 1.01
        assert found.want["y"].min() == 0
        assert found.fused.count("RELU") + found.fused.count("RELU6") == (
            activation or int("Clip" in clipped)
        )
