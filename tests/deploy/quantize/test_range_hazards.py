"""Each hazard on the smallest graph that has it, shown there to cost accuracy, and silence on its twin.

What INT8 costs is measured by running the quantized graph, not by what the hazards themselves say.
"""

import numpy as np
import pytest

from deploy.data.dataset import open_dataset
from deploy.graph.summary import tensor_specs
from deploy.quantize.data_hazards import data_hazards
from deploy.quantize.range_hazards import Measured, collapsed
from deploy.quantize.seen import of_data

LOST, HELD = 20.0, 25.0
"""Decibels of the output over the noise of INT8: below the one a graph is spoilt, above the other not."""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scaled(array, axis, factor, index=0):
    """``array`` with what lies at ``index`` of ``axis`` multiplied."""
    found = array.copy()
    found[(slice(None),) * axis + (index,)] *= np.float32(factor)
    return found


def swish(factor):
    """One channel reaches far and is hardly listened to; the others live in the lobe below zero."""
    first, second = normal(8, 4, 1, 1, seed=1) / 2, normal(6, 8, 1, 1, seed=2)
    bias = np.full(8, -0.7, np.float32)
    return (
        "g (float[n, 4, 6, 6] x) => (y) { a = Conv (x, w, b) c = HardSwish (a) y = Conv (c, v) }",
        {"w": scaled(first, 0, factor), "b": bias, "v": scaled(second, 1, 1 / factor)},
        normal(16, 4, 6, 6),
    )


def spelled_out(factor):
    text, weights, feeds = swish(factor)
    return text.replace("c = HardSwish (a)", "s = Sigmoid (a) c = Mul (a, s)"), weights, feeds


def depthwise(factor):
    first, spatial, last = normal(8, 4, 1, 1, seed=1), normal(8, 1, 3, 3, seed=2), normal(6, 8, 1, 1, seed=3)
    return (
        "g (float[n, 4, 6, 6] x) => (y) { a = Conv (x, w) r = Relu (a)"
        " d = Conv <group = 8> (r, s) y = Conv (d, v) }",
        {"w": scaled(first, 0, factor), "s": scaled(spatial, 0, 1 / factor), "v": last},
        normal(16, 4, 6, 6),
    )


def concat(factor):
    wide, last = normal(4, 3, 1, 1, seed=1), normal(6, 8, 1, 1, seed=3)
    last[:, 4:] *= np.float32(factor)
    return (
        "g (float[n, 3, 6, 6] x, float[n, 3, 6, 6] z) => (y)"
        " { a = Conv (x, w) b = Conv (z, u) c = Concat <axis = 1> (a, b) y = Conv (c, v) }",
        {"w": wide, "u": normal(4, 3, 1, 1, seed=2) / np.float32(factor), "v": last},
        {"x": normal(16, 3, 6, 6), "z": normal(16, 3, 6, 6, seed=4)},
    )


def addition(factor):
    """A branch beside a stream in one channel of which a large constant stands."""
    bias = np.zeros(8, np.float32)
    bias[0] = 10 * factor
    return (
        "g (float[n, 4, 6, 6] x) => (y)"
        " { a = Conv (x, w, b) r = Conv (x, u) c = Add (a, r) y = Conv (c, v) }",
        {
            "w": normal(8, 4, 1, 1, seed=1) / 50,
            "b": bias,
            "u": normal(8, 4, 1, 1, seed=2) / 50,
            "v": normal(6, 8, 1, 1, seed=3),
        },
        normal(16, 4, 6, 6),
    )


def outlier(factor):
    """What LayerNorm makes, with a feature that it shifts far out in every row: SmoothQuant's situation."""
    gain, shift = np.ones(32, np.float32), np.zeros(32, np.float32)
    shift[5] = factor
    return (
        "g (float[n, 10, 32] x) => (y) { a = LayerNormalization (x, g, s) y = MatMul (a, w) }",
        {"g": gain, "s": shift, "w": normal(32, 16, seed=1)},
        normal(16, 10, 32),
    )


