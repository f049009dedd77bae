"""What is kept of values, against numpy over all of them at once."""

import math

import numpy as np
import pytest

from deploy.data.dataset import open_dataset
from deploy.graph.summary import tensor_specs
from deploy.quantize.seen import SAMPLES, Seen, channel_axis, look, of_data, of_feeds


@pytest.mark.parametrize("axis", [1, -1])
def test_batches_add_up_to_the_whole(axis):
    values = np.random.default_rng(0).standard_normal((8, 4, 5)).astype(np.float32) * 3 + 1000
    seen = Seen()
    for part in (values[:3], values[3:4], values[4:]):
        seen.add(part, axis)
    others = (0, 2) if axis == 1 else (0, 1)
    exact = values.astype(np.float64)
    assert (seen.low, seen.high) == (values.min(), values.max())
    np.testing.assert_allclose(seen.variances, exact.var(axis=others), rtol=1e-6)
    assert seen.variance == pytest.approx(exact.var(), rel=1e-6)
    np.testing.assert_allclose(seen.widths, exact.max(axis=others), rtol=1e-7)
    assert seen.numbers == values.size // values.shape[axis]


def test_ranges_hold_zero():
    seen = Seen()
    seen.add(np.array([[2.0, -3.0], [4.0, -5.0]], np.float32), 1)
    assert (seen.width, seen.widths.tolist()) == (9.0, [4.0, 5.0])


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_endless(odd):
    seen = Seen()
    seen.add(np.array([1.0, odd], np.float32), 0)
    assert seen.endless and not seen.bounded
    assert not Seen().endless and not Seen().bounded


def test_only_the_first_samples_are_read(graph):
    model = graph("g (float[n, 4] x) => (y) { y = Relu (x) }")
    feeds = np.arange(80, dtype=np.float32).reshape(20, 4)
    samples = of_data(model, open_dataset({"x": feeds}, tensor_specs(model.graph.inputs)))
    assert (samples.count, str(samples)) == (SAMPLES, "8 samples")
    assert look(samples.run, {"y": None})["y"].high == feeds[:SAMPLES].max()
    few = of_data(model, open_dataset({"x": feeds[:1]}, tensor_specs(model.graph.inputs)))
    assert str(few) == "1 sample"


def test_random_inputs_are_called_so(graph):
    model = graph("g (float[n, 4] x) => (y) { y = Relu (x) }")
    samples = of_feeds(model, {"x": np.full((2, 4), 3, np.float32)})
    assert str(samples) == "2 random inputs"
    assert look(samples.run, {"y": 1})["y"].lows.tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("a = Conv (x, w) y = Relu (a)", 1),
        ("a = Conv (x, w) p = MaxPool <kernel_shape = [2, 2]> (a) y = Relu (p)", 1),
        ("a = MatMul (x, u) b = Add (a, c) y = Relu (b)", -1),
        ("a = Conv (x, w) t = Transpose (a) y = Relu (t)", None),
        ("y = Relu (x)", None),
        ("a = MatMul (x, x) y = Relu (a)", None),
    ],
)
def test_channels_are_followed_to_what_made_them(text, axis, graph):
    shapes = {"w": (5, 4, 1, 1), "u": (4, 5), "c": (5,)}
    used = {name: shape for name, shape in shapes.items() if f" {name})" in text}
    model = graph(f"g (float[n, 4, 4, 4] x) => (y) {{ {text} }}", used)
    assert channel_axis(model.graph.outputs[0]) == axis
