"""Gather, scatter, ranking and the like against ONNX Runtime, and their gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

RNG = np.random.default_rng(0)
X = RNG.permutation(24).reshape(2, 3, 4).astype(np.float32)
G = "g (float[a,b,c] x) => (float y) "


def i64(values: object) -> np.ndarray:
    return np.array(values, np.int64)


GATHERS = {
    "one": ("Gather<axis=-1>(x, i)", i64(-2)),
    "many": ("Gather<axis=1>(x, i)", i64([[0, -1], [2, 2]])),
    "32 bit": ("Gather(x, i)", np.array([1, 0, -1], np.int32)),
    "none": ("Gather<axis=1>(x, i)", np.zeros((0,), np.int64)),
    "elements": ("GatherElements<axis=-2>(x, i)", i64(RNG.integers(-3, 3, (2, 5, 4)))),
    "fewer elements": ("GatherElements<axis=0>(x, i)", i64([[[1, -1]]])),
    "nd": ("GatherND(x, i)", i64([[0, -1], [1, 2]])),
    "nd whole": ("GatherND(x, i)", i64([[[0, 1, 3]], [[1, -3, -4]]])),
    "nd batch": ("GatherND<batch_dims=1>(x, i)", i64([[[1], [0]], [[2], [-1]]])),
    "nd batches": ("GatherND<batch_dims=2>(x, i)", i64(RNG.integers(0, 4, (2, 3, 1)))),
    "compress": ("Compress<axis=-1>(x, i)", np.array([True, False, True])),
    "compress all": ("Compress(x, i)", np.array([False, True, True, False, True])),
}


@pytest.mark.parametrize("name", GATHERS)
@pytest.mark.parametrize("fixed", [True, False])
def test_elements_taken(name, fixed, like_ort, gradcheck):
    call, index = GATHERS[name]
    if fixed:
        like_ort(G + "{ y = " + call + " }", X, i=index)
        if index.size:
            gradcheck(G + "{ y = " + call + " }", X, i=index)
    else:
        kind = {"int64": "int64", "int32": "int32", "bool": "bool"}[index.dtype.name]
        shape = "[" + ",".join(f"k{k}" for k in range(index.ndim)) + "]" if index.ndim else ""
        like_ort(G.replace("x)", f"x, {kind}{shape} i)") + "{ y = " + call + " }", X, index)


def test_an_embedding_is_torchs(run):
    table = RNG.standard_normal((7, 3)).astype(np.float32)
    index = i64([[0, 6], [3, 3]])
    (found,) = run("g (float[a,b] x) => (float[c,d,e] y) { y = Gather(x, i) }", table, i=index)
    assert torch.equal(found, functional.embedding(torch.from_numpy(index), torch.from_numpy(table)))
    (turned,) = run("g (float[a,b] x) => (float[c,d,e] y) { y = Gather(x, i) }", table, i=index - 7)
    assert torch.equal(found, turned)


REDUCTIONS = ["none", "add", "mul", "max", "min"]
UPDATES = (RNG.permutation(12).reshape(2, 3, 2) + 0.5).astype(np.float32)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_elements(reduction, like_ort, gradcheck):
    index = i64([[[0, -1], [1, 2], [3, 0]], [[2, 1], [0, -2], [1, 3]]])
    if reduction != "none":
        index[1] = [[1, 1], [0, 0], [2, 2]]  # the same place twice
    text = (
        f"g (float[a,b,c] x, float[d,e,f] u) => (float[h,k,l] y) "
        f'{{ y = ScatterElements<axis=-1, reduction="{reduction}">(x, i, u) }}'
    )
    like_ort(text, X, UPDATES, i=index)
    gradcheck(text, X, UPDATES, i=index)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scatter_nd(reduction, depth, like_ort, gradcheck):
    index = i64([[1, 0, 3], [0, 2, 1], [1, 2, 0]])[:, :depth]
    if depth == 1:
        index = index[:2]
    elif reduction != "none":
        index = np.concatenate([index, index[:1]])
    elif depth == 2:
        index = index - [[2, 3]]  # counted from the end
    shape = (len(index), *X.shape[depth:])
    updates = (RNG.permutation(np.prod(shape)).reshape(shape) + 0.25).astype(np.float32)
    text = (
        f"g (float[a,b,c] x, float[{','.join('def'[: updates.ndim])}] u) => (float[h,k,l] y) "
        f'{{ y = ScatterND<reduction="{reduction}">(x, i, u) }}'
    )
    like_ort(text, X, updates, i=index)
    gradcheck(text, X, updates, i=index)


def test_a_maximum_met_twice_is_shared_out(run):
    text = 'g (float[a] x, float[b] u) => (float[c] y) { y = ScatterElements<reduction="max">(x, i, u) }'
    x, u = torch.zeros(2).requires_grad_(), torch.ones(2).requires_grad_()
    run(text, x, u, i=i64([0, 0]))[0].sum().backward()
    assert (x.grad.tolist(), u.grad.tolist()) == ([0, 1], [0.5, 0.5])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis, like_ort, gradcheck):
    index = i64([[0, -1, 3], [5, -9, 2]])
    like_ort(
        f"g (int64[a,b] x, int64 d, float[e] v) => (float[h,k,l] y) {{ y = OneHot<axis={axis}>(x, d, v) }}",
        index,
        i64(4),
        np.array([-1, 2.5], np.float32),
    )
    text = f"g (float[e] v) => (float[h,k,l] y) {{ y = OneHot<axis={axis}>(x, d, v) }}"
    gradcheck(text, np.array([-1, 2.5], np.float32), x=index, d=i64([4]))


@pytest.mark.parametrize("attributes", ["", "<axis=0>", "<axis=1, largest=0>", "<largest=0>"])
def test_top_k(attributes, like_ort, gradcheck):
    text = f"g (float[a,b,c] x) => (float[d,e,f] v, int64[h,k,l] i) {{ v, i = TopK{attributes}(x, k) }}"
    like_ort(text, X, k=i64([2]))
    gradcheck(text, X, k=i64([2]))
    like_ort(text, np.round(X / 5), k=i64([2]))  # many are equal: the lower place comes first
    like_ort(text, X, k=i64([0]))


def test_places_that_are_not_zero(like_ort):
    like_ort("g (float[a,b,c] x) => (int64[d,e] y) { y = NonZero(x) }", np.maximum(X - 20, 0))
    like_ort("g (bool[a] x) => (int64[d,e] y) { y = NonZero(x) }", np.zeros(3, bool))


@pytest.mark.parametrize("attributes", ["", "<sorted=0>", "<axis=0>", "<axis=-1, sorted=0>"])
def test_unique(attributes, like_ort, gradcheck):
    x = RNG.integers(0, 3, (5, 3)).astype(np.float32)
    x[3], x[:, 2] = x[0], x[:, 0]
    shape = "[d,e]" if "axis" in attributes else "[d]"
    outputs = f"float{shape} y, int64[q] i, int64[r] j, int64[s] n"
    like_ort(f"g (float[a,b] x) => ({outputs}) {{ y, i, j, n = Unique{attributes}(x) }}", x)
    distinct = RNG.permutation(15).reshape(5, 3).astype(np.float32)
    gradcheck(f"g (float[a,b] x) => (float{shape} y) {{ y = Unique{attributes}(x) }}", distinct)


@pytest.mark.parametrize("kind", [torch.uint16, torch.uint32, torch.float8_e5m2])
def test_types_that_torch_does_not_calculate_in(kind, run):
    x = torch.tensor([3, 1, 2]).to(kind)
    y, z = run(
        """g (float[a] x) => (float y, float z) {
        y = GatherElements(x, i)  z = ScatterElements(x, i, x) }""",
        x,
        i=i64([2, 0, -2]),
    )
    assert (y.dtype, y.float().tolist()) == (kind, [2, 3, 1])
    assert (z.dtype, z.float().tolist()) == (kind, [1, 2, 3])
    if kind != torch.float8_e5m2:
        text = 'g (float[a] x) => (float y) { y = ScatterElements<reduction="max">(x, i, x) }'
        assert run(text, x, i=i64([2, 0, -2]))[0].tolist() == [3, 2, 3]
