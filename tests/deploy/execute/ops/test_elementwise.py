from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def between(low: float, high: float, *shape: int) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


INTEGERS = np.array([[7, -7, 5], [-9, 8, 1]], np.int32)
DIVISORS = np.array([[2, 2, -3], [4, -3, 7]], np.int32)

DOMAIN = {
    "Abs": (0.1, 2), "Acos": (-0.9, 0.9), "Acosh": (1.1, 3), "Asin": (-0.9, 0.9), "Asinh": (-2, 2),
    "Atan": (-2, 2), "Atanh": (-0.9, 0.9), "Cos": (-2, 2), "Cosh": (-2, 2), "Erf": (-2, 2), "Exp": (-2, 2),
    "Log": (0.2, 3), "Neg": (-2, 2), "Reciprocal": (0.3, 2), "Sin": (-2, 2), "Sinh": (-2, 2),
    "Sqrt": (0.2, 2), "Tan": (-1, 1),
}  # fmt: skip


@pytest.mark.parametrize("op", DOMAIN)
def test_functions_of_one(one_node, op):
    node = one_node(op, between(*DOMAIN[op], 3, 4))
    node.agrees()
    node.gradients()


@pytest.mark.parametrize("op", ["Ceil", "Floor", "Round", "Sign"])
def test_steps(one_node, op):
    one_node(op, np.array([-2.5, -1.5, -0.5, 0, 0.5, 1.5, 2.5, 0.4], np.float32)).agrees()


PAIRS = {
    "Add": ("Add", [real(2, 3, 4), real(3, 1)]),
    "Sub": ("Sub", [real(2, 3, 4), real(4)]),
    "Mul": ("Mul", [real(2, 3), real(4, 2, 3)]),
    "Div": ("Div", [real(2, 3), between(0.5, 2, 1, 3)]),
    "Pow": ("Pow", [between(0.5, 2, 2, 3), real(3)]),
    "Min of three": ("Min", [real(2, 3), real(3), real(2, 1)]),
    "Max of one": ("Max", [real(2, 3)]),
    "Mean": ("Mean", [real(2, 3), real(3), real(2, 1)]),
    "Sum": ("Sum", [real(2, 3), real(3), real(2, 1)]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_functions_of_several(one_node, name):
    op, inputs = PAIRS[name]
    node = one_node(op, *inputs)
    node.agrees()
    node.gradients()


def test_remainder_of_floats(one_node):
    node = one_node("Mod", real(3, 4), between(0.5, 2, 4), fmod=1)
    node.agrees()
    node.gradients()


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Div", [INTEGERS, DIVISORS], {}),
        ("Mod", [INTEGERS, DIVISORS], {}),
        ("Mod", [INTEGERS, DIVISORS], {"fmod": 1}),
        ("Pow", [INTEGERS, np.array([2, 1, 3], np.int32)], {}),
        ("Pow", [np.abs(INTEGERS), np.array([0.5, 1.5, 2], np.float32)], {}),
        ("Pow", [real(3).astype(np.float32), np.array([1, 2, 3], np.int64)], {}),
        ("Max", [INTEGERS, DIVISORS], {}),
        ("Clip", [INTEGERS, np.int32(-3), np.int32(4)], {}),
    ],
)
def test_integers(one_node, op, inputs, attributes):
    one_node(op, *inputs, **attributes).agrees()


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize(
    ("op", "function"),
    [
        ("Add", np.add), ("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.floor_divide),
        ("Mod", np.mod), ("Min", np.minimum), ("Max", np.maximum), ("BitwiseXor", np.bitwise_xor),
    ],
)  # fmt: skip
def test_unsigned_integers_wrap(one_node, op, function, kind):
    x, y = np.array([3, 60_000, 0, 9], kind), np.array([5, 40_000, 1, 2], kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = function(x, y)
    np.testing.assert_array_equal(one_node(op, x, y).torch()[0].numpy(), want)


@pytest.mark.parametrize("constants", [(), (1, 2)], ids=["computed", "constant"])
@pytest.mark.parametrize("limits", [(-0.5, 0.7), (None, 0.3), (-0.2, None), (0.5, -0.5)])
def test_clip(one_node, limits, constants):
    given = [None if limit is None else np.float32(limit) for limit in limits]
    there = [k for k in constants if given[k - 1] is not None]
    node = one_node("Clip", real(4, 5), *given, constants=there)
    node.agrees()
    if constants:
        node.gradients()


@pytest.mark.parametrize("constants", [(), (2,)], ids=["computed", "constant"])
def test_clip_of_unsigned_integers(one_node, constants):
    x = np.array([1, 70_000, 4_000_000_000], np.uint32)
    node = one_node("Clip", x, None, np.uint32(80_000), constants=constants)
    assert node.torch()[0].tolist() == [1, 70_000, 80_000]


def test_clip_without_limits(one_node):
    one_node("Clip", real(2, 3)).agrees()


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.0])
def test_constant_power(one_node, exponent):
    node = one_node("Pow", between(0.5, 2, 3, 4), np.float32(exponent), constants=[1])
    node.agrees()
    node.gradients()


@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
@pytest.mark.parametrize("constants", [(), (1,)], ids=["computed", "constant"])
def test_running(one_node, op, attributes, constants):
    node = one_node(op, between(0.5, 2, 3, 4), np.int64(-1), constants=constants, opset=26, **attributes)
    if op == "CumSum":
        one_node(op, real(3, 4), np.int64(-1), constants=constants, **attributes).agrees()
    node.gradients()


def test_running_product_by_hand(one_node):
    x = np.array([1, 2, 3], np.int32)
    (found,) = one_node("CumProd", x, np.int64(0), opset=26, exclusive=1, reverse=1).torch()
    assert found.tolist() == [6, 3, 1]
    assert found.dtype == torch.int32


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shift(one_node, kind, direction):
    top = np.iinfo(kind).max
    x, by = np.array([top, top - 3, 5, 1], kind), np.array([0, 1, 2, 3], kind)
    want = np.left_shift(x, by) if direction == "LEFT" else np.right_shift(x, by)
    (found,) = one_node("BitShift", x, by, direction=direction).torch()
    np.testing.assert_array_equal(found.numpy(), want)


def test_floats_take_torchs_own_function():
    """Where the graph says that no unsigned integers come, nothing stands between."""
    import onnx_ir as ir

    from deploy.execute.ops import TABLE
    from deploy.execute.program import Program

    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[3] x, float[3] y) => (float[3] z) { z = Add(x, y) }"""
    )
    for node in model.graph:
        node.name = "node"
    assert Program(model.graph, TABLE, 21).steps[0].kernel is torch.add


def test_nothing(one_node):
    one_node("Add", real(0, 3), real(3)).agrees()
