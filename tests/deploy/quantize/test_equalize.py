"""Equalization: the same function, and the noise of what one scale ruins taken away, run in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph.qdq import insert
from deploy.quantize import equalize

IMAGE = "float[N,8,6,6]"
SPREAD = np.geomspace(0.03, 30, 8)
"""Channels 1:1000."""


def mobile(graph, spread=SPREAD):
    """A pointwise, a depthwise and a pointwise convolution; channels in between have unlike ranges."""
    rng = np.random.default_rng(0)
    w1 = rng.standard_normal((8, 8, 1, 1)) * spread[:, None, None, None] / 3
    dw = rng.standard_normal((8, 1, 3, 3)) / 3
    w2 = rng.standard_normal((8, 8, 1, 1)) / spread[None, :, None, None] / 3
    return graph(
        f"""g ({IMAGE} x) => ({IMAGE} y) {{ [c1] a = Conv(x, w1, b1) [r1] r = Relu(a)
        [dw] d = Conv<group=8, pads=[1,1,1,1]>(r, wd, bd) [r2] s = Relu(d) [c2] y = Conv(s, w2, b2) }}""",
        {
            "w1": w1.astype(np.float32), "b1": (0.1 * spread).astype(np.float32),
            "wd": dw.astype(np.float32), "bd": (0.1 * spread).astype(np.float32),
            "w2": w2.astype(np.float32), "b2": np.zeros(8, np.float32),
        },
    )  # fmt: skip


def raised(model, whole, runtime, observer="minmax"):
    return equalize.apply(model, whole.placement, runtime.quant, whole.dataset, observer=observer, samples=64)


@pytest.fixture
def noise(session, random_feeds, sqnr, quantize):
    """The signal-to-noise ratio of a graph's INT8 form on new data, against a float graph."""

    def of(model, reference, runtime) -> float:
        feeds = random_feeds(reference, 32, seed=5)
        whole = quantize(model, runtime, feeds=random_feeds(reference, 64))
        return sqnr(session(reference).run(None, feeds)[0], session(whole.qdq).run(None, feeds)[0])

    return of


@pytest.mark.parametrize("rules", ["unsigned", "symmetric", "affine"])
def test_a_depthwise_network_of_unlike_channels_is_recovered(
    rules, request, graph, quantize, session, random_feeds, noise
):
    runtime = request.getfixturevalue(rules)
    model = mobile(graph)
    rung = raised(model, quantize(model, runtime, feeds=random_feeds(model, 64)), runtime)
    feeds = random_feeds(model, 4, seed=9)
    before, after = session(model, False).run(None, feeds)[0], session(rung.result, False).run(None, feeds)[0]
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert {step.place for step in rung.steps} == {"dw", "c2"}
    assert noise(model, model, runtime) < 15 < 25 < noise(rung.result, model, runtime)


def test_what_it_expects_is_what_comes(graph, quantize, session, random_feeds, symmetric):
    """Noise over signal behind the last layer, its input and weights alone quantized."""
    model = mobile(graph, np.geomspace(0.1, 10, 8))
    feeds = random_feeds(model, 64)
    whole = quantize(model, symmetric, feeds=feeds)
    rung = raised(model, whole, symmetric)
    step = next(step for step in rung.steps if step.place == "c2")
    exact = session(model, False).run(None, feeds)[0]
    for stage, expected in (
        (whole, step.before),
        (quantize(rung.result, symmetric, feeds=feeds), step.after),
    ):
        some = {n: stage.assignment.tensors[n] for n in ("s", "w2")}
        found = session(insert(stage.model, some, stage.assignment.codes), False).run(None, feeds)[0]
        measured = np.square(found - exact).sum() / np.square(exact).sum()
        assert abs(10 * np.log10(measured / expected)) < 3


def test_like_channels_are_left_alone(graph, quantize, random_feeds, unsigned):
    signs = np.float32([[(-1) ** (i & j).bit_count() for i in range(8)] for j in range(8)])
    model = mobile(graph, np.ones(8))
    for name in ("w1", "w2"):
        model.graph.initializers[name].const_value = ir.tensor(signs.reshape(8, 8, 1, 1) / 3, name=name)
    model.graph.initializers["wd"].const_value = ir.tensor(np.full((8, 1, 3, 3), 0.1, np.float32), name="wd")
    rung = raised(model, quantize(model, feeds=random_feeds(model, 64)), unsigned)
    assert rung.steps == () and not rung.changed


