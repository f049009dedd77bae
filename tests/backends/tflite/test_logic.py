"""Comparisons, choices, bits and changes of type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploy.errors import UnsupportedError

RNG = np.random.default_rng(0)
Run = Callable[..., Any]
KINDS = {"float": np.float32, "int32": np.int32, "int64": np.int64, "bool": np.bool_}


@pytest.mark.parametrize("dtype", ["float", "int32", "int64"])
@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
def test_comparisons_broadcast(op: str, dtype: str, ran: Run) -> None:
    x, z = (RNG.integers(-2, 3, s).astype(KINDS[dtype]) for s in ((2, 3, 1, 4), (5, 1)))
    text = f"({dtype}[2,3,1,4] x, {dtype}[5,1] z) => (bool[2,3,5,4] y) {{ y = {op}(x, z) }}"
    found = ran(text, {"x": x, "z": z})
    np.testing.assert_array_equal(found.got["y"], found.want["y"])


@pytest.mark.parametrize("op", ["And", "Or", "Xor", "Equal"])
def test_logic(op: str, ran: Run) -> None:
    x, z = (RNG.integers(0, 2, s).astype(bool) for s in ((2, 3, 4), (3, 1)))
    text = f"(bool[2,3,4] x, bool[3,1] z) => (bool[2,3,4] y) {{ a = {op}(x, z) y = Not(a) }}"
    found = ran(text, {"x": x, "z": z})
    np.testing.assert_array_equal(found.got["y"], found.want["y"])


@pytest.mark.parametrize("attributes", ["", "<detect_positive=0>", "<detect_negative=0>"])
def test_what_is_no_finite_number(attributes: str, ran: Run) -> None:
    x = np.array([1, np.nan, np.inf, -np.inf, 3e38, 0], np.float32)
    text = f"(float[6] x) => (bool[6] n, bool[6] i) {{ n = IsNaN(x) i = IsInf{attributes}(x) }}"
    found = ran(text, {"x": x})
    np.testing.assert_array_equal(found.got["n"], np.isnan(x))
    np.testing.assert_array_equal(found.got["i"], found.want["i"])


@pytest.mark.parametrize("dtype", ["float", "int32", "int64"])
@pytest.mark.parametrize("shapes", [((2, 1, 4), (3, 1), (1,)), ((1,), (2, 3, 4), (4,)), ((), (3,), (2, 1))])
def test_a_choice_broadcasts(shapes: tuple[tuple[int, ...], ...], dtype: str, ran: Run) -> None:
    c, x, z = (RNG.integers(0, 9, s) for s in shapes)
    made = np.broadcast_shapes(*shapes)
    names = [f"[{','.join(map(str, s))}]" if s else "" for s in (*shapes, made)]
    text = f"""(bool{names[0]} c, {dtype}{names[1]} x, {dtype}{names[2]} z) => ({dtype}{names[3]} y) {{
        y = Where(c, x, z)
    }}"""
    kind = KINDS[dtype]
    feeds = {"c": np.asarray(c > 4), "x": np.asarray(x).astype(kind), "z": np.asarray(z).astype(kind)}
    found = ran(text, feeds)
    np.testing.assert_array_equal(found.got["y"], np.where(feeds["c"], feeds["x"], feeds["z"]))


def test_a_mask_of_infinities_before_a_softmax(ran: Run) -> None:
    c, x = RNG.integers(0, 2, (1, 1, 4, 4)) > 0, RNG.normal(0, 1, (1, 2, 4, 4)).astype(np.float32)
    c[..., 0] = False
    text = """(bool[1,1,4,4] c, float[1,2,4,4] x, float low) => (float[1,2,4,4] y) {
        m = Where(c, low, x) y = Softmax(m)
    }"""
    found = ran(text, {"c": c, "x": x}, {"low": np.float32(-np.inf)})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5, atol=1e-7)


def test_masks_beside_an_image_are_stored_as_the_image_is(ran: Run) -> None:
    x = RNG.normal(0, 1, (1, 3, 6, 6)).astype(np.float32)
    w = RNG.normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    text = """(float[1,3,6,6] x, float[4,3,3,3] w, float[1,4,1,1] t) => (float[1,4,4,4] y) {
        a = Conv(x, w) c = Greater(a, t) n = Neg(a) y = Where(c, a, n)
    }"""
    found = ran(text, {"x": x}, {"w": w, "t": RNG.normal(0, 1, (1, 4, 1, 1)).astype(np.float32)})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5, atol=1e-5)
    assert found.operators.count("TRANSPOSE") == 2


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize(
    ("op", "function"), [("And", np.bitwise_and), ("Or", np.bitwise_or), ("Xor", np.bitwise_xor)]
)
def test_bits(op: str, function: Callable[..., Any], dtype: str, ran: Run) -> None:
    info = np.iinfo(dtype)
    x, z = (RNG.integers(info.min, info.max, s, dtype) for s in ((2, 3, 4), (3, 1)))
    text = f"""({dtype}[2,3,4] x, {dtype}[3,1] z) => ({dtype}[2,3,4] y) {{
        a = Bitwise{op}(x, z) y = BitwiseNot(a)
    }}"""
    if (op, dtype) == ("Xor", "int64"):
        with pytest.raises(UnsupportedError, match="int64"):
            ran(text, {"x": x, "z": z})
        return
    np.testing.assert_array_equal(ran(text, {"x": x, "z": z}).got["y"], ~function(x, z))


def test_bytes_are_shifted_to_the_right_only(ran: Run) -> None:
    x, z = (np.array(n, np.uint8) for n in ([255, 16, 1], [1, 3, 7]))
    text = '(uint8[3] x, uint8[3] z) => (uint8[3] y) { y = BitShift<direction="RIGHT">(x, z) }'
    np.testing.assert_array_equal(ran(text, {"x": x, "z": z}).got["y"], [127, 2, 0])
    with pytest.raises(UnsupportedError, match="to the right only"):
        ran(text.replace("RIGHT", "LEFT"), {"x": x, "z": z})


@pytest.mark.parametrize("to", ["float", "int32", "int64", "bool", "uint8", "int8"])
@pytest.mark.parametrize("given", ["float", "int32", "int64", "bool", "uint8", "int8"])
def test_casts(given: str, to: str, ran: Run) -> None:
    numbers = {"float": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9}
    kinds = {**KINDS, "uint8": np.uint8, "int8": np.int8}
    x = np.array([0, 0.5, 1.7, 99.9] + ([] if "u" in given + to else [-0.5, -1.7, -99.9])).astype(
        kinds[given]
    )
    text = f"({given}[{len(x)}] x) => ({to}[{len(x)}] y) {{ y = Cast<to={numbers[to]}>(x) }}"
    found = ran(text, {"x": x}).got["y"]
    np.testing.assert_array_equal(found, x.astype(kinds[to]))
    assert found.dtype == kinds[to]


def test_a_type_is_taken_from_another_value(ran: Run) -> None:
    x = np.array([0, 0.5, -1.7], np.float32)
    text = "(float[3] x, int64 like) => (int64[3] y) { y = CastLike(x, like) }"
    np.testing.assert_array_equal(ran(text, {"x": x}, {"like": np.array(1)}).got["y"], [0, 0, -1])
