"""Adaptive rounding of whole networks, judged by ONNX Runtime on the graphs that carry the codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from deploy.data.dataset import Dataset, open_dataset
from deploy.errors import DataError
from deploy.execute.reference import open_graph
from deploy.graph.qdq import data_digest, insert
from deploy.graph.summary import tensor_specs
from deploy.train.round import Rounding, round_weights

Residual = tuple[ir.Model, Dataset]


def noise(model: ir.Model, quantized: ir.Model, dataset: Dataset) -> float:
    """Mean square of what the quantized graph differs by, over that of the output."""
    feeds = next(dataset.batches(96)).feeds
    answers = []
    for graph in (model, quantized):
        with open_graph(graph, optimised=False) as session:
            answers.append(session.run(feeds)["y"].astype(np.float64))
    return float(((answers[1] - answers[0]) ** 2).mean() / (answers[0] ** 2).mean())


@pytest.mark.parametrize(("layers", "units"), [(True, False), (False, True)])
def test_rounding_beats_the_nearest(
    residual: Residual, plan: Callable[..., Any], layers: bool, units: bool
) -> None:
    model, dataset = residual
    found = plan(model, dataset, 4)
    settings = Rounding(largest=7, samples=64, seconds=600, steps=80, layers=layers, units=units)
    rounded = round_weights(found.model, found.blocks, found.tensors, found.codes, dataset, settings)
    assert rounded.complete
    graph = insert(found.model, rounded.tensors, rounded.codes)
    assert noise(found.model, graph, dataset) < 0.6 * noise(found.model, found.graph(), dataset)
    for unit in (*rounded.layers, *rounded.units):
        assert unit.after <= unit.before
        assert (unit.how == "as given") == (unit.turned == 0)


def test_every_code_is_a_neighbour_and_the_plan_says_what_is_stored(
    residual: Residual, plan: Callable[..., Any]
) -> None:
    model, dataset = residual
    found = plan(model, dataset, 4)
    settings = Rounding(largest=7, samples=32, seconds=600, steps=30)
    rounded = round_weights(found.model, found.blocks, found.tensors, found.codes, dataset, settings)
    again = round_weights(found.model, found.blocks, found.tensors, found.codes, dataset, settings)
    assert rounded.turned > 0
    for name, codes in rounded.codes.items():
        plan_ = rounded.tensors[name]
        assert codes.dtype == found.codes[name].dtype
        assert codes.tobytes() == again.codes[name].tobytes()
        assert plan_.digest == data_digest(codes)
        assert plan_.model_copy(update={"digest": None}) == found.tensors[name].model_copy(
            update={"digest": None}
        )
        if plan_.bias_of is not None:
            assert np.array_equal(codes, found.codes[name])
            continue
        array = found.model.graph.initializers[name].const_value.numpy().astype(np.float64)
        scale = np.asarray(plan_.scale).reshape(-1, *[1] * (array.ndim - 1))
        assert (np.abs(codes - np.clip(array / scale, -7, 7)) < 1 + 1e-6).all()
        assert np.abs(codes).max() <= 7


def test_a_batch_that_is_prescribed_is_kept_to(residual: Residual, plan: Callable[..., Any]) -> None:
    model, dataset = residual
    found = plan(model, dataset, 4)
    fixed = found.model.clone()
    for value in (*fixed.graph.inputs, *fixed.graph.outputs):
        value.shape = ir.Shape([1, *list(value.shape)[1:]])
    settings = Rounding(largest=7, samples=12, seconds=600, units=False)
    rounded = round_weights(fixed, found.blocks, found.tensors, found.codes, dataset, settings)
    assert rounded.samples == 12
    assert rounded.turned > 0


def test_a_weight_that_two_nodes_read_waits_for_its_unit(plan: Callable[..., Any], fill: Any) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[n, 6] x) => (float[n, 6] y) {
        a = Gemm <transB = 1> (x, w)
        b = Relu (a)
        y = Gemm <transB = 1> (b, w)
    }"""
    draw = np.random.default_rng(0)
    model = fill(text, {"w": draw.standard_normal((6, 6)).astype(np.float32)})
    dataset = open_dataset(
        {"x": draw.standard_normal((64, 6)).astype(np.float32)}, tensor_specs(model.graph.inputs)
    )
    found = plan(model, dataset, 4)
    settings = Rounding(largest=7, samples=64, seconds=600, steps=100)
    rounded = round_weights(found.model, found.blocks, found.tensors, found.codes, dataset, settings)
    assert [unit.weights for unit in rounded.units] == [("w",)]
    graph = insert(found.model, rounded.tensors, rounded.codes)
    assert noise(found.model, graph, dataset) <= noise(found.model, found.graph(), dataset)


def test_without_time_all_stays_as_it_was(residual: Residual, plan: Callable[..., Any]) -> None:
    model, dataset = residual
    found = plan(model, dataset, 4)
    settings = Rounding(largest=7, seconds=0)
    rounded = round_weights(found.model, found.blocks, found.tensors, found.codes, dataset, settings)
    assert rounded.turned == 0
    assert all(np.array_equal(rounded.codes[name], codes) for name, codes in found.codes.items())


def test_too_few_samples_are_an_error(residual: Residual, plan: Callable[..., Any]) -> None:
    model, dataset = residual
    found = plan(model, dataset, 4)
    with pytest.raises(DataError, match="two batches"):
        round_weights(
            found.model, found.blocks, found.tensors, found.codes, dataset, Rounding(largest=7, samples=16)
        )
