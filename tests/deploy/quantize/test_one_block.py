"""One treated block, against the whole Q/DQ graph of it run end to end, and against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.data.dataset import open_dataset
from deploy.errors import DataError, UnsupportedError
from deploy.graph.blocks import partition
from deploy.graph.summary import tensor_specs
from deploy.quantize.calibrate import calibrate
from deploy.quantize.divergence import Moved, heads
from deploy.quantize.one_block import Blockwise, measure
from deploy.quantize.perturb import PLAIN, Setting, treatable, values_to_observe

IMAGE, PAD = "float[N,4,6,6]", "<pads=[1,1,1,1]>"
W = (4, 4, 3, 3)
NET = f"""g ({IMAGE} x) => (float[N,5] y) {{
[c1] a = Conv{PAD}(x, w1, b1)  [r1] r = Relu(a)  [c2] c = Conv{PAD}(r, w2)
[s] s = Add(c, x)  [r2] t = Relu(s)  [c3] d = Conv{PAD}(t, w3)  [e] e = Sigmoid(d)
[p] p = GlobalAveragePool(e)  [f] f = Flatten(p)  [fc] y = Gemm(f, w4, b4) }}"""
LAST = 20 * np.random.default_rng(5).standard_normal((4, 5)).astype(np.float32)
WEIGHTS = {"w1": W, "b1": (4,), "w2": W, "w3": W, "w4": LAST, "b4": (5,)}


@pytest.fixture
def prepare(random_feeds):
    """A setting with the ranges of random samples, and these as a dataset."""

    def run(model, runtime=PLAIN, feeds=None, observer="minmax"):
        given = random_feeds(model, 24) if feeds is None else feeds
        dataset = open_dataset(given, tensor_specs(model.graph.inputs))
        bare = Setting(model, partition(model), runtime)
        ranges = calibrate(model, dataset, values_to_observe(bare), samples=64)
        return Setting(model, bare.blocks, runtime, ranges, observer), dataset

    return run


def kl(a, b):
    p, q = (np.exp(v - v.max(1, keepdims=True)) for v in (a.astype(np.float64), b.astype(np.float64)))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return float((p * np.log(p / q)).sum(1).mean())


@pytest.mark.parametrize("rules", ["unsigned", "symmetric", "affine"])
def test_it_is_what_the_quantized_graph_loses(
    graph, quantize, session, prepare, random_feeds, rules, request
):
    runtime = request.getfixturevalue(rules)
    model = graph(NET, WEIGHTS)
    setting, dataset = prepare(model, runtime)
    found = measure(setting, dataset, ("int8",), samples=24)
    feeds = random_feeds(model, 24)
    want = session(model, False).run(None, feeds)[0]
    blocks = [block.id for block in setting.blocks]
    assert {block for block, _ in found} >= {"c1", "c2", "c3", "fc"}
    for block, _ in found:
        others = [b for b in blocks if b != block]
        result = quantize(model, runtime, float_blocks=others, feeds=feeds)
        got = session(result.qdq, False).run(None, feeds)[0]
        assert found[block, "int8"].kl == pytest.approx(kl(want, got), rel=0.02, abs=1e-9), block


def test_reused_prefixes_change_no_bit(graph, prepare):
    model = graph(NET, WEIGHTS)
    setting, dataset = prepare(model)
    network = Blockwise(model, setting.blocks, ["y"])
    feeds = next(dataset.batches(24)).feeds
    kept = network.run(dict(feeds))
    for block in setting.blocks:
        with network.treated(block.id, {}, {}) as same:
            again = network.run_from(block.id, same, kept)
        assert np.array_equal(again["y"], kept["y"]), block.id
        # The same with everything that comes before computed anew.
        constants = network.parts[block.id].graph.initializers.items()
        scaled = {n: 1.5 * v.const_value.numpy() for n, v in constants if v.dtype.is_floating_point()}
        with network.treated(block.id, scaled, {}) as treated:
            reused = network.run_from(block.id, treated, kept)
            whole = Blockwise(model, setting.blocks, ["y"])
            whole._sessions[block.id] = treated
            assert np.array_equal(reused["y"], whole.run(dict(feeds))["y"]), block.id


def test_block_by_block_is_the_network(graph, prepare, session, random_feeds):
    model = graph(NET, WEIGHTS)
    setting, _ = prepare(model)
    feeds = random_feeds(model, 24)
    kept = Blockwise(model, setting.blocks, ["y"]).run(dict(feeds))
    np.testing.assert_allclose(kept["y"], session(model).run(None, feeds)[0], rtol=1e-5, atol=1e-6)


def test_fewer_bits_lose_more(graph, prepare):
    setting, dataset = prepare(graph(NET, WEIGHTS))
    found = measure(setting, dataset, ("int8", "int4", "w8a16"), samples=24)
    for block in ("c1", "c2", "c3", "fc"):
        four, eight, wide = (found[block, t] for t in ("int4", "int8", "w8a16"))
        assert four.kl > 20 * eight.kl > 0
        assert eight.sqnr_db - four.sqnr_db == pytest.approx(24, abs=8), "six decibels a bit"
        assert wide.kl < eight.kl


def test_memory_is_cut_into_batches_without_changing_anything(graph, prepare, monkeypatch):
    setting, dataset = prepare(graph(NET, WEIGHTS))
    whole = measure(setting, dataset, ("int4",), samples=24)
    monkeypatch.setattr("deploy.quantize.one_block._MOST_SAMPLES", 5)
    parts = measure(setting, dataset, ("int4",), samples=24)
    for key, effect in whole.items():
        assert parts[key].kl == pytest.approx(effect.kl, rel=1e-4)
        assert parts[key].sqnr_db == pytest.approx(effect.sqnr_db, abs=1e-3)


def test_a_fixed_batch_is_filled_up(graph, prepare, random_feeds):
    feeds = random_feeds(graph(NET, WEIGHTS), 10)
    free, dataset = prepare(graph(NET, WEIGHTS), feeds=feeds)
    fixed_text = NET.replace("[N,", "[4,")
    fixed, same = prepare(graph(fixed_text, WEIGHTS), feeds=feeds)
    one, other = (measure(s, d, ("int4",), samples=10) for s, d in ((free, dataset), (fixed, same)))
    for key, effect in one.items():
        assert other[key].kl == pytest.approx(effect.kl, rel=1e-3)


def test_sparse_and_pruned_are_what_numpy_makes(graph, prepare, session, random_feeds):
    model = graph(NET, WEIGHTS)
    setting, dataset = prepare(model)
    found = measure(setting, dataset, ("2:4", "prune"), samples=24)
    arrays = {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items()}
    feeds = random_feeds(model, 24)
    want = session(model, False).run(None, feeds)[0]

    def lost(changed):
        return kl(want, session(graph(NET, arrays | changed), False).run(None, feeds)[0])

    sparse = arrays["w2"].copy()
    for index in np.ndindex(4, 3, 3):
        at = (index[0], slice(None), *index[1:])
        sparse[at][np.argsort(np.abs(arrays["w2"][at]))[:2]] = 0
    assert found["c2", "2:4"].kl == pytest.approx(lost({"w2": sparse}), rel=1e-3)
    gone = np.argmin(np.linalg.norm(arrays["w1"].reshape(4, -1), axis=1))  # 30 % of four channels
    weight, bias = arrays["w1"].copy(), arrays["b1"].copy()
    weight[gone], bias[gone] = 0, 0
    assert found["c1", "prune"].kl == pytest.approx(lost({"w1": weight, "b1": bias}), rel=1e-3)
    assert ("fc", "prune") not in found, "outputs of the network stay"


def test_small_weights_alone_stay_float(graph, prepare):
    large = {"w1": (64, 64), "w2": (64, 3)}
    setting, _ = prepare(
        graph("g (float[N,64] x) => (float[N,3] y) { [a] h = MatMul(x, w1)  [b] y = MatMul(h, w2) }", large)
    )
    assert [(b.id, t) for b, t in treatable(setting, ("w4", "2:4", "prune"))] == [
        ("a", "w4"), ("a", "2:4"), ("a", "prune"), ("b", "2:4"),
    ]  # fmt: skip


def test_probabilities_are_compared_by_what_softmax_reads(graph):
    soft = graph("g (float[N,3] x) => (float[N,3] p) { [r] z = Relu(x)  [s] p = Softmax(z) }")
    (head,) = heads(soft)
    assert (head.read, head.kind) == ("z", "classes")
    (chosen,) = heads(
        graph("g (float[N,3] x) => (int64[N,1] k) { [s] p = Softmax(x) [a] k = ArgMax<axis=1>(p) }")
    )
    assert (chosen.read, chosen.kind, chosen.axis) == ("x", "classes", 1)
    (each,) = heads(graph("g (float[N,3] x) => (float[N,3] p) { [r] z = Neg(x)  [s] p = Sigmoid(z) }"))
    assert (each.read, each.kind) == ("z", "each")
    (plain,) = heads(graph("g (float[N,1,4] x) => (float[N,1,4] y) { y = Neg(x) }"))
    assert plain.kind == "values"
    with pytest.raises(UnsupportedError, match="whole numbers"):
        heads(graph("g (float[N,3] x) => (int64[K] y) { y = Shape(x) }"))


def test_divergence_of_yes_and_no(graph):
    (head,) = heads(graph("g (float[N,3] x) => (float[N,3] p) { [r] z = Neg(x)  [s] p = Sigmoid(z) }"))
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 7, 3))
    moved = Moved([head])
    moved.add({"z": a}, {"z": b})
    p, q = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-b))
    each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert moved.effect().kl == pytest.approx(each.sum(1).mean())


def test_numbers_have_noise_over_signal_and_no_divergence(graph, prepare):
    text = f"g ({IMAGE} x) => ({IMAGE} y) {{ [c] y = Conv{PAD}(x, w1) }}"
    setting, dataset = prepare(graph(text, {"w1": W}))
    effect = measure(setting, dataset, ("int8",), samples=24)["c", "int8"]
    assert effect.kl is None and 30 < effect.sqnr_db < 60
    assert effect.harm == pytest.approx(10 ** (-effect.sqnr_db / 10))


def test_outputs_that_break_are_told(graph, prepare, random_feeds):
    text = "g (float[N,4] x) => (float[N,4] y) { [m] h = MatMul(x, w)  [l] y = Log(h) }"
    model = graph(text, {"w": np.eye(4, dtype=np.float32)})
    feeds = {"x": np.abs(random_feeds(model, 24)["x"]) + 0.05}
    feeds["x"][:, 0] = 100.0  # one scale for all: small numbers become 0, and their logarithm infinite
    setting, dataset = prepare(model, feeds=feeds)
    assert measure(setting, dataset, ("int4",), samples=24)["m", "int4"].ruined
    broken, _ = prepare(model, feeds={"x": feeds["x"]})
    negative = open_dataset({"x": -feeds["x"]}, tensor_specs(model.graph.inputs))
    with pytest.raises(DataError, match="'y' is not finite on samples 0 to"):
        measure(broken, negative, ("int4",), samples=24)


def test_nothing_to_treat(graph, prepare):
    setting, dataset = prepare(graph("g (float[N,4] x) => (float[N,4] y) { y = Neg(x) }"))
    assert measure(setting, dataset, ("int8", "2:4", "prune", "w4"), samples=24) == {}


def test_recurrent_weights_are_rounded_by_plain_rules(graph, prepare):
    text = """g (float[N,5,3] x) => (float[N,2] y) { [t] s = Transpose<perm=[1,0,2]>(x)
    [gru] q, h = GRU<hidden_size=4>(s, w, r)  [z] f = Squeeze(h, zero)  [fc] y = MatMul(f, v) }"""
    arrays = {"w": (1, 12, 3), "r": (1, 12, 4), "zero": np.array([0]), "v": (4, 2)}
    setting, dataset = prepare(graph(text, arrays))
    found = measure(setting, dataset, ("int8", "int4"), samples=24)
    assert 0 < found["gru", "int8"].kl < found["gru", "int4"].kl


def test_sequences_and_bodies_lie_between_blocks(graph, prepare):
    text = """g (float[N,4,6,6] x) => (float[N,4,6,6] y) <seq(float[N,2,6,6]) s> {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1)  [split] s = SplitToSequence<axis=1>(a, two)
    [at] b = SequenceAt(s, one)
    [if] i = If(yes)<then_branch = t () => (float[N,2,6,6] u) { u = Neg(b) },
                     else_branch = e () => (float[N,2,6,6] v) { v = Abs(b) }>
    [c2] y = Conv<pads=[1,1,1,1]>(i, w2) }"""
    arrays = {"w1": W, "w2": (4, 2, 3, 3), "two": np.int64(2), "one": np.int64(1), "yes": np.bool_(True)}
    setting, dataset = prepare(graph(text, arrays))
    found = measure(setting, dataset, ("int8", "int4"), samples=24)
    for block in ("c1", "c2"):
        assert found[block, "int8"].sqnr_db > found[block, "int4"].sqnr_db + 15