def logits(mask):
    """Attention whose mask is a large finite number that is added."""
    blocked = np.zeros((1, 12, 12), np.float32)
    blocked[:, :, 9:] = -mask
    return (
        "g (float[n, 12, 8] x, float[n, 12, 12] m) => (y) { q = MatMul (x, w) k = MatMul (x, u)"
        " t = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, t) l = Add (s, m) p = Softmax (l)"
        " z = MatMul (x, v) y = MatMul (p, z) }",
        {"w": normal(8, 8, seed=1) / 2, "u": normal(8, 8, seed=2) / 2, "v": normal(8, 8, seed=3)},
        {"x": normal(16, 12, 8), "m": np.repeat(blocked, 16, axis=0)},
    )


CASES = {
    "swish-range": (swish, 60, 1, "unsigned"),
    "swish-range, spelled out": (spelled_out, 60, 1, "unsigned"),
    "depthwise-activation": (depthwise, 300, 1, "unsigned"),
    "concat-ranges": (concat, 200, 1, "unsigned"),
    "add-ranges": (addition, 5, 0.001, "unsigned"),
    "outlier-activation": (outlier, 200, 1, "unsigned"),
    "attention-logits": (logits, 10000, 4, "affine"),
}


@pytest.fixture
def judge(graph, quantize, session, sqnr, request):
    """The kinds found, and the decibels that the output keeps when everything is INT8."""

    def judged(case, runtime):
        text, weights, feeds = case
        feeds = feeds if isinstance(feeds, dict) else {"x": feeds}
        runtime = request.getfixturevalue(runtime)
        model = graph(text, weights)
        dataset = open_dataset(feeds, tensor_specs(model.graph.inputs))
        (found,) = data_hazards(model, [runtime], of_data(model, dataset)).values()
        made = quantize(model, runtime, feeds=feeds)
        want, got = session(model).run(None, feeds)[0], session(made.qdq, optimised=False).run(None, feeds)[0]
        # What never changes tells nothing apart: the mean of each channel is no signal.
        mean = want.mean(axis=(0, 2, 3) if want.ndim == 4 else (0, 1), keepdims=True)
        return found, sqnr(want - mean, got - mean)

    return judged


@pytest.mark.parametrize("case", CASES)
def test_a_hazard_is_seen_where_it_costs_and_nowhere_else(case, judge):
    make, bad, good, runtime = CASES[case]
    found, decibels = judge(make(bad), runtime)
    assert {h.kind for h in found} == {case.partition(",")[0]}
    assert {h.severity for h in found} == {"warning"}
    assert decibels < LOST
    found, decibels = judge(make(good), runtime)
    assert [h.kind for h in found] == []
    assert decibels > HELD


def test_what_stays_float_is_never_warned_of(judge, graph):
    """The same mask where Softmax and what feeds it are float: no rounding, no warning."""
    found, decibels = judge(logits(10000), "symmetric")
    assert [h.kind for h in found] == []
    assert decibels > HELD


def test_levels_alone_are_no_hazard(judge):
    """A wide channel that nothing evens out afterwards is what the network tells apart: no harm is done."""
    text, weights, feeds = swish(60)
    found, decibels = judge((text, {**weights, "v": normal(6, 8, 1, 1, seed=2)}, feeds), "unsigned")
    assert [h.kind for h in found] == []
    assert decibels > HELD


def test_the_numbers_are_those_of_the_values(judge):
    (found,), _ = judge(concat(200), "unsigned")
    assert "'b' spans" in found.text and "(8 samples)" in found.text and found.node


def test_noise_is_only_noted(graph, unsigned):
    text, weights, feeds = swish(60)
    model = graph(text, weights)
    dataset = open_dataset({"x": feeds}, tensor_specs(model.graph.inputs))
    (found,) = data_hazards(model, [unsigned], of_data(model, dataset, random=True)).values()
    assert [(h.kind, h.severity) for h in found] == [("swish-range", "note")]
    assert "8 random inputs" in found[0].text


