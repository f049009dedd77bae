"""Ranges by what they cost the layers behind: against trying them one by one in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.graph.qdq import dequantize_array, quantize_array
from deploy.quantize import observers
from deploy.quantize.assign import activation_params, assign

NET = "g (float[N,16] x) => (float[N,4] y) { [y] y = Gemm(x, w, b) }"


def found(whole, runtime, observer="minmax", samples=16):
    return observers.apply(
        whole.model, whole.placement, whole.histograms, runtime.quant, whole.dataset,
        observer=observer, samples=samples,
    )  # fmt: skip


@pytest.fixture
def outlier(graph, random_feeds):
    """A feature that is loud now and then, with weights as given."""

    def make(weight: float):
        w = np.random.default_rng(1).standard_normal((16, 4)).astype(np.float32)
        w[0] *= weight
        model = graph(NET, {"w": w, "b": (4,)})
        feeds = random_feeds(model, 256)
        feeds["x"][::8, 0] = 60
        return model, feeds

    return make


def test_what_the_layer_ignores_is_cut_and_what_it_heeds_is_kept(outlier, quantize, unsigned):
    """The same tensor twice: its own error, which is all that observers see, is the same."""
    model, feeds = outlier(0.0)
    ignored = found(quantize(model, unsigned, feeds=feeds), unsigned)
    assert ignored.result["x"][1] < 40 and ignored.steps[0].gain > 2
    model, feeds = outlier(3.0)
    heeded = found(quantize(model, unsigned, feeds=feeds, observer="mse"), unsigned)
    assert heeded.result["x"][1] >= 60


def test_noise_is_that_of_the_kernel(outlier, quantize, unsigned):
    model, feeds = outlier(0.0)
    whole = quantize(model, unsigned, feeds=feeds)
    rung = found(whole, unsigned, samples=64)
    rows = np.arange(256)
    x = feeds["x"][np.delete(rows, np.s_[::4])]
    w = model.graph.initializers["w"].const_value.numpy()
    b = model.graph.initializers["b"].const_value.numpy()
    exact = x @ w + b
    for share, (low, high) in (
        (rung.steps[0].before, (float(feeds["x"].min()), 60.0)),
        (rung.steps[0].after, rung.result["x"]),
    ):
        params = activation_params(low, high, unsigned.quant)
        got = dequantize_array(quantize_array(x, params), params) @ w + b
        assert share == pytest.approx(np.square(got - exact).sum() / np.square(exact).sum(), rel=1e-3)


def test_ranges_reach_the_plan(outlier, quantize, unsigned):
    model, feeds = outlier(0.0)
    whole = quantize(model, unsigned, feeds=feeds)
    rung = found(whole, unsigned)
    plan = assign(model, whole.placement, whole.histograms, unsigned.quant, "mse", rung.result)
    for group, (low, high) in rung.result.items():
        assert plan.tensors[group].scale == activation_params(low, high, unsigned.quant).scale


def test_groups_kernels_and_movers(graph, quantize, random_feeds, affine):
    """Shared scales, sums of two operands and what is only moved go through; every group has a range."""
    model = graph(
        """g (float[N,4,6,6] x) => (float[N,4,6,6] y) { [c] a = Conv(x, w1) [r] r = Relu(a)

        [k] k = Concat<axis=1>(r, x) [c2] b = Conv(k, w2) [s] s = Add(b, r)
        [t] t = Transpose<perm=[0,1,3,2]>(s)
        [c3] y = Conv(t, w1b) }""",
        {"w1": (4, 4, 1, 1), "w2": (4, 8, 1, 1), "w1b": (4, 4, 1, 1)},
    )
    whole = quantize(model, affine)
    rung = found(whole, affine, observer="mse", samples=4)
    assert rung.result.keys() == set(whole.placement.groups.values())
    assert all(low <= 0 <= high for low, high in rung.result.values())


def test_nothing_quantized(graph, quantize, unsigned):
    model = graph("g (float[N,4] x) => (float[N,4] y) { [e] y = Exp(x) }")
    assert found(quantize(model, unsigned), unsigned).result == {}
