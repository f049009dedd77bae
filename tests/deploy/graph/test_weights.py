"""Which constants are weights, and what a graph computes that stores them as float16."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.shapes import infer
from deploy.graph.weights import fits_half, large_weights, stored_as_half


def net_of(parse, text: str, shapes: dict[str, tuple[int, ...]]) -> ir.Model:
    rng = np.random.default_rng(1)
    return infer(parse(text, {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}))


def test_weights_are_large_constants_read_as_such(parse):
    net = net_of(
        parse,
        """g (float[N,16,2,2] x, int64[N] i) => (float[N,64,2,2] y, float[N,32] z) {
        [c] y = Conv(x, w)  [e] e = Gather(t, i)  [m] m = MatMul(e, a)  [n] n = MatMul(m, s)
        [p] z = Mul(n, b) }""",
        {"w": (64, 16, 1, 1), "t": (64, 32), "a": (32, 32), "s": (32, 1), "b": (32, 32)},
    )
    assert set(large_weights(net)) == {"w", "t", "a"}, "s is small, b is no weight"
    assert set(large_weights(net, excluded=("c", "e"))) == {"a"}


def test_a_constant_with_another_reader_is_left_alone(parse):
    net = net_of(
        parse,
        "g (float[N,32] x) => (float[N,32] y, float[32,32] z) { [m] y = MatMul(x, a)  [n] z = Neg(a) }",
        {"a": (32, 32)},
    )
    assert large_weights(net) == {}


def test_float16_constants_compute_what_their_rounded_numbers_do(parse):
    net = net_of(parse, "g (float[N,32] x) => (float[N,32] y) { [m] y = MatMul(x, a) }", {"a": (32, 32)})
    weights = constant(net.graph.initializers["a"])
    assert weights is not None
    halved = stored_as_half(net, ["a"])
    assert [v.dtype for v in halved.graph.initializers.values()] == [ir.DataType.FLOAT16]
    assert net.graph.initializers["a"].dtype == ir.DataType.FLOAT, "the model given is not changed"
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    with open_graph(halved, optimised=False) as session:
        got = session.run({"x": x})["y"]
    np.testing.assert_allclose(got, x @ weights.astype(np.float16).astype(np.float32), rtol=1e-5, atol=1e-6)


def test_what_float16_cannot_hold():
    assert fits_half(np.array([1.0, 1e-9, 0.0]))
    assert fits_half(np.zeros(3))
    assert not fits_half(np.array([7e4]))
    assert not fits_half(np.array([1e-7]))
    assert not fits_half(np.array([np.nan, 1.0]))
