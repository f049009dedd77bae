"""Normalisations over images, signals and sequences, beside a definition in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploy.errors import UnsupportedError

RNG = np.random.default_rng(0)
W = RNG.normal(0, 0.5, (8, 3, 3, 3)).astype(np.float32)
IMAGE = RNG.normal(0, 1, (2, 3, 6, 6)).astype(np.float32)
SCALE, BIAS = (RNG.uniform(0.5, 2, 8).astype(np.float32) for _ in range(2))
Run = Callable[..., Any]
NOT_DELEGATED = {"L2_NORMALIZATION", "LOCAL_RESPONSE_NORMALIZATION", "POW", "SELECT_V2", "BROADCAST_TO"}


@pytest.mark.parametrize(
    "call",
    [
        "InstanceNormalization(a, s, b)",
        "GroupNormalization<num_groups=1>(a, s, b)",
        "GroupNormalization<num_groups=4>(a, s, b)",
        "GroupNormalization<num_groups=8, epsilon=0.1>(a, s, b)",
        "BatchNormalization(a, s, b, m, v)",
        "MeanVarianceNormalization(a)",
        "MeanVarianceNormalization<axes=[1]>(a)",
        "LpNormalization<axis=1>(a)",
        "LpNormalization<axis=-1, p=1>(a)",
        "LayerNormalization<axis=1>(a, S)",
        "LayerNormalization<axis=2>(a, T, T)",
    ],
)
def test_behind_a_convolution_nothing_is_transposed(call: str, ran: Run) -> None:
    constants = {"w": W, "s": SCALE, "b": BIAS, "m": BIAS - 1, "v": SCALE}
    constants |= {"S": RNG.normal(1, 1, (8, 4, 4)), "T": RNG.normal(1, 1, (4, 4))}
    used = {n: np.asarray(c, np.float32) for n, c in constants.items() if n == "w" or n in call.split("(")[1]}
    names = "".join(f", float{list(c.shape)} {n}" for n, c in used.items())
    text = f"(float[n,3,6,6] x{names}) => (float[n,8,4,4] y) {{ a = Conv(x, w) c = {call} y = Relu(c) }}"
    found = ran(text, {"x": IMAGE}, used)
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-4, atol=1e-5)
    assert found.operators.count("TRANSPOSE") == 2, "input and output"
    assert NOT_DELEGATED.isdisjoint(found.operators)


@pytest.mark.parametrize("rank", [2, 3, 5])
@pytest.mark.parametrize(
    "op", ["BatchNormalization", "InstanceNormalization", "GroupNormalization<num_groups=4>"]
)
def test_vectors_signals_and_volumes(op: str, rank: int, ran: Run) -> None:
    if rank == 2 and op[0] != "B":
        return
    shape = (2, 8, 3, 4, 5)[:rank]
    x = RNG.normal(0, 1, shape).astype(np.float32)
    more = ", m, v" if op[0] == "B" else ""
    kind = f"float{list(shape)}"
    text = f"""({kind} x, float[8] s, float[8] b, float[8] m, float[8] v) => ({kind} y) {{
        y = {op}(x, s, b{more})
    }}"""
    found = ran(text, {"x": x}, {"s": SCALE, "b": BIAS, "m": BIAS - 1, "v": SCALE})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_layer_normalization_with_its_statistics(axis: int, ran: Run) -> None:
    x = RNG.normal(2, 3, (2, 5, 8)).astype(np.float32)
    text = """(float[n,5,8] x, float[8] s, float[8] b) => (float y, float m, float r) {
        y, m, r = LayerNormalization<axis=AXIS, epsilon=0.001>(x, s, b)
    }""".replace("AXIS", str(axis))
    shape = x.shape[axis:]
    given = {"s": np.resize(SCALE, shape), "b": np.resize(BIAS, shape)}
    text = text.replace("float[n,5,8] x", "float[2,5,8] x" if axis == 0 else "float[n,5,8] x")
    kept = ["2" if axis == 0 else "n", "5", "8"]
    ones = kept[: axis % 3] + ["1"] * (3 - axis % 3)
    outputs = f"(float[{','.join(kept)}] y, float[{','.join(ones)}] m, float[{','.join(ones)}] r)"
    found = ran(text.replace("(float y, float m, float r)", outputs), {"x": x}, given)
    for name in "ymr":
        np.testing.assert_allclose(found.got[name], found.want[name], rtol=1e-4, atol=1e-5)


def test_rms_normalization(ran: Run) -> None:
    x = RNG.normal(2, 3, (2, 5, 8)).astype(np.float32)
    text = "(float[n,5,8] x, float[8] s) => (float[n,5,8] y) { y = RMSNormalization(x, s) }"
    found = ran(text, {"x": x}, {"s": SCALE}, opset=23)
    exact = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, -1, keepdims=True) + 1e-5) * SCALE
    np.testing.assert_allclose(found.got["y"], exact, rtol=1e-5)


def test_local_response_normalization(ran: Run) -> None:
    call = "LRN<size=5, alpha=0.05, beta=0.7, bias=1.5>(a)"
    text = f"(float[n,3,6,6] x, float[8,3,3,3] w) => (float[n,8,4,4] y) {{ a = Conv(x, w) y = {call} }}"
    found = ran(text, {"x": IMAGE}, {"w": W})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5, atol=1e-6)
    with pytest.raises(UnsupportedError, match="odd number of channels"):
        ran(text.replace("size=5", "size=4"), {"x": IMAGE}, {"w": W})


def test_nothing_but_zeros_stays_zeros(ran: Run) -> None:
    x = np.array([[0, 0], [3, 4], [0, 0]], np.float32)
    found = ran("(float[3,2] x) => (float[3,2] y) { y = LpNormalization(x) }", {"x": x})
    np.testing.assert_allclose(found.got["y"], [[0, 0], [0.6, 0.8], [0, 0]], rtol=1e-6)


def test_the_batch_of_training_is_refused(ran: Run) -> None:
    text = """(float[2,8,3,3] x, float[8] s, float[8] b, float[8] m, float[8] v) => (float[2,8,3,3] y) {
        y = BatchNormalization<training_mode=1>(x, s, b, m, v)
    }"""
    constants = {"s": SCALE, "b": BIAS, "m": BIAS, "v": SCALE}
    with pytest.raises(UnsupportedError, match="as in training"):
        ran(text, {"x": np.zeros((2, 8, 3, 3), np.float32)}, constants)
