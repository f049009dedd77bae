"""Pieces of a graph by float values and by plan, against ONNX Runtime on the graph that carries the plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.data.dataset import Dataset
from deploy.execute.reference import open_graph
from deploy.train.gram import gram, layer_of
from deploy.train.units import (
    Pieces,
    Quantized,
    batches,
    held_bytes,
    narrow_units,
    single_units,
    stored_constants,
    walk,
)

Residual = tuple[ir.Model, Dataset]


def test_a_residual_unit_reaches_to_where_one_value_leads_on(
    residual: Residual, plan: Callable[..., Any]
) -> None:
    found = plan(*residual)
    weights = {"w1", "w2", "w3", "w4"}
    units = narrow_units(found.model, found.blocks, weights)
    assert [unit.weights for unit in units] == [("w1",), ("w2", "w3"), ("w4",)]
    assert sum((unit.blocks for unit in units), ()) == found.blocks
    assert [unit.weights for unit in single_units(found.model, found.blocks, weights)] == [
        ("w1",), ("w2",), ("w3",), (), ("w4",)
    ]  # fmt: skip


def test_the_walk_computes_what_both_graphs_compute(residual: Residual, plan: Callable[..., Any]) -> None:
    model, dataset = residual
    found = plan(model, dataset, 4)
    pieces = Pieces(found.model)
    values = {n: t for n, t in found.tensors.items() if n not in found.codes}
    quantized = Quantized(values, stored_constants(found.tensors, found.codes))
    feeds = batches(found.model, dataset, 20, 16)
    assert [len(batch["x"]) for batch in feeds] == [16]
    units = single_units(found.model, found.blocks, found.codes)
    stop = next(stop for stop in walk(pieces, units, quantized, feeds) if stop.leaving == ["y"])
    given = pieces.run(stop.steps, stop.given[0], ["y"], quantized)
    for graph, ours in ((found.model, stop.targets[0]["y"]), (found.graph(), given["y"])):
        with open_graph(graph, optimised=False) as session:
            want = session.run({"x": feeds[0]["x"].numpy()})["y"]
        np.testing.assert_allclose(ours.numpy(), want, atol=2e-2 * np.abs(want).max())
        assert np.median(np.abs(ours.numpy() - want)) < 1e-5  # but for single codes that flip


def test_what_no_later_unit_reads_is_let_go(residual: Residual, plan: Callable[..., Any]) -> None:
    model, dataset = residual
    found = plan(model, dataset)
    quantized = Quantized({}, {})
    feeds = batches(found.model, dataset, 16, 16)
    units = narrow_units(found.model, found.blocks, {"w1", "w2", "w3", "w4"})
    most = 2 * 16 * 8 * 64 * 4 + 16 * 8 * 64 * 4  # b, float and not, and g that is to be reached
    assert held_bytes(Pieces(found.model), units, feeds[0]) == most
    held = [set(stop.exact[0]) for stop in walk(Pieces(found.model), units, quantized, feeds)]
    assert held == [{"x"}, {"b"}, {"g"}]


@pytest.mark.parametrize(
    ("text", "weight", "x"),
    [
        (
            "Conv <group = 2, strides = [2, 1], dilations = [1, 2], pads = [1, 0, 2, 3]>",
            (6, 2, 3, 2),
            (3, 4, 7, 8),
        ),
        ("Conv <pads = [1, 2]>", (5, 4, 3), (2, 4, 9)),
        ("Gemm <transB = 1>", (6, 5), (4, 5)),
        ("Gemm", (5, 6), (4, 5)),
        ("MatMul", (5, 6), (3, 4, 5)),
    ],
)
def test_a_layer_is_its_weight_times_its_columns(
    text: str, weight: tuple[int, ...], x: tuple[int, ...]
) -> None:
    draw = np.random.default_rng(0)
    op, _, attributes = text.partition(" ")
    sizes = ", ".join(map(str, x))
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[{sizes}] x) => (float[] y) '
        f"{{ [node] y = {op} {attributes} (x, w) }}"
    )
    node = model.graph[0]
    value, array = node.inputs[1], draw.standard_normal(weight).astype(np.float32)
    assert value is not None
    value.const_value, value.shape = ir.tensor(array, name="w"), ir.Shape(weight)
    model.graph.initializers["w"] = value
    layer = layer_of(node, "w")
    assert layer is not None
    tensor, given = torch.tensor(array), torch.tensor(draw.standard_normal(x).astype(np.float32))
    product = layer.packed(tensor) @ layer.columns(given, tensor.shape[2:])
    pieces = Pieces(model)
    want = pieces.run(pieces.program.steps, {"x": given}, ["y"])["y"]
    if op == "Conv":
        want = want.transpose(0, 1).reshape(product.shape)
    else:
        want = want.reshape(-1, want.shape[-1]).T.reshape(product.shape)
    torch.testing.assert_close(product, want, atol=1e-4, rtol=1e-4)
    assert torch.equal(layer.unpacked(layer.packed(tensor), tensor), tensor)
    form, missed = gram(layer, tensor, [given], [given], torch.Generator())
    assert form.shape[1:] == (layer.packed(tensor).shape[2],) * 2
    assert not missed.any()
