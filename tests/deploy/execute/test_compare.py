"""How far two arrays, and two graphs, are apart."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.errors import ModelError
from deploy.execute.compare import (
    TOLERANCE,
    largest_error,
    prover,
    random_feeds,
    relative_error,
    workable_feeds,
)
from deploy.execute.reference import open_graph
from deploy.graph.shapes import name_dimensions
from deploy.spec.tensors import TensorSpec

INF, NAN = np.inf, np.nan


def f32(*values: float) -> np.ndarray:
    return np.float32(values)


@pytest.mark.parametrize(
    ("reference", "other", "error"),
    [
        (f32(1, -4), f32(1, -4), 0.0),
        (f32(1, -4), f32(2, -4), 0.25),
        (f32(0, 0), f32(0, 0), 0.0),
        (f32(), f32(), 0.0),
        (f32(1, 2), f32(1), INF),
        (f32(1, 2).reshape(1, 2), f32(1, 2), INF),
        (f32(NAN, 2), f32(NAN, 1), 0.5),
        (f32(NAN, 2), f32(1, 2), INF),
        (f32(1, 2), f32(NAN, 2), INF),
        (f32(INF, 2), f32(INF, 2), 0.0),
        (f32(INF, 2), f32(-INF, 2), INF),
        (f32(INF, 2), f32(NAN, 2), INF),
        (f32(1, 2), f32(INF, 2), INF),
        (f32(NAN, INF), f32(NAN, INF), 0.0),
        (np.float32(3), np.float32(3), 0.0),
        (f32(1), np.float64([1.5]), 0.5),
        (np.int64([5, 6]), np.int64([5, 6]), 0.0),
        (np.int64([1, 2, 3, 4]), np.int64([1, 9, 3, 4]), 0.25),
        (np.bool_([True, False]), np.bool_([True, True]), 0.5),
        (np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64), 0.0),
        (np.uint8([255, 0]), np.uint8([0, 0]), 0.5),
    ],
)
def test_relative_error(reference, other, error):
    assert relative_error(np.asarray(reference), np.asarray(other)) == pytest.approx(error)


def test_nothing_against_something_is_far():
    assert relative_error(f32(0, 0), f32(0, 1e-3)) > 1e20


def test_the_largest_error_is_over_all_arrays():
    assert largest_error({"a": f32(1), "b": f32(2)}, {"a": f32(1), "b": f32(1), "c": f32(7)}) == 0.5
    assert largest_error({}, {}) == 0.0
    with pytest.raises(KeyError):
        largest_error({"a": f32(1)}, {})


def graph(text: str, **weights: np.ndarray) -> ir.Model:
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    model = ir.from_onnx_text(
        f"{head} {text}", initializers=[ir.tensor(a, name=n) for n, a in weights.items()]
    )
    for i, node in enumerate(model.graph):
        node.name = node.name or f"n{i}"
    return name_dimensions(model)


FEEDS = [{"x": np.random.default_rng(s).standard_normal((2, 8)).astype(np.float32)} for s in (0, 1)]
W = np.random.default_rng(9).standard_normal((8, 8)).astype(np.float32)
BEFORE = """g (float[N,8] x) => (float[N,8] y, int64[N] c) {
a = MatMul(x, w)  y = Relu(a)  c = ArgMax<axis=1, keepdims=0>(a) }"""


def test_equal_graphs_agree():
    other = BEFORE.replace("a = MatMul(x, w)", "b = MatMul(x, half)  a = Add(b, b)")
    assert prover(FEEDS)(graph(BEFORE, w=W), graph(BEFORE, w=W)) is None
    assert prover(FEEDS)(graph(BEFORE, w=W), graph(other, half=W / 2)) is None


def test_a_planted_difference_is_found_and_named():
    before = graph(BEFORE, w=W)
    slightly = W.copy()
    slightly[0, 0] += 20 * TOLERANCE
    assert "output 'y' differs by" in prover(FEEDS)(before, graph(BEFORE, w=slightly))
    assert prover(FEEDS)(before, graph(BEFORE, w=W * np.float32(1 + TOLERANCE / 10))) is None
    gone = BEFORE.replace(", int64[N] c", "").replace("c = ArgMax<axis=1, keepdims=0>(a)", "")
    assert prover(FEEDS)(before, graph(gone, w=W)) == "output 'c' is gone"
    reshaped = BEFORE.replace("keepdims=0", "keepdims=1").replace("int64[N] c", "int64[N,1] c")
    assert "'c' differs by inf" in prover(FEEDS)(before, graph(reshaped, w=W))
    assert prover([])(before, graph(reshaped, w=W)) is None


def test_a_difference_on_one_of_several_samples_is_enough():
    before = graph("g (float[N,8] x) => (float[N,8] y) { y = Abs(x) }")
    after = graph("g (float[N,8] x) => (float[N,8] y) { y = Identity(x) }")
    positive = {"x": np.abs(FEEDS[0]["x"])}
    assert prover([positive])(before, after) is None
    assert prover([positive, FEEDS[0]])(before, after) is not None


def test_random_feeds_fit_the_inputs_and_repeat():
    inputs = [
        TensorSpec(name="image", dtype="float32", shape=("N", 3, "h", "w")),
        TensorSpec(name="half", dtype="float16", shape=("N", "h")),
        TensorSpec(name="ids", dtype="int64", shape=("N", "length")),
        TensorSpec(name="turned", dtype="float64", shape=("length", "N")),
        TensorSpec(name="mask", dtype="bool", shape=(4, 2)),
        TensorSpec(name="number", dtype="uint8", shape=()),
    ]
    feeds = random_feeds(inputs, 3, batch=5, free=7)
    shapes = {name: array.shape for name, array in feeds.items()}
    assert shapes == {
        "image": (5, 3, 7, 7), "half": (5, 7), "ids": (5, 7), "turned": (7, 5), "mask": (4, 2), "number": (),
    }  # fmt: skip
    assert {s.name: s.dtype for s in inputs} == {n: a.dtype.name for n, a in feeds.items()}
    assert set(np.unique(feeds["ids"])) == {0, 1}
    again = random_feeds(inputs, 3, batch=5, free=7)
    assert all(np.array_equal(feeds[n], again[n]) for n in feeds)
    assert not np.array_equal(feeds["image"], random_feeds(inputs, 4, batch=5, free=7)["image"])


@pytest.mark.parametrize(
    ("text", "weights", "shape"),
    [
        ("g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }", {"w": W}, (2, 8)),
        ("g (float[N,C] x) => (float[N,D] y) { y = MatMul(x, w) }", {"w": W}, (2, 8)),
        (
            "g (float[N,C] x) => (float[N,D] y) { y = MatMul(x, w) }",
            {"w": np.ones((224, 2), np.float32)},
            (2, 224),
        ),
        (
            "g (float[N,8] x) => (float[1,8] y) { y = Reshape(x, s) }",
            {"s": np.int64([1, 8])},
            (1, 8),
        ),
        ("g (float[3,8] x) => (float[3,8] y) { y = Neg(x) }", {}, (3, 8)),
    ],
)
def test_workable_sizes_are_found(text, weights, shape):
    with open_graph(graph(text, **weights), optimised=False) as session:
        assert workable_feeds(session, 0)["x"].shape == shape


def test_inputs_that_share_a_size_get_one():
    text = "g (float[N,L] x, float[L,N] z) => (float[N,N] y) { y = MatMul(x, z) }"
    with open_graph(graph(text), optimised=False) as session:
        feeds = workable_feeds(session, 0)
    assert feeds["x"].shape == feeds["z"].shape[::-1]


def test_where_no_size_works_the_user_is_asked():
    text = "g (float[N,C] x) => (float[N,D] y) { y = MatMul(x, w) }"
    with (
        open_graph(graph(text, w=np.ones((77, 2), np.float32)), optimised=False) as session,
        pytest.raises(ModelError, match="none of the usual sizes") as caught,
    ):
        workable_feeds(session, 0)
    assert "--shape x=" in caught.value.hint


def test_a_model_that_no_size_helps_is_not_blamed_on_its_size():
    text = "g (float[n,4] x, int64[2] s) => (float[a,b] y) { y = Reshape(x, s) }"
    with (
        open_graph(graph(text), optimised=False) as session,
        pytest.raises(ModelError, match="does not run on random numbers") as caught,
    ):
        workable_feeds(session, 0)
    assert "--shape" not in caught.value.hint


def test_integers_that_may_not_be_zero_are_ones():
    with open_graph(
        graph("g (float[3] x, int64[3] d) => (int64[3] y) { k = Cast<to = 7>(x) y = Div(k, d) }"),
        optimised=False,
    ) as session:
        assert (workable_feeds(session, 0)["d"] == 1).all()


def test_float16_graphs_may_differ_by_their_own_rounding():
    text = "g (float16[2,8] x) => (float16[2,8] y) { h = Mul(x, w) y = Sub(h, v) }"
    half = {"x": FEEDS[0]["x"].astype(np.float16)}
    w, v = np.float16(1.5), np.float16(0.25)
    assert prover([half])(graph(text, w=w, v=v), graph(text, w=w, v=np.nextafter(v, np.float16(1)))) is None
    assert prover([half])(graph(text, w=w, v=v), graph(text, w=w, v=np.float16(0.3))) is not None
