from __future__ import annotations

import numpy as np
import pytest
import torch

RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 2, (2, 3, 4)).astype(np.float32)
AXES = {"one": [1], "two": [-1, 0], "none": []}
OPS = [
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
]  # fmt: skip


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("constants", [(), (1,)], ids=["computed", "constant"])
def test_onnxruntimes(one_node, op, axes, keep, constants):
    one_node(op, X, np.array(AXES[axes], np.int64), constants=constants, keepdims=keep).agrees()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axes", AXES)
def test_gradients(one_node, op, axes):
    one_node(op, X, np.array(AXES[axes], np.int64), constants=[1], keepdims=0).gradients()


@pytest.mark.parametrize("op", OPS)
def test_no_axes_given(one_node, op):
    one_node(op, X).agrees()
    one_node(op, X[0, 0, 0]).agrees()  # a lone number


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean"])
@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_integers(one_node, op, kind):
    node = one_node(op, RNG.integers(1, 9, (2, 3)).astype(kind), np.array([1]), constants=[1])
    if (op, kind) != ("ReduceMean", np.int64):
        node.agrees()
    assert node.torch()[0].dtype == torch.from_numpy(np.zeros(0, kind)).dtype


@pytest.mark.parametrize(
    ("op", "alone"),
    [
        ("ReduceSum", lambda x: x),
        ("ReduceMean", lambda x: x),
        ("ReduceL1", np.abs),
        ("ReduceL2", np.abs),
        ("ReduceSumSquare", np.square),
        ("ReduceLogSumExp", lambda x: x),
    ],
)
def test_reduction_over_no_axes_leaves_the_rest_to_do(one_node, op, alone):
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    for inputs in ([x], [x, np.zeros(0, np.int64)]):
        (found,) = one_node(op, *inputs, noop_with_empty_axes=1).torch()
        np.testing.assert_allclose(found.numpy(), alone(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("op", "neutral"),
    [("ReduceSum", 0), ("ReduceProd", 1), ("ReduceMax", -np.inf), ("ReduceMin", np.inf), ("ReduceL2", 0)],
)
def test_reduction_of_nothing(one_node, op, neutral):
    (found,) = one_node(op, np.zeros((2, 0, 3), np.float32), np.array([1]), keepdims=0).torch()
    assert found.tolist() == [[neutral] * 3] * 2


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("last", [0, 1])
def test_place_of_the_extreme(one_node, op, axis, last):
    x = RNG.integers(0, 3, (5, 6)).astype(np.float32)  # many equals
    one_node(op, x, axis=axis, select_last_index=last).agrees()
    one_node(op, x, axis=axis, select_last_index=last, keepdims=0).agrees()
