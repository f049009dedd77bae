import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from deploy.execute.module import GraphModule

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def statistics(channels: int) -> tuple[np.ndarray, ...]:
    positive = RNG.uniform(0.5, 2, channels).astype(np.float32)
    return real(channels), real(channels), real(channels), positive


CASES = {
    "batch norm": ("BatchNormalization", [real(2, 3, 2, 3), *statistics(3)], {"epsilon": 1e-3}),
    "batch norm of rows": ("BatchNormalization", [real(5, 3), *statistics(3)], {}),
    "instance norm": ("InstanceNormalization", [real(2, 3, 4, 4), real(3), real(3)], {}),
    "instance norm of lines": ("InstanceNormalization", [real(2, 3, 9), real(3), real(3)], {"epsilon": 0.1}),
    "group norm": ("GroupNormalization", [real(2, 4, 3, 3), real(4), real(4)], {"num_groups": 2}),
    "layer norm": ("LayerNormalization", [real(2, 3, 8), real(8), real(8)], {}),
    "layer norm from axis 1": ("LayerNormalization", [real(2, 3, 4), real(3, 4), real(3, 4)], {"axis": 1}),
    "layer norm without bias": ("LayerNormalization", [real(2, 3, 8), real(8)], {"axis": 2}),
    "L1": ("LpNormalization", [real(3, 4, 2)], {"p": 1, "axis": 1}),
    "L2": ("LpNormalization", [real(3, 4)], {}),
    "mean and variance": ("MeanVarianceNormalization", [real(2, 3, 4, 4)], {}),
    "mean and variance of axes": ("MeanVarianceNormalization", [real(2, 3, 4, 4)], {"axes": [0, 2, 3]}),
    "response": ("LRN", [real(2, 7, 2, 1)], {"size": 3, "alpha": 0.3, "beta": 0.6, "bias": 1.5}),
}


@pytest.mark.parametrize("name", CASES)
def test_onnxruntimes(one_node, name):
    op, inputs, attributes = CASES[name]
    one_node(op, *inputs, **attributes).agrees()


@pytest.mark.parametrize("name", CASES)
def test_gradients(one_node, name):
    op, inputs, attributes = CASES[name]
    # Parameters of batch norm that do not learn are constants; the variance must stay positive.
    one_node(op, *inputs, constants=[3, 4] if op == "BatchNormalization" else [], **attributes).gradients()


def test_layer_norm_with_its_statistics(one_node):
    node = one_node("LayerNormalization", real(2, 3, 8), real(8), real(8), outputs=3)
    node.agrees()
    node.gradients()


def test_rms_norm(one_node):
    x, scale = real(2, 3, 4), real(3, 4)
    node = one_node("RMSNormalization", x, scale, axis=1, epsilon=1e-3, opset=23)
    expected = x / np.sqrt((x**2).mean((1, 2), keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(node.torch()[0], expected, rtol=1e-5, atol=1e-6)
    node.gradients()


def test_instances_of_one_element_are_the_bias(one_node):
    node = one_node("InstanceNormalization", real(2, 3, 1, 1), real(3), bias := real(3))
    np.testing.assert_allclose(
        node.torch()[0], np.broadcast_to(bias.reshape(3, 1, 1), (2, 3, 1, 1)), atol=1e-3
    )


def test_an_even_window_of_responses_leans_as_the_specification_says(one_node):
    x = real(1, 5, 2, 2)
    squares = np.pad(x**2, ((0, 0), (0, 2), (0, 0), (0, 0)))  # size 4: one before, two behind
    squares = np.pad(squares, ((0, 0), (1, 0), (0, 0), (0, 0)))
    sums = np.stack([squares[:, c : c + 4].sum(1) for c in range(5)], 1)
    found = one_node("LRN", x, size=4, alpha=0.5).torch()[0]
    np.testing.assert_allclose(found, x / (1 + 0.5 / 4 * sums) ** 0.75, rtol=1e-5)


def test_nothing_normalised_is_nothing(one_node):
    zero = np.zeros((2, 3), np.float32)
    assert not one_node("LpNormalization", zero).torch()[0].any()
    still = one_node("MeanVarianceNormalization", np.ones((1, 2, 2, 2), np.float32))
    x = torch.ones(1, 2, 2, 2).requires_grad_()
    still.torch(x)[0].sum().backward()
    assert torch.isfinite(x.grad).all()


def test_training_mode_of_the_specification(one_node):
    x, (scale, bias, mean, variance) = real(4, 3, 5), statistics(3)
    node = one_node(
        "BatchNormalization", x, scale, bias, mean, variance, outputs=3, training_mode=1, momentum=0.8
    )
    y, moved_mean, moved_variance = node.torch()
    np.testing.assert_allclose(moved_mean, mean * 0.8 + x.mean((0, 2)) * 0.2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved_variance, variance * 0.8 + x.var((0, 2)) * 0.2, rtol=1e-5)
    column = (3, 1)
    normal = (x - x.mean((0, 2)).reshape(column)) / np.sqrt(x.var((0, 2)).reshape(column) + 1e-5)
    np.testing.assert_allclose(y, normal * scale.reshape(column) + bias.reshape(column), rtol=1e-4, atol=1e-5)


@pytest.fixture
def module() -> GraphModule:
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,2,H] x) => (float[N,2,H] y) <float[2] s = {2,3}, float[2] b = {1,0}, float[2] m = {0,1},
        float[2] v = {1,4}> { y = BatchNormalization<momentum=0.75>(x, s, b, m, v) }"""
    )
    return GraphModule(model)


def hand_written(momentum: float) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(2, momentum=momentum)
    norm.load_state_dict(
        {"weight": torch.tensor([2.0, 3]), "bias": torch.tensor([1.0, 0]),
         "running_mean": torch.tensor([0.0, 1]), "running_var": torch.tensor([1.0, 4])}, strict=False,
    )  # fmt: skip
    return norm


def test_a_module_begins_with_what_the_graph_says(module):
    x = torch.randn(3, 2, 5)
    assert not module.training
    torch.testing.assert_close(module({"x": x})["y"], hand_written(0.25).eval()(x))


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_training_uses_the_batch_and_moves_the_graphs_own_statistics(module, momentum):
    module.train()
    module.mode.momentum = momentum
    reference, x = hand_written(momentum or 0.25).train(), torch.randn(3, 2, 5)
    for _ in range(2):
        torch.testing.assert_close(module({"x": x})["y"], reference(x))
    held = module.model.graph.initializers
    torch.testing.assert_close(torch.tensor(held["m"].const_value.numpy()), reference.running_mean)
    torch.testing.assert_close(torch.tensor(held["v"].const_value.numpy()), reference.running_var)
    torch.testing.assert_close(module.eval()({"x": x})["y"], reference.eval()(x))


def test_statistics_can_be_left_alone_while_training(module):
    module.train()
    module.mode.batch_statistics = False
    x = torch.randn(3, 2, 5)
    torch.testing.assert_close(module({"x": x})["y"], hand_written(0.25).eval()(x))
    assert module.model.graph.initializers["m"].const_value.numpy().tolist() == [0, 1]


def test_gradients_reach_scale_and_bias_through_the_batch(module):
    module.train()({"x": torch.randn(3, 2, 5)})["y"].square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in module.named_weights().values())
    assert set(module.named_weights()) == {"s", "b"}
