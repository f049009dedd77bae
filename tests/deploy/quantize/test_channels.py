"""Numbers of channels and what they let one do: scaled networks compute what they did, in ONNX Runtime."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.execute.reference import open_graph
from deploy.graph.shapes import infer
from deploy.quantize.channels import FIXED, follow, scale

IMAGE = "float[N,4,6,6]"
RNG = np.random.default_rng(7)


def unchanged(model, session, feeds, *, free: bool = True) -> None:
    """Any factors at all leave the network as it was; ``free`` says whether there are any."""
    channels = follow(model)
    assert (channels.count > 1) == free
    factors = np.exp(RNG.normal(0, 1.5, channels.count))
    factors[FIXED] = 1
    scaled = infer(scale(model, channels, factors))
    before, after = session(model, False).run(None, feeds), session(scaled, False).run(None, feeds)
    for a, b in zip(before, after, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


BODIES = {
    "relu": "a = Relu(h)",
    "leaky": "a = LeakyRelu<alpha=0.2>(h)",
    "prelu": "a = PRelu(h, slope)",
    "pools": "p = MaxPool<kernel_shape=[2,2], pads=[0,0,1,1]>(h)  "
    "a = AveragePool<kernel_shape=[2,2], pads=[0,0,1,1]>(p)",
    "pad": "p = Pad(h, pads)  a = MaxPool<kernel_shape=[3,3]>(p)",
    "depthwise": "r = Relu(h)  a = Conv<group=4, pads=[1,1,1,1]>(r, dw, b4)",
    "grouped": "r = Relu(h)  a = Conv<group=2, pads=[1,1,1,1]>(r, gw)",
    "residual": "r = Relu(h)  c = Conv<pads=[1,1,1,1]>(r, w2)  a = Add(c, r)",
    "two residuals": "c = Conv<pads=[1,1,1,1]>(h, w2)  s = Add(c, h)  "
    "d = Conv<pads=[1,1,1,1]>(s, w3)  a = Sub(s, d)",
    "concat": "r = Relu(h)  c = Conv<pads=[1,1,1,1]>(r, w2)  k = Concat<axis=1>(c, r)  a = Conv(k, w8)",
    "split": "s, t = Split<axis=1, num_outputs=2>(h)  q = Relu(s)  k = Concat<axis=1>(t, q)  a = Relu(k)",
    "slice": "s = Slice(h, zero, two, one)  c = Conv(s, w42)  a = Relu(c)",
    "gate": "g = GlobalAveragePool(h)  e = Conv(g, w11)  q = Sigmoid(e)  a = Mul(h, q)",
    "transpose": "t = Transpose<perm=[0,2,3,1]>(h)  m = MatMul(t, m44)  b = Add(m, b4)  "
    "a = Transpose<perm=[0,3,1,2]>(b)",
    "transposed": "t = ConvTranspose<pads=[1,1,1,1]>(h, w2, b4)  a = Relu(t)",
    "transposed groups": "t = ConvTranspose<group=2, pads=[1,1,1,1]>(h, gw, b2x2)  a = Relu(t)",
    "constant sum": "s = Add(h, b411)  a = Relu(s)",
    "padded channels": "s = Slice(h, zero, two, one)  p = Pad(s, pad_channels)  c = Add(p, h)  a = Relu(c)",
}
WEIGHTS = {
    "w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3), "w3": (4, 4, 3, 3), "w8": (4, 8, 1, 1),
    "w42": (4, 2, 1, 1), "w11": (4, 4, 1, 1),
    "wl": (4, 4, 1, 1), "dw": (4, 1, 3, 3), "gw": (4, 2, 3, 3),
    "m44": (4, 4), "b1": (4,), "b4": (4,), "b411": (4, 1, 1), "b2x2": (4,),
    "slope": np.float32([[[0.1]], [[0.2]], [[0.3]], [[0.0]]]),
    "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]), "pad_channels": np.int64([0, 1, 0, 0, 0, 1, 0, 0]),
    "zero": np.int64([0]), "two": np.int64([2]), "one": np.int64([1]),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_channels_are_followed_through(body, graph, session, random_feeds):
    used = {
        n: w
        for n, w in WEIGHTS.items()
        if n in ("w1", "b1", "wl") or f"{n})" in BODIES[body] or f"{n}," in BODIES[body]
    }
    nodes = f"h = Conv<pads=[1,1,1,1]>(x, w1, b1) {BODIES[body]} y = Conv(a, wl)"
    text = f"g ({IMAGE} x) => ({IMAGE} y) {{ {nodes} }}"
    model = graph(text, used)
    unchanged(model, session, random_feeds(model, 2))


def test_flatten_and_gemm(graph, session, random_feeds):
    model = graph(
        f"""g ({IMAGE} x) => (float[N,3] y) {{ h = Conv(x, w, b)  r = Relu(h)  f = Flatten(r)
        y = Gemm<transB=1>(f, m, c) }}""",
        {"w": (5, 4, 3, 3), "b": (5,), "m": (3, 80), "c": (3,)},
    )
    assert follow(model).values["f"].size == 80
    unchanged(model, session, random_feeds(model, 2))


def test_values_of_attention_reach_the_product_behind(graph, session, random_feeds):
    model = graph(
        """g (float[N,5,8] x) => (float[N,5,8] y) {
        v = MatMul(x, wv)  r = Reshape(v, heads)  t = Transpose<perm=[0,2,1,3]>(r)
        k = MatMul(x, wk)  s = Softmax(k)  u = Unsqueeze(s, axis)  p = MatMul(u, t)
        q = Transpose<perm=[0,2,1,3]>(p)  m = Reshape(q, flat)  y = MatMul(m, wo) }""",
        {"wv": (8, 8), "wk": (8, 5), "wo": (8, 8), "heads": np.int64([0, 5, 2, 4]),
         "flat": np.int64([0, 5, 8]), "axis": np.int64([1])},
    )  # fmt: skip
    assert len(np.unique(follow(model).values["m"])) == 8
    unchanged(model, session, random_feeds(model, 2))


def test_heads_are_followed_past_a_free_length(graph, session, random_feeds):
    """What a reshape does to a length that nobody knows does not touch the channels behind it."""
    model = graph(
        """g (float[N,T,8] x) => (float[N,Z,8] y) {
        v = MatMul(x, wv)  r = Reshape(v, heads)  t = Transpose<perm=[0,2,1,3]>(r)
        q = Transpose<perm=[0,2,1,3]>(t)  m = Reshape(q, flat)  y = MatMul(m, wo) }""",
        {"wv": (8, 8), "wo": (8, 8), "heads": np.int64([0, -1, 2, 4]), "flat": np.int64([0, -1, 8])},
    )
    assert len(np.unique(follow(model).values["m"])) == 8
    unchanged(model, session, random_feeds(model, 2))


def test_a_norm_makes_channels(graph, session, random_feeds):
    model = graph(
        "g (float[N,5,8] x) => (float[N,5,3] y) { h = LayerNormalization(x, s, b)  y = MatMul(h, w) }",
        {"s": (8,), "b": (8,), "w": (8, 3)},
    )
    assert {slot.role for slot in follow(model).slots} == {"norm", "layer"}
    unchanged(model, session, random_feeds(model, 2))


@pytest.mark.parametrize(
    "between", ["Sigmoid(h)", "HardSwish(h)", "Exp(h)", "Clip(h, low, high)", "Softmax<axis=1>(h)"]
)
def test_what_is_not_homogeneous_holds_channels_fast(between, graph, session, random_feeds):
    bounds = {"low": np.float32(0), "high": np.float32(1)} if "Clip" in between else {}
    text = f"g ({IMAGE} x) => ({IMAGE} y) {{ h = Conv(x, w1)  a = {between}  y = Conv(a, wl) }}"
    model = graph(text, {"w1": (4, 4, 1, 1), "wl": (4, 4, 1, 1), **bounds})
    unchanged(model, session, random_feeds(model, 2), free=False)


@pytest.mark.parametrize(
    "text",
    [
        "h = Conv(x, w)  y = Conv(h, w)",  # one weight read twice
        "h = Conv(x, w)  z = Relu(h)  y = Add(h, x)",  # tied to an input
    ],
)
def test_what_is_tied_elsewhere_is_fixed(text, graph):
    model = graph(f"g ({IMAGE} x) => ({IMAGE} y) {{ {text} }}", {"w": (4, 4, 1, 1)})
    assert follow(model).count == 1


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            ("relu", "leaky", "depthwise", "grouped", "residual", "concat", "split",
             "gate", "transpose", "pad")
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_chains_of_anything_keep_their_function(parts, seed):
    rng = np.random.default_rng(seed)
    arrays, lines, value = {"wl": rng.standard_normal((4, 4, 1, 1)).astype(np.float32)}, [], "x"
    for i, part in enumerate(parts):
        stage = f"h = Conv<pads=[1,1,1,1]>(x, w1, b1) {BODIES[part]}"
        # Names are the words in small letters that are no attributes.
        words = set(re.findall(r"\b[a-z]\w*\b", re.sub(r"<[^>]*>", "", stage))) - {"x"}
        for word in words:
            stage = re.sub(rf"\b{word}\b(?!=)", f"{word}_{i}", stage)
        lines.append(stage.replace("(x,", f"({value},"))
        value = f"a_{i}"
        for name in words & WEIGHTS.keys():
            shape = WEIGHTS[name]
            array = rng.standard_normal(shape) / 4 if isinstance(shape, tuple) else shape
            arrays[f"{name}_{i}"] = array if isinstance(shape, np.ndarray) else array.astype(np.float32)
    text = f"g ({IMAGE} x) => ({IMAGE} y) {{ {' '.join(lines)} y = Conv({value}, wl) }}"
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 21]> {text}',
        initializers=[ir.tensor(a, name=n) for n, a in arrays.items()],
    )
    for i, node in enumerate(model.graph):
        node.name = f"n{i}"
    model = infer(model)
    channels = follow(model)
    assert channels.count > 4
    factors = np.exp(rng.normal(0, 1, channels.count))
    factors[FIXED] = 1
    feeds = {"x": rng.standard_normal((2, 4, 6, 6)).astype(np.float32)}
    results = []
    for graph in (model, infer(scale(model, channels, factors))):
        with open_graph(graph, optimised=False) as runner:
            results.append(runner.run(feeds)["y"])
    assert np.abs(results[0] - results[1]).max() <= 1e-5 * np.abs(results[0]).max()
