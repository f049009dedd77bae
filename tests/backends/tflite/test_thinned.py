"""Slices with steps, which XNNPACK does not take: as convolutions they stay in the delegated stretch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.execute.reference import open_graph
from deploy.graph.qdq import insert
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, TensorPlan, differences

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.partitions import partitions
from backends.tflite.runner import TFLiteOptions, open_interpreter

RUNTIME = load_profile("android").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")
FAR = np.iinfo(np.int64).max
X = np.random.default_rng(1).normal(0, 2, (3, 4, 9, 8)).astype(np.float32)


def shortcut(starts: list[int], ends: list[int], steps: list[int]) -> ir.Model:
    """A pooling, which turns the image, every so many of its rows and columns, and a pooling more."""
    given = {"starts": starts, "ends": ends, "axes": [2, 3], "steps": steps}
    constants = [ir.tensor(np.array(numbers, np.int64), name=name) for name, numbers in given.items()]
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[n,4,9,8] x) => (float[n,4,h,w] y) '
        "{ [first] a = MaxPool <kernel_shape = [1,1]> (x) [cut] b = Slice (a, starts, ends, axes, steps) "
        "[last] y = Relu (b) }",
        initializers=constants,
    )
    return infer(model)


def lowered(model: ir.Model, folder: Path) -> tuple[Artifact, int, list[str]]:
    artifact = TFLite().lower(model, PLAN, RUNTIME, folder, SILENT)
    count, left = partitions(open_interpreter(TFLiteOptions(), path=artifact.main))
    return artifact, count, [name for _, name in left]


def outputs(artifact: Artifact) -> np.ndarray:
    with TFLite().open(artifact, TFLiteOptions()) as runner:
        return runner.run({"x": X})["y"]


def wanted(model: ir.Model) -> np.ndarray:
    with open_graph(model, optimised=False) as session:
        return session.run({"x": X})["y"]


@pytest.mark.parametrize(
    ("starts", "ends", "steps", "stays"),
    [
        ([0, 0], [FAR, FAR], [2, 2], True),
        ([-9, 0], [9, 7], [3, 2], True),
        ([0, 0], [8, FAR], [2, 1], False),
        ([1, 0], [FAR, FAR], [2, 2], False),
        ([-1, 0], [-FAR, FAR], [-1, 1], False),
    ],
)
def test_floats_are_the_same_and_whole_images_stay_in_one_stretch(
    starts: list[int], ends: list[int], steps: list[int], stays: bool, tmp_path: Path
) -> None:
    model = shortcut(starts, ends, steps)
    artifact, count, left = lowered(model, tmp_path)
    np.testing.assert_array_equal(outputs(artifact), wanted(model))
    assert ("STRIDED_SLICE" in left) is not stays
    assert count == 1 or not stays


def test_integers_go_through_as_they_are(tmp_path: Path) -> None:
    model = shortcut([0, 0], [FAR, FAR], [2, 2])
    same = TensorPlan(type="int8", scale=(float(np.float32(0.037)),), zero_point=(-11,), origin="calibration")
    tensors = dict.fromkeys(("x", "a", "b"), same)
    quantized = insert(model, tensors, {})
    artifact, count, left = lowered(quantized, tmp_path)
    np.testing.assert_array_equal(outputs(artifact), wanted(quantized))
    assert (count, left) == (1, [])
    assert not differences(PLAN.model_copy(update={"tensors": tensors}), TFLite().read_plan(artifact))


@pytest.mark.parametrize(("axis", "start", "step"), [(1, 1, 2), (2, 2, 3), (2, 0, 3), (1, 0, 4)])
def test_every_so_many_elements_of_tokens_are_a_slice_of_an_axis_cut_in_two(
    axis: int, start: int, step: int, tmp_path: Path
) -> None:
    """As where patches are merged."""
    given = {"starts": [start], "ends": [FAR], "axes": [axis], "steps": [step]}
    constants = [ir.tensor(np.array(numbers, np.int64), name=name) for name, numbers in given.items()]
    model = infer(
        ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 21]> g (float[n,8,9,5] x) => (float[n,h,w,5] y) '
            "{ [first] a = Relu (x) [cut] b = Slice (a, starts, ends, axes, steps) [last] y = Neg (b) }",
            initializers=constants,
        )
    )
    artifact, count, left = lowered(model, tmp_path)
    assert (count, left) == (1, [])
    x = np.random.default_rng(2).normal(0, 2, (3, 8, 9, 5)).astype(np.float32)
    with TFLite().open(artifact, TFLiteOptions()) as runner, open_graph(model, optimised=False) as session:
        np.testing.assert_array_equal(runner.run({"x": x})["y"], session.run({"x": x})["y"])
