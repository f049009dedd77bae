"""Bias correction: closed forms on linear layers, the order of layers, and what is left alone."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.graph.qdq import dequantize_array, insert
from deploy.quantize import correct, prefix

IMAGE = "float[N,4,6,6]"


def corrected(whole, runtime, samples=64):
    return correct.apply(whole.model, whole.assignment, runtime.quant, whole.dataset, samples=samples)


def means(session, model, feeds) -> np.ndarray:
    """The mean of each output channel."""
    found = session(model, False).run(None, feeds)[0]
    axis = 1 if found.ndim == 4 else found.ndim - 1
    return found.mean(axis=tuple(i for i in range(found.ndim) if i != axis))


def qdq(rung):
    plan = rung.result.assignment
    return insert(rung.result.graph, plan.tensors, plan.codes)


def test_a_linear_layer_gets_the_mean_of_what_rounding_its_weights_cost(
    graph, quantize, random_feeds, symmetric
):
    """E[W x - Q(W) Q(x)] added to a float bias, computed here in float64."""
    model = graph("g (float[N,16] x) => (float[N,4] y) { [y] y = Gemm(x, w, b) }", {"w": (16, 4), "b": (4,)})
    feeds = random_feeds(model, 64)
    feeds["x"] += 3
    whole = quantize(model, symmetric, feeds=feeds)
    tensors = whole.assignment.tensors
    w = model.graph.initializers["w"].const_value.numpy().astype(np.float64)
    rounded = dequantize_array(whole.assignment.codes["w"], tensors["w"]).astype(np.float64)
    scale = tensors["x"].scale[0]
    x = np.clip(np.rint(feeds["x"].astype(np.float64) / scale), -128, 127) * scale
    errors = feeds["x"].astype(np.float64) @ w - x @ rounded
    error = errors.mean(axis=0)
    sure = np.abs(error) > 2 * errors.std(axis=0) / 8
    rung = corrected(whole, symmetric)
    new = rung.result.graph.graph.initializers["b"].const_value.numpy()
    old = model.graph.initializers["b"].const_value.numpy()
    assert new - old == pytest.approx(np.where(sure, error, 0), abs=1e-5)
    assert sure.any()


@pytest.mark.parametrize("rules", ["unsigned", "affine", "symmetric"])
def test_means_are_those_of_the_float_network(rules, request, graph, quantize, session, random_feeds):
    runtime = request.getfixturevalue(rules)
    model = graph(
        f"""g ({IMAGE} x) => ({IMAGE} y) {{ [c1] a = Conv<pads=[1,1,1,1]>(x, w1, b1) [r] r = Relu(a)
        [c2] c = Conv<pads=[1,1,1,1]>(r, w2, b2) [s] s = Add(c, r)
        [r2] t = Relu(s) [c3] y = Conv(t, w3, b3) }}""",
        {"w1": (4, 4, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (4, 4, 1, 1), "b3": (4,)},
    )
    feeds = random_feeds(model, 64)
    feeds["x"] += 1
    whole = quantize(model, runtime, feeds=feeds)
    rung = corrected(whole, runtime)
    exact = means(session, model, feeds)
    before = np.abs(means(session, whole.qdq, feeds) - exact).max()
    after = np.abs(means(session, qdq(rung), feeds) - exact).max()
    assert after < 0.35 * before
    assert rung.passes == 2


def test_codes_change_where_the_plan_has_the_bias_and_floats_where_not(
    graph, quantize, random_feeds, unsigned, symmetric
):
    model = graph(f"g ({IMAGE} x) => ({IMAGE} y) {{ [c] y = Conv(x, w, b) }}", {"w": (4, 4, 1, 1), "b": (4,)})
    feeds = random_feeds(model, 64)
    feeds["x"] += 3
    for runtime, integer in ((unsigned, True), (symmetric, False)):
        whole = quantize(model, runtime, feeds=feeds)
        result = corrected(whole, runtime).result
        changed = (
            result.graph.graph.initializers["b"].const_value.numpy()
            != model.graph.initializers["b"].const_value.numpy()
        ).any()
        assert changed != integer
        assert ("b" in result.assignment.codes) == integer
        if integer:
            assert (result.assignment.codes["b"] != whole.assignment.codes["b"]).any()
            assert result.assignment.tensors["b"].digest != whole.assignment.tensors["b"].digest


def test_a_missing_bias_is_put_in_as_the_rules_want_it(
    graph, quantize, session, random_feeds, unsigned, symmetric
):
    model = graph(f"g ({IMAGE} x) => ({IMAGE} y) {{ [c] y = Conv(x, w) }}", {"w": (4, 4, 1, 1)})
    feeds = random_feeds(model, 64)
    feeds["x"] += 3
    for runtime, kind in ((unsigned, "int32"), (symmetric, None)):
        whole = quantize(model, runtime, feeds=feeds)
        rung = corrected(whole, runtime)
        name = rung.result.graph.graph[0].inputs[2].name
        plan = rung.result.assignment.tensors.get(name)
        assert (plan.type if plan else None) == kind
        exact = means(session, model, feeds)
        after = np.abs(means(session, qdq(rung), feeds) - exact).max()
        assert after < 0.5 * np.abs(means(session, whole.qdq, feeds) - exact).max()


def test_what_follows_a_product_takes_its_correction(graph, quantize, random_feeds, unsigned):
    model = graph(
        "g (float[N,5,16] x) => (float[N,5,4] y) { [m] m = MatMul(x, w) [a] y = Add(m, b) }",
        {"w": (16, 4), "b": (4,)},
    )
    feeds = random_feeds(model, 64)
    feeds["x"] += 3
    result = corrected(quantize(model, feeds=feeds), unsigned).result
    assert (
        result.graph.graph.initializers["b"].const_value.numpy()
        != model.graph.initializers["b"].const_value.numpy()
    ).any()


def test_a_product_without_a_bias_is_left_alone(graph, quantize, random_feeds, unsigned):
    model = graph("g (float[N,5,16] x) => (float[N,5,4] y) { [m] y = MatMul(x, w) }", {"w": (16, 4)})
    whole = quantize(model, feeds=random_feeds(model, 64))
    rung = corrected(whole, unsigned)
    assert not rung.changed and "no place" in rung.steps[0].what
    assert rung.result.assignment is whole.assignment


def test_noise_is_left_alone(graph, quantize, random_feeds, symmetric):
    """Of many layers whose mean error is 0 few are taken for biased."""
    weights = {"w": np.eye(64, dtype=np.float32), "b": np.zeros(64, np.float32)}
    model = graph("g (float[N,64] x) => (float[N,64] y) { [y] y = Gemm(x, w, b) }", weights)
    rung = corrected(quantize(model, symmetric, feeds=random_feeds(model, 200)), symmetric, samples=200)
    new = rung.result.graph.graph.initializers["b"].const_value.numpy()
    assert np.count_nonzero(new) <= 8


def test_files_hold_what_memory_does_not(graph, quantize, random_feeds, unsigned, monkeypatch):
    model = graph(
        f"""g ({IMAGE} x) => ({IMAGE} y) {{ [c1] a = Conv(x, w1, b1) [r] r = Relu(a)
        [c2] c = Conv(r, w2, b2) [s] y = Add(c, r) }}""",
        {"w1": (4, 4, 1, 1), "b1": (4,), "w2": (4, 4, 1, 1), "b2": (4,)},
    )
    whole = quantize(model, feeds=random_feeds(model, 64))
    held = corrected(whole, unsigned).result.assignment.codes
    monkeypatch.setattr(prefix, "_IN_MEMORY", 0)
    filed = corrected(whole, unsigned).result.assignment.codes
    assert all((held[name] == filed[name]).all() for name in held)


def test_a_fixed_batch_of_one(graph, quantize, random_feeds, unsigned):
    model = graph("g (float[1,16] x) => (float[1,4] y) { [y] y = Gemm(x, w, b) }", {"w": (16, 4), "b": (4,)})
    feeds = {"x": np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32) + 3}
    assert corrected(quantize(model, feeds=feeds), unsigned).changed
