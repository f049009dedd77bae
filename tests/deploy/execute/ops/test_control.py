"""If, Loop and Scan against ONNX Runtime, nested ones too, and gradients through their bodies."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.execute.module import GraphModule

X = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
ZERO = np.zeros(3, np.float32)

BRANCH = """g (float[a,b] x, bool c, float[d,e] w) => (float[i,j] y) {
u = Mul(x, w)
y = If(c) <then_branch = t () => (float[k,l] p) { p = Mul(u, w) },
           else_branch = e () => (float[m,n] q) { v = Sub(x, u)  q = Sub(v, w) }> }"""

LOOP = """g (float[a] s, int64 m, bool c, float[b] w) => (float[d] y, float[e,f] rows, int64[h] steps) {
y, rows, steps = Loop(m, c, s) <body = b (int64 i, bool go, float[k] now)
    => (bool again, float[l] next, float[n] row, int64 step) {
    next = Add(now, w)  row = Mul(next, next)  step = Identity(i)
    total = ReduceSum<keepdims=0>(next)  again = Less(total, limit) }> }"""

SCAN = """g (float[a] s, float[b,c] x, float[d] w) => (float[e] y, float[f,h] sums) {{
y, sums = Scan<num_scan_inputs=1{}, body = b (float[i] before, float[j] row)
    => (float[k] after, float[l] out) {{
    p = Mul(row, w)  after = Add(before, p)  out = Mul(after, row) }}>(s, x) }}"""


@pytest.mark.parametrize("condition", [True, False])
def test_branches_read_what_is_around_them(condition, like_ort, gradcheck):
    like_ort(BRANCH, X, np.array(condition), X[:1])
    gradcheck(BRANCH, X, np.array(condition), X[:1])


@pytest.mark.parametrize(
    ("trips", "start", "limit"),
    [(3, True, 99), (99, True, 5), (0, True, 99), (3, False, 99), (3, True, -99)],
    ids=["as often as said", "until the condition", "never", "not begun", "once"],
)
def test_loops(trips, start, limit, like_ort, gradcheck):
    given = (ZERO, np.array(trips, np.int64), np.array(start), np.ones(3, np.float32) / 2)
    _, rows, steps = like_ort(LOOP, *given, limit=np.array(limit, np.float32))
    assert len(rows) == len(steps)
    if len(rows):
        gradcheck(LOOP, *given, limit=np.array(limit, np.float32))


def test_a_loop_without_a_count_or_a_condition(like_ort):
    head, body = LOOP.split("y, rows, steps = Loop(m, c, s)")
    limit, w = np.array(4, np.float32), np.ones(3, np.float32) / 2
    for call, given in (("Loop(, c, s)", (np.array(9, np.int64), np.array(True))), ("Loop(m, , s)", (
        np.array(2, np.int64), np.array(True),
    ))):  # fmt: skip
        like_ort(f"{head} y, rows, steps = {call} {body}", ZERO, *given, w, limit=limit)


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        ", scan_input_directions=[1]",
        ", scan_output_directions=[1]",
        ", scan_input_axes=[1]",
        ", scan_input_axes=[-1], scan_output_axes=[-1], scan_input_directions=[1]",
    ],
)
def test_scans(attributes, like_ort, gradcheck):
    text = SCAN.format(attributes)
    size = 4 if "input_axes" in attributes else 3
    start, weight = np.zeros(size, np.float32), np.linspace(1, 2, size, dtype=np.float32)
    like_ort(text, start, X, weight)
    gradcheck(text, start, X, weight)


def test_a_scan_over_nothing(run):
    """ONNX Runtime refuses it. The elements that would have been made have the shape that the body states."""
    y, sums = run(SCAN.format("").replace("float[l] out", "float[3] out"), ZERO, X[:0], ZERO)
    assert torch.equal(y, torch.zeros(3))
    assert (sums.shape, sums.dtype) == ((0, 3), torch.float32)


def test_a_scan_of_the_first_form(run):
    """Up to operator set 8 there is a batch; each sample is scanned on its own."""
    text = """g (float[n,a] s, float[n,b,a] x) => (float[n,a] y, float[n,b,a] sums) {
    y, sums = Scan<num_scan_inputs=1, body = b (float[i] before, float[j] row)
        => (float[k] after, float[l] out) { after = Add(before, row)  out = Add(before, row) }>(, s, x) }"""
    x = np.stack([X, 2 * X])
    y, sums = run(text, np.zeros((2, 3), np.float32), x, opset=8)
    np.testing.assert_allclose(sums.numpy(), x.cumsum(1), rtol=1e-6)
    np.testing.assert_allclose(y.numpy(), x.sum(1), rtol=1e-6)


def test_bodies_within_bodies(like_ort, gradcheck):
    """The inner branches read from the loop, from around the loop, and a constant."""
    text = """g (float[a] s, float[b] w) => (float[d] y, float[e,f] rows) {
    y, rows = Loop(m, go, s) <body = b (int64 i, bool c, float[k] now)
        => (bool same, float[l] next, float[n] row) {
        odd = BitwiseAnd(i, one)  is = Cast<to=9>(odd)  same = Identity(c)
        next = If(is) <then_branch = t () => (float[o] p) { q = Mul(now, w)  p = Add(q, half) },
                       else_branch = e () => (float[r] u) {
                           u = Loop(one, go, now) <body = z (int64 j, bool h, float[aa] deep)
                               => (bool hh, float[bb] deeper) { hh = Identity(h)  v = Sub(deep, w)
                                                                deeper = Mul(v, now) }> }>
        row = Mul(next, w) }> }"""
    constants = {
        "m": np.array(5, np.int64),
        "go": np.array(True),
        "one": np.array(1, np.int64),
        "half": np.array(0.5, np.float32),
    }
    like_ort(text, X[0], X[1], rtol=1e-4, **constants)
    gradcheck(text, X[0], X[1], **constants)


def test_weights_read_in_a_body_are_trained():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 21]>
    g (float[b,3] x) => (float[1,2] y) <float[1] w = {0}, float[1,2] s = {0, 0}, int64[1] zero = {0}> {
    y = Scan<num_scan_inputs=1, body = b (float[1,2] before, float[3] row) => (float[1,2] after) {
        r = Unsqueeze(row, zero)  p = MatMul(r, w)  after = Add(before, p) }>(s, x) }""")
    value = model.graph.initializers["w"]
    value.const_value, value.shape = ir.tensor(np.ones((3, 2), np.float32), name="w"), ir.Shape((3, 2))
    module = GraphModule(model)
    module({"x": torch.from_numpy(X)})["y"].sum().backward()
    slope = module.named_weights()["w"].grad.numpy()
    np.testing.assert_allclose(slope, X.sum(0)[:, None].repeat(2, 1), rtol=1e-5)
