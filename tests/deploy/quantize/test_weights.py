"""Weights as integers of 8 and 4 bits: the numbers against numpy, the graph against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.qdq import dequantize_array, insert, read_tensors
from deploy.quantize.weights import assign_weights
from deploy.spec.plan import Plan, differences

NET = """g (float[N,64] x, int64[N] i) => (float[N,32] y, float[N,16] z) {
[m] y = MatMul(x, a)  [e] z = Gather(t, i) }"""
SHAPES = {"a": (64, 32), "t": (128, 16)}


@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (4, 7)])
def test_each_channel_has_a_scale_and_no_weight_is_off_by_more_than_half_a_step(graph, bits, limit):
    net = graph(NET, SHAPES)
    assignment = assign_weights(net, bits)
    assert {name: plan.axis for name, plan in assignment.tensors.items()} == {"a": 1, "t": 0}
    for name, plan in assignment.tensors.items():
        weights = constant(net.graph.initializers[name])
        codes = assignment.codes[name]
        assert codes.dtype == np.int8
        assert np.abs(codes).max() <= limit
        step = np.expand_dims(np.array(plan.scale, np.float32), 1 - plan.axis)
        inside = np.abs(weights) <= limit * step
        off = np.abs(dequantize_array(codes, plan) - weights)
        assert (off[inside] <= np.broadcast_to(step, off.shape)[inside] * 0.5001).all()
        assert inside.mean() > (0.999 if bits == 8 else 0.9)


def test_at_four_bits_clipping_a_little_loses_less_than_covering_everything(graph):
    net = graph(NET, SHAPES)
    weights = constant(net.graph.initializers["a"])
    assignment = assign_weights(net, 4)
    error = np.square(dequantize_array(assignment.codes["a"], assignment.tensors["a"]) - weights).sum()
    scale = np.abs(weights).max(axis=0) / 7
    covering = np.square(np.clip(np.rint(weights / scale), -7, 7) * scale - weights).sum()
    assert error < 0.95 * covering


@pytest.mark.parametrize("bits", [8, 4])
def test_onnx_runtime_runs_the_graph_and_the_plan_is_read_back(graph, bits):
    net = graph(NET, SHAPES)
    assignment = assign_weights(net, bits)
    written = insert(net, assignment.tensors, assignment.codes)
    plan = Plan(graph_sha256="", target="", runtime="", tensors=assignment.tensors)
    assert differences(plan, plan.model_copy(update={"tensors": read_tensors(written)})) == []
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(3, 64)).astype(np.float32), "i": np.array([0, 127, 5])}
    with open_graph(written, optimised=False) as session:
        got = session.run(feeds)
    a, t = (dequantize_array(assignment.codes[n], assignment.tensors[n]) for n in "at")
    np.testing.assert_allclose(got["y"], feeds["x"] @ a, atol=1e-5)
    np.testing.assert_array_equal(got["z"], t[feeds["i"]])


def test_excluded_and_infinite_weights_stay_float(graph):
    net = graph(NET, SHAPES)
    assert set(assign_weights(net, 8, excluded=("m",)).tensors) == {"t"}
    table = constant(net.graph.initializers["t"]).copy()
    table[0, 0] = np.inf
    net.graph.initializers["t"].const_value = type(net.graph.initializers["t"].const_value)(table)
    assert set(assign_weights(net, 8).tensors) == {"a"}
