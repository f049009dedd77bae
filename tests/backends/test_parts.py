"""Artifacts cut into operations, each fed the reference's values: right ones are right, a fault is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import drawn, weights_of, with_weights

from deploy.adapter.discover import find_backend
from deploy.adapter.parts import ForeignParts
from deploy.adapter.profiles import load_profile
from deploy.adapter.protocol import Divides, Piece, Splits, Stores
from deploy.bundle.deep import compare_plans
from deploy.bundle.operations import Deviation, checked, uncovered, values_of
from deploy.errors import BackendError
from deploy.graph.qdq import data_digest, insert, quantize_array
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact, Options
from deploy.spec.plan import Plan, QuantParams, TensorPlan

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (float[2,3,6,6] x) => (float[2,4,6,6] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, v)
    y = Relu(b)
}"""
SHAPES = {"w": (4, 3, 3, 3), "v": (4, 4, 3, 3)}
SCALES = {"x": 4 / 128, "r": 5 / 128, "y": 6 / 128}
WHERE = {"ort": "x86-vnni", "openvino": "x86-vnni", "tflite": "android", "coreml": "iphone15"}
NEEDS = {"openvino": "openvino", "tflite": "ai_edge_litert", "coreml": "coremltools"}
BACKENDS = ["ort", "openvino", "tflite", "coreml"]


def planned(name: str, scales: dict[str, float]) -> tuple[Plan, ir.Model]:
    """A plan as a backend wants it with one scale for each value, and the graph that carries it."""
    model = with_weights(TEXT, drawn(SHAPES))
    kind, zero = ("uint8", 128) if WHERE[name] == "x86-vnni" else ("int8", 0)
    tensors, codes = {}, {}
    for value, scale in scales.items():
        tensors[value] = TensorPlan(type=kind, scale=(scale,), zero_point=(zero,), origin="calibration")
    for weight in SHAPES:
        array = weights_of(model, weight)
        scale = np.abs(array).max(axis=(1, 2, 3)) / np.float32(127)
        params = QuantParams(type="int8", scale=tuple(map(float, scale)), zero_point=(0,) * 4, axis=0)
        codes[weight] = quantize_array(array, params, low=-127)
        digest = data_digest(codes[weight])
        tensors[weight] = TensorPlan(**params.model_dump(), origin="weight", digest=digest)
    plan = Plan(graph_sha256="", target="", runtime="", tensors=tensors)
    return plan, insert(model, tensors, codes)


def written(name: str, graph: ir.Model, plan: Plan, folder: Path) -> tuple[Artifact, Options]:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    runtime = load_profile(WHERE[name]).runtime_named(name).model_copy(update={"around": "float32"})
    backend = find_backend(name)
    return backend.lower(graph, plan, runtime, folder, SILENT), backend.options(runtime, 1)


def parts_of(name: str, artifact: Artifact, options: Options, graph: ir.Model) -> list[Piece]:
    backend: object = find_backend(name)
    known = values_of(graph) - {n.outputs[0].name for n in graph.graph if n.op_type == "DequantizeLinear"}
    if isinstance(backend, Divides):
        return list(backend.pieces(artifact, options, known))
    assert isinstance(backend, Splits)
    return list(backend.parts(artifact, options, known))


def looked_at(graph: ir.Model, pieces: list[Piece], artifact: Artifact) -> list[Deviation]:
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 3, 6, 6)).astype(np.float32)}
    return list(checked(graph, pieces, artifact.inputs, feeds))


@pytest.mark.parametrize("name", BACKENDS)
def test_a_right_artifact_is_right_everywhere(name: str, tmp_path: Path) -> None:
    plan, graph = planned(name, SCALES)
    artifact, options = written(name, graph, plan, tmp_path)
    found = looked_at(graph, parts_of(name, artifact, options, graph), artifact)
    assert [str(one) for one in found if one.wrong] == []
    assert {"x/q", "r/q", "y/q"} <= {one.value for one in found}
    pieces = [(piece.reads, piece.result) for piece in parts_of(name, artifact, options, graph)]
    assert uncovered(graph, pieces) == []
    first = [piece for piece in pieces if piece[1] in ("x/q", "a", "r", "r/q")]
    assert uncovered(graph, first) == ["Conv2", "Relu3"]
    numbers = {one.value: sum(one.counts) for one in found if sum(one.counts)}
    assert numbers["x/q"] == 2 * 3 * 6 * 6 and numbers["r/q"] == 2 * 4 * 6 * 6
    assert not any(tensor.wrong for tensor in compare_plans(plan, find_backend(name).read_plan(artifact)))


@pytest.mark.parametrize("name", BACKENDS)
def test_the_first_operation_with_another_scale_in_the_file_is_named(name: str, tmp_path: Path) -> None:
    plan, graph = planned(name, SCALES)
    other, planted = planned(name, SCALES | {"r": 6 / 128})
    artifact, options = written(name, planted, other, tmp_path)
    found = looked_at(graph, parts_of(name, artifact, options, graph), artifact)
    first = next(one for one in found if one.wrong)
    assert first.value == "r/q" and first.steps > 1 and first.counts[2] > 0
    assert abs(first.expected - first.got) == first.steps
    read = find_backend(name).read_plan(artifact)
    assert {t.name: t.wrong for t in compare_plans(plan, read) if t.wrong}.keys() == {"r"}


@pytest.mark.parametrize("name", ["ort", "openvino", "tflite"])
def test_integers_of_weights_are_read_back(name: str, tmp_path: Path) -> None:
    plan, graph = planned(name, SCALES)
    artifact, _ = written(name, graph, plan, tmp_path)
    backend: object = find_backend(name)
    assert isinstance(backend, Stores)
    codes = backend.codes(artifact)
    assert {w: data_digest(codes[w]) for w in SHAPES} == {w: plan.tensors[w].digest for w in SHAPES}


def test_in_a_child_process(tmp_path: Path) -> None:
    """What comes out of the child is what comes of it here; a file that is none is one error."""
    plan, graph = planned("ort", SCALES)
    artifact, options = written("ort", graph, plan, tmp_path)
    here = looked_at(graph, parts_of("ort", artifact, options, graph), artifact)
    pieces = parts_of("ort", artifact, options, graph)
    assert list(checked(graph, pieces, artifact.inputs, {"x": np.zeros((2, 3, 6, 6), "f")}, until=0.0)) == []
    with ForeignParts(artifact, options) as parts:
        assert not any(tensor.wrong for tensor in compare_plans(plan, parts.read_plan()))
        assert data_digest(parts.codes()["w"]) == plan.tensors["w"].digest
        known = values_of(graph) - {n.outputs[0].name for n in graph.graph if n.op_type == "DequantizeLinear"}
        pieces = list(parts.pieces(known))
        assert looked_at(graph, pieces, artifact) == here
        artifact.main.write_bytes(b"nothing of the kind")
        with pytest.raises(BackendError):
            parts.read_plan()


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_a_part_reads_a_single_number(name: str, tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[2,3,6,6] x) => (float[1,1] y) { s = ReduceSum<keepdims=0>(x)  y = Unsqueeze(s, axes) }"""
    graph = with_weights(text, {"axes": np.array([0, 1])})
    artifact, options = written(name, graph, Plan(graph_sha256="", target="", runtime=""), tmp_path)
    found = looked_at(graph, parts_of(name, artifact, options, graph), artifact)
    assert [one.value for one in found] == ["s", "y"] and not any(one.wrong for one in found)
