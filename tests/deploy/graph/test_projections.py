"""Projections around an attention, merged: by ONNX Runtime the same, and as many products less as said."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import shapes
from deploy.graph.projections import merge_projections
from deploy.graph.rewrite import rewrite

RNG = np.random.default_rng(2)
TURNED = "t = Transpose<perm = [0, 2, 1]>(k)"
ATTENTION = f"""q = MatMul(x, wq) k = MatMul(x, wk) {TURNED} s = MatMul(q, t) c = Mul(s, eighth)
    p = Softmax(c)
    v = MatMul(x, wv) a = MatMul(p, v) o = MatMul(a, wo) y = Add(bo, o)"""


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(0, shape[0] ** -0.5, shape).astype(np.float32)


def weights(width: int = 6, inner: int = 6) -> dict[str, np.ndarray]:
    square = {name: numbers(width, inner) for name in ("wq", "wk", "wv")}
    return square | {"wo": numbers(inner, width), "bo": numbers(width), "eighth": np.float32([[0.125]])}


def merged(model: ir.Model, prove) -> ir.Model:
    found = rewrite(shapes.infer(model), {"projections": merge_projections}, prove, growth=1 << 20)
    assert all(step.kept for step in found.rewrites)
    assert prove(model, found.model) is None
    return found.model


def given(body: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those that the body names."""
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in arrays.items() if name in words}


def kinds(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_a_single_head_has_two_projections_left_and_no_scale(parse, prove) -> None:
    model = parse(f"g (float[n,5,6] x) => (float[n,5,6] y) {{ {ATTENTION} }}", weights())
    result = merged(model, prove)
    assert kinds(result) == {"MatMul": 4, "Transpose": 1, "Softmax": 1, "Add": 1}, "the bias stands before"
    assert result.graph.outputs[0].producer().op_type == "MatMul"
    names = {node.name for node in model.graph if node.op_type in ("MatMul", "Softmax")}
    assert len(names & {node.name for node in result.graph}) == 5, "what stays is called as before"


def test_biases_of_all_projections_go_along(parse, prove) -> None:
    body = f"""q0 = MatMul(x, wq) q = Add(q0, bq) k0 = MatMul(z, wk) k = Add(bk, k0) {TURNED} s = MatMul(q, t)
        c = Div(s, eight) p = Softmax<axis = 2>(c) v0 = MatMul(z, wv) v = Add(v0, bv) a = MatMul(p, v)
        o = MatMul(a, wo) y = Add(o, bo)"""
    arrays = weights() | {name: numbers(6) for name in ("bq", "bk", "bv")} | {"eight": np.float32(8)}
    model = parse(f"g (float[n,5,6] x, float[n,7,6] z) => (float[n,5,6] y) {{ {body} }}", given(body, arrays))
    assert kinds(merged(model, prove)) == {"MatMul": 4, "Transpose": 1, "Softmax": 1, "Add": 2}


def test_the_scale_of_several_heads_goes_before_them(parse, prove) -> None:
    body = """q0 = MatMul(x, wq) q1 = Add(q0, bq) q2 = Reshape(q1, heads)
        q = Transpose<perm = [0, 2, 1, 3]>(q2) k0 = MatMul(x, wk) k1 = Reshape(k0, heads)
        k = Transpose<perm = [0, 2, 3, 1]>(k1)
        s = MatMul(q, k) c = Mul(half, s) y = Softmax(c)"""
    arrays = weights() | {"bq": numbers(6), "half": np.float32(0.5)}
    head = "<int64[4] heads = {0, 0, 2, 3}>"
    model = parse(f"g (float[n,5,6] x) => (float[n,2,5,5] y) {head} {{ {body} }}", given(body, arrays))
    result = merged(model, prove)
    assert kinds(result) == kinds(model) - Counter(["Mul"])


@pytest.mark.parametrize(
    ("inner", "change", "products", "scales"),
    [
        (3, ("", ""), 6, 0),  # narrow: to multiply by two thin matrices is less than by a square one
        (6, ("p = Softmax(c)", "p = Softmax(c) z = Relu(q)"), 5, 1),  # the queries are read
        (6, ("p = Softmax(c)", "p = Softmax<axis = 1>(c)"), 4, 0),  # columns sum to 1: the bias stays behind
        (6, ("y = Add(bo, o)", "y = Add(bo, o) z = Relu(a)"), 5, 0),  # what the values come to is read
    ],
)
def test_what_must_stay(parse, prove, inner, change, products, scales) -> None:
    outputs = f"float[n,5,6] y{', float[n,5,6] z' if 'z' in change[1] else ''}"
    body = ATTENTION.replace(*change) if change[0] else ATTENTION
    model = parse(f"g (float[n,5,6] x) => ({outputs}) {{ {body} }}", weights(inner=inner))
    found = kinds(merged(model, prove))
    assert (found["MatMul"], found["Mul"]) == (products, scales)


def test_keys_with_a_bias_need_the_softmax(parse, prove) -> None:
    body = f"q = MatMul(x, wq) k0 = MatMul(x, wk) k = Add(k0, bk) {TURNED} y = MatMul(q, t)"
    model = parse(
        f"g (float[n,5,6] x) => (float[n,5,5] y) {{ {body} }}", given(body, weights() | {"bk": numbers(6)})
    )
    assert kinds(merged(model, prove)) == kinds(model)


def test_a_value_times_itself_is_not_scaled_twice(parse, prove) -> None:
    body = "q = MatMul(x, wq) s = MatMul(q, q) y = Mul(s, eighth)"
    model = parse(f"g (float[n,6,6] x) => (float[n,6,6] y) {{ {body} }}", given(body, weights()))
    assert kinds(merged(model, prove)) == kinds(model)
