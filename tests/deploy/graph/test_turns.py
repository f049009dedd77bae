"""Transposes around attentions, against ONNX Runtime on what was given: fewer, and the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import shapes
from deploy.graph.cost import macs
from deploy.graph.rules import apply_rules

RNG = np.random.default_rng(11)
HEADS, SIZE = 2, 3
CHANNELS = HEADS * SIZE


def turns(model: ir.Model) -> int:
    return sum(node.op_type == "Transpose" for node in model.graph)


def fewer(model: ir.Model, prove, *before: str) -> ir.Model:
    """The model after the rules before and this one, all proved."""
    found = apply_rules(shapes.infer(model), [*before, "fewer-transposes"], prove)
    assert all(r.kept for r in found.rewrites), [r.why for r in found.rewrites]
    result = shapes.infer(found.model)
    assert macs(result) == macs(model)
    assert [v.name for v in result.graph.outputs] == [v.name for v in model.graph.outputs]
    assert len({node.name for node in result.graph}) == len(result.graph)
    return result


def layer(name: str) -> dict[str, np.ndarray]:
    return {name: RNG.normal(size=(CHANNELS, CHANNELS)).astype(np.float32)}


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [([1, 2, 0], [2, 0, 1], 0), ([1, 2, 0], [1, 2, 0], 1), ([0, 2, 1], [0, 2, 1], 0)],
)
def test_two_that_follow_each_other(parse, prove, first, second, left: int) -> None:
    model = parse(
        f"""g (float[2,3,4] x) => (float y)
        {{ a = Relu(x) b = Transpose<perm = {first}>(a) c = Transpose<perm = {second}>(b) y = Abs(c) }}"""
    )
    assert turns(fewer(model, prove)) == left


def test_an_output_keeps_its_name_though_nothing_moves(parse, prove) -> None:
    model = parse(
        """g (float[2,3] x) => (float y)
        { a = Transpose(x) b = Relu(a) y = Transpose(b) }"""
    )
    assert turns(fewer(model, prove)) == 0


SPLIT = f"int64[4] split = {{0, 0, {HEADS}, {SIZE}}}, int64[3] join = {{0, 0, {CHANNELS}}}"
ATTENTION = f"""g (float[SIZES,{CHANNELS}] x) => (float y) <{SPLIT}, float half = {{0.5}}>
{{
    n = Relu(x)
    q = MatMul(n, wq) q4 = Reshape(q, split) qh = Transpose<perm = [0, 2, 1, 3]>(q4)
    k = MatMul(n, wk) k4 = Reshape(k, split) kh = Transpose<perm = [0, 2, 3, 1]>(k4)
    v = MatMul(n, wv) v4 = Reshape(v, split) vh = Transpose<perm = [0, 2, 1, 3]>(v4)
    s = MatMul(qh, kh) m = Mul(s, half) p = Softmax(m)
    o = MatMul(p, vh) ot = Transpose<perm = [0, 2, 1, 3]>(o) oj = Reshape(ot, join)
    z = MatMul(oj, wo) y = Add(z, n)
}}"""


@pytest.mark.parametrize("sizes", ["n,5", "2,5", "2,n"])
def test_an_attention_of_several_heads(parse, prove, sizes: str) -> None:
    """Before: one for each of queries, keys, values and the result. After: in, keys or queries, and out."""
    weights = layer("wq") | layer("wk") | layer("wv") | layer("wo")
    model = parse(ATTENTION.replace("SIZES", sizes), weights)
    assert turns(fewer(model, prove)) == turns(model) == 4, "as it is there is nothing to win"
    result = fewer(model, prove, "linear-as-convolution")
    assert turns(result) == 3
    (softmax,) = (node for node in result.graph if node.op_type == "Softmax")
    products = [node.name for node in model.graph if node.op_type == "MatMul"]
    kept = [node.name for node in result.graph if node.op_type in ("MatMul", "Conv")]
    assert sorted(kept) == sorted(products), "who names one means it still"
    assert softmax.attributes.get_int("axis", -1) == 2


def test_an_attention_of_one_head_whose_keys_are_what_it_reads(parse, prove) -> None:
    model = parse(
        f"""g (float[n,7,{CHANNELS}] x) => (float y)
        {{
            r = Relu(x) q = MatMul(r, wq) t = Transpose<perm = [0, 2, 1]>(r) s = MatMul(q, t)
            p = Softmax<axis = 2>(s) v = MatMul(r, wv) o = MatMul(p, v) y = Add(o, r)
        }}""",
        layer("wq") | layer("wv"),
    )
    assert turns(apply_rules(shapes.infer(model), ["linear-as-convolution"], prove).model) == 3
    assert turns(fewer(model, prove, "linear-as-convolution")) == 2


@pytest.mark.parametrize(
    "between",
    [
        "u = Softmax<axis = -2>(s)",
        "u = Tanh(s)",
        "u = Clip(s, low)",
        "u = Div(s, half)",
        "a = Sub(s, half) u = LeakyRelu(a)",
    ],
)
def test_what_stands_between_is_computed_of_what_is_not_turned(parse, prove, between: str) -> None:
    model = parse(
        f"""g (float[n,2,3,4] a0, float[n,2,5,3] b0, float[n,2,6,5] c0) => (float y)
        <float half = {{0.5}}, float low = {{-0.25}}>
        {{
            ta = Transpose<perm = [0, 1, 3, 2]>(a0) tb = Transpose<perm = [0, 1, 3, 2]>(b0)
            s = MatMul(ta, tb) {between} tc = Transpose<perm = [0, 1, 3, 2]>(c0)
            o = MatMul(u, tc) y = Transpose<perm = [0, 1, 3, 2]>(o)
        }}"""
    )
    assert turns(model) == 4
    assert turns(fewer(model, prove)) == 0


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(t, z)",  # one is needed either way
        "t = Transpose<perm = [0, 2, 1]>(x) p = Softmax(t) y = Add(p, z)",
        "t = Transpose<perm=[0,2,1]>(x) c = MatMul(t, z) a = Add(c, w) y = Transpose<perm=[0,2,1]>(a)",
        "t = Transpose<perm = [0, 2, 1]>(x) a = Relu(t) y = MatMul(t, a)",  # two read it
    ],
)
def test_where_nothing_is_saved_nothing_is_done(parse, body: str) -> None:
    arrays = {"w": RNG.normal(size=(4, 4)).astype(np.float32)} if "w)" in body else {}
    model = shapes.infer(parse(f"g (float[2,4,4] x, float[2,4,4] z) => (float y) {{ {body} }}", arrays))
    assert not apply_rules(model, ["fewer-transposes"], lambda *_: "must not be asked").rewrites


def test_sizes_that_are_not_known_to_be_equal_are_left_alone(parse, prove) -> None:
    """The Reshape cuts rows anew: it only looks like heads."""
    model = parse(
        """g (float[2,6,4] x) => (float y) <int64[4] cut = {2, 2, 3, 4}>
        { t = Transpose<perm=[0,2,1]>(x) r = Reshape(t, cut) u = Transpose<perm=[0,2,1,3]>(r) y = Relu(u) }"""
    )
    assert not apply_rules(shapes.infer(model), ["fewer-transposes"], prove).rewrites
