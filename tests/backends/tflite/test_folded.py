"""Strided INT8 convolutions of few channels, folded: the same codes, and the plan is read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.adapter.profiles import load_profile
from deploy.execute.reference import open_graph
from deploy.graph.qdq import insert, quantize_array
from deploy.graph.qdq import read_tensors as planned_by
from deploy.progress import SILENT
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.partitions import partitions
from backends.tflite.runner import TFLiteOptions, open_interpreter
from backends.tflite.write import read_file

RUNTIME = load_profile("android").runtime_named("tflite")
MICRO = load_profile("microcontroller").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")
RNG = np.random.default_rng(0)


def quantized(kind: str, scale: np.ndarray, zero: int = 0, axis: int | None = None) -> TensorPlan:
    numbers = tuple(map(float, np.atleast_1d(scale).astype(np.float32)))
    origin = "calibration" if axis is None else "weight"
    return TensorPlan(
        type=kind, scale=numbers, zero_point=(zero,) * len(numbers), axis=axis, origin=origin
    )  # fmt: skip


def given(model_of: Callable, sizes: str, kernel: tuple[int, ...], attributes: str):
    w = RNG.normal(0, 0.3, kernel).astype(np.float32)
    made = ",".join(f"d{i}" for i in range(len(kernel)))
    text = (
        f"(float[{sizes}] x, float{list(kernel)} w) => (float[{made}] y) {{ y = Conv<{attributes}>(x, w) }}"
    )
    model = model_of(text, {"w": w})
    plans = {
        "x": quantized("int8", np.array(0.02), 3),
        "y": quantized("int8", np.array(0.03), -5),
        "w": quantized("int8", np.abs(w).reshape(len(w), -1).max(axis=1) / 127, axis=0),
    }
    params = QuantParams(**plans["w"].model_dump(include=set(QuantParams.model_fields)))
    return insert(model, plans, {"w": quantize_array(w, params)})


@pytest.mark.parametrize(
    ("sizes", "kernel", "attributes", "folds"),
    [
        ("n,1,49,10", (8, 1, 10, 4), "strides=[2,2], pads=[4,1,5,1]", True),
        ("n,1,12,12", (5, 1, 4, 4), "strides=[2,2]", True),  # nothing around it
        ("1,1,13,15", (5, 1, 3, 3), "strides=[2,2], auto_pad=\"SAME_UPPER\"", True),
        ("2,2,9,11", (6, 2, 5, 5), "strides=[1,2], pads=[2,2,2,2]", True),
        ("n,1,40", (6, 1, 8), "strides=[4], pads=[2,2]", True),  # a signal
        ("n,1,9,12", (6, 1, 3, 3), "strides=[3,3]", True),
        ("n,3,12,12", (5, 3, 3, 3), "strides=[2,2], pads=[1,1,1,1]", False),  # more where tiles have four
        ("n,8,12,12", (5, 8, 3, 3), "strides=[2,2], pads=[1,1,1,1]", False),
        ("n,1,12,12", (5, 1, 3, 3), "pads=[1,1,1,1]", False),
        ("n,1,12,11", (5, 1, 1, 1), "strides=[2,2]", False),  # pixels that nobody reads
        ("n,1,12,h", (5, 1, 4, 4), "strides=[2,2]", False),
    ],
)  # fmt: skip
def test_against_the_graph(
    sizes: str, kernel: tuple[int, ...], attributes: str, folds: bool, model_of: Callable, tmp_path: Path
) -> None:
    model = given(model_of, sizes, kernel, attributes)
    artifact = TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
    engine = open_interpreter(TFLiteOptions(threads=1), path=artifact.main)
    assert partitions(engine)[0] == 1
    shapes = [
        tuple(engine._get_tensor_details(int(node["inputs"][1]), 0)["shape"])
        for node in engine._get_ops_details()
        if node["op_name"] == "CONV_2D"
    ]
    assert (shapes[0][-1] > kernel[1]) == folds
    decided = PLAN.model_copy(update={"tensors": planned_by(model)})
    assert differences(decided, TFLite().read_plan(artifact)) == []
    shape = [3 if size == "n" else 14 if size == "h" else int(size) for size in sizes.split(",")]
    x = RNG.normal(0, 1, shape).astype(np.float32)
    with TFLite().open(artifact, TFLiteOptions(threads=1)) as runner:
        got = runner.run({"x": x})["y"]
    with open_graph(model, optimised=False) as session:
        want = session.run({"x": x})["y"]
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=0.03 * 1.01)
    assert (np.abs(got - want) > 0.015).mean() < 0.01


def test_small_devices_keep_their_form(model_of: Callable, tmp_path: Path) -> None:
    model = given(model_of, "1,1,12,12", (5, 1, 4, 4), "strides=[2,2]")
    artifact = TFLite().lower(model, PLAN, MICRO, tmp_path, SILENT)
    assert artifact.main.stat().st_size > 0
    shapes = [tuple(t.shape) for t in read_file(artifact.main).subgraphs[0].tensors]
    assert (5, 4, 4, 1) in shapes and (5, 4, 2, 2) not in shapes
