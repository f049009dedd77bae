"""Scores of one backward pass, against closed forms, exact Fisher matrices and what was measured."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from deploy.data.dataset import open_dataset
from deploy.errors import DataError, ToolchainError
from deploy.frontend.onnx_file import read
from deploy.graph.blocks import partition
from deploy.graph.shapes import infer, name_dimensions
from deploy.graph.summary import tensor_specs
from deploy.quantize.calibrate import calibrate
from deploy.quantize.divergence import Head
from deploy.quantize.fisher import probe, scores
from deploy.quantize.one_block import measure
from deploy.quantize.perturb import (
    PLAIN,
    Setting,
    changed_weights,
    roundings,
    values_to_observe,
    weight_changes,
)

IMAGE, PAD = "float[N,4,6,6]", "<pads=[1,1,1,1]>"
W = (4, 4, 3, 3)
LAST = 8 * np.random.default_rng(5).standard_normal((4, 5)).astype(np.float32)
NET = f"""g ({IMAGE} x) => (float[N,5] y) {{
[c1] a = Conv{PAD}(x, w1, b1)  [r1] r = Relu(a)  [c2] c = Conv{PAD}(r, w2)
[s] s = Add(c, x)  [r2] t = Relu(s)  [c3] d = Conv{PAD}(t, w3)
[p] p = GlobalAveragePool(d)  [f] f = Flatten(p)  [fc] y = Gemm(f, w4) }}"""
WEIGHTS = {"w1": W, "b1": (4,), "w2": W, "w3": W, "w4": LAST}


@pytest.fixture
def prepare(random_feeds):
    def run(model, runtime=PLAIN, samples=24, feeds=None):
        given = random_feeds(model, samples) if feeds is None else feeds
        dataset = open_dataset(given, tensor_specs(model.graph.inputs))
        bare = Setting(model, partition(model), runtime)
        ranges = calibrate(model, dataset, values_to_observe(bare), samples=samples)
        return Setting(model, bare.blocks, runtime, ranges, "minmax"), dataset

    return run


def rounded(setting, block, name, array):
    found = roundings(setting, next(b for b in setting.blocks if b.id == block), "int4")[name]
    return np.clip(np.rint(array / found.scale), *found.bounds) * found.scale


def test_it_is_exact_where_outputs_are_a_square_and_errors_do_not_mix(graph, prepare, random_feeds):
    """Depthwise 1x1 weights: outputs are y = w x, channel by channel. The noise over the signal is known."""
    scale = np.array([0.5, -1.5, 2.0, 3.0], np.float32).reshape(4, 1, 1, 1)
    model = graph(f"g ({IMAGE} x) => ({IMAGE} y) {{ [c] y = Conv<group=4>(x, w) }}", {"w": scale})
    setting, dataset = prepare(model, samples=16)
    x = random_feeds(model, 16)["x"]
    error = rounded(setting, "c", "x", x) - x
    flat = scale.reshape(1, 4, 1, 1)
    exact = np.square(flat * error).sum() / np.square(flat * x).sum()
    # The weight is one number a channel, which symmetric codes hold exactly: its error is 0.
    found = scores(setting, dataset, ("int4",), samples=16)
    assert found["c", "int4"] == pytest.approx(exact, rel=1e-4)


def test_weights_of_a_channel_count_together(graph, prepare):
    """y = x w for one-hot outputs of their own: the mean over signs is |x e|^2 for each output."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 3)).astype(np.float32)
    model = graph("g (float[N,6] x) => (float[N,1,3] y) { [m] h = MatMul(x, w)  [u] y = Unsqueeze(h, one) }",
                  {"w": weight, "one": np.array([1])})  # fmt: skip
    feeds = {"x": np.abs(rng.standard_normal((640, 6))).astype(np.float32)}
    setting, dataset = prepare(model, samples=640, feeds=feeds)
    (block,) = [b for b in setting.blocks if b.id == "m"]
    changes = weight_changes(setting, block, "2:4")
    assert not changes, "six rows are no multiple of four"
    after = changed_weights(setting, weight_changes(setting, block, "int4"))["w"]
    x = feeds["x"].astype(np.float64)
    power = np.square(x @ weight).sum()
    by_weight = np.square(x @ (after - weight)).sum() / power
    by_input = np.square((rounded(setting, "m", "x", feeds["x"]) - x)[:, :, None] * weight).sum() / power
    draws = [scores(setting, dataset, ("int4",), samples=640, seed=seed)["m", "int4"] for seed in range(6)]
    assert np.mean(draws) == pytest.approx(by_weight + by_input, rel=0.15)


@pytest.mark.parametrize("kind", ["classes", "each"])
def test_what_is_sent_backwards_has_the_fisher_matrix(kind):
    read = torch.tensor([[2.0, -1.0, 0.5]]).expand(40_000, 3)
    sent = probe(Head("y", "y", kind), read, np.random.default_rng(0), "classes", 1).numpy()
    found = sent.T @ sent / len(sent)
    if kind == "classes":
        p = np.exp([2.0, -1.0, 0.5]) / np.exp([2.0, -1.0, 0.5]).sum()
        wanted = np.diag(p) - np.outer(p, p)
    else:
        p = 1 / (1 + np.exp([-2.0, 1.0, -0.5]))
        wanted = np.diag(p * (1 - p))
    np.testing.assert_allclose(found, wanted, atol=0.01)


