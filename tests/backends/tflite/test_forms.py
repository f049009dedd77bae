"""Forms of weights in .tflite files: float16, 8 and 4 bits, and products that round what they read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.execute.compare import largest_error
from deploy.execute.reference import open_graph
from deploy.graph.blocks import partition
from deploy.graph.edit import constant
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.quantize.forms import Stored, WeightForm, form_plans, store_weights
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, differences

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.write import read_file

RUNTIME = load_profile("android").runtime_named("tflite")
NET = """<ir_version: 10, opset_import: ["" : 21]> g (float[n,16,8,8] x) => (float[n,40] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(a)
    d = Conv<pads=[2,2,2,2], group=64>(r, v)
    e = Conv(d, o)
    s = Add(r, e)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    m = MatMul(f, k)
    y = Gemm<transB=1>(m, u, c)
}"""
SHAPES = {"w": (64, 16, 3, 3), "b": (64,), "v": (64, 1, 5, 5), "o": (64, 64, 1, 1)}
SHAPES |= {"k": (64, 63), "u": (40, 63), "c": (40,)}
TOKENS = """<ir_version: 10, opset_import: ["" : 21]> g (int64[n,6] i) => (float[n,6,40] y) {
    e = Gather(t, i)
    m = MatMul(e, k)
    h = Relu(m)
    y = MatMul(h, q)
}"""
TABLES = {"t": (100, 32), "k": (32, 64), "q": (64, 40)}
DENSE = """<ir_version: 10, opset_import: ["" : 21]> g (float[n,16,8,8] x) => (float[n,40] y) {
    a = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)
    f = Flatten(a)
    y = Gemm<transB=1>(f, k, c)
}"""
MATRICES = {"k": (40, 256), "c": (40,)}
FORMS: tuple[WeightForm, ...] = ("fp16", "w8", "w4", "dynamic")


def graph(text: str, shapes: dict[str, tuple[int, ...]]) -> ir.Model:
    rng = np.random.default_rng(0)
    tensors = [ir.tensor(rng.normal(0, 0.3, s).astype(np.float32), name=n) for n, s in shapes.items()]
    model = ir.from_onnx_text(text, initializers=tensors)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)


def feeds_of(model: ir.Model, count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    if model.graph.inputs[0].name == "i":
        return {"i": rng.integers(0, 100, (count, 6))}
    return {"x": rng.normal(0.2, 1, (count, 16, 8, 8)).astype(np.float32)}


def written(model: ir.Model, form: WeightForm, folder: Path) -> tuple[Stored, Plan, Artifact]:
    stored = store_weights(model, form, RUNTIME, ())
    blocks = form_plans(stored, form, partition(model), RUNTIME, ())
    plan = Plan(graph_sha256="", target="", runtime="tflite", tensors=dict(stored.tensors), blocks=blocks)
    return stored, plan, TFLite().lower(stored.graph, plan, RUNTIME, folder, SILENT)


def run(artifact: Artifact, feeds: dict[str, np.ndarray], delegate: str = "xnnpack") -> dict[str, np.ndarray]:
    options = TFLite().options(RUNTIME, 1).model_copy(update={"delegate": delegate})
    with TFLite().open(artifact, options) as runner:
        return runner.run(feeds)


def reference(model: ir.Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with open_graph(model, optimised=False) as session:
        return session.run(feeds)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("text", "shapes"),
    [(NET, SHAPES), (DENSE, MATRICES), (TOKENS, TABLES)],
    ids=["image", "flattened image", "tokens"],
)
def test_litert_computes_what_the_graph_says_for_any_batch(form, text, shapes, tmp_path: Path) -> None:
    model = graph(text, shapes)
    stored, plan, artifact = written(model, form, tmp_path)
    for count in (1, 4, 2):
        feeds = feeds_of(model, count)
        assert largest_error(reference(stored.literal(), feeds), run(artifact, feeds)) < 1e-4
    feeds = feeds_of(model, 3)
    off = largest_error(reference(model, feeds), run(artifact, feeds))
    assert 0 < off < {"fp16": 1e-3, "w8": 0.03, "w4": 0.5, "dynamic": 0.05}[form], "and it is another form"
    assert differences(plan, TFLite().read_plan(artifact)) == []


@pytest.mark.parametrize(
    ("form", "expected"),
    [("fp16", {"fp16"}), ("w8", {"w8"}), ("w4", {"w4"}), ("dynamic", {"dynamic", "w8"})],
)
def test_blocks_say_what_they_compute_in(form, expected, tmp_path: Path) -> None:
    model = graph(NET, SHAPES)
    _, plan, _ = written(model, form, tmp_path)
    found = {block.id: block.precision for block in plan.blocks}
    assert {p for p in found.values() if p != "float"} == expected
    if form == "dynamic":
        assert found["Conv2"] == "w8", "a depthwise convolution rounds nothing"
        assert (found["Conv0"], found["Gemm8"]) == ("dynamic", "dynamic")


@pytest.mark.parametrize("form", ["fp16", "w8", "dynamic"])
def test_xnnpack_takes_the_whole_network(form, tmp_path: Path) -> None:
    _, _, artifact = written(graph(NET, SHAPES), form, tmp_path)
    assert TFLite().hazards(artifact, TFLite().options(RUNTIME, 1)) == []


def tensor(artifact: Artifact, name: str) -> tuple[int, np.ndarray]:
    """Type and bytes."""
    model = read_file(artifact.main)
    found = next(t for t in model.subgraphs[0].tensors if t.name == name.encode())
    return found.type, np.asarray(model.buffers[found.buffer].data, np.uint8)


def test_float16_weights_are_the_rounded_ones_channels_last(tmp_path: Path) -> None:
    from ai_edge_litert.schema_py_generated import TensorType

    model = graph(NET, SHAPES)
    weights = constant(model.graph.initializers["w"])
    assert weights is not None
    _, _, artifact = written(model, "fp16", tmp_path)
    kind, content = tensor(artifact, "w")
    assert kind == TensorType.FLOAT16
    want = weights.transpose(0, 2, 3, 1).astype(np.float16)
    np.testing.assert_array_equal(content.view(np.float16).reshape(want.shape), want)
    metadata = {
        entry.name: bytes(read_file(artifact.main).buffers[entry.buffer].data)
        for entry in read_file(artifact.main).metadata
    }
    assert metadata[b"reduced_precision_support"] == b"fp16accfp16"


def test_float_files_do_not_allow_float16_arithmetic(tmp_path: Path) -> None:
    plan = Plan(graph_sha256="", target="", runtime="tflite")
    artifact = TFLite().lower(graph(NET, SHAPES), plan, RUNTIME, tmp_path, SILENT)
    assert b"reduced_precision_support" not in [e.name for e in read_file(artifact.main).metadata]


def test_two_weights_of_four_bits_lie_in_a_byte(tmp_path: Path) -> None:
    from ai_edge_litert.schema_py_generated import TensorType

    model = graph(NET, SHAPES)
    weights = constant(model.graph.initializers["u"])
    assert weights is not None
    _, plan, artifact = written(model, "w4", tmp_path)
    kind, content = tensor(artifact, "u")
    assert kind == TensorType.INT4
    assert content.size == weights.size // 2
    low, high = (content & 15).astype(np.int8), (content >> 4).astype(np.int8)
    codes = np.stack([low, high], axis=1).ravel()
    codes = (codes - 16 * (codes > 7)).reshape(weights.shape)
    scale = np.array(plan.tensors["u"].scale, np.float32)[:, None]
    inside = np.abs(weights) <= 7 * scale
    np.testing.assert_allclose((codes * scale)[inside], weights[inside], atol=0.51 * float(scale.max()))
    assert artifact.weight_bytes < artifact.size_bytes()


def test_each_form_is_smaller_than_the_one_before(tmp_path: Path) -> None:
    sizes = []
    for form in ("fp16", "w8", "w4"):
        (tmp_path / form).mkdir()
        sizes.append(written(graph(NET, SHAPES), form, tmp_path / form)[2].weight_bytes)
    whole = sum(int(np.prod(shape)) for shape in SHAPES.values()) * 4
    assert [round(whole / size, 1) for size in sizes] == [2.0, 3.8, 7.4]


def test_litert_without_xnnpack_reads_the_files_too(tmp_path: Path) -> None:
    model = graph(NET, SHAPES)
    feeds = feeds_of(model, 2)
    for form in ("fp16", "w8", "w4"):
        (tmp_path / form).mkdir()
        stored, _, artifact = written(model, form, tmp_path / form)
        assert largest_error(reference(stored.literal(), feeds), run(artifact, feeds, "none")) < 1e-5
