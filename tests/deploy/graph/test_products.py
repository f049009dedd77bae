"""Which matrices are weights of products, and that laying them out alike changes nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.products import columns_last, product_weights
from deploy.graph.shapes import infer

NET = """<ir_version: 10, opset_import: ["" : 21]> g (float[n,64] x) => (float[n,40] y, float[n,64] z) {
    [a] a = MatMul(x, plain)
    [b] b = Gemm<transB=1>(a, turned, bias)
    [c] c = Gemm<alpha=2.0>(b, scaled)
    [e] y = MatMul(c, both)
    [f] f = Transpose<perm=[1,0]>(both)
    [g] g = MatMul(x, narrow)
    [h] h = MatMul(g, both2)
    [i] i = Gemm<transB=1>(h, both2)
    [k] k = MatMul(left, f)
    [z] z = Add(i, h)
}"""
SHAPES = {
    "plain": (64, 96), "turned": (64, 96), "bias": (64,), "scaled": (64, 64), "left": (32, 40),
    "both": (64, 40), "narrow": (64, 64), "both2": (64, 64),
}  # fmt: skip


def net(text: str = NET) -> ir.Model:
    rng = np.random.default_rng(0)
    tensors = [ir.tensor(rng.normal(0, 0.2, s).astype(np.float32), name=n) for n, s in SHAPES.items()]
    model = ir.from_onnx_text(text, initializers=tensors)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    return infer(model)


def test_only_matrices_that_products_alone_read_alike_are_weights():
    found = product_weights(net(), ("MatMul", "Gemm"))
    assert {name: [node.name for node in nodes] for name, nodes in found.items()} == {
        "plain": ["a"], "turned": ["b"], "narrow": ["g"],
    }  # fmt: skip


def test_operations_and_excluded_nodes_are_kept_to():
    assert set(product_weights(net(), ("MatMul",))) == {"plain", "narrow"}
    assert set(product_weights(net(), ("MatMul", "Gemm"), {"a"})) == {"turned", "narrow"}


def test_short_sums_stay_float():
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[n,16] x) => (float[n,128] y)
        { [a] y = MatMul(x, w) }"""
    model = ir.from_onnx_text(text, initializers=[ir.tensor(np.ones((16, 128), np.float32), name="w")])
    value = model.graph.initializers["w"]
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((16, 128))
    assert product_weights(infer(model), ("MatMul",)) == {}


def test_a_turned_matrix_is_turned_back_under_its_name():
    model = net()
    laid_out = columns_last(model, product_weights(model, ("MatMul", "Gemm")))
    before, after = (constant(m.graph.initializers["turned"]) for m in (model, laid_out))
    assert before is not None
    np.testing.assert_array_equal(after, before.T)
    feeds = {"x": np.random.default_rng(1).normal(size=(3, 64)).astype(np.float32)}
    with open_graph(model, optimised=False) as one, open_graph(laid_out, optimised=False) as other:
        want, got = one.run(feeds), other.run(feeds)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-5)


def test_a_graph_without_turned_matrices_is_left_alone():
    model = net()
    assert columns_last(model, {"plain": product_weights(model, ("MatMul",))["plain"]}) is model