def test_positions_share_the_divergence():
    read = torch.zeros(20_000, 2, 5)
    sent = probe(Head("y", "y", "classes", axis=1), read, np.random.default_rng(0), "classes", 1)
    assert float(sent.square().sum(dim=(1, 2)).mean()) == pytest.approx(0.5, rel=0.03), (
        "trace of one position"
    )


def test_small_errors_are_predicted_in_size(graph, prepare):
    setting, dataset = prepare(graph(NET, WEIGHTS), samples=256)
    predicted = scores(setting, dataset, ("int8", "w8a16"), samples=256)
    measured = measure(setting, dataset, ("int8", "w8a16"), samples=256)
    assert predicted.keys() == measured.keys()
    for key, score in predicted.items():
        # Of four channels the errors may add up or cancel by chance.
        assert 1 / 5 < score / measured[key].kl < 5, key


@pytest.mark.parametrize("treatment", ["int8", "int4", "w4"])
def test_blocks_of_a_trained_network_are_predicted_within_four_times(example, prepare, treatment):
    model = infer(name_dimensions(read(example / "digits.onnx").model))
    with np.load(example / "calib.npz") as stored:
        setting, dataset = prepare(model, feeds={"x": stored["x"]}, samples=256)
    predicted = scores(setting, dataset, (treatment,), samples=256)
    measured = measure(setting, dataset, (treatment,), samples=256)
    assert len(predicted) > 5
    for key, score in predicted.items():
        assert 1 / 4 < score / measured[key].kl < 4, key
    if treatment != "w4":
        assert max(predicted, key=predicted.get)[0] == max(measured, key=lambda k: measured[k].kl)[0]


def test_sparse_and_pruned_blocks_have_scores(graph, prepare):
    setting, dataset = prepare(graph(NET, WEIGHTS), samples=64)
    found = scores(setting, dataset, ("2:4", "prune"), samples=64)
    assert set(found) == {(b, t) for b in ("c1", "c2", "c3") for t in ("2:4", "prune")} | {("fc", "2:4")}
    assert all(score > 0 for score in found.values())


def test_each_reader_of_a_value_has_an_error_of_its_own(graph, prepare, random_feeds):
    """Two blocks read x; the second one is silent, so rounding x for it alone costs nothing."""
    text = f"""g ({IMAGE} x) => ({IMAGE} y) {{ [c1] a = Conv{PAD}(x, w1)  [c2] b = Conv{PAD}(x, w2)
    [n] m = Neg(b)  [z] k = Mul(m, none)  [e] e = Exp(a)  [s] y = Add(e, k) }}"""
    model = graph(text, {"w1": W, "w2": W, "none": np.zeros((4, 1, 1), np.float32)})
    setting, dataset = prepare(model)
    found = scores(setting, dataset, ("int8",), samples=24)
    assert found["c2", "int8"] == 0 < found["c1", "int8"]


def test_equal_seeds_give_equal_scores_and_a_fixed_batch_is_filled_up(graph, prepare, random_feeds):
    feeds = random_feeds(graph(NET, WEIGHTS), 30)
    setting, dataset = prepare(graph(NET, WEIGHTS), feeds=feeds, samples=30)
    one, two = (scores(setting, dataset, ("int4",), samples=30, seed=3) for _ in range(2))
    assert one == two
    fixed, same = prepare(graph(NET.replace("[N,", "[16,"), WEIGHTS), feeds=feeds, samples=30)
    assert scores(fixed, same, ("int4",), samples=30, seed=3).keys() == one.keys()


def test_runtimes_rules_hold(graph, prepare, unsigned):
    setting, dataset = prepare(graph(NET, WEIGHTS), unsigned)
    plain, _ = prepare(graph(NET, WEIGHTS))
    strict, loose = (scores(s, dataset, ("int8",), samples=24) for s in (setting, plain))
    assert strict["c1", "int8"] > loose["c1", "int8"], "its output is rounded, too, and weights have 7 bits"


def test_broken_outputs_and_a_missing_torch_are_told(graph, prepare, monkeypatch):
    text = "g (float[N,4] x) => (float[N,4] y) { [m] h = MatMul(x, w)  [l] y = Log(h) }"
    model = graph(text, {"w": np.eye(4, dtype=np.float32)})
    feeds = {"x": np.random.default_rng(0).random((8, 4)).astype(np.float32) + 1}
    setting, _ = prepare(model, feeds=feeds, samples=8)
    bad = open_dataset({"x": -feeds["x"]}, tensor_specs(model.graph.inputs))
    with pytest.raises(DataError, match="'y' is not finite"):
        scores(setting, bad, ("int8",), samples=8)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("deploy.quantize.fisher.find_spec", lambda name: None)
    with pytest.raises(ToolchainError, match="PyTorch is not installed") as error:
        scores(setting, bad, ("int8",), samples=8)
    assert error.value.exit_code == 6 and "deploy-compiler[torch]" in error.value.hint
    assert measure(setting, open_dataset(feeds, tensor_specs(model.graph.inputs)), ("int8",), samples=8)
