"""Ties and lost probability on graphs whose answer INT8 changes, against the answers of the float graph."""

import numpy as np
import pytest

from deploy.data.dataset import open_dataset
from deploy.graph.summary import tensor_specs
from deploy.quantize.data_hazards import data_hazards
from deploy.quantize.seen import of_data


def scores(shift):
    """Ten classes that lie close together, beside an eleventh that is never meant and far below."""
    weight = np.random.default_rng(1).standard_normal((8, 11)).astype(np.float32)
    bias = np.zeros(11, np.float32)
    bias[10] = -shift
    feeds = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    return {"w": weight, "b": bias}, feeds


GRAPHS = {
    "ArgMax": "g (float[n, 8] x) => (int64[n, 1] y) { a = Gemm (x, w, b) y = ArgMax <axis = 1> (a) }",
    "TopK": "g (float[n, 8] x) => (t, int64[n, 2] y) { a = Gemm (x, w, b) t, y = TopK <axis = 1> (a, k) }",
    "Softmax": "g (float[n, 8] x) => (y) { a = Gemm (x, w, b) y = Softmax <axis = 1> (a) }",
}
CONSTANTS = {"k": np.array([2])}


def kinds(model, feeds, runtime):
    dataset = open_dataset({"x": feeds}, tensor_specs(model.graph.inputs))
    (found,) = data_hazards(model, [runtime], of_data(model, dataset)).values()
    return [h.kind for h in found]


def weights_of(text, weights):
    return {**weights, **{name: c for name, c in CONSTANTS.items() if f" {name})" in text}}


@pytest.mark.parametrize("operation", ["ArgMax", "TopK", "Softmax"])
def test_ties_are_seen_where_answers_change(operation, graph, affine, quantize, session):
    text = GRAPHS[operation]
    changed = {}
    for shift in (0, 3000):
        weights, feeds = scores(shift)
        model = graph(text, weights_of(text, weights))
        assert kinds(model, feeds, affine) == (["tied-scores"] if shift else [])
        qdq = quantize(model, affine, feeds={"x": feeds}).qdq
        want, got = (session(m, optimised=False).run(None, {"x": feeds})[-1] for m in (model, qdq))
        first = (lambda y: y.argmax(axis=1)) if operation == "Softmax" else (lambda y: y[:, 0])
        changed[shift] = float(np.mean(first(want) != first(got)))
    assert changed[0] < 0.05 and changed[3000] > 0.3


def test_scores_that_stay_float_do_not_tie(graph, unsigned):
    weights, feeds = scores(3000)
    assert kinds(graph(GRAPHS["ArgMax"], weights), feeds, unsigned) == []


def test_equal_scores_are_no_loss(graph, affine):
    """Two classes with the same weights tie in float, too."""
    weights, feeds = scores(0)
    weights["w"][:, 1:] = weights["w"][:, :1]
    assert kinds(graph(GRAPHS["ArgMax"], weights), feeds, affine) == []


def attention(tokens, sharp):
    return (
        f"g (float[n, {tokens}, 8] x) => (y) {{ k = Transpose <perm = [0, 2, 1]> (x) s = MatMul (q, k)"
        " p = Softmax <axis = 2> (s) y = MatMul (p, x) }",
        {"q": (np.random.default_rng(1).standard_normal((1, 4, 8)) * sharp).astype(np.float32)},
        np.random.default_rng(0).standard_normal((16, tokens, 8)).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("tokens", "sharp", "wanted"), [(800, 0.2, ["softmax-levels"]), (8, 0.2, []), (800, 3, [])]
)
def test_probability_that_becomes_zero(tokens, sharp, wanted, graph, affine, quantize, session, sqnr):
    """Attention over many tokens: each gets less than half of 1/256, and together they get nothing."""
    text, weights, feeds = attention(tokens, sharp)
    model = graph(text, weights)
    assert kinds(model, feeds, affine) == wanted
    qdq = quantize(model, affine, feeds={"x": feeds}).qdq
    want, got = (session(m, optimised=False).run(None, {"x": feeds})[0] for m in (model, qdq))
    assert (sqnr(want, got) < 15) == bool(wanted)
