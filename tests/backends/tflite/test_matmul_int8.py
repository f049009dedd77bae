"""Products of two activations in INT8: one step from the Q/DQ graph at most, and taken by XNNPACK whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.execute.reference import open_graph
from deploy.graph.qdq import insert
from deploy.progress import SILENT
from deploy.spec.plan import Plan, TensorPlan

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.partitions import partitions
from backends.tflite.runner import TFLiteOptions, open_interpreter

RUNTIME = load_profile("android").runtime_named("tflite")
STEP = 0.05


def activation(scale: float, zero: int) -> TensorPlan:
    return TensorPlan(type="int8", scale=(scale,), zero_point=(zero,), origin="calibration")


def lowered(model: ir.Model, plans: Mapping[str, TensorPlan], folder: Path) -> tuple[Path, list[str], int]:
    """The file, what it holds beside changes of type, and how many parts LiteRT makes of it."""
    plan = Plan(graph_sha256="", target="", runtime="tflite")
    artifact = TFLite().lower(insert(model, plans, {}), plan, RUNTIME, folder, SILENT)
    engine = open_interpreter(TFLiteOptions(threads=1), path=artifact.main)
    names = [node["op_name"] for node in engine._get_ops_details()]
    kept = [name for name in names if name not in ("QUANTIZE", "DEQUANTIZE", "DELEGATE")]
    return artifact.main, kept, partitions(engine)[0]


def agrees(model: ir.Model, plans: Mapping[str, TensorPlan], feeds: Mapping[str, np.ndarray], path: Path):
    engine = open_interpreter(TFLiteOptions(threads=1), path=path, ready=False)
    for port, array in zip(engine.get_input_details(), feeds.values(), strict=True):
        engine.resize_tensor_input(port["index"], list(array.shape))
    engine.allocate_tensors()
    for port, array in zip(engine.get_input_details(), feeds.values(), strict=True):
        engine.set_tensor(port["index"], array)
    engine.invoke()
    with open_graph(insert(model, plans, {}), optimised=False) as session:
        want = session.run(dict(feeds))["y"]
    got = engine.get_tensor(engine.get_output_details()[0]["index"])
    np.testing.assert_allclose(got, want, atol=STEP * 1.01)
    assert np.abs(want).max() > 20 * STEP
    assert (np.abs(got - want) > STEP / 2).mean() < 0.01


def arrays(*shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(0, 1, s).astype(np.float32) for name, s in zip("ab", shapes, strict=False)}


@pytest.mark.parametrize(
    ("a", "b"), [((7, 5), (5, 3)), ((2, 7, 5), (2, 5, 3)), ((2, 3, 7, 9), (2, 3, 9, 6)), ((2, 7, 5), (5, 3))]
)
def test_of_any_ranks(a: tuple[int, ...], b: tuple[int, ...], model_of: Callable, tmp_path: Path) -> None:
    sizes = ",".join(f"d{i}" for i in range(len(a)))
    text = f"(float{list(a)} a, float{list(b)} b) => (float[{sizes}] y) {{ y = MatMul(a, b) }}"
    plans = {"a": activation(0.03, -7), "b": activation(0.03, 0), "y": activation(STEP, 4)}
    model = model_of(text, {})
    path, operators, parts = lowered(model, plans, tmp_path)
    assert operators == ["TRANSPOSE", "RESHAPE", "BATCH_MATMUL"]
    assert parts == 1
    agrees(model, plans, arrays(a, b), path)


def test_keys_are_not_turned_twice(model_of: Callable, tmp_path: Path) -> None:
    text = """(float[n,7,5] a, float[n,6,5] b) => (float[n,7,6] y) {
        t = Transpose<perm = [0, 2, 1]>(b) y = MatMul(a, t) }"""
    plans = {name: activation(0.03, 0) for name in ("a", "b", "t")} | {"y": activation(STEP, -3)}
    model = model_of(text, {})
    path, operators, parts = lowered(model, plans, tmp_path)
    assert operators.count("TRANSPOSE") == 0
    assert parts == 1
    agrees(model, plans, arrays((2, 7, 5), (2, 6, 5)), path)


def test_another_zero_point_on_the_right_is_computed_in_float(model_of: Callable, tmp_path: Path) -> None:
    text = "(float[2,7,5] a, float[2,5,3] b) => (float[2,7,3] y) { y = MatMul(a, b) }"
    plans = {"a": activation(0.03, 0), "b": activation(0.03, 5), "y": activation(STEP, 0)}
    model = model_of(text, {})
    path, operators, parts = lowered(model, plans, tmp_path)
    assert operators == ["BATCH_MATMUL"]
    assert parts == 1
    agrees(model, plans, arrays((2, 7, 5), (2, 5, 3)), path)
