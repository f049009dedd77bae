"""Calibration against numpy on the values that ONNX Runtime computes for all samples at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from deploy.data.dataset import open_dataset
from deploy.errors import DataError
from deploy.graph.summary import tensor_specs
from deploy.quantize.calibrate import calibrate
from deploy.quantize.ranges import Histogram

NET = """g (float[{n},4,6,6] x) => (float[{n},144] y) {{
a = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(a)  t = Transpose<perm=[1,0,2,3]>(r)  y = Flatten(r) }}"""
W = (4, 4, 3, 3)


def dataset_of(model, feeds):
    return open_dataset(feeds, tensor_specs(model.graph.inputs))


def content(h: Histogram) -> tuple[object, ...]:
    return h.exponent, h.counts.tolist(), h.zeros, h.low, h.high


def counted(array: np.ndarray) -> Histogram:
    h = Histogram()
    h.add(array.astype(np.float32), float(array.min()), float(array.max()))
    return h


@pytest.mark.parametrize("n", ["N", 1, 4])
def test_all_samples_count_whatever_the_batch(n, graph, session):
    x = np.random.default_rng(0).standard_normal((70, 4, 6, 6)).astype(np.float32)
    model = graph(NET.format(n=n), {"w": W})
    free = graph(
        NET.format(n="N").replace("(float[N,144] y)", "(float[N,144] y, float[N,4,6,6] a)"), {"w": W}
    )
    y, a = session(free, optimised=False).run(None, {"x": x})
    found = calibrate(model, dataset_of(model, {"x": x}), ["x", "a", "y"], samples=70)
    assert content(found["x"]) == content(counted(x))
    for name, array in (("a", a), ("y", y)):
        assert found[name].total == array.size
        np.testing.assert_allclose((found[name].low, found[name].high), (array.min(), array.max()), rtol=1e-5)


def test_only_the_first_samples_count_and_order_does_not(graph):
    model = graph(NET.format(n="N"), {"w": W})
    x = np.random.default_rng(0).standard_normal((40, 4, 6, 6)).astype(np.float32)
    first = calibrate(model, dataset_of(model, {"x": x}), ["r"], samples=30)
    alone = calibrate(model, dataset_of(model, {"x": x[:30]}), ["r"], samples=512)
    turned = calibrate(model, dataset_of(model, {"x": x[29::-1]}), ["r"], samples=30)
    assert first["r"].total == 30 * 144
    assert content(first["r"]) == content(alone["r"])
    assert (first["r"].low, first["r"].high) == (turned["r"].low, turned["r"].high)
    assert (
        np.abs(first["r"].counts - turned["r"].counts).sum() <= 4
    )  # values on an edge, one way or the other


def test_large_values_are_counted_in_part_their_extremes_in_full(graph):
    model = graph("g (float[N,300,300] x) => (float[N,300,300] y) { y = Neg(x) }")
    x = np.random.default_rng(0).standard_normal((3, 300, 300)).astype(np.float32)
    x[1, 100, 101] = 77.0
    found = calibrate(model, dataset_of(model, {"x": x}), ["x", "y"], samples=3)
    assert 3 * 4000 < found["x"].total <= 3 * 8192
    assert found["x"].high == 77.0
    assert found["y"].low == -77.0


def test_values_without_a_batch_axis_or_of_no_rank(graph):
    model = graph(
        "g (float[N,3] x) => (float y) { t = Transpose<perm=[1,0]>(x)  y = ReduceMax<keepdims=0>(t) }"
    )
    x = np.random.default_rng(0).standard_normal((70, 3)).astype(np.float32)
    found = calibrate(model, dataset_of(model, {"x": x}), ["t", "y"], samples=70)
    assert found["t"].total == 210
    assert (found["t"].low, found["t"].high, found["y"].high) == (x.min(), x.max(), x.max())


def test_a_value_that_is_no_number_is_named(graph):
    model = graph("g (float[N,2] x) => (float[N,2] y) { a = Log(x)  y = Relu(a) }")
    x = np.ones((50, 2), np.float32)
    x[45, 1] = -1.0
    with pytest.raises(DataError, match="'a' becomes NaN on calibration samples 0 to 49") as caught:
        calibrate(model, dataset_of(model, {"x": x}), ["a"], samples=64)
    assert "normalisation" in caught.value.hint


def test_a_value_that_becomes_infinite_is_unbounded_for_good(graph):
    model = graph("g (float[N,2] x) => (float[N,2] y) { a = Reciprocal(x)  y = Relu(a) }")
    x = np.ones((50, 2), np.float32)
    x[3, 1] = 0.0
    found = calibrate(model, dataset_of(model, {"x": x}), ["a", "x"], samples=64)
    assert not found["a"].bounded
    assert found["x"].bounded


def test_nothing_to_observe(graph):
    model = graph("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    assert calibrate(model, dataset_of(model, {"x": np.ones((2, 2), np.float32)}), [], samples=2) == {}


def test_progress_counts_samples(graph):
    steps: list[tuple[int, int]] = []

    class Recorder:
        def advance(self, done: int, total: int) -> None:
            steps.append((done, total))

    model = graph("g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    data = dataset_of(model, {"x": np.ones((130, 2), np.float32)})
    calibrate(model, data, ["y"], samples=100, progress=Recorder())
    assert steps[-1] == (100, 100)
    assert steps == sorted(steps)


def test_memory_does_not_grow_with_the_samples(graph):
    model = graph("g (float[N,64,64] x) => (float[N,64,64] y) { a = Neg(x)  y = Relu(a) }")

    class Endless:
        """The same small array again and again, so that the data themselves take no room."""

        origin, digest, labelled = "endless", "", False

        def __init__(self, count: int) -> None:
            self.count = count
            self.one = dataset_of(model, {"x": np.ones((64, 64, 64), np.float32)})

        def __len__(self) -> int:
            return self.count

        def batches(self, size, limit=None, *, feeds=True):
            left = min(self.count, limit or self.count)
            while left > 0:
                yield from self.one.batches(size, limit=min(left, 64))
                left -= 64

        def select(self, rows):
            raise NotImplementedError

    def peak(count: int) -> int:
        tracemalloc.start()
        calibrate(model, Endless(count), ["x", "a", "y"], samples=count)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(64)
    assert peak(1024) < 1.1 * peak(64)
