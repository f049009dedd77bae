"""Noise of each block, against running that one block alone with its operands rounded by numpy."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.graph.qdq import dequantize_array, quantize_array
from deploy.quantize.sensitivity import block_sqnr

IMAGE, PAD = "float[N,4,6,6]", "<pads=[1,1,1,1]>"
W = (4, 4, 3, 3)
NET = f"""g ({IMAGE} x) => ({IMAGE} y) {{
[c1] a = Conv{PAD}(x, w1, b1)  [r1] r = Relu(a)  [c2] c = Conv{PAD}(r, w2)
[s] s = Add(c, x)  [r2] t = Relu(s)
[e] e = Exp(t)  [c3] y = Conv{PAD}(e, w3) }}"""
WEIGHTS = {"w1": W, "b1": (4,), "w2": W, "w3": W}


def rounded(result, name: str, array: np.ndarray) -> np.ndarray:
    plan = result.assignment.tensors[name]
    return dequantize_array(quantize_array(array, plan), plan)


@pytest.fixture
def values(session, random_feeds):
    """Every inner value of a float graph on the feeds that the noise is measured on."""

    def run(model):
        shown = model.clone()
        shown.graph.outputs.extend(o for n in shown.graph for o in n.outputs if not o.is_graph_output())
        feeds = random_feeds(model)
        names = [o.name for o in shown.graph.outputs]
        return feeds | dict(zip(names, session(shown, False).run(None, feeds), strict=True))

    return run


def conv(session, graph, x, w, b):
    model = graph(f"g ({IMAGE} x, float[4,4,3,3] w, float[4] b) => ({IMAGE} y) {{ y = Conv{PAD}(x, w, b) }}")
    return session(model, False).run(None, {"x": x, "w": w, "b": b})[0]


def test_each_block_is_judged_alone(graph, quantize, values, session, sqnr):
    model = graph(NET, WEIGHTS)
    result = quantize(model)
    found = block_sqnr(model, result.blocks, result.assignment, result.dataset, samples=16)
    seen = values(model)
    stored = {
        name: dequantize_array(codes, result.assignment.tensors[name])
        for name, codes in result.assignment.codes.items()
    }
    none = np.zeros(4, np.float32)
    x = rounded(result, "x", seen["x"])
    one = rounded(result, "r", np.maximum(conv(session, graph, x, stored["w1"], stored["b1"]), 0))
    inner = conv(session, graph, rounded(result, "r", seen["r"]), stored["w2"], none)
    two = rounded(result, "t", np.maximum(rounded(result, "c", inner) + x, 0))
    three = rounded(result, "y", conv(session, graph, rounded(result, "e", seen["e"]), stored["w3"], none))
    assert found["c1"] == pytest.approx(sqnr(seen["r"], one), abs=0.3)
    assert found["c2"] == pytest.approx(sqnr(seen["t"], two), abs=0.3)
    assert found["c3"] == pytest.approx(sqnr(seen["y"], three), abs=0.3)


def test_the_noise_of_others_does_not_matter(graph, quantize):
    model = graph(NET, WEIGHTS)
    whole = quantize(model)
    alone = quantize(model, float_blocks=["c1", "c3"])
    others = quantize(model, float_blocks=["c2"])

    def of(result):
        return block_sqnr(model, result.blocks, result.assignment, result.dataset, samples=16)

    assert of(alone)["c2"] == pytest.approx(of(whole)["c2"], abs=0.1)
    for block in ("c1", "c3"):
        assert of(others)[block] == pytest.approx(of(whole)[block], abs=0.1)


def test_a_block_that_eight_bits_ruin_comes_first(graph, quantize):
    weights = {name: np.random.default_rng(0).standard_normal(W).astype(np.float32) for name in ("w1", "w2")}
    weights["w2"][:, 0, 0, 0] = 1000  # one weight a channel leaves no codes to the others
    text = f"g ({IMAGE} x) => ({IMAGE} y) {{ [c1] a = Conv{PAD}(x, w1)  [c2] y = Conv{PAD}(z, w2) }}"
    text = text.replace("[c2]", "m = Mul(a, mask)  [c2]").replace("(z,", "(m,")
    mask = np.ones((4, 1, 1), np.float32)
    mask[0] = 0  # what would carry the large weights is silent
    model = graph(text, {**weights, "mask": mask})
    result = quantize(model)
    found = block_sqnr(model, result.blocks, result.assignment, result.dataset, samples=16)
    assert found["c2"] < 5 < 25 < found["c1"]


def test_nothing_lost_is_infinite_and_float_blocks_are_not_blamed(graph, quantize):
    model = graph(f"g ({IMAGE} x) => ({IMAGE} y) {{ [e] e = Exp(x)  [c] y = Conv{PAD}(e, w) }}", {"w": W})
    result = quantize(model)
    found = block_sqnr(model, result.blocks, result.assignment, result.dataset, samples=16)
    assert 20 < found["c"] < 60
    assert found.get("e", np.inf) == np.inf or found["e"] > 20
    exact = {"x": np.random.default_rng(0).integers(0, 256, (16, 4, 6, 6)).astype(np.float32)}
    pool = graph("g (float[N,4,6,6] x) => (float[N,4,6,6] y) { [s] y = Add(x, x) }")
    whole = quantize(pool, feeds=exact)
    noise = block_sqnr(pool, whole.blocks, whole.assignment, whole.dataset, samples=16)
    assert noise["s"] == np.inf


def test_blocks_without_quantized_values_are_not_measured(graph, quantize):
    model = graph(NET, WEIGHTS)
    result = quantize(model, float_blocks=["c1", "c2", "c3"])
    assert block_sqnr(model, result.blocks, result.assignment, result.dataset, samples=16) == {}


def test_only_the_samples_asked_for_count(graph, quantize, random_feeds):
    model = graph(NET, WEIGHTS)
    feeds = random_feeds(model, 40)
    feeds["x"][20:] *= 4
    whole, calm = quantize(model, feeds=feeds), quantize(model, feeds={"x": feeds["x"][:20]})
    assignment = whole.assignment
    first = block_sqnr(model, whole.blocks, assignment, whole.dataset, samples=20)
    same = block_sqnr(model, whole.blocks, assignment, calm.dataset, samples=999)
    assert first == pytest.approx(same)
    everything = block_sqnr(model, whole.blocks, assignment, whole.dataset, samples=40)
    assert first["c1"] < everything["c1"], "large samples lose less"


def test_a_mask_that_overflows_is_the_worst_of_all(graph, quantize):
    model = graph(
        "g (float[N,8] x, float[N,8] m) => (float[N,8] y) { [s] s = Add(x, m)  [p] y = Softmax(s) }"
    )
    feeds = {
        "x": np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32),
        "m": np.tile(np.float32([0] * 7 + [np.finfo(np.float32).min]), (16, 1)),
    }
    result = quantize(model, feeds=feeds)
    found = block_sqnr(model, result.blocks, result.assignment, result.dataset, samples=16)
    assert found["s"] == -np.inf


def test_a_sequence_between_blocks_is_no_signal(graph, quantize):
    text = """g (float[N,4,6,6] x) => (float[N,4,6,6] y) <seq(float[N,2,6,6]) s> {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1)  [split] s = SplitToSequence<axis=1>(a, two)
    [at] b = SequenceAt(s, one)  [c2] y = Conv<pads=[1,1,1,1]>(b, w2) }"""
    arrays = {"w1": W, "w2": (4, 2, 3, 3), "two": np.int64(2), "one": np.int64(1)}
    result = quantize(graph(text, arrays))
    found = block_sqnr(result.model, result.blocks, result.assignment, result.dataset, samples=16)
    assert {"c1", "c2"} <= found.keys()
    assert all(db > 20 for db in found.values())
