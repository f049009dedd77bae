"""Training of quantized graphs: read back is what was computed, and it recovers what rounding lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.data.dataset import Dataset
from deploy.errors import UsageError
from deploy.execute.module import GraphModule
from deploy.execute.reference import open_graph
from deploy.graph.qdq import insert, quantize_array
from deploy.quantize.adopt import adopt
from deploy.spec.plan import QuantParams
from deploy.spec.profile import QuantRules
from deploy.train.learned import learnable, read_back
from deploy.train.qat import Retrained, careful, nearness, train_quantized

Residual = tuple[ir.Model, Dataset]


def answers(model: ir.Model, dataset: Dataset) -> np.ndarray:
    with open_graph(model, optimised=False) as session:
        return session.run(next(dataset.batches(96)).feeds)["y"].astype(np.float64)


def noise(model: ir.Model, quantized: ir.Model, dataset: Dataset) -> float:
    wanted = answers(model, dataset)
    return float(((answers(quantized, dataset) - wanted) ** 2).mean() / (wanted**2).mean())


@pytest.fixture
def shaken(residual: Residual, plan: Callable[..., Any]) -> Any:
    """A plan, the graph that learns it, and that graph after its weights and scales moved at random."""
    found = plan(*residual, 4)
    learned = learnable(found.model, found.tensors, found.codes, largest=7)
    moved, draw = learned.model.clone(), np.random.default_rng(0)
    for name, value in moved.graph.initializers.items():
        array = value.const_value.numpy()
        if name in found.codes or name.endswith("/log_scale"):
            array = (array + draw.normal(0, 0.05, array.shape)).astype(np.float32)
            value.const_value = ir.tensor(array, name=name)
    return found, learned, moved


def test_it_begins_with_what_the_plan_says(residual: Residual, plan: Callable[..., Any]) -> None:
    found = plan(*residual, 4)
    learned = learnable(found.model, found.tensors, found.codes, largest=7)
    model, tensors, codes = read_back(learned.model, learned, found.model)
    for name, integers in found.codes.items():
        if found.tensors[name].bias_of is None:
            assert np.array_equal(codes[name], integers)
        np.testing.assert_allclose(tensors[name].scale, found.tensors[name].scale, rtol=1e-5)
    assert noise(found.graph(), insert(model, tensors, codes), residual[1]) < 1e-4


def test_codes_that_are_not_the_nearest_are_kept(residual: Residual, plan: Callable[..., Any]) -> None:
    found = plan(*residual, 4)
    turned = found.codes["w3"].copy()
    turned[0, 0] = np.where(turned[0, 0] < 7, turned[0, 0] + 1, 6)
    learned = learnable(found.model, found.tensors, {**found.codes, "w3": turned}, largest=7)
    assert np.array_equal(read_back(learned.model, learned, found.model)[2]["w3"], turned)


def test_what_is_read_back_is_what_the_module_computes(residual: Residual, shaken: Any) -> None:
    found, learned, moved = shaken
    model, tensors, codes = read_back(moved, learned, found.model)
    graph = insert(model, tensors, codes)
    module = GraphModule(moved)
    feeds = {"x": torch.tensor(next(residual[1].batches(32)).feeds["x"])}
    values = [name for name in tensors if name not in codes]
    with torch.no_grad():
        ours = module(feeds, [f"{name}/q" for name in values])
        theirs = GraphModule(graph)(feeds, [f"{name}/q" for name in values])
    for name in values:
        apart = (ours[f"{name}/q"].int() - theirs[f"{name}/q"].int()).abs()
        assert apart.max() <= 1  # sums in another order, and no more
        assert (apart > 0).float().mean() < 1e-3
    for name, plan_ in tensors.items():  # whoever quantizes the float graph again finds the same
        if name in codes and plan_.bias_of is None:
            array = model.graph.initializers[name].const_value.numpy()
            assert np.array_equal(quantize_array(array, plan_), codes[name])
            assert np.abs(codes[name]).max() <= 7


def test_the_result_can_be_adopted_like_a_model_that_came_quantized(shaken: Any) -> None:
    found, learned, moved = shaken
    model, tensors, codes = read_back(moved, learned, found.model)
    rules = QuantRules(activation="uint8", compute=("Conv",), source="test", date=date(2026, 11, 21))
    adopted = adopt(model, tensors, rules)
    assert adopted.tensors.keys() == tensors.keys()
    for name, integers in codes.items():
        if tensors[name].bias_of is None:
            assert np.array_equal(adopted.codes[name], integers)
            assert adopted.tensors[name].digest == tensors[name].digest


def test_weights_of_four_bits_as_a_type(residual: Residual, plan: Callable[..., Any]) -> None:
    found = plan(*residual, 4)
    tensors = {
        name: p.model_copy(update={"type": "int4"}) if name.startswith("w") else p
        for name, p in found.tensors.items()
    }
    learned = learnable(found.model, tensors, found.codes)
    model, plans, codes = read_back(learned.model, learned, found.model)
    assert plans["w1"].type == "int4"
    assert np.array_equal(codes["w1"], found.codes["w1"])
    assert noise(found.graph(), insert(model, plans, codes), residual[1]) < 1e-4


def test_the_rules_of_the_plan_hold_after_learning(shaken: Any) -> None:
    found, learned, moved = shaken
    _, tensors, _ = read_back(moved, learned, found.model)
    changed = 0
    for name, now in tensors.items():
        before = found.tensors[name]
        assert now.zero_point == before.zero_point
        assert (now.type, now.axis, now.readers) == (before.type, before.axis, before.readers)
        if now.shared_with is not None:
            assert now.scale == tensors[now.shared_with].scale
        if now.bias_of is not None:
            source, weight = (np.asarray(tensors[n].scale, np.float32) for n in now.bias_of)
            assert now.scale == tuple(map(float, source * weight))
        changed += now.scale != before.scale
    assert changed > 6


def test_scales_of_float16_stay_such(residual: Residual, plan: Callable[..., Any]) -> None:
    found = plan(*residual, 4)
    learned = learnable(found.model, found.tensors, found.codes, largest=7, scale_type="float16")
    _, tensors, _ = read_back(learned.model, learned, found.model)
    for now in tensors.values():
        if now.bias_of is None:
            assert all(float(np.float16(s)) == s for s in now.scale)
    with torch.no_grad():
        module = GraphModule(learned.model)
        given = module({"x": torch.zeros(1, 4, 8, 8)}, ["w1/stored_2"])["w1/stored_2"]
    assert tensors["w1"].scale == tuple(given.tolist())


def test_prescribed_parameters_do_not_learn(
    residual: Residual, plan: Callable[..., Any], tmp_path: Path
) -> None:
    found = plan(*residual, 4)
    fixed = {
        n: p.model_copy(update={"origin": "fixed"}) if n in ("b", "h") else p
        for n, p in found.tensors.items()
    }
    got = train(replace(found, tensors=fixed), residual[1], tmp_path, epochs=1)
    assert got.tensors["b"].scale == found.tensors["b"].scale
    assert got.tensors["x"].scale != found.tensors["x"].scale


def test_biases_fit_after_every_step(residual: Residual, plan: Callable[..., Any]) -> None:
    found = plan(*residual, 4)
    learned = learnable(found.model, found.tensors, found.codes, largest=7)
    module = GraphModule(learned.model)
    project = learned.prepare(module)
    weights = module.named_weights()
    with torch.no_grad():
        weights["b1"][0], weights["w1/log_scale"][0] = 1e3, -60.0
    project()
    source, own = weights[learned.scales["x"]].exp(), weights["w1/log_scale"].exp()
    assert (weights["b1"].abs() <= source * own * 2**30).all()


def train(found: Any, dataset: Dataset, workdir: Path, **changes: Any) -> Retrained:
    epochs, lr = changes.pop("epochs", 8), changes.pop("lr", 2e-3)
    step = careful(labelled=False, epochs=epochs, batch=16).model_copy(update={"lr": lr})
    return train_quantized(
        found.model,
        found.tensors,
        found.codes,
        step,
        train=dataset,
        largest=found.largest,
        workdir=workdir,
        **changes,
    )


def test_four_bits_are_recovered_without_labels(
    residual: Residual, plan: Callable[..., Any], tmp_path: Path
) -> None:
    found = plan(*residual, 4)
    got = train(found, residual[1], tmp_path)
    assert got.better
    graph = insert(got.model, got.tensors, got.codes)
    assert noise(found.model, graph, residual[1]) < 0.5 * noise(found.model, found.graph(), residual[1])


def test_equal_seeds_give_equal_bytes(residual: Residual, plan: Callable[..., Any], tmp_path: Path) -> None:
    found = plan(*residual, 4)
    one, two = (train(found, residual[1], tmp_path / word, epochs=1) for word in ("one", "two"))
    assert one.tensors == two.tensors
    assert all(two.codes[name].tobytes() == codes.tobytes() for name, codes in one.codes.items())


def test_scales_may_be_frozen(residual: Residual, plan: Callable[..., Any], tmp_path: Path) -> None:
    found = plan(*residual, 4)
    got = train(found, residual[1], tmp_path, epochs=2, learn_scales=False)
    for name, now in got.tensors.items():
        np.testing.assert_allclose(now.scale, found.tensors[name].scale, rtol=1e-5)
    assert any(not np.array_equal(got.codes[name], codes) for name, codes in found.codes.items())


def test_parameters_of_single_readers_are_refused(residual: Residual, plan: Callable[..., Any]) -> None:
    found = plan(*residual)
    own = QuantParams(type="uint8", scale=(0.5,), zero_point=(0,))
    tensors = {**found.tensors, "x": found.tensors["x"].model_copy(update={"uses": {"Conv_0": own}})}
    with pytest.raises(UsageError, match="'x' is quantized otherwise"):
        learnable(found.model, tensors, found.codes)


def test_nearness_is_none_for_the_graph_itself(residual: Residual) -> None:
    model, dataset = residual
    batch = next(dataset.batches(8))
    with open_graph(model, optimised=False) as session:
        outputs = session.run(batch.feeds)
    for factor, far in ((1.0, 0.0), (1.1, 0.01)):
        metric = nearness(model)()
        metric.update({name: array * np.float32(factor) for name, array in outputs.items()}, batch)
        assert metric.result().value == pytest.approx(far, abs=1e-4)
    assert not metric.higher_is_better
