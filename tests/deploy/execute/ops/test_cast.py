from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.errors import UnsupportedError
from deploy.execute.ops.cast import to_type

NUMBERS = np.array([0.0, -0.0, 1.5, -2.7, 100.2, 0.3, 77.7], np.float32)
KINDS = ["FLOAT", "DOUBLE", "FLOAT16", "INT8", "INT32", "INT64", "BOOL"]
FLOAT8 = {
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e4m3fnuz: ml_dtypes.float8_e4m3fnuz,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e5m2fnuz: ml_dtypes.float8_e5m2fnuz,
}


@pytest.mark.parametrize("source", [np.float32, np.float64, np.float16, np.int32, np.int64, np.bool_])
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntimes(one_node, source, kind):
    one_node("Cast", NUMBERS.astype(source), to=ir.DataType[kind].value).agrees()


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64, np.int8])
def test_integers_wrap(one_node, kind):
    x = np.array([-1, 300, 2**31, 2**40 + 7], np.int64)
    (found,) = one_node("Cast", x, to=ir.DataType.from_numpy(np.dtype(kind)).value).torch()
    assert found.tolist() == x.astype(kind).tolist()


def test_gradients_go_through_floats(one_node):
    one_node("Cast", NUMBERS, to=ir.DataType.DOUBLE.value).gradients()
    x = torch.from_numpy(NUMBERS).requires_grad_()
    one_node("Cast", NUMBERS, to=ir.DataType.BFLOAT16.value).torch(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0] * len(NUMBERS)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_beyond_its_range(dtype):
    """Without saturation as numpy's ml_dtypes, which has the same rule; with it, at the largest number."""
    largest = torch.finfo(dtype).max
    near = torch.linspace(largest * 0.9, largest * 1.2, 999)
    x = torch.cat([near, -near, torch.randn(999), torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])])
    want = x.numpy().astype(FLOAT8[dtype]).astype(np.float32)
    np.testing.assert_array_equal(to_type(x, dtype, saturate=False).float().numpy(), want)
    inside = to_type(x, dtype).float()
    bounded = np.where(np.isfinite(want), want, np.clip(x.numpy(), -largest, largest))
    np.testing.assert_array_equal(inside.numpy(), bounded)


@pytest.mark.parametrize(
    ("mode", "want"),
    [("up", [1, 2, 2, 4, 0.5]), ("down", [1, 1, 1, 2, 0.5]), ("nearest", [1, 1, 2, 2, 0.5])],
)
def test_float8_of_an_exponent_alone(mode, want):
    x = torch.tensor([1.0, 1.2, 1.7, 2.5, 0.5])
    assert to_type(x, torch.float8_e8m0fnu, round_mode=mode).float().tolist() == want


@pytest.mark.parametrize(("kind", "low", "count"), [("INT4", -8, 16), ("UINT4", 0, 16), ("INT2", -2, 4)])
def test_narrow_integers_wrap_in_a_byte(one_node, kind, low, count):
    x = np.arange(-20, 20, dtype=np.float32)
    (found,) = one_node("Cast", x, to=ir.DataType[kind].value).torch()
    assert found.tolist() == [int((v - low) % count + low) for v in x]
    assert found.dtype == (torch.uint8 if kind == "UINT4" else torch.int8)


def test_text(one_node):
    words = np.array(["3.14", "-INF", "NaN", "1e5"], object)
    kernel = one_node("Cast", NUMBERS, to=ir.DataType.FLOAT.value).program.steps[0].kernel
    np.testing.assert_array_equal(kernel(words).numpy(), np.float32([3.14, -np.inf, np.nan, 1e5]))
    (said,) = one_node("Cast", np.float32([0.5, -2.0]), to=ir.DataType.STRING.value).torch()
    assert said.tolist() == ["0.5", "-2.0"]


def test_like_another(one_node):
    one_node("CastLike", NUMBERS, np.zeros(2, np.int64)).agrees()
    with pytest.raises(UnsupportedError, match="UNDEFINED"):
        one_node("Cast", NUMBERS, to=0)


def test_bits(one_node):
    (found,) = one_node("BitCast", NUMBERS, opset=26, to=ir.DataType.INT32.value).torch()
    np.testing.assert_array_equal(found.numpy(), NUMBERS.view(np.int32))
    with pytest.raises(UnsupportedError, match="width"):
        one_node("BitCast", NUMBERS, opset=26, to=ir.DataType.INT64.value).torch()


def test_identity_copies_nothing(one_node):
    x = torch.from_numpy(NUMBERS)
    assert one_node("Identity", NUMBERS).torch(x)[0] is x
