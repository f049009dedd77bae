"""Weights alone as integers in ONNX Runtime and OpenVINO: what the file computes, holds and says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from backends.ort.nbits import pack, unpack
from deploy.adapter.discover import find_backend
from deploy.adapter.profiles import load_profile
from deploy.execute.compare import largest_error
from deploy.execute.reference import open_graph
from deploy.graph.blocks import partition
from deploy.graph.qdq import data_digest, dequantize_array
from deploy.graph.shapes import infer
from deploy.measure.host import host
from deploy.progress import SILENT
from deploy.quantize.forms import Stored, WeightForm, form_plans, pays_weight_only, store_weights, with_form
from deploy.quantize.groups import quantize_groups
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, TensorPlan, differences
from deploy.spec.profile import Runtime

PROFILE = load_profile("x86-vnni")
DOT_PRODUCTS = bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(host().features))
FORMS: tuple[WeightForm, ...] = ("dynamic", "w8", "w4")
KERNELS = {
    "dynamic": {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"},
    "w8": {"MatMulNBits"},
    "w4": {"MatMulNBits"},
}

ENCODER = """g (float[n,6,128] x) => (float[n,6,128] y, float[n,40] z) {
    [q] q = MatMul(x, wq)
    [k] k = MatMul(x, wk)
    [kt] kt = Transpose<perm=[0,2,1]>(k)
    [s] s = MatMul(q, kt)
    [a] a = Softmax<axis=-1>(s)
    [v] v = MatMul(a, x)
    [up] m = MatMul(v, wu)
    [bias] mb = Add(m, bu)
    [relu] r = Relu(mb)
    [down] y = MatMul(r, wd)
    [mean] p = ReduceMean<keepdims=0>(y, axes)
    [head] h = Gemm<transB=1>(p, wh, bh)
    [act] t = Relu(h)
    [last] z = Gemm(t, wl, bl)
}"""
SHAPES = {
    "wq": (128, 64), "wk": (128, 64), "wu": (128, 320), "bu": (320,), "wd": (320, 128), "wh": (160, 128),
    "bh": (160,), "wl": (160, 40), "bl": (40,),
}  # fmt: skip
WEIGHTS = {"wq", "wk", "wu", "wd", "wh", "wl"}


def graph(text: str = ENCODER, shapes: dict[str, tuple[int, ...]] = SHAPES, shift: float = 0.0) -> ir.Model:
    rng = np.random.default_rng(0)
    arrays = {n: (rng.normal(0, 0.08, s) + shift).astype(np.float32) for n, s in shapes.items()}
    if "axes" in text:
        arrays["axes"] = np.array([1])
    tensors = [ir.tensor(a, name=n) for n, a in arrays.items()]
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> {text}', initializers=tensors)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    return infer(model)


def runtime_of(name: str, form: WeightForm) -> Runtime:
    if name == "openvino":
        pytest.importorskip("openvino")
        if not DOT_PRODUCTS and form != "w8":
            pytest.skip("OpenVINO rounds while running where the CPU has 8-bit dot products")
    return with_form(PROFILE.runtime_named(name), form)


def written(model: ir.Model, name: str, form: WeightForm, folder: Path) -> tuple[Stored, Plan, Artifact]:
    runtime = runtime_of(name, form)
    stored = store_weights(model, form, runtime, ())
    blocks = form_plans(stored, form, partition(model), runtime, ())
    plan = Plan(graph_sha256="", target="", runtime=name, tensors=dict(stored.tensors), blocks=blocks)
    return stored, plan, find_backend(name).lower(stored.graph, plan, runtime, folder, SILENT)


def run(artifact: Artifact, name: str, form: WeightForm, x: np.ndarray) -> dict[str, np.ndarray]:
    backend = find_backend(name)
    with backend.open(artifact, backend.options(runtime_of(name, form), 1)) as runner:
        return runner.run({"x": x})


def literal(model: ir.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    with open_graph(model, optimised=False) as session:
        return session.run({"x": x})


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_the_file_computes_what_the_graph_says(name, form, tmp_path):
    model = graph()
    stored, plan, artifact = written(model, name, form, tmp_path)
    assert stored.weights == WEIGHTS
    assert differences(plan, find_backend(name).read_plan(artifact)) == []
    offs = []
    for seed in range(6):
        x = np.random.default_rng(seed).normal(0, 1, (1 + seed % 3, 6, 128)).astype(np.float32)
        got = run(artifact, name, form, x)
        offs.append(largest_error(literal(stored.literal(), x), got))
        assert 1e-4 < largest_error(literal(model, x), got) < {"dynamic": 0.1, "w8": 0.05, "w4": 1.0}[form]
    assert np.median(offs) < 1e-5, "but for codes that flip"
    assert max(offs) < 0.03


@pytest.mark.parametrize("size", [128, 160, 384])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_a_product_rounds_exactly_as_it_is_written_out(name, form, size, tmp_path):
    text = f"g (float[n,{size}] x) => (float[n,48] y) {{ [a] y = MatMul(x, w) }}"
    stored, _, artifact = written(graph(text, {"w": (size, 48)}), name, form, tmp_path)
    offs, float_offs = [], []
    for rows in (1, 2, 5, 16, 64):
        x = np.random.default_rng(rows).normal(0, 1, (rows, size)).astype(np.float32)
        got = run(artifact, name, form, x)
        offs.append(largest_error(literal(stored.literal(), x), got))
        float_offs.append(largest_error(literal(stored.graph, x), got))
    assert np.median(offs) < 2e-6
    assert (min(float_offs) > 1e-3) == bool(stored.rounding), "and it does round"


@pytest.mark.parametrize(("form", "smaller"), [("dynamic", 3.5), ("w8", 3.4), ("w4", 5.8)])
@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_the_file_is_smaller(name, form, smaller, tmp_path):
    whole = 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    assert whole / written(graph(), name, form, tmp_path)[2].weight_bytes > smaller


@pytest.mark.parametrize("form", FORMS)
def test_onnx_runtime_runs_integer_kernels_whatever_stands_behind_a_product(form, tmp_path):
    _, _, artifact = written(graph(), "ort", form, tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(artifact.main, options, providers=["CPUExecutionProvider"])
    kernels = [node.op_type for node in ir.load(tmp_path / "optimised.onnx").graph]
    assert sum(kernel in KERNELS[form] for kernel in kernels) == len(WEIGHTS)
    assert not {"Gemm", "FusedGemm", "DequantizeLinear", "MatMulInteger"} & set(kernels)


@pytest.mark.parametrize("form", ["dynamic", "w4"])
def test_openvino_multiplies_integers(form, tmp_path):
    from backends.openvino.sdk import core

    _, _, artifact = written(graph(), "openvino", form, tmp_path)
    compiled = core().compile_model(str(artifact.main), "CPU", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 128})
    found = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
    types = [
        i["runtimePrecision"].astype(str) for i in found if i["layerType"].astype(str) == "FullyConnected"
    ]
    assert len(types) == len(WEIGHTS)
    assert set(types) <= {"i8", "i4", "u4"}


def test_blocks_say_their_form_and_why_others_have_none(tmp_path):
    _, plan, _ = written(graph(), "ort", "w4", tmp_path)
    found = {block.id: block for block in plan.blocks}
    assert found["up"].precision == found["last"].precision == "w4"
    assert found["s"].precision == "float"
    assert found["s"].reason
    excluded = store_weights(graph(), "w4", runtime_of("ort", "w4"), {"up"})
    assert "wu" not in excluded.tensors


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_a_matrix_that_two_products_read_is_stored_once(name, form, tmp_path):
    text = """g (float[n,2,128] x) => (float[n,2,128] y) {
        [a] a = MatMul(x, w)  [b] b = Relu(a)  [c] y = MatMul(b, w) }"""
    stored, plan, artifact = written(graph(text, {"w": (128, 128)}), name, form, tmp_path)
    assert artifact.weight_bytes < 1.2 * 128 * 128 / (2 if form == "w4" else 1)
    assert differences(plan, find_backend(name).read_plan(artifact)) == []
    x = np.random.default_rng(0).normal(0, 1, (2, 2, 128)).astype(np.float32)
    assert largest_error(literal(stored.literal(), x), run(artifact, name, form, x)) < 0.02


@pytest.mark.parametrize("name", ["ort", "openvino"])
def test_zero_points_of_groups_reach_the_file(name, tmp_path):
    text = """g (float[n,256] x) => (float[n,48] y) { [a] y = MatMul(x, w) }"""
    model = graph(text, {"w": (256, 48)}, shift=0.06)
    stored, plan, artifact = written(model, name, "w4", tmp_path)
    assert plan.tensors["w"].type == "uint4"
    assert any(plan.tensors["w"].zero_point)
    assert find_backend(name).read_plan(artifact).tensors["w"].zero_point == plan.tensors["w"].zero_point
    x = np.random.default_rng(0).normal(0, 1, (3, 256)).astype(np.float32)
    assert largest_error(literal(stored.literal(), x), run(artifact, name, "w4", x)) < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_packing_is_what_the_operation_is_said_to_read(bits, shift):
    """By MatMulNBits' description: codes [columns, groups, bytes], less 8 or 128 or their zero points."""
    array = (np.random.default_rng(0).normal(0, 0.1, (80, 5)) + shift).astype(np.float32)
    params, codes = quantize_groups(array, 32, bits)
    plan = TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes))
    packed, scales, *points = pack(codes, plan)
    assert packed.shape == (5, 3, 32 * bits // 8)
    numbers = (unpack(packed, 32) if bits == 4 else packed).astype(np.float64)
    zeros = (unpack(points[0], 3) if bits == 4 else points[0]) if points else np.full((5, 3), 1 << (bits - 1))
    read = ((numbers - zeros[..., None]) * scales[..., None]).reshape(5, 96)
    np.testing.assert_allclose(read[:, :80].T, dequantize_array(codes, params), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(read[:, 80:], 0.0)


def linear(size: int, rows: int) -> ir.Model:
    text = f"""g (float[n,{rows},{size}] x) => (float[n,{rows},{size}] y)
        {{ [a] a = MatMul(x, w)  [b] b = Relu(a)  [c] y = MatMul(b, v) }}"""
    return graph(text, {"w": (size, size), "v": (size, size)})


def test_it_pays_for_large_matrices_and_at_four_bits_most_for_few_rows():
    ort = PROFILE.runtime_named("ort")
    assert pays_weight_only(linear(64, 1), ort) == {}
    few, many = pays_weight_only(linear(1024, 1), ort), pays_weight_only(linear(1024, 64), ort)
    assert next(iter(few)) == "w4"
    assert next(iter(many)) == "dynamic"
    assert all(gain > 1.1 for gain in (*few.values(), *many.values()))


def test_it_pays_nowhere_without_rules_or_where_something_else_takes_the_time():
    assert pays_weight_only(linear(1024, 64), PROFILE.runtime_named("tflite")) == {}
    assert pays_weight_only(linear(1024, 64), load_profile("x86-avx2").runtime_named("ort")) == {}
    text = """g (float[n,8,64,64] x) => (float[n,256] y) {
        [c] c = Conv<pads=[1,1,1,1]>(x, k)  [p] p = GlobalAveragePool(c)  [f] f = Flatten(p)
        [d] y = MatMul(f, w) }"""
    model = graph(text, {"k": (1024, 8, 3, 3), "w": (1024, 256)})
    assert pays_weight_only(model, PROFILE.runtime_named("ort")) == {}
