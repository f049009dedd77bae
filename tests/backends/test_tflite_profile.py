"""Times of single operations, from LiteRT's profiler: which kernel belongs to which node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from deploy.adapter.profiles import load_profile
from deploy.errors import BackendError
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite, profile
from backends.tflite.profile import beside, by_operator
from backends.tflite.profile_child import Event
from backends.tflite.profile_child import profile as record
from backends.tflite.runner import TFLiteOptions

RUNTIME = load_profile("android").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")
OPTIONS = TFLiteOptions()
NAMES = st.lists(st.sampled_from(["Convolution", "Add", "Clamp", "Convert", "Mean"]))
CODES = st.lists(st.sampled_from(["CONV_2D", "ADD", "MEAN", "QUANTIZE", "RESHAPE"]))


def lowered(text: str, weights: dict[str, tuple[int, ...]], folder: Path, **given: np.ndarray) -> Artifact:
    rng = np.random.default_rng(0)
    constants = [
        ir.tensor(rng.normal(size=shape).astype(np.float32), name=name) for name, shape in weights.items()
    ]
    constants += [ir.tensor(array, name=name) for name, array in given.items()]
    model = infer(ir.from_onnx_text(text, initializers=constants))
    return TFLite().lower(model, PLAN, RUNTIME, folder, SILENT)


def test_the_larger_of_two_products_takes_longer_whatever_the_batch(tmp_path: Path) -> None:
    artifact = lowered(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[n,256] x) => (float[n,4096] y) '
        "{ [small] a = MatMul(x, w) [turned] b = Abs(a) [large] y = MatMul(b, v) }",
        {"w": (256, 256), "v": (256, 4096)},
        tmp_path,
    )
    for batch in (1, 16):
        times = TFLite().operation_times(artifact, OPTIONS, {"x": np.ones((batch, 256), np.float32)})
        assert {"small", "large"} <= {*times} <= {"small", "turned", "large", ""}
        assert times["large"] > 2 * times["small"] > 0


def test_what_xnnpack_leaves_counts_for_its_node_and_turns_for_none(tmp_path: Path) -> None:
    artifact = lowered(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,8,32,32] x) => (float[1,1,32,32] y) '
        "{ [first] a = Conv <pads = [1,1,1,1]> (x, w) [second] b = Conv (a, v) "
        "[left] c = ReduceProd (b, axes) [last] y = Relu (c) }",
        {"w": (16, 8, 3, 3), "v": (16, 16, 1, 1)},
        tmp_path,
        axes=np.array([1]),
    )
    times = TFLite().operation_times(artifact, OPTIONS, {"x": np.ones((1, 8, 32, 32), np.float32)})
    assert {"first", "second", "left", ""} <= {*times} <= {"first", "second", "left", "last", ""}
    assert times["first"] > times["second"] > 0 and times["left"] > 0


@drawn(NAMES, CODES)
def test_kernels_keep_the_order_of_their_operators(kernels: list[str], operators: list[str]) -> None:
    found = beside(kernels, operators)
    assert len(found) == len(kernels)
    assert found == sorted(found)
    assert all(-1 <= place < len(operators) for place in found)


@drawn(st.lists(st.sampled_from(["Convolution", "Add", "Mean"]), min_size=1))
def test_kernels_that_all_have_their_operator_find_it(kernels: list[str]) -> None:
    codes = {"Convolution": "CONV_2D", "Add": "ADD", "Mean": "MEAN"}
    assert beside(kernels, [codes[name] for name in kernels]) == list(range(len(kernels)))


def test_helpers_count_for_the_operator_they_help() -> None:
    kernels = ["Convert", "Fully Connected", "Add", "Clamp", "Mean", "Static Reshape", "Static Reshape"]
    assert beside(kernels, ["FULLY_CONNECTED", "ADD", "MEAN", "RESHAPE"]) == [0, 0, 1, 1, 2, 2, 3]


def test_stretches_are_told_apart_by_where_their_kernels_begin() -> None:
    events = [
        Event("Convolution (NHWC, F32) IGEMM", True, 0, 1.0),
        Event("Add (ND)", True, 1, 0.5),
        Event("CUMSUM", False, 1, 0.25),
        Event("Add (ND)", True, 0, 2.0),
    ]
    names = ["CONV_2D", "CUMSUM", "ADD", "ADD"]
    assert by_operator(events, names, [[0, 2], [3]]) == {0: 1.0, 2: 0.5, 1: 0.25, 3: 2.0}
    assert by_operator(events, names, [[0, 2, 3]]) == {-1: 3.5, 1: 0.25}, "who knows whose they are"


def test_where_it_was_not_tried_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = lowered(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1,8] x) => (float[1,8] y) { [r] y = Relu(x) }',
        {},
        tmp_path,
    )
    feeds = {"x": np.ones((1, 8), np.float32)}
    assert TFLite().operation_times(artifact, TFLiteOptions(delegate="none"), feeds) == {}
    with pytest.raises(BackendError, match="cannot profile"):
        TFLite().operation_times(artifact, OPTIONS, {})
    with monkeypatch.context() as patch:
        patch.setattr(profile, "version", lambda: "9.9.9")
        assert TFLite().operation_times(artifact, OPTIONS, feeds) == {}
    other = tmp_path / "libother.so"
    other.write_bytes(b"not a library")
    with pytest.raises(BackendError, match="cannot be loaded"):
        record(other, artifact.main, [feeds["x"]], 1)
