"""What is left makes what the whole made: against ONNX Runtime on both graphs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.compress import channel_fit
from deploy.compress.channel_fit import kept_channels, refit
from deploy.compress.layers import parted
from deploy.errors import UnsupportedError
from deploy.graph.groups import find_groups
from deploy.graph.shrink import shrink
from deploy.train.units import batches

DEPTHWISE = """g (float[n,6,8,8] x) => (float[n,5,8,8] y) {
    a = Conv <pads=[0,0,0,0]> (x, w1, b1)
    d = Conv <pads=[1,1,1,1], group=12> (a, w2, b2)
    y = Conv (d, w3, b3)
}"""
DEPTHWISE_SHAPES = {
    "w1": (12, 6, 1, 1),
    "b1": (12,),
    "w2": (12, 1, 3, 3),
    "b2": (12,),
    "w3": (5, 12, 1, 1),
    "b3": (5,),
}


def noise(run, dense, thin, feeds):
    exact, found = run(dense, feeds), run(thin, feeds)
    return np.square(found - exact).sum() / np.square(exact).sum()


def changed(model, **arrays):
    for name, array in arrays.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model


def array_of(model, name):
    return np.array(model.graph.initializers[name].const_value.numpy())


def test_what_another_channel_repeats_is_made_up_for_exactly(build, run, data):
    text = """g (float[n,4,6,6] x) => (float[n,3,6,6] y) {
        a = Conv <pads=[1,1,1,1]> (x, w1)
        b = BatchNormalization (a, scale, shift, mean, variance)
        c = Relu (b)
        y = Conv <pads=[1,1,1,1]> (c, w2, b2)
    }"""
    sizes = {"w1": (8, 4, 3, 3), "w2": (3, 8, 3, 3), "b2": (3,)}
    model = build(text, sizes | dict.fromkeys(("scale", "shift", "mean", "variance"), (8,)))
    same = {}
    for name in ("w1", "scale", "shift", "mean", "variance"):
        same[name] = array_of(model, name)
        same[name][5] = same[name][2]
    # A channel that is the same everywhere is made up for by a bias.
    same["scale"][7], same["shift"][7] = 0, 2.0
    model = changed(model, **same)
    groups = find_groups(model)
    removed = [a.label for a in groups.families[0].atoms if a.places[0].indices[0] in (5, 7)]
    thin = shrink(model, groups, removed)
    dataset = data(model, 128)
    feeds = next(dataset.batches(16)).feeds
    fitted = refit(
        model, thin, kept_channels(groups, removed), batches(model, dataset, 128, 16), damps=(1e-6,)
    )
    # All but at the border, where padding is no channel.
    assert noise(run, model, thin, feeds) > 0.1
    assert noise(run, model, fitted.graph, feeds) < 0.05 * noise(run, model, thin, feeds)


def test_depthwise_layers_and_biases_are_fitted(build, run, data):
    model = build(DEPTHWISE, DEPTHWISE_SHAPES)
    groups = find_groups(model)
    removed = [a.label for a in groups.families[0].atoms[:6]]
    kept = kept_channels(groups, removed)
    thin = shrink(model, groups, removed)
    dataset = data(model, 96)
    fitted = refit(model, thin, kept, batches(model, dataset, 96, 16))
    feeds = next(data(model, 32, seed=7).batches(32)).feeds
    assert noise(run, model, fitted.graph, feeds) < 0.5 * noise(run, model, thin, feeds)
    assert {step.place for step in fitted.steps} == {node.name for node in model.graph}
    assert np.abs(array_of(fitted.graph, "b3") - array_of(thin, "b3")).max() > 1e-3


def test_one_layer_is_the_least_squares_solution(build, data):
    model = build(
        "g (float[n,4] x) => (float[n,3] y) { h = Gemm (x, w1, b1) r = Relu (h) y = Gemm (r, w2, b2) }",
        {"w1": (4, 6), "b1": (6,), "w2": (6, 3), "b2": (3,)},
    )
    groups = find_groups(model)
    removed = [groups.families[0].atoms[i].label for i in (1, 4)]
    gone = [int(groups.families[0].atoms[i].places[0].indices[0]) for i in (1, 4)]
    thin = shrink(model, groups, removed)
    feeds = batches(model, data(model, 64), 64, 16)
    fitted = refit(model, thin, kept_channels(groups, removed), feeds, damps=(1e-7,)).graph
    x = np.concatenate([feed["x"].numpy() for feed in feeds[:3]]).astype(np.float64)  # the last is held out
    hidden = np.maximum(x @ array_of(model, "w1") + array_of(model, "b1"), 0)
    wanted = hidden @ array_of(model, "w2") + array_of(model, "b2")
    left = np.c_[np.delete(hidden, gone, 1), np.ones(len(x))]
    best = np.linalg.lstsq(left, wanted, rcond=None)[0]
    found = left @ np.r_[array_of(fitted, "w2"), array_of(fitted, "b2")[None]]
    np.testing.assert_allclose(found, left @ best, atol=1e-3 * np.abs(wanted).max())


def test_few_batches_are_enough_where_more_would_not_fit(residual, data, monkeypatch):
    monkeypatch.setattr(channel_fit, "_MEMORY", 1)
    groups = find_groups(residual)
    removed = [groups.families[0].atoms[0].label]
    thin, feeds = shrink(residual, groups, removed), batches(residual, data(residual, 64), 64, 16)
    found = [refit(residual, thin, kept_channels(groups, removed), feeds[:n]).graph for n in (2, 4)]
    np.testing.assert_array_equal(array_of(found[0], "w2"), array_of(found[1], "w2"))


def test_batches_held_out_teach_nothing(residual, data):
    """So that they can judge what comes after the fit as well."""
    groups = find_groups(residual)
    removed = [a.label for f in groups.families for a in f.atoms[: len(f.atoms) // 4]]
    thin, kept = shrink(residual, groups, removed), kept_channels(groups, removed)
    feeds = batches(residual, data(residual, 96), 96, 16)
    seen, held = parted(len(feeds))
    assert sorted(seen + held) == list(range(6)) and parted(1) == ([0], [0])
    others = list(feeds)
    for i in held:
        others[i] = batches(residual, data(residual, 16, seed=9), 16, 16)[0]
    fitted = [refit(residual, thin, kept, some, damps=(0.03,)) for some in (feeds, others)]
    placed = [{step.place for step in one.steps if step.kept} for one in fitted]
    assert placed[0] == placed[1] and len(placed[0]) > 1
    for name in ("w1", "w2", "w3", "w4"):
        np.testing.assert_array_equal(array_of(fitted[0].graph, name), array_of(fitted[1].graph, name))


def test_residual_sums_are_compared_where_they_are_complete(residual, run, data):
    groups = find_groups(residual)
    removed = [a.label for f in groups.families for a in f.atoms[: len(f.atoms) // 4]]
    thin = shrink(residual, groups, removed)
    dataset = data(residual, 128)
    fitted = refit(residual, thin, kept_channels(groups, removed), batches(residual, dataset, 128, 16))
    feeds = next(data(residual, 64, seed=5).batches(64)).feeds
    assert noise(run, residual, fitted.graph, feeds) < 0.3 * noise(run, residual, thin, feeds)
    # What was given is as it was.
    assert noise(run, residual, shrink(residual, groups, removed), feeds) == noise(run, residual, thin, feeds)


def test_rounds_keep_track_of_the_channels_of_the_first_graph(residual):
    first = find_groups(residual)
    gone = [f.atoms[i].label for f in first.families for i in (0, 3)]
    half, kept = shrink(residual, first, gone), kept_channels(first, gone)
    second = find_groups(half)
    more = [f.atoms[i].label for f in second.families for i in (1, 2)]
    kept = kept_channels(second, more, kept)
    thin = shrink(half, second, more)
    value = next(name for name in kept if name in {v.name for node in thin.graph for v in node.outputs})
    axis, indices = kept[value]
    assert axis == 1 and len(indices) == len(set(indices.tolist()))
    width = next(v.shape[1] for node in thin.graph for v in node.outputs if v.name == value)
    assert len(indices) == width
    # The first convolution reads the input alone: its channels are those of the first graph.
    rows = array_of(residual, "w1")[kept["a"][1]]
    np.testing.assert_array_equal(rows, array_of(thin, "w1"))


def test_a_graph_that_lost_nothing_stays_as_it_is(residual, data):
    feeds = batches(residual, data(residual, 32), 32, 16)
    fitted = refit(residual, residual, {}, feeds)
    assert not fitted.changed
    with torch.no_grad():
        for name in ("w1", "w2", "w3", "w4", "b2", "b4"):
            np.testing.assert_array_equal(array_of(fitted.graph, name), array_of(residual, name))


def test_what_has_no_kernel_is_refused(build, data):
    model = build("g (float[n,4] x) => (float[n,4] y) { y = Foo (x) }", {})
    with pytest.raises(UnsupportedError, match="Foo"):
        refit(model, model, {}, [{"x": torch.zeros(2, 4)}])
