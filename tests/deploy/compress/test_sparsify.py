"""Whole networks made 2:4 sparse, judged by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deploy.compress import layers
from deploy.compress.layers import goal
from deploy.compress.pattern import products, sparse_2_4
from deploy.compress.permute import Search
from deploy.compress.sparsify import Sparsify, masks, prove, sparsify
from deploy.errors import DataError, VerificationError
from deploy.frontend import onnx_file
from deploy.graph.edit import constant, replace_weight

QUICK = Search(exchanges=2, shakes=1)


def settings(**given):
    return Sparsify(search=QUICK, samples=64, **given)


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {p.weight: constant(p.node.inputs[1]) for p in products(model)}


@pytest.mark.parametrize("name", ["residual", "encoder"])
def test_making_up_beats_leaving_out(name, request, run, data, tmp_path) -> None:
    model = request.getfixturevalue(name)
    fresh = next(data(model, 32, seed=9).batches(32)).feeds
    want, errors = run(model, fresh), {}
    for method in ("magnitude", "obs"):
        found = sparsify(model, data(model), settings(method=method, permute=False))
        onnx_file.write(found.graph, tmp_path / "sparse.onnx")
        written = onnx_file.read(tmp_path / "sparse.onnx").model
        sparse = [p for p in products(written) if p.axis is not None and p.weight != "head"]
        assert all(sparse_2_4(constant(p.node.inputs[1]), p.axis) for p in sparse)
        prove(written, [p.weight for p in sparse])
        errors[method] = float(((run(found.graph, fresh) - want) ** 2).mean() / (want**2).mean())
    assert errors["obs"] < 0.5 * errors["magnitude"]


def test_steps_say_what_was_done_and_permuting_comes_first(residual, run, data) -> None:
    found = sparsify(residual, data(residual), settings())
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
    one, other = (arrays(sparsify(residual, data(residual), settings()).graph) for _ in range(2))
    assert all(one[name].tobytes() == other[name].tobytes() for name in before)
    assert all((arrays(residual)[name] == array).all() for name, array in before.items())


def test_layers_beyond_the_tolerance_stay_dense(residual, data) -> None:
    strict = sparsify(residual, data(residual), settings(permute=False, tolerance=0.0))
    dense = [step for step in strict.steps if not step.kept]
    assert dense
    assert all("left dense" in step.what for step in dense)
    assert {s.place for s in dense} == {
        p.node.name for p in products(strict.graph) if not sparse_2_4(constant(p.node.inputs[1]), p.axis)
    }


def test_layers_that_do_not_fit_are_named(build, data) -> None:
    model = build("g (float[n,3,5,5] x) => (float[n,8,N,M] y) { [c] y = Conv(x, w) }", {"w": (8, 3, 3, 3)})
    (step,) = sparsify(model, data(model), settings()).steps
    assert (step.place, step.kept) == ("c", False)
    assert "whole fours" in step.what


def test_groups_are_solved_each_for_itself(build, run, data) -> None:
    text = "g (float[n,16,5,5] x) => (float[n,8,N,M] y) { y = Conv<group=2>(x, w) }"
    model = build(text, {"w": (8, 8, 3, 3)})
    found = sparsify(model, data(model), settings(permute=False))
    fresh = next(data(model, 32, seed=9).batches(32)).feeds
    want = run(model, fresh)
    lost = ((run(found.graph, fresh) - want) ** 2).mean() / (want**2).mean()
    simple = sparsify(model, data(model), settings(permute=False, method="magnitude"))
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
    found = sparsify(residual, data(residual), settings(permute=False)).graph
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
        sparsify(residual, data(residual, 16), settings())
