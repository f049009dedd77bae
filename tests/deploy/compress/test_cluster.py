"""Weights that share values: in the graph, in palettes, and at rest."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.compress.cluster import check, cluster
from deploy.compress.cluster import run as run_step
from deploy.compress.codec import decode, encode
from deploy.compress.ground import Ground
from deploy.errors import UsageError
from deploy.graph.edit import constant
from deploy.graph.fuse import fuse
from deploy.graph.palette import palette_of
from deploy.spec.compression import Cluster

TEXT = """g (float[n,16,6,6] x) => (float[n,24] y) {
    [c] a = Conv <pads=[1,1,1,1]> (x, w1, b1) b = Relu (a) c = GlobalAveragePool (b) d = Flatten (c)
    [m] y = MatMul (d, w2)
}"""
SHAPES = {"w1": (50, 16, 3, 3), "b1": (50,), "w2": (50, 24)}


@pytest.fixture
def model(build):
    return build(TEXT, SHAPES)


def arrays(model):
    return {name: constant(value) for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize(("group", "books"), [(None, {"w1": 1, "w2": 1}), (8, {"w1": 7, "w2": 3})])
def test_the_graph_holds_what_the_palettes_say(model, run, data, group, books) -> None:
    found = cluster(model, Cluster(centres=16, group=group))
    at_rest = decode(encode(found.palettes))
    for name, palette in found.palettes.items():
        array = arrays(found.graph)[name]
        assert palette.values().tobytes() == array.tobytes()
        assert at_rest[name].values().tobytes() == array.tobytes()
        assert palette.codebook.shape == (books[name], 16)
        axis = 0 if name == "w1" else 1
        for start in range(0, array.shape[axis], group or array.shape[axis]):
            part = np.take(array, range(start, min(start + (group or 99), array.shape[axis])), axis)
            assert len(np.unique(part)) <= 16
    assert found.palettes.keys() == {"w1", "w2"}
    assert (arrays(found.graph)["b1"] == arrays(model)["b1"]).all()
    feeds = next(data(model, 8).batches(8)).feeds
    want = run(model, feeds)
    assert ((run(found.graph, feeds) - want) ** 2).mean() < 0.05 * (want**2).mean()


def test_more_values_and_smaller_groups_move_less(model) -> None:
    errors = [
        np.mean([step.after for step in cluster(model, Cluster(centres=count, group=group)).steps])
        for count, group in ((4, None), (16, None), (16, 8), (256, None))
    ]
    assert errors == sorted(errors, reverse=True)


def test_important_weights_move_less(model) -> None:
    heavy = np.ones(SHAPES["w1"])
    heavy[:10] = 1000
    plain, weighed = (
        cluster(model, Cluster(centres=4)),
        cluster(model, Cluster(centres=4), importance={"w1": heavy}),
    )
    moved = [((arrays(m.graph)["w1"] - arrays(model)["w1"])[:10] ** 2).sum() for m in (plain, weighed)]
    assert moved[1] < moved[0]


def test_zeros_of_a_sparse_weight_stay_zero(build) -> None:
    model = build(TEXT, SHAPES)
    value = model.graph.initializers["w1"]
    array = constant(value).copy()
    array[:, ::2] = 0
    value.const_value.numpy()[:] = array
    found = cluster(model, Cluster(centres=8))
    assert (found.palettes["w1"].values() == 0).sum() == (array == 0).sum()
    assert ((arrays(found.graph)["w1"] == 0) == (array == 0)).all()
    assert len(np.unique(arrays(found.graph)["w1"])) == 8


def test_what_would_not_become_smaller_or_moves_too_far_stays(model) -> None:
    found = cluster(model, Cluster(centres=256, group=1))
    assert "w1" not in found.palettes
    assert all("save" in step.what for step in found.steps if not step.kept)
    strict = cluster(model, Cluster(centres=2, tolerance=1e-6))
    assert not strict.changed
    assert not strict.palettes
    assert (arrays(strict.graph)["w1"] == arrays(model)["w1"]).all()


@pytest.mark.parametrize("given", [{"centres": 1}, {"centres": 257}, {"group": 0}])
def test_settings_that_make_no_sense_are_refused(given) -> None:
    with pytest.raises(UsageError):
        Cluster(**given)


def test_values_outlive_what_is_folded_behind_the_step(residual, run, data, tmp_path) -> None:
    """Batch norm folded later would give every channel values of its own."""
    ground = Ground(samples=data(residual), given=residual, workdir=tmp_path)
    check(Cluster(), residual, ground)
    found = run_step(Cluster(centres=8), residual, ground)
    feeds = next(data(residual, 8).batches(8)).feeds
    later = fuse(found.model, lambda _one, _other: None).model
    assert found.shared and "8 values" in found.told
    for name in found.shared:
        palette = palette_of(arrays(later)[name])
        assert palette is not None and palette.codebook.shape == (1, 8)
    assert np.corrcoef(run(found.model, feeds).ravel(), run(residual, feeds).ravel())[0, 1] > 0.75


def test_a_network_without_large_weights_is_refused(build, tmp_path) -> None:
    small = build("g (float[n,4] x) => (float[n,4] y) { y = MatMul(x, w) }", {"w": (4, 4)})
    with pytest.raises(UsageError, match="1024 numbers"):
        check(Cluster(), small, Ground(samples=None, given=small, workdir=tmp_path))
