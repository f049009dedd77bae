"""Activations over their attributes, beside infinities, and channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deploy.errors import UnsupportedError

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(0, 1, (2, 3, 6, 6)).astype(np.float32)
W = RNG.normal(0, 0.5, (6, 3, 3, 3)).astype(np.float32)
Run = Callable[..., Any]

ACTIVATIONS = [
    "Relu", "LeakyRelu", "LeakyRelu<alpha=0.2>", "ThresholdedRelu<alpha=0.7>", "Elu", "Elu<alpha=2.5>",
    "Elu<alpha=0.3>", "Selu", "Selu<alpha=2.0, gamma=0.5>", "Celu", "Celu<alpha=2.0>", "Softplus", "Softsign",
    "Mish", "HardSwish", "HardSigmoid", "HardSigmoid<alpha=0.16666667, beta=0.5>",
    "HardSigmoid<alpha=-0.4, beta=0.1>", "Hardmax", "Hardmax<axis=1>", "Hardmax<axis=2>",
    "Shrink<lambd=0.5, bias=0.5>", "Shrink<lambd=0.8>", "Gelu", 'Gelu<approximate="tanh">', "Sigmoid", "Tanh",
    "Softmax", "Softmax<axis=1>", "Softmax<axis=0>", "LogSoftmax", "LogSoftmax<axis=1>", "LogSoftmax<axis=2>",
    "Erf",
]  # fmt: skip
NOT_DELEGATED = {"GREATER", "LESS", "SELECT_V2", "LOG_SOFTMAX", "ARG_MAX", "ONE_HOT"}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_behind_a_convolution(activation: str, ran: Run) -> None:
    """A transpose more only where the axis is not that of the channels."""
    name, _, attributes = activation.partition("<")
    call = f"{name}{'<' + attributes if attributes else ''}(a)"
    text = f"(float[n,3,6,6] x, float[6,3,3,3] w) => (float[n,6,4,4] y) {{ a = Conv(x, w) y = {call} }}"
    found = ran(text, {"x": 3 * IMAGE}, {"w": W})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5, atol=2e-6)
    moves = "max" in name and "axis=1" not in attributes
    assert found.operators.count("TRANSPOSE") <= (3 if moves else 2)
    if "max" not in name and name not in ("Shrink", "ThresholdedRelu"):
        assert NOT_DELEGATED.isdisjoint(found.operators)


BOUNDLESS = [
    "Relu",
    "Elu<alpha=2.0>",
    "Selu",
    "Celu<alpha=2.0>",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "HardSigmoid",
]
BOUNDLESS += ["ThresholdedRelu", "LeakyRelu", "Shrink"]


@pytest.mark.parametrize("name", BOUNDLESS)
def test_infinities(name: str, ran: Run) -> None:
    x = np.array([np.inf, -np.inf], np.float32)
    found = ran(f"(float[2] x) => (float[2] y) {{ y = {name}(x) }}", {"x": x})
    np.testing.assert_allclose(found.got["y"], found.want["y"])


@pytest.mark.parametrize("alpha", [1.0, 1.702])
def test_swish(alpha: float, ran: Run) -> None:
    text = f"(float[2,3,6,6] x) => (float[2,3,6,6] y) {{ y = Swish<alpha={alpha}>(x) }}"
    found = ran(text, {"x": IMAGE}, opset=24)
    np.testing.assert_allclose(found.got["y"], IMAGE / (1 + np.exp(-alpha * IMAGE)), rtol=1e-5)


@pytest.mark.parametrize(
    "bounds",
    [(0, 6), (-1, 1), (0, 1), (0, None), (None, 3), (-2.5, 0.5), (1, -1), (-np.inf, 2), (None, None)],
)
@pytest.mark.parametrize("dtype", ["float", "int32", "int64"])
def test_clip(bounds: tuple[float | None, float | None], dtype: str, ran: Run) -> None:
    kind = np.dtype(np.float32 if dtype == "float" else dtype)
    if kind.kind == "i" and any(b is not None and (b != np.round(b) or not np.isfinite(b)) for b in bounds):
        return
    x = RNG.uniform(-9, 9, (2, 3, 4)).astype(kind)
    given = {name: np.array(b, kind) for name, b in zip("lh", bounds, strict=True) if b is not None}
    names = "".join(f", {dtype} {name}" for name in given)
    call = ", ".join(name if name in given else "" for name in "lh").rstrip(", ")
    call = f"x, {call}" if call else "x"
    found = ran(f"({dtype}[2,3,4] x{names}) => ({dtype}[2,3,4] y) {{ y = Clip({call}) }}", {"x": x}, given)
    np.testing.assert_array_equal(found.got["y"], found.want["y"])


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 1, 1), (1,), (6, 4, 4), (4,), (1, 4, 1)])
def test_slopes_of_every_shape(shape: tuple[int, ...], ran: Run) -> None:
    slopes = RNG.normal(0, 1, shape).astype(np.float32)
    text = f"""(float[n,3,6,6] x, float[6,3,3,3] w, float{list(shape)} s) => (float[n,6,4,4] y) {{
        a = Conv(x, w) y = PRelu(a, s)
    }}"""
    found = ran(text, {"x": IMAGE}, {"w": W, "s": slopes})
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5, atol=1e-6)
    assert found.operators.count("TRANSPOSE") == 2
    assert ("PRELU" in found.operators) == (shape in ((6, 1, 1), (1, 1, 1, 6)))


def test_slopes_that_are_computed(ran: Run) -> None:
    x, s = IMAGE, RNG.normal(0, 1, (2, 3, 6, 6)).astype(np.float32)
    found = ran(
        "(float[2,3,6,6] x, float[2,3,6,6] s) => (float[2,3,6,6] y) { y = PRelu(x, s) }", {"x": x, "s": s}
    )
    np.testing.assert_allclose(found.got["y"], found.want["y"], rtol=1e-5)


def test_what_cannot_be_said_has_a_reason(ran: Run) -> None:
    with pytest.raises(UnsupportedError, match="alpha must be above zero"):
        ran("(float[2] x) => (float[2] y) { y = Celu<alpha=-1.0>(x) }", {"x": np.zeros(2, np.float32)})


# ---------------------------------------------------------------------------------------------- as integers


INT8 = """(float[1,6,8,8] x, float one, int8 zp, float scale, int8 zero) => (float[1,6,8,8] y) {
    q = QuantizeLinear(x, one, zp) d = DequantizeLinear(q, one, zp)
    a = OP(d)
    r = QuantizeLinear(a, scale, zero) y = DequantizeLinear(r, scale, zero)
}"""


@pytest.mark.parametrize(
    ("op", "device", "scale", "zero", "code"),
    [
        ("Sigmoid", "android", 1 / 256, -128, "LOGISTIC"),
        ("Tanh", "android", 1 / 128, 0, "TANH"),
        ("LeakyRelu<alpha=0.1>", "android", 0.03, -100, "LEAKY_RELU"),
        ("Elu", "android", 0.02, -90, "ELU"),
        ("Softmax", "microcontroller", 1 / 256, -128, "SOFTMAX"),
        ("Softmax<axis=1>", "microcontroller", 1 / 256, -128, "SOFTMAX"),
    ],
)
def test_int8_is_off_by_a_code_at_most(
    op: str, device: str, scale: float, zero: int, code: str, ran: Run
) -> None:
    constants = {
        "one": np.float32(0.05),
        "zp": np.int8(-3),
        "scale": np.float32(scale),
        "zero": np.int8(zero),
    }
    x = RNG.normal(0, 2, (1, 6, 8, 8)).astype(np.float32)
    found = ran(INT8.replace("OP", op), {"x": x}, constants, device=device)
    assert code in found.operators and found.operators.count("DEQUANTIZE") == 1
    assert np.abs(found.got["y"] - found.want["y"]).max() <= scale * 1.01


@pytest.mark.parametrize("op", ["Softmax", "HardSwish", "Gelu"])
def test_what_xnnpack_lacks_as_integers_stays_float_on_phones(op: str, ran: Run) -> None:
    constants = {
        "one": np.float32(0.05),
        "zp": np.int8(-3),
        "scale": np.float32(1 / 256),
        "zero": np.int8(-128),
    }
    x = RNG.normal(0, 2, (1, 6, 8, 8)).astype(np.float32)
    found = ran(INT8.replace("OP", op), {"x": x}, constants)
    assert found.operators.count("DEQUANTIZE") == 2
    assert np.abs(found.got["y"] - found.want["y"]).max() <= 1.01 / 256
