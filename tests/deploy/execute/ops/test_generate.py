from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

N = 20_000
BIG = np.zeros((N,), np.float32)


@pytest.mark.parametrize("constants", [(), (0,)], ids=["computed", "constant"])
@pytest.mark.parametrize(
    "value", [None, np.array([2.5], np.float32), np.array([3], np.int64), np.array([True])]
)
@pytest.mark.parametrize("shape", [[2, 3], [], [0, 2]])
def test_constant_of_shape(one_node, value, constants, shape):
    attributes = {} if value is None else {"value": ir.tensor(value)}
    one_node("ConstantOfShape", np.array(shape, np.int64), constants=constants, **attributes).agrees()


@pytest.mark.parametrize("numbers", [(0, 10, 3), (10, 0, -4), (3, 3, 1), (5, 0, 1)])
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float32, np.float64])
def test_range(one_node, numbers, kind):
    one_node("Range", *map(kind, numbers)).agrees()


@pytest.mark.parametrize("attributes", [{}, {"k": 1}, {"k": -2}, {"dtype": ir.DataType.DOUBLE.value}])
def test_diagonal(one_node, attributes):
    one_node("EyeLike", np.ones((3, 5), np.int32), **attributes).agrees()


def test_constant(one_node):
    (found,) = one_node("Constant", value=ir.tensor(np.array([1.0, 2.0], np.float32))).torch()
    assert found.tolist() == [1.0, 2.0]
    (found,) = one_node("Constant", value=ir.tensor([1.5], ir.DataType.BFLOAT16)).torch()
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [1.5]
    assert one_node("Constant", value_ints=[1, 2]).torch()[0].tolist() == [1, 2]


@pytest.mark.parametrize("like", [False, True])
@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16"])
def test_random_numbers(one_node, like, kind):
    """Mean and spread within five standard errors."""
    dtype, inputs = ir.DataType[kind], [BIG] if like else []
    shape = {} if like else {"shape": [N]}
    normal = {"mean": 2.0, "scale": 3.0, "seed": 1.5, "dtype": dtype.value, **shape}
    uniform = {"low": -1.0, "high": 3.0, "seed": 1.5, "dtype": dtype.value, **shape}
    suffix = "Like" if like else ""
    for op, attributes, mean, spread in (
        ("RandomNormal", normal, 2.0, 3.0),
        ("RandomUniform", uniform, 1.0, 4 / 12**0.5),
    ):
        (found,) = one_node(op + suffix, *inputs, **attributes).torch()
        assert found.shape == (N,)
        assert found.numpy().dtype == dtype.numpy()
        assert abs(found.double().mean() - mean) < 5 * spread / N**0.5
        assert abs(found.double().std() - spread) < 5 * spread / N**0.5


def test_a_seed_makes_numbers_repeat_from_one_program_to_the_next_but_not_within(one_node):
    attributes = {"shape": [8], "seed": 3.0}
    node = one_node("RandomNormal", **attributes)
    (first,), (second,) = node.torch(), node.torch()
    assert not torch.equal(first, second)
    assert torch.equal(first, one_node("RandomNormal", **attributes).torch()[0])
    assert not torch.equal(first, one_node("RandomNormal", shape=[8], seed=4.0).torch()[0])


def test_without_a_seed_torchs_own_counts(one_node):
    node = one_node("RandomUniform", shape=[8])
    torch.manual_seed(5)
    (first,) = node.torch()
    torch.manual_seed(5)
    assert torch.equal(first, node.torch()[0])


def test_bernoulli(one_node):
    chances = np.repeat(np.array([0.0, 0.3, 1.0], np.float32), N)
    (found,) = one_node("Bernoulli", chances, seed=1.0, dtype=ir.DataType.BOOL.value).torch()
    assert found.dtype == torch.bool
    never, some, always = found.reshape(3, N).float().mean(1).tolist()
    assert (never, always) == (0.0, 1.0)
    assert abs(some - 0.3) < 0.02


def test_multinomial(one_node):
    log = np.log(np.array([[0.1, 0.2, 0.7], [1.0, 1.0, 2.0]], np.float32))
    (found,) = one_node("Multinomial", log, sample_size=N, seed=1.0).torch()
    assert found.dtype == torch.int32
    counts = torch.stack([torch.bincount(row, minlength=3) for row in found]) / N
    torch.testing.assert_close(counts, torch.tensor([[0.1, 0.2, 0.7], [0.25, 0.25, 0.5]]), atol=0.02, rtol=0)


def test_dropout_out_of_training(one_node):
    x = np.ones((3, 4), np.float32)
    one_node("Dropout", x, outputs=2).agrees()
    one_node("Dropout", x, np.float32(0.3), outputs=2).agrees()
    one_node("Dropout", x, np.float32(0.3), np.bool_(False), outputs=2).agrees()
    one_node("Dropout", x, np.float32(0.0), np.bool_(True), outputs=2).agrees()


@pytest.mark.parametrize("constants", [(), (1, 2)], ids=["computed", "constant"])
def test_dropout_in_training(one_node, constants):
    x = np.ones((N,), np.float32)
    inputs = [x, np.float32(0.25), np.bool_(True)]
    node = one_node("Dropout", *inputs, constants=constants, outputs=2, seed=7)
    given = torch.ones(N, requires_grad=True)
    y, mask = node.torch(given)
    assert mask.dtype == torch.bool
    assert abs(mask.float().mean() - 0.75) < 0.02
    torch.testing.assert_close(y, torch.where(mask, torch.ones(N) / 0.75, 0.0))
    y.sum().backward()
    assert torch.equal(given.grad, y)  # of ones
    assert not torch.equal(node.torch(given)[1], mask)  # another at every step


def test_dropout_of_everything(one_node):
    x = torch.ones(4, requires_grad=True)
    y, mask = one_node("Dropout", np.ones(4, np.float32), np.float32(1), np.bool_(True), outputs=2).torch(x)
    y.sum().backward()
    assert not mask.any()
    assert y.tolist() == x.grad.tolist() == [0.0] * 4


def test_dropout_of_a_half_by_default(one_node):
    y, _ = one_node("Dropout", BIG + 1, None, np.bool_(True), outputs=2, seed=1).torch()
    assert set(y.tolist()) == {0.0, 2.0}
