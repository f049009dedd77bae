from __future__ import annotations

import numpy as np
import pytest
import torch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32) * 2

CASES = {
    "Relu": {},
    "LeakyRelu": {"alpha": 0.2},
    "ThresholdedRelu": {"alpha": 0.5},
    "Elu": {"alpha": 0.7},
    "Celu": {"alpha": 2.0},
    "Selu": {},
    "Gelu": {},
    "HardSigmoid": {},
    "HardSwish": {},
    "Mish": {},
    "Softplus": {},
    "Softsign": {},
    "Sigmoid": {},
    "Tanh": {},
    "Shrink": {"lambd": 0.4, "bias": 0.3},
    "Softmax": {"axis": 1},
    "LogSoftmax": {"axis": 0},
}
OTHERS = {
    "LeakyRelu": {},
    "Gelu": {"approximate": "tanh"},
    "HardSigmoid": {"alpha": 1 / 6, "beta": 0.5},
    "Selu": {"alpha": 2.0, "gamma": 1.5},
    "Softmax": {},
    "Elu": {},
}


@pytest.mark.parametrize(("op", "attributes"), [*CASES.items(), *OTHERS.items()])
def test_onnxruntimes_with_gradients(one_node, op, attributes):
    node = one_node(op, X, **attributes)
    node.agrees()
    node.gradients()


@pytest.mark.parametrize("shape", [(3, 1), (1,), (4,), (2, 3, 4), (3, 4)], ids=str)
def test_prelu(one_node, shape):
    """One slope for each channel, one for all, and every other shape that broadcasts."""
    node = one_node("PRelu", X, RNG.normal(size=shape).astype(np.float32))
    node.agrees()
    node.gradients()


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_swish_and_its_product(one_node, alpha):
    x = torch.from_numpy(X)
    node = one_node("Swish", X, opset=24, alpha=alpha)
    torch.testing.assert_close(node.torch()[0], x / (1 + torch.exp(-alpha * x)))
    node.gradients()
    gated = one_node("SwiGLU", X, X[::-1].copy(), opset=28, alpha=alpha)
    torch.testing.assert_close(gated.torch()[0], x / (1 + torch.exp(-alpha * x)) * x.flip(0))
    gated.gradients()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_hardmax_takes_the_first_of_equals(one_node, axis):
    one_node("Hardmax", np.round(X), axis=axis).agrees()


@pytest.mark.parametrize("op", ["Softmax", "Relu", "Sigmoid"])
def test_nothing(one_node, op):
    one_node(op, np.zeros((0, 3), np.float32)).agrees()


MIXED = {
    "PRelu": [np.ones((3, 1), np.float32)],
    "Add": [X],
    "Max": [X],
    "Where": None,
    "Clip": [np.float32(0), np.float32(1)],
    "ReduceL2": [],
    "ReduceSum": [],
    "CumSum": [np.int64(1)],
    "Softmax": [],
    "Gelu": [],
    "Hardmax": [],
    "SoftmaxCrossEntropyLoss": [np.ones((2, 4), np.int64), np.ones(3, np.float32)],
    "Pow": [np.float32(2)],
}


@pytest.mark.parametrize("op", MIXED)
def test_mixed_precision(one_node, op):
    """What a product left in bfloat16 meets what is still float32."""
    rest = MIXED[op]
    inputs = [X > 0, X, X] if rest is None else [X, *rest]
    node = one_node(op, *inputs)
    given = [torch.from_numpy(np.asarray(x)) for x in inputs]
    where = 1 if rest is None else 0
    given[where] = given[where].bfloat16().requires_grad_()
    want = node.torch()[0]
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = node.torch(*given)
    torch.testing.assert_close(found.float(), want.float(), rtol=0.03, atol=0.03)
    if op != "Hardmax":
        found.sum().backward()
        assert given[where].grad is not None
