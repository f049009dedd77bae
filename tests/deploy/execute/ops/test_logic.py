from __future__ import annotations

import numpy as np
import pytest

RNG = np.random.default_rng(0)
X, Y = RNG.integers(-2, 3, (2, 3, 4)), RNG.integers(-2, 3, (3, 1))
NUMBERS = np.array([1, -np.inf, np.inf, np.nan, 0], np.float32)


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize("kind", [np.float32, np.int64, np.int32])
def test_comparisons(one_node, op, kind):
    one_node(op, X.astype(kind), Y.astype(kind)).agrees()


@pytest.mark.parametrize("op", ["Greater", "Less"])
@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_unsigned_comparisons(one_node, op, kind):
    """Beyond the largest signed integer too."""
    top = np.iinfo(kind).max
    x, y = np.array([top, 1, top // 2 + 1], kind), np.array([1, top, top // 2], kind)
    want = x > y if op == "Greater" else x < y
    assert one_node(op, x, y).torch()[0].tolist() == want.tolist()


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(one_node, op):
    one_node(op, X > 0, Y > 0).agrees()


def test_not(one_node):
    one_node("Not", X > 0).agrees()


def test_where(one_node):
    node = one_node("Where", X > 0, X.astype(np.float32), Y.astype(np.float32))
    node.agrees()
    node.gradients()


@pytest.mark.parametrize("attributes", [{}, {"detect_negative": 0}, {"detect_positive": 0}])
def test_infinity(one_node, attributes):
    one_node("IsInf", NUMBERS, opset=20, **attributes).agrees()


def test_infinity_of_neither_sign(one_node):
    found = one_node("IsInf", NUMBERS, detect_negative=0, detect_positive=0).torch()[0]
    assert not found.any()


def test_nan(one_node):
    one_node("IsNaN", NUMBERS).agrees()