def test_single_scales_of_weights_are_weighed_too(graph, quantize, random_feeds, unsigned, noise):
    """With one scale for all weights the paper's own case: rows of the first layer count."""
    runtime = unsigned.model_copy(
        update={"quant": unsigned.quant.model_copy(update={"per_channel": False, "weight_bits": 8})}
    )
    model = mobile(graph)
    rung = raised(model, quantize(model, runtime, feeds=random_feeds(model, 64)), runtime)
    assert noise(rung.result, model, runtime) > noise(model, model, runtime) + 10


def test_a_residual_group_gets_one_factor_a_channel(graph, quantize, session, random_feeds, unsigned, noise):
    rng = np.random.default_rng(0)
    up, down = SPREAD[:, None, None, None] / 3, 1 / SPREAD[None, :, None, None] / 3
    square = rng.standard_normal((8, 8, 1, 1)) * SPREAD[:, None, None, None] / SPREAD[None, :, None, None] / 3
    model = graph(
        f"""g ({IMAGE} x) => ({IMAGE} y) {{ [c1] a = Conv(x, w1) [r1] r = Relu(a)
        [c2] b = Conv(r, w2) [s] s = Add(r, b) [r2] t = Relu(s) [c3] y = Conv(t, w3) }}""",
        {
            "w1": (rng.standard_normal((8, 8, 1, 1)) * up).astype(np.float32),
            "w2": square.astype(np.float32),
            "w3": (rng.standard_normal((8, 8, 1, 1)) * down).astype(np.float32),
        },
    )
    rung = raised(model, quantize(model, feeds=random_feeds(model, 64)), unsigned)
    assert [step.place for step in rung.steps] == ["c2, c3"]
    feeds = random_feeds(model, 4, seed=9)
    before, after = session(model, False).run(None, feeds)[0], session(rung.result, False).run(None, feeds)[0]
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert noise(rung.result, model, unsigned) > noise(model, model, unsigned) + 10


def clipped(graph, top: float):
    rng = np.random.default_rng(0)
    return graph(
        f"""g ({IMAGE} x) => ({IMAGE} y) {{ [c1] a = Conv(x, w1) [k] r = Clip(a, low, high)
        [c2] y = Conv(r, w2) }}""",
        {
            "w1": (rng.standard_normal((8, 8, 1, 1)) * SPREAD[:, None, None, None] / 3).astype(np.float32),
            "w2": (rng.standard_normal((8, 8, 1, 1)) / SPREAD[None, :, None, None] / 3).astype(np.float32),
            "low": np.float32(0), "high": np.float32(top),
        },
    )  # fmt: skip


def test_a_clip_that_data_reach_holds_its_channels(graph, quantize, session, random_feeds, unsigned):
    for top in (6.0, 1000.0):
        model = clipped(graph, top)
        feeds = random_feeds(model, 64)
        rung = raised(model, quantize(model, feeds=feeds), unsigned)
        before, after = (
            session(model, False).run(None, feeds)[0],
            session(rung.result, False).run(None, feeds)[0],
        )
        assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
        assert rung.changed


def test_high_biases_move_on(graph, quantize, session, random_feeds, unsigned, noise):
    """What all values of a channel exceed need not be covered. (The output's own range remains.)"""
    bias = np.full(8, 100, np.float32)
    model = graph(
        f"""g ({IMAGE} x) => ({IMAGE} y) {{ [c1] a = Conv(x, w1, b1) [r1] r = Relu(a)
        [c2] y = Conv(r, w2, b2) }}""",
        {"w1": (8, 8, 1, 1), "b1": bias, "w2": (8, 8, 1, 1), "b2": (8,)},
    )
    feeds = random_feeds(model, 64)
    rung = raised(model, quantize(model, feeds=feeds), unsigned)
    assert [step.what for step in rung.steps] == ["high biases absorbed"]
    before, after = session(model, False).run(None, feeds)[0], session(rung.result, False).run(None, feeds)[0]
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert noise(rung.result, model, unsigned) > noise(model, model, unsigned) + 5


def test_padding_holds_biases_back(graph, quantize, random_feeds, unsigned):
    model = graph(
        f"""g ({IMAGE} x) => ({IMAGE} y) {{ [c1] a = Conv(x, w1, b1) [r1] r = Relu(a)
        [c2] y = Conv<pads=[1,1,1,1]>(r, w2) }}""",
        {"w1": (8, 8, 1, 1), "b1": np.full(8, 100, np.float32), "w2": (8, 8, 3, 3)},
    )
    rung = raised(model, quantize(model, feeds=random_feeds(model, 64)), unsigned)
    assert not any("absorbed" in step.what for step in rung.steps)