def test_excluded_nodes_are_float(graph, unsigned):
    text, weights, feeds = swish(60)
    model = graph(text, weights)
    dataset = open_dataset({"x": feeds}, tensor_specs(model.graph.inputs))
    reader = next(n.name for n in model.graph if n.outputs[0].name == "y")
    (found,) = data_hazards(model, [unsigned], of_data(model, dataset), excluded=[reader]).values()
    assert found == []


def test_sixteen_bits_have_room(graph, unsigned):
    text, weights, feeds = swish(60)
    model = graph(text, weights)
    wide = unsigned.model_copy(update={"quant": unsigned.quant.model_copy(update={"activation": "int16"})})
    plain = unsigned.model_copy(update={"quant": None, "name": "plain"})
    dataset = open_dataset({"x": feeds}, tensor_specs(model.graph.inputs))
    assert data_hazards(model, [wide, plain], of_data(model, dataset)) == {"unsigned": [], "plain": []}


def test_a_kind_is_told_once_with_its_worst_place():
    found = [
        Measured(node, "k", f"what of {node}", "cure", badness) for node, badness in (("a", 1), ("b", 2))
    ]
    assert collapsed(found) == [("k", ["b", "a"], "at b, the worst of 2, what of b: cure")]
    assert collapsed(found[:1]) == [("k", ["a"], "what of a: cure")]


def test_saturation_is_told_where_weights_have_8_bits_and_pairs_16(graph, unsigned):
    """Positive weights times images that never go below zero: the first layer of any network of pixels."""
    model = graph(
        "g (float[n, 4, 6, 6] x) => (y) { y = Conv (x, w) }", {"w": np.ones((8, 4, 3, 3), np.float32)}
    )
    images = np.random.default_rng(0).uniform(0, 1, (16, 4, 6, 6)).astype(np.float32)
    dataset = open_dataset({"x": images}, tensor_specs(model.graph.inputs))
    for bits, pairs, kinds in ((8, "running", ["saturation"]), (7, "running", []), (8, "exact", [])):
        rules = unsigned.quant.model_copy(update={"weight_bits": bits, "pairs": pairs})
        runtime = unsigned.model_copy(update={"quant": rules})
        (found,) = data_hazards(model, [runtime], of_data(model, dataset)).values()
        assert [h.kind for h in found] == kinds


def test_a_small_addend_that_nobody_listens_to_is_no_loss(judge):
    _, weights, feeds = addition(5)
    found, decibels = judge(
        (
            "g (float[n, 4, 6, 6] x) => (y) { a = Conv (x, w) r = Conv (x, u) y = Add (a, r) }",
            {"w": weights["u"] * 500, "u": weights["u"]},
            feeds,
        ),
        "unsigned",
    )
    assert [h.kind for h in found] == []
    assert decibels > HELD


def test_a_model_that_came_with_8_bits_saturates_whatever_the_profile_wants(graph, unsigned, quantize):
    """The profile's 7 bits come too late: what came quantized is taken over exactly."""
    model = graph(
        "g (float[n, 4, 6, 6] x) => (y) { y = Conv (x, w) }", {"w": np.ones((8, 4, 3, 3), np.float32)}
    )
    feeds = {"x": np.random.default_rng(0).uniform(0, 1, (16, 4, 6, 6)).astype(np.float32)}
    dataset = open_dataset(feeds, tensor_specs(model.graph.inputs))
    avx2 = unsigned.model_copy(update={"quant": unsigned.quant.model_copy(update={"pairs": "running"})})
    for bits, kinds in ((8, ["saturation"]), (7, [])):
        rules = unsigned.quant.model_copy(update={"weight_bits": bits})
        came = quantize(model, unsigned.model_copy(update={"quant": rules}), feeds=feeds).assignment.tensors
        (found,) = data_hazards(model, [avx2], of_data(model, dataset), imported=came).values()
        assert [h.kind for h in found] == kinds
        assert not found or "give the float model" in found[0].text
