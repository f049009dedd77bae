"""The order in which channels go, against least squares in float64 over what is left."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.compress.channel_order import grams, readers, removal_order
from deploy.graph.groups import find_groups
from deploy.train.units import batches

TWO_READERS = """g (float[n,4] x) => (float[n,3] y, float[n,2] z) {
    h = Gemm <transB=1> (x, w1, b1)
    r = Relu (h)
    y = Gemm <transB=1> (r, w2, b2)
    z = MatMul (r, w3)
}"""
SHAPES = {"w1": (6, 4), "b1": (6,), "w2": (3, 6), "b2": (3,), "w3": (6, 2)}


@pytest.fixture
def case(build, data):
    model = build(TWO_READERS, SHAPES)
    groups = find_groups(model)
    feeds = batches(model, data(model, 64), 64, 16)
    found = readers(model, groups)
    forms = {name: form for some in grams(model, found, feeds) for name, form in some.items()}
    hidden = np.concatenate([b["x"].numpy() for b in feeds]).astype(np.float64)
    own = {
        name: value.const_value.numpy().astype(np.float64) for name, value in model.graph.initializers.items()
    }
    hidden = np.maximum(hidden @ own["w1"].T + own["b1"], 0)
    return groups, found, forms, hidden, {"w2": own["w2"], "w3": own["w3"].T}


def left_over(hidden, weights, kept, damp):
    """What the best weights on ``kept`` leave of both layers' outputs, as shares, and these weights."""
    form = hidden.T @ hidden / len(hidden)
    total, best = 0.0, {}
    for name, w in weights.items():
        ridge = form + damp * np.trace(form) / len(form) * np.eye(len(form))
        v = np.zeros_like(w)
        v[:, kept] = np.linalg.solve(ridge[np.ix_(kept, kept)], (ridge @ w.T)[kept]).T
        total += np.trace((v - w) @ ridge @ (v - w).T) / np.trace(w @ form @ w.T)
        best[name] = v
    return total, best


def test_gram_matrices_are_those_of_the_inputs(case):
    _, _, forms, hidden, _ = case
    np.testing.assert_allclose(forms["w2"], hidden.T @ hidden / len(hidden), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forms["w3"], forms["w2"])


def test_channels_go_by_what_both_readers_lose_and_the_others_make_up(case):
    groups, found, forms, hidden, weights = case
    family = next(f for f in groups.families if len(f.atoms) == 6)
    order = removal_order(family, found, forms, [1, 3], damp=0.01)
    at = {atom.label: int(atom.places[0].indices[0]) for atom in family.atoms}
    gone = [at[label] for label in order.labels]
    assert sorted(gone) == list(range(6))
    alone = {c: left_over(hidden, weights, [i for i in range(6) if i != c], 0.01)[0] for c in range(6)}
    assert gone[0] == min(alone, key=alone.get)
    assert order.losses[0] == pytest.approx(alone[gone[0]], rel=2e-3)
    for level in order.levels:
        kept = sorted(gone[level.count :])
        total, best = left_over(hidden, weights, kept, 0.01)
        np.testing.assert_allclose(level.weights["w2"], best["w2"], atol=2e-3)
        np.testing.assert_allclose(level.weights["w3"].T, best["w3"], atol=2e-3)
        assert sum(order.losses[: level.count]) == pytest.approx(total, rel=5e-3)
        every = [left_over(hidden, weights, list(k), 0.01)[0] for k in combinations(range(6), len(kept))]
        assert total <= np.quantile(every, 0.2)


def test_a_channel_that_another_repeats_goes_first_and_costs_nothing(build, data):
    model = build(TWO_READERS, SHAPES)
    w1, b1 = (np.array(model.graph.initializers[name].const_value.numpy()) for name in ("w1", "b1"))
    w1[4], b1[4] = w1[2], b1[2]
    for name, array in (("w1", w1), ("b1", b1)):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    groups = find_groups(model)
    found = readers(model, groups)
    feeds = batches(model, data(model, 64), 64, 16)
    forms = {name: form for some in grams(model, found, feeds) for name, form in some.items()}
    family = groups.families[0]
    order = removal_order(family, found, forms, [2], damp=1e-5)
    first = next(atom for atom in family.atoms if atom.label == order.labels[0])
    assert first.places[0].indices[0] in (2, 4)
    assert order.losses[0] < 1e-5


def test_families_that_no_layer_reads_have_no_levels(case):
    groups, _, _, _, _ = case
    order = removal_order(groups.families[0], {}, {}, [1])
    assert not order.levels and np.isnan(order.losses).all()
