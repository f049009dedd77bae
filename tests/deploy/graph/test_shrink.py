"""Removing channels is zeroing them where they are read: both run in ONNX Runtime, on all networks."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
from anything import anything
from convolutional import CONVOLUTIONAL
from hypothesis import given, settings
from hypothesis import strategies as st
from sequential import SEQUENTIAL

from deploy.errors import ModelError, UsageError
from deploy.graph import cost
from deploy.graph.groups import find_groups
from deploy.graph.masked import masked
from deploy.graph.shrink import shrink

NETWORKS = {**CONVOLUTIONAL, **SEQUENTIAL}


@cache
def network(name):
    model = NETWORKS[name]()
    return model, find_groups(model)


def some(groups, ratio, seed=0):
    """A share of each family, at random, never all of it."""
    rng = np.random.default_rng(seed)
    chosen = []
    for family in groups.families:
        least = 2 if family.restricted else 1  # a norm over a single number is nothing but rounding
        count = min(round(len(family.atoms) * ratio), len(family.atoms) - least)
        chosen += [family.atoms[i].label for i in rng.permutation(len(family.atoms))[:count]]
    return chosen


def feeds_of(groups, model, seed=0):
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = groups.inputs[value.name]
        integers = value.dtype == ir.DataType.INT64
        feeds[value.name] = rng.integers(0, 30, shape) if integers else rng.standard_normal(shape, np.float32)
    return feeds


def same(run, model, groups, removed, tolerance=2e-6):
    feeds = feeds_of(groups, model)
    smaller = shrink(model, groups, removed)
    before, after = run(masked(model, groups, removed), feeds), run(smaller, feeds)
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()
    return smaller


@pytest.mark.parametrize("name", NETWORKS)
def test_half_of_every_family(run, name):
    model, groups = network(name)
    removed = some(groups, 0.5)
    smaller = same(run, model, groups, removed)
    assert cost.parameters(smaller) < 0.7 * cost.parameters(model)
    feeds = feeds_of(groups, model)
    whole, less = run(model, feeds), run(smaller, feeds)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(whole, less, strict=True))  # it did matter
    assert [v.name for v in smaller.graph.outputs] == [v.name for v in model.graph.outputs]


@pytest.mark.parametrize(
    "name", ["resnet_padded", "densenet", "inception", "shufflenet_v1", "unet", "detector", "gpt", "mixer"]
)
def test_all_but_the_least_of_every_family(run, name):
    model, groups = network(name)
    same(run, model, groups, some(groups, 1.0), 1e-5)


@pytest.mark.parametrize("name", ["resnet_padded", "shufflenet_v2", "strided_slices", "csp_darknet"])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), ratio=st.floats(0.05, 0.95))
def test_any_share_of_any_family(name, seed, ratio, request):
    model, groups = network(name)
    rng = np.random.default_rng(seed)
    chosen = [label for label in some(groups, ratio, seed) if rng.random() < 0.7]
    same(request.getfixturevalue("run"), model, groups, chosen, 1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_networks_that_nobody_would_write(run, seed):
    model = anything(seed)
    groups = find_groups(model)
    same(run, model, groups, some(groups, 0.5, seed), 2e-5)


def test_what_was_cut_can_be_cut_again(run):
    model = CONVOLUTIONAL["resnet_padded"]()
    groups = find_groups(model)
    once = shrink(model, groups, some(groups, 0.3))
    again = find_groups(once)
    assert len(again.atoms) == len(groups.atoms) - len(some(groups, 0.3))
    same(run, once, again, some(again, 0.3))


def test_the_graph_itself_stays_as_it_is():
    model = CONVOLUTIONAL["shufflenet_v2"]()
    text = ir.to_proto(model).SerializeToString()
    groups = find_groups(model)
    shrink(model, groups, some(groups, 0.5))
    masked(model, groups, some(groups, 0.5))
    assert ir.to_proto(model).SerializeToString() == text


def test_nothing_removed_changes_nothing(run, prove):
    model = CONVOLUTIONAL["unet"]()
    groups = find_groups(model)
    assert prove(model, shrink(model, groups, [])) is None


def test_a_family_cannot_go_whole():
    model = CONVOLUTIONAL["vgg"]()
    groups = find_groups(model)
    with pytest.raises(UsageError, match="nothing would be left"):
        shrink(model, groups, [atom.label for atom in groups.families[0].atoms])


def test_an_atom_that_there_is_not():
    model = CONVOLUTIONAL["vgg"]()
    groups = find_groups(model)
    with pytest.raises(UsageError, match="no atom 100000"):
        shrink(model, groups, [100000])


def test_groups_of_another_graph_are_noticed(parse):
    """Labels that do not fit what the graph's sizes say end in an error, not in a wrong network."""
    text = "g (float[n, 4] x) => (float[n, 2] y) {{ a = Gemm (x, w)  b = Reshape (a, {})  y = Gemm (b, u) }}"
    rng = np.random.default_rng(0)
    weights = {k: rng.standard_normal(s).astype(np.float32) for k, s in {"w": (4, 6), "u": (6, 2)}.items()}
    right = parse(text.format("t"), weights | {"t": np.array([-1, 6])})
    # the same graph, but for a target that comes out of a computation
    computed = parse(
        text.format("c").replace("b = ", "c = Add (t, z)  b = "),
        weights | {"t": np.array([-1, 5]), "z": np.array([0, 1])},
    )
    groups = find_groups(right)
    with pytest.raises(ModelError, match="should have the sizes"):
        shrink(computed, groups, [groups.families[0].atoms[0].label])
