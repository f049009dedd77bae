"""Harm is the divergence of what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deploy.compress.channel_budget import Harm, answers
from deploy.compress.channel_order import Level
from deploy.graph.groups import find_groups
from deploy.graph.masked import masked
from deploy.train.units import batches


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def kl(exact, found):
    p, q = softmax(exact), softmax(found)
    return float((p * np.log(p / q)).sum(1).mean())


@pytest.fixture
def case(residual, run, data):
    dataset = data(residual, 64)
    feeds = batches(residual, dataset, 64, 16)
    groups = find_groups(residual)
    together = {"x": np.concatenate([f["x"].numpy() for f in feeds])}
    return residual, groups, feeds, together


def test_levels_without(case, run):
    model, groups, feeds, x = case
    family = next(f for f in groups.families if len(f.atoms) == 24)
    removed = [a.label for a in family.atoms[:6]]
    wanted = kl(run(model, x), run(masked(model, groups, removed), x))
    harm = Harm(model, feeds)
    assert harm.floor == pytest.approx(0, abs=1e-6)
    assert harm.without(groups, removed) == pytest.approx(wanted, rel=1e-3)
    weight = torch.tensor(model.graph.initializers["w3"].const_value.numpy())
    gone = [int(p.indices[0]) for a in family.atoms[:6] for p in a.places if p.tensor == "w3"]
    weight[:, gone] = 0
    assert harm.levels([Level(6, {"w3": weight})]) == pytest.approx([wanted], rel=1e-3)
    assert harm.levels([]) == []


def test_an_output_that_is_there_before_what_changes_counts_as_unchanged(build, data):
    model = build(
        "g (float[n,4] x) => (float[n,6] h, float[n,3] y) { h = MatMul (x, w1) y = MatMul (h, w2) }",
        {"w1": (4, 6), "w2": (6, 3)},
    )
    feeds = batches(model, data(model, 32), 32, 16)
    same = torch.tensor(model.graph.initializers["w2"].const_value.numpy())
    found = Harm(model, feeds).levels([Level(0, {"w2": same}), Level(1, {"w2": 0 * same})])
    assert found[0] == pytest.approx(0, abs=1e-6) and found[1] > 0.01


def test_harm_is_counted_from_the_answers_that_are_wanted(case, run):
    model, groups, feeds, x = case
    removed = [groups.families[0].atoms[0].label]
    thin = masked(model, groups, removed)
    _, wanted = answers(model, feeds)
    assert Harm(thin, feeds, wanted).floor == pytest.approx(kl(run(model, x), run(thin, x)), rel=1e-3)


def test_of_numbers_it_is_their_squared_error_in_units_of_their_power(build, run, data):
    model = build(
        "g (float[n,4,6] x) => (float[n,4,3] y) { h = MatMul (x, w1) r = Relu (h) y = MatMul (r, w2) }",
        {"w1": (6, 8), "w2": (8, 3)},
    )
    feeds = batches(model, data(model, 32), 32, 32)
    groups = find_groups(model)
    removed = [a.label for a in groups.families[0].atoms[:2]]
    x = {"x": feeds[0]["x"].numpy()}
    exact, found = run(model, x), run(masked(model, groups, removed), x)
    wanted = np.square(found - exact).mean() / np.square(exact).mean()
    assert Harm(model, feeds).without(groups, removed) == pytest.approx(wanted, rel=1e-3)
