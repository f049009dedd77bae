"""Data movement: what node cases miss against ONNX Runtime, gradients against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
IMAGE = np.random.default_rng(1).standard_normal((1, 2, 5, 6)).astype(np.float32)


def i64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


G = "g (float[a,b,c] x) => (float[d,e,f] y)"
MOVES = {
    "reshape": (G + "{ y = Reshape(x, s) }", {"s": i64(0, -1, 2)}),
    "flatten": ("g (float[a,b,c] x) => (float[d,e] y) { y = Flatten<axis=-1>(x) }", {}),
    "unsqueeze": ("g (float[a,b,c] x) => (float[d,e,f,h,i] y) { y = Unsqueeze(x, s) }", {"s": i64(-1, 0)}),
    "transpose": (G + "{ y = Transpose<perm=[1,2,0]>(x) }", {}),
    "expand": (
        "g (float[a,b,c] x) => (float[d,e,f,h] y) { u = Unsqueeze(x, s) y = Expand(u, t) }",
        {"s": i64(1), "t": i64(5, 1, 4)},
    ),
    "concat": (G + "{ y = Concat<axis=-2>(x, x) }", {}),
    "split": (
        "g (float[a,b,c] x) => (float[d,e,f] p, float[d,e,f] q) { p, q = Split<axis=-1>(x, s) }",
        {"s": i64(1, 3)},
    ),
    "uneven": ("g (float[a,b,c] x) => (float p, float q) { p, q = Split<axis=1,num_outputs=2>(x) }", {}),
    "slice": (
        G + "{ y = Slice(x, s, e, a, t) }",
        {"s": i64(-1, 1), "e": i64(-99, 9), "a": i64(-1, 1), "t": i64(-2, 1)},
    ),
    "empty slice": (G + "{ y = Slice(x, s, e) }", {"s": i64(1, 2), "e": i64(1, 1)}),
    "tile": (G + "{ y = Tile(x, s) }", {"s": i64(2, 1, 3)}),
    "trilu": (G + "{ y = Trilu<upper=0>(x, s) }", {"s": np.array(-1, np.int64)}),
    "reverse": (
        G + "{ y = ReverseSequence<time_axis=1,batch_axis=0>(x, s) }",
        {"s": i64(1, 3)},
    ),
    "pad": (G + "{ y = Pad(x, s, v) }", {"s": i64(0, 1, 2, 1, 0, -1), "v": np.array(2.5, np.float32)}),
    "pad axes": (G + '{ y = Pad<mode="edge">(x, s, , a) }', {"s": i64(2, 1), "a": i64(-1)}),
    "wrap": (G + '{ y = Pad<mode="wrap">(x, s) }', {"s": i64(0, 2, 1, 0, 3, 2)}),
    "reflect": (G + '{ y = Pad<mode="reflect">(x, s) }', {"s": i64(1, 0, 2, 0, 2, 3)}),
}


@pytest.mark.parametrize("name", MOVES)
def test_as_onnx_runtime_does_it(name, like_ort, gradcheck):
    text, constants = MOVES[name]
    like_ort(text, X, **constants)
    if name != "empty slice":
        gradcheck(text, X, **constants)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize(
    "pads", [(0, 0, 1, 2, 0, 0, 3, 0), (0, 0, -1, 0, 0, 0, 2, -2), (0, 1, 1, 1, 0, 0, 1, 1)]
)
def test_pictures_are_padded(mode, pads, like_ort, gradcheck):
    text = f'g (float[a,b,c,d] x) => (float[e,f,g,h] y) {{ y = Pad<mode="{mode}">(x, s) }}'
    like_ort(text, IMAGE, s=i64(*pads))
    gradcheck(text, IMAGE, fast=True, s=i64(*pads))


@pytest.mark.parametrize("mode", ["edge", "reflect"])
def test_padding_by_torch_is_padding_by_places(mode, run):
    """The last two axes go to torch's kernels in floats, element by element in integers."""
    text = 'g ({t}[a,b,c,d] x) => ({t}[e,f,g,h] y) {{ y = Pad<mode="{m}">(x, s) }}'
    x = np.arange(60).reshape(1, 2, 5, 6)
    pads = i64(0, 0, 1, 2, 0, 0, 3, 4)
    (floats,) = run(text.format(t="float", m=mode), x.astype(np.float32), s=pads)
    (whole,) = run(text.format(t="int64", m=mode), x, s=pads)
    assert torch.equal(floats.long(), whole)


def test_sizes_known_only_while_it_runs(like_ort):
    """Shapes, axes, pads and limits that other nodes compute."""
    like_ort(
        """g (float[a,b,c] x, int64[k] t, int64[k] p) => (float[d,e] y, float[h,i,j] z, float[l,m,n] w) {
        u = Shape<start=-2>(x)  v = Concat<axis=0>(t, u)  r = Reshape(x, v)  q = Squeeze(r, t0)
        y = Flatten<axis=1>(q)  z = Pad(x, p)  w = Slice(x, s, u, a) }""",
        X,
        i64(2, 1),
        i64(0, 0, 1, 0, 1, 0),
        t0=i64(1),
        s=i64(0, 1),
        a=i64(1, 2),
    )


def test_nothing_stays_nothing(like_ort):
    empty = np.zeros((0, 3), np.float32)
    like_ort("g (float[a,b] x) => (float[c,d] y) { y = Reshape(x, s) }", empty, s=i64(-1, 3))
    like_ort("g (float[a,b] x) => (float[c,d] y) { y = Reshape<allowzero=1>(x, s) }", empty, s=i64(3, 0))
    like_ort("g (float[a,b] x) => (float[c,d] y) { y = Flatten(x) }", empty)
    like_ort("g (float[a,b] x) => (float[c,d] y) { y = Concat<axis=0>(x, x) }", empty)


def test_scalars(like_ort):
    like_ort("g (float x) => (int64[n] y, int64 z) { y = Shape(x) z = Size(x) }", np.array(3, np.float32))
    like_ort("g (float x) => (float[n] y) { y = Unsqueeze(x, a) }", np.array(3, np.float32), a=i64(0))
    like_ort("g (float[n] x) => (float y) { y = Squeeze(x) }", np.ones(1, np.float32))
    like_ort("g (float[n] x) => (float y) { y = Reshape(x, s) }", np.ones(1, np.float32), s=i64())


@pytest.mark.parametrize(
    "kind", [torch.uint16, torch.uint64, torch.float8_e4m3fn, torch.bool, torch.bfloat16]
)
def test_every_type_moves(kind, run):
    x = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 0]]).to(kind)
    parts = run(
        """g (float[a,b] x) => (float y, float z, float w, float v) {
        y = Trilu(x)  z = Slice(x, s, e, a, t)  w = Concat<axis=1>(x, x)  v = Pad<mode="edge">(x, p) }""",
        x,
        s=i64(-1),
        e=i64(-9),
        a=i64(0),
        t=i64(-1),
        p=i64(1, 0, 0, 1),
    )
    assert {part.dtype for part in parts} == {kind}
    assert parts[0].float().tolist() == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert torch.equal(parts[1].float(), x.float().flip(0))
