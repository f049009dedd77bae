"""Whole networks made 2:4 sparse, judged by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.compress import layers
from deploy.compress.ground import Ground
from deploy.compress.layers import goal
from deploy.compress.permute import Search
from deploy.compress.sparsify import check, each_alone, masks, prove, sparsify
from deploy.compress.sparsify import run as run_step
from deploy.errors import DataError, UsageError, VerificationError
from deploy.frontend import onnx_file
from deploy.graph.edit import constant, replace_weight
from deploy.graph.fuse import fuse
from deploy.graph.pattern import products, sparse_2_4
from deploy.spec.compression import Sparsify
from deploy.spec.finetune import Finetune

QUICK = Search(exchanges=2, shakes=1)


@pytest.fixture(autouse=True)
def _proportionate(monkeypatch) -> None:
    """In networks this small a head is little work and much of the error; it is made sparse all the same."""
    monkeypatch.setattr("deploy.compress.sparsify._DEAR", np.inf)


def sparsified(model, dataset, **given):
    return sparsify(model, dataset, Sparsify(samples=64, **given), search=QUICK)


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {p.weight: constant(p.node.inputs[1]) for p in products(model)}


@pytest.mark.parametrize("name", ["residual", "encoder"])
def test_making_up_beats_leaving_out(name, request, run, data, tmp_path) -> None:
    model = request.getfixturevalue(name)
    fresh = next(data(model, 32, seed=9).batches(32)).feeds
    want, errors = run(model, fresh), {}
    for method in ("magnitude", "obs"):
        found = sparsified(model, data(model), method=method, permute=False)
        onnx_file.write(found.graph, tmp_path / "sparse.onnx")
        written = onnx_file.read(tmp_path / "sparse.onnx").model
        sparse = [p for p in products(written) if p.axis is not None and p.weight != "head"]
        assert all(sparse_2_4(constant(p.node.inputs[1]), p.axis) for p in sparse)
        prove(written, [p.weight for p in sparse])
        errors[method] = float(((run(found.graph, fresh) - want) ** 2).mean() / (want**2).mean())
    assert errors["obs"] < 0.5 * errors["magnitude"]


def test_steps_say_what_was_done_and_permuting_comes_first(residual, run, data) -> None:
    found = sparsified(residual, data(residual))
    places = [step.place for step in found.steps if step.what.startswith("2:4")]
    assert places == [p.node.name for p in products(residual)]
    assert any("reordered" in step.what for step in found.steps)
    for step in found.steps:
        if step.what.startswith("2:4 by obs"):
            assert float(step.what.split("an error of ")[1].split()[0]) >= 0.99 * step.after
    names = sorted(masks(found.graph))
    assert names == ["w1", "w2", "w3", "w4"]
    assert all((masks(found.graph)[n] == (arrays(found.graph)[n] != 0)).all() for n in names)
    assert not masks(residual)


def test_equal_settings_give_equal_weights_and_the_graph_given_stays(residual, data) -> None:
    before = {name: array.copy() for name, array in arrays(residual).items()}
    one, other = (arrays(sparsified(residual, data(residual)).graph) for _ in range(2))
    assert all(one[name].tobytes() == other[name].tobytes() for name in before)
    assert all((arrays(residual)[name] == array).all() for name, array in before.items())


def test_layers_beyond_the_tolerance_stay_dense(residual, data) -> None:
    strict = sparsified(residual, data(residual), permute=False, tolerance=1e-9)
    dense = [step for step in strict.steps if not step.kept]
    assert dense
    assert all("left dense" in step.what for step in dense)
    assert {s.place for s in dense} == {
        p.node.name for p in products(strict.graph) if not sparse_2_4(constant(p.node.inputs[1]), p.axis)
    }


def test_what_layers_add_at_the_outputs_adds_up(residual, run, data) -> None:
    found = sparsified(residual, data(residual), permute=False)
    rises = [step.rise for step in found.steps if step.kept]
    held = [b.feeds for i, b in enumerate(data(residual).batches(16, limit=64)) if i % 4 == 3]
    errors = []
    for feeds in held:
        want = run(residual, feeds)
        errors.append(((run(found.graph, feeds) - want) ** 2).mean() / (want**2).mean())
    assert sum(rises) == pytest.approx(np.mean(errors), rel=1e-3)
    assert all(rise > 0 for rise in rises[:1])


def test_each_alone_is_told_by_what_it_alone_does(residual, run, data) -> None:
    found = each_alone(residual, data(residual), Sparsify(samples=64), seed=0, threads=1)
    by_node = {p.node.name: p for p in products(residual)}
    assert set(found) == set(by_node)
    assert all(sparse_2_4(array, by_node[name].axis) for name, (array, _) in found.items())
    held = [b.feeds for i, b in enumerate(data(residual).batches(16, limit=64)) if i % 4 == 3]
    last = list(by_node)[-1]  # what leaves its block leaves the network
    alone = residual.clone()
    replace_weight(alone, next(n for n in alone.graph if n.name == last), 1, found[last][0])
    errors = []
    for feeds in held:
        want = run(residual, feeds)
        errors.append(((run(alone, feeds) - want) ** 2).mean() / (want**2).mean())
    assert found[last][1] == pytest.approx(np.mean(errors), rel=1e-3)


@pytest.mark.parametrize("wish", [{}, {"pattern": "unstructured", "sparsity": 0.5}])
def test_protected_layers_stay_as_they_are(wish, residual, data) -> None:
    nodes = {p.weight: p.node.name for p in products(residual)}
    before = arrays(residual)
    for samples in (data(residual), None):
        found = sparsify(
            residual, samples, Sparsify(samples=64, permute=False, protect=(nodes["w2"],), **wish)
        )
        after = arrays(found.graph)
        assert (after["w2"] == before["w2"]).all()
        assert all((after[name] == 0).mean() > 0.4 for name in ("w1", "w3"))
    with pytest.raises(UsageError, match="'w9' is the name of no node"):
        sparsify(residual, None, Sparsify(protect=("w9",)))


def first_is_dear(build):
    """A narrow first layer whose error goes through all the rest."""
    text = """g (float[n,8,9] x) => (float[n,N,64] y) {
        t = Transpose<perm=[0,2,1]>(x) a = MatMul(t, w1) b = MatMul(a, w2)
        c = MatMul(b, w3) y = Add(c, a) }"""
    return build(text, {"w1": (8, 64), "w2": (64, 256), "w3": (256, 64)})


def test_a_layer_that_costs_out_of_all_proportion_stays_dense(build, data, run, monkeypatch) -> None:
    model = first_is_dear(build)
    fresh = next(data(model, 32, seed=9).batches(32)).feeds
    want = run(model, fresh)

    def lost(found) -> float:
        return ((run(found.graph, fresh) - want) ** 2).mean() / (want**2).mean()

    monkeypatch.setattr("deploy.compress.sparsify._DEAR", 10.0)
    found = sparsified(model, data(model), permute=False)
    (dense,) = (step for step in found.steps if not step.kept)
    first = next(products(model)).node.name
    assert dense.place == found.steps[0].place == first and "of the error for" in dense.what
    assert sorted(masks(found.graph)) == ["w2", "w3"]
    monkeypatch.setattr("deploy.compress.sparsify._DEAR", np.inf)
    every = sparsified(model, data(model), permute=False)
    assert len(masks(every.graph)) == 3 and lost(found) < 0.5 * lost(every)


def test_images_are_seen_from_more_sides_where_places_are_few(build, data, run, monkeypatch) -> None:
    text = """g (float[n,4,6,6] x) => (float[n,16,N,M] y) {
        a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w1) b = Relu(a) y = Conv<strides=[3,3]>(b, w2) }"""
    model = build(text, {"w1": (48, 4, 3, 3), "w2": (16, 48, 3, 3)})
    fresh = next(data(model, 64, seed=9).batches(64)).feeds
    want, lost = run(model, fresh), []
    for most in (3, 0):
        monkeypatch.setattr(layers, "_MOST_VIEWS", most)
        walk = layers.Layers(model, {p.weight: p for p in products(model)}, data(model), 64, 0)
        assert (len(walk.views), len(walk.feeds)) == (3 * most, 4 + 3 * most)
        found = sparsified(model, data(model), permute=False, protect=("Conv_0",))
        lost.append(((run(found.graph, fresh) - want) ** 2).mean() / (want**2).mean())
    assert lost[0] < 0.9 * lost[1]


@pytest.mark.parametrize("labelled", [False, True])
def test_what_is_left_learns_without_labels_and_keeps_its_zeros(
    labelled, residual, run, data, tmp_path
) -> None:
    fresh = next(data(residual, 64, seed=9).batches(64)).feeds
    want, lost = run(residual, fresh), []
    train = data(residual, 96, 3) if labelled else None
    ground = Ground(samples=data(residual), given=residual, workdir=tmp_path, pays=True, train=train)
    for steps in (0, 60):
        found = run_step(Sparsify(samples=64, method="magnitude", tune=steps), residual, ground)
        prove(found.model, ["w1", "w2", "w3", "w4"])
        assert any("reordered" in row.what for row in found.rows)
        lost.append(((run(found.model, fresh) - want) ** 2).mean() / (want**2).mean())
    assert lost[1] < 0.7 * lost[0]


def test_layers_that_do_not_fit_are_named(build, data) -> None:
    model = build("g (float[n,3,5,5] x) => (float[n,8,N,M] y) { [c] y = Conv(x, w) }", {"w": (8, 3, 3, 3)})
    (step,) = sparsified(model, data(model)).steps
    assert (step.place, step.kept) == ("c", False)
    assert "whole fours" in step.what


def test_groups_are_solved_each_for_itself(build, run, data) -> None:
    text = "g (float[n,16,5,5] x) => (float[n,8,N,M] y) { y = Conv<group=2>(x, w) }"
    model = build(text, {"w": (8, 8, 3, 3)})
    found = sparsified(model, data(model), permute=False)
    fresh = next(data(model, 32, seed=9).batches(32)).feeds
    want = run(model, fresh)
    lost = ((run(found.graph, fresh) - want) ** 2).mean() / (want**2).mean()
    simple = sparsified(model, data(model), permute=False, method="magnitude")
    assert lost < 0.5 * ((run(simple.graph, fresh) - want) ** 2).mean() / (want**2).mean()


def test_later_layers_aim_at_the_end_of_their_sum(residual, encoder) -> None:
    nodes = {node.outputs[0].name: node for node in residual.graph}
    inside = {node.name for node in residual.graph}
    assert goal(nodes["d"], inside).value == "d"
    end = goal(nodes["f"], inside)
    assert end.value == "h"
    scale, variance = (residual.graph.initializers[n].const_value.numpy() for n in ("scale3", "variance3"))
    assert end.slope == pytest.approx(scale / np.sqrt(variance + 1e-5), rel=1e-5)
    assert goal(nodes["f"], inside - {nodes["h"].name}).value == "g"
    nodes = {node.outputs[0].name: node for node in encoder.graph}
    assert goal(nodes["dd"], {node.name for node in encoder.graph}).value == "z"


def test_a_zero_that_is_lost_is_named(residual, data) -> None:
    found = sparsified(residual, data(residual), permute=False).graph
    prove(found, ["w2", "w3"])
    node = next(p.node for p in products(found) if p.weight == "w3")
    replace_weight(found, node, 1, np.ones((16, 24, 3, 3), np.float32))
    with pytest.raises(VerificationError, match="w3"):
        prove(found, ["w2", "w3"])


def test_large_inner_values_take_fewer_samples(residual, data, monkeypatch) -> None:
    def counted() -> int:
        wanted = {p.weight: p for p in products(residual)}
        return len(layers.Layers(residual, wanted, data(residual, 128), 128, 0).feeds)

    assert counted() == 8
    monkeypatch.setattr(layers, "_MEMORY", 1)
    assert counted() == 2


def test_too_few_samples_are_refused(residual, data) -> None:
    with pytest.raises(DataError, match="two batches"):
        sparsified(residual, data(residual, 16))


def test_zeros_in_no_pattern_are_made_up_for(residual, run, data) -> None:
    fresh = next(data(residual, 32, seed=9).batches(32)).feeds
    want, errors = run(residual, fresh), {}
    for method, scope in (("magnitude", "layer"), ("obs", "layer"), ("obs", "global")):
        wish = {"pattern": "unstructured", "sparsity": 0.6, "method": method, "scope": scope}
        found = sparsified(residual, data(residual), **wish).graph
        zeros = sum(int((a == 0).sum()) for a in arrays(found).values())
        assert zeros / sum(a.size for a in arrays(found).values()) == pytest.approx(0.6, abs=0.01)
        errors[method, scope] = float(((run(found, fresh) - want) ** 2).mean())
    assert errors["obs", "layer"] < 0.5 * errors["magnitude", "layer"]
    assert errors["obs", "global"] < errors["magnitude", "layer"]


@pytest.mark.parametrize("rewind", [False, True])
def test_rounds_grow_by_the_cubic_schedule_with_training_between(rewind, residual, tmp_path) -> None:
    seen = []

    def tune(graph, step, prepare=None):
        """Every weight that is alive grows by a tenth."""
        seen.append(arrays(graph))
        copy = graph.clone()
        for product in list(products(copy)):
            replace_weight(copy, product.node, 1, arrays(graph)[product.weight] * np.float32(1.1))
        return copy

    wish = Sparsify(
        pattern="unstructured", sparsity=0.8, method="magnitude", rounds=3, rewind=rewind,
        finetune=Finetune(),
    )  # fmt: skip
    ground = Ground(samples=None, given=residual, workdir=tmp_path, tune=tune)
    check(wish, residual, ground)
    found = run_step(wish, residual, ground)
    shares = [np.mean([float((a == 0).mean()) for a in one.values()]) for one in seen]
    assert shares == pytest.approx([0.8 * (1 - (1 - n / 3) ** 3) for n in (1, 2, 3)], abs=0.01)
    before = arrays(residual)
    for name, array in arrays(found.model).items():
        alive = array != 0
        assert not (alive & (seen[0][name] == 0)).any()
        times = 1.1 if rewind else 1.1**3
        np.testing.assert_allclose(array[alive], before[name][alive] * times, rtol=1e-5)
    assert found.told == "80.0% of the weights are zero, in no pattern: smaller at rest, no faster"


def test_what_came_sparse_stays_as_it_came(residual, data, tmp_path) -> None:
    once = sparsified(residual, data(residual), method="magnitude").graph
    ground = Ground(samples=data(once), given=once, workdir=tmp_path, pays=True)
    found = run_step(Sparsify(samples=64), once, ground)
    assert all((arrays(found.model)[name] == array).all() for name, array in arrays(once).items())
    assert found.told == "4 of 4 products 2:4 sparse, 100% of their weights"
    assert {row.what for row in found.rows} == {"left as it came, 2:4 sparse"}


def test_a_step_that_cannot_work_is_refused_before_it_runs(residual, build, data, tmp_path) -> None:
    ground = Ground(samples=data(residual), given=residual, workdir=tmp_path, why="ort skips no zeros")
    with pytest.raises(UsageError, match="ort skips no zeros"):
        check(Sparsify(), residual, ground)
    check(Sparsify(anyway=True), residual, ground)
    bare = Ground(samples=None, given=residual, workdir=tmp_path, pays=True)
    with pytest.raises(UsageError, match="no samples"):
        check(Sparsify(), residual, bare)
    thin = build("g (float[n,3,5,5] x) => (float[n,8,N,M] y) { y = Conv(x, w) }", {"w": (8, 3, 3, 3)})
    with pytest.raises(UsageError, match="whole fours"):
        check(Sparsify(method="magnitude"), thin, bare)
    with pytest.raises(UsageError, match="all products of weights are protected"):
        check(Sparsify(protect=("*",)), residual, bare)


def test_training_that_breaks_the_pattern_is_found(residual, data, tmp_path) -> None:
    def tune(graph, step, prepare=None):
        copy = graph.clone()
        node = next(p.node for p in products(copy) if p.weight == "w3")
        replace_weight(copy, node, 1, np.ones((16, 24, 3, 3), np.float32))
        return copy

    ground = Ground(samples=data(residual), given=residual, workdir=tmp_path, pays=True, tune=tune)
    with pytest.raises(VerificationError, match="w3"):
        run_step(Sparsify(method="magnitude", finetune=Finetune()), residual, ground)


def test_folding_batch_norm_keeps_the_pattern(residual, data) -> None:
    sparse = sparsified(residual, data(residual), method="magnitude").graph
    folded = fuse(sparse, lambda _one, _other: None).model
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph)
    assert set(masks(folded)) == {p.weight for p in products(folded)}
    assert len(masks(folded)) == len(masks(sparse))
