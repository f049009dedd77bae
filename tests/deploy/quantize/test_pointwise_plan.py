"""A linear layer written as a convolution by 1 is quantized as it would have been: by the same numbers."""

from __future__ import annotations

from datetime import date

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.graph.pointwise import linear_as_convolution
from deploy.graph.shapes import infer
from deploy.quantize.forms import store_weights
from deploy.spec.plan import TensorPlan
from deploy.spec.profile import WeightRules

TEXT = """g (float[N,5,8] x) => (float[N,5,6] y)
{
    a = MatMul(x, w) c = Add(a, b) r = Relu(c)
    d = MatMul(r, v) e = Add(u, d)
    f = Add(e, x)
    h = Sigmoid(f)
    y = MatMul(h, o)
}"""
WEIGHTS = {"w": (8, 16), "b": (16,), "v": (16, 8), "u": (8,), "o": (8, 6)}
LAYERS = ("w", "v", "o")


@pytest.fixture
def both(graph, quantize):
    """The model in INT8 by Core ML's rules, as it is and with its layers as convolutions."""
    runtime = load_profile("iphone15").runtime_named("coreml")
    model = graph(TEXT, WEIGHTS)
    turned = model.clone()
    assert linear_as_convolution(turned) == len(LAYERS)
    return quantize(model, runtime), quantize(infer(turned), runtime)


def read_by(model: ir.Model, weight: str) -> str:
    """What the layer with that weight reads, by name."""
    (node,) = {node for node, _ in model.graph.initializers[weight].uses()}
    assert node.inputs[0] is not None
    return node.inputs[0].name or ""


def numbers(plan: TensorPlan) -> tuple[tuple[float, ...], tuple[int, ...]]:
    return plan.scale, plan.zero_point


def test_weights_and_what_they_multiply_have_the_same_numbers(both):
    plain, turned = both
    for name in LAYERS:
        before, after = plain.assignment.tensors[name], turned.assignment.tensors[name]
        assert numbers(before) == numbers(after)
        assert (before.axis, after.axis) == (1, 0), "a scale for each output"
        codes = turned.assignment.codes[name]
        np.testing.assert_array_equal(plain.assignment.codes[name].T, codes[:, :, 0, 0])
        one, two = (q.assignment.tensors[read_by(q.model, name)] for q in both)
        assert numbers(one) == numbers(two)


def test_the_graphs_of_integers_compute_the_same(both, session):
    feeds = {"x": np.random.default_rng(5).standard_normal((16, 5, 8)).astype(np.float32)}
    (one,), (two,) = (session(q.qdq, optimised=False).run(None, feeds) for q in both)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize("form", ["w8", "w4"])
def test_weights_alone_have_the_same_groups(graph, session, form, group):
    rules = WeightRules(
        operations=("MatMul",), group=group, rest=False, others=True, source="test", date=date(2026, 11, 21)
    )
    runtime = load_profile("iphone15").runtime_named("coreml").model_copy(update={"weights": {form: rules}})
    model = graph(
        "g (float[N,5,96] x) => (float[N,5,40] y) { a = MatMul(x, w) c = Relu(a) y = MatMul(c, v) }",
        {"w": (96, 64), "v": (64, 40)},
    )
    turned = model.clone()
    assert linear_as_convolution(turned) == 2
    one, two = (store_weights(infer(m), form, runtime, ()) for m in (model, turned))
    assert one.weights == two.weights == {"w", "v"}
    for name, shape in (("w", (96, 64)), ("v", (64, 40))):
        before, after = one.tensors[name], two.tensors[name]
        assert (before.type, before.group) == (after.type, after.group)
        assert before.group == group
        parts = before.scale_shape(shape) if group else (1, shape[1])
        np.testing.assert_array_equal(
            np.reshape(before.scale, parts).T.reshape(-1), np.asarray(after.scale), "group by group"
        )
    feeds = {"x": np.random.default_rng(5).standard_normal((4, 5, 96)).astype(np.float32)}
    (y,), (z,) = (session(s.literal(), optimised=False).run(None, feeds) for s in (one, two))
    np.testing.assert_allclose(y, z, rtol=0, atol=1e-5 * np.abs(y).max())
