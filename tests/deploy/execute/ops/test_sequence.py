"""Sequences and optional values against ONNX Runtime; gradients through them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

X = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
SPLITS = {
    "ones": ("SplitToSequence", {}),
    "ones without the axis": ("SplitToSequence<keepdims=0, axis=1>", {}),
    "chunks": ("SplitToSequence<axis=0>", {"n": np.array(2, np.int64)}),
    "sizes": ("SplitToSequence<axis=-2>", {"n": np.array([1, 4], np.int64)}),
}


@pytest.mark.parametrize("name", SPLITS)
def test_splits(name, like_ort):
    call, constants = SPLITS[name]
    given = "x, n" if constants else "x"
    like_ort(f"g (float[a,b] x) => (seq(float[c,d]) s) {{ s = {call}({given}) }}", X, **constants)


def test_insert_erase_at_and_length(like_ort, gradcheck):
    text = """g (float[a,b] x) => (float[c,d] y, float[e,f] z, int64 n, float[h,i,j] w) {
    u = Mul(x, x)  s = SequenceConstruct(x, u, x)  t = SequenceInsert(s, u, one)  v = SequenceErase(t, last)
    r = SequenceErase(v)  q = SequenceInsert(r, u)  y = SequenceAt(q, last)  z = SequenceAt(v, one)
    n = SequenceLength(t)  w = ConcatFromSequence<axis=1, new_axis=1>(q) }"""
    constants = {"one": np.array(1, np.int64), "last": np.array(-1, np.int64)}
    like_ort(text, X, **constants)
    gradcheck(text, X, **constants)


def test_an_empty_sequence_grows_in_a_loop(like_ort, gradcheck):
    text = """g (float[a,b] x) => (float[c,d] y) {
    e = SequenceEmpty()
    s = Loop(m, go, e) <body = b (int64 i, bool c, seq(float[h,j]) before)
        => (bool cc, seq(float[k,l]) after) {
        cc = Identity(c)  f = Cast<to=1>(i)  u = Mul(x, f)  after = SequenceInsert(before, u) }>
    y = ConcatFromSequence<axis=0>(s) }"""
    constants = {"m": np.array(3, np.int64), "go": np.array(True)}
    like_ort(text, X, **constants)
    gradcheck(text, X, **constants)


def test_map_of_two_sequences_and_a_value_from_around(run):
    text = """g (float[a,b] x, float[c,d] w) => (seq(float[e,f]) p, seq(int64[h]) q) {
    s = SplitToSequence(x)  t = SplitToSequence(x)
    p, q = SequenceMap(s, t, w) <body = b (float[i,j] one, float[k,l] two, float[m,n] three)
        => (float[o,r] y, int64[u] z) {
            v = Mul(one, three)  a = Add(v, two)  y = Mul(a, x)  z = Shape(y) }> }"""
    w = np.array([[2.0, 3.0, 4.0]], np.float32)
    p, q = run(text, X, w)
    for row, found, shape in zip(X, p, q, strict=True):
        np.testing.assert_allclose(found.numpy(), (row * w + row) * X, rtol=1e-6)
        assert shape.tolist() == [5, 3]


def test_optional_values(run):
    text = """g (float[a,b] x) => (float[c,d] y, bool has) {
    o = Optional(x)  has = OptionalHasElement(o)  y = OptionalGetElement(o) }"""
    y, has = run(text, X)
    assert torch.equal(y, torch.from_numpy(X))
    assert bool(has)
    (has,) = run("g (float x) => (bool has) { o = Optional()  has = OptionalHasElement(o) }", np.zeros(()))
    assert not bool(has)
    with pytest.raises(Exception, match="the optional value is empty"):
        run("g (float x) => (float y) { o = Optional()  y = OptionalGetElement(o) }", np.zeros(()))


def test_what_is_put_in_later_does_not_change_what_was_there(run):
    text = """g (float[a,b] x) => (int64 n, int64 m) {
    s = SequenceConstruct(x, x)  t = SequenceInsert(s, x)  u = SequenceErase(s)
    n = SequenceLength(s)  m = SequenceLength(t) }"""
    assert [int(n) for n in run(text, X)] == [2, 3]
