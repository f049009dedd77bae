"""Times by node: a hand-made profile against sums by hand, and real ones against what must be in them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from backends.ort import OnnxRuntime
from backends.ort.profile import by_node, kernel_times
from deploy.errors import BackendError
from deploy.frontend.onnx_file import write
from deploy.spec.artifact import Artifact, Options


def event(name: str, start: int, duration: int, category: str = "Node") -> dict[str, object]:
    return {"cat": category, "name": name, "ts": start, "dur": duration}


def test_the_median_over_runs_is_taken_and_warming_up_left_out():
    events = [event("session_initialization", 0, 90, "Session")]
    for run, (conv, relu) in enumerate(((9000, 9000), (1000, 100), (3000, 200), (2000, 900))):
        begin = 1000 * 100 * (run + 1)
        events += [
            event("conv_kernel_time", begin + 1, conv),
            event("relu_kernel_time", begin + 20_000, relu),
            event("conv_fence_before", begin, 1),
            event("model_run", begin, 50_000, "Session"),
        ]
    assert kernel_times(events, warm_up=1) == {"conv": 2.0, "relu": 0.2}


def text(body: str, domains: str = "") -> ir.Model:
    """A graph; two underscores in a node's name stand for a slash, which the notation does not have."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21{domains}]> {body}')
    for node in model.graph:
        node.name = (node.name or "").replace("__", "/")
    return model


WRITTEN = text("""g (float[1,8] x, float s, uint8 z) => (float[1,8] y) {
    [relu] a = Relu(x)
    [a__q] aq = QuantizeLinear(a, s, z)
    [a__dq] ad = DequantizeLinear(aq, s, z)
    [soft] b = Softmax(ad)
    [turn] y = Transpose(b)
}""")


@pytest.mark.parametrize(
    ("kernel", "op", "output", "node"),
    [
        ("whatever", "Softmax", "b", "soft"),
        ("whatever", "QLinearRelu", "aq", "relu"),
        ("whatever", "QuantizeLinear", "aq", "a/q"),
        ("whatever", "DequantizeLinear", "ad", "a/dq"),
        ("relu_token_3", "QLinearRelu", "made_up", "relu"),
        ("relu_quant_token_3", "QLinearRelu", "made_up", "relu"),
        ("b_nchwc", "Softmax", "reorder_token_7", "soft"),
        ("ReorderOutput", "ReorderOutput", "b", ""),
        ("Transpose_token_2", "Transpose", "b", ""),
        ("any", "Transpose", "y", "turn"),
        ("nobody", "Softmax", "made_up", ""),
    ],
)
def test_a_kernel_counts_for_the_node_whose_result_it_makes(kernel: str, op: str, output: str, node: str):
    running = text(
        f"g (float[1,8] x) => (float[1,8] {output}) {{ [{kernel}] {output} = other.{op}(x) }}",
        ', "other" : 1',
    )
    assert by_node({kernel: 1.5}, running, WRITTEN) == {node: 1.5}


def test_the_body_of_a_loop_is_counted_once():
    body = """b (int64 i, bool c, float[4] h) => (bool k, float[4] o) {
        [keep] k = Identity(c)
        [inner] o = Exp(h)
    }"""
    model = text(
        f"g (int64 n, bool c, float[4] x) => (float[4] y) {{ [loop] y = Loop <body = {body}> (n, c, x) }}"
    )
    assert by_node({"loop": 2.0, "inner": 1.8, "keep": 0.1}, model, model) == {"loop": 2.0}


def test_the_larger_of_two_products_takes_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(0)
    weights = {"w": (256, 256), "v": (256, 2048)}
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> '
        "g (float[64,256] x) => (float[64,2048] y) { [small] a = MatMul(x, w) [large] y = MatMul(a, v) }",
        initializers=[
            ir.tensor(generator.standard_normal(shape).astype(np.float32), name=name)
            for name, shape in weights.items()
        ],
    )
    write(model, tmp_path / "model.onnx")
    artifact = Artifact(backend="ort", files=("model.onnx",), inputs=(), outputs=(), folder=tmp_path)
    feeds = {"x": np.ones((64, 256), np.float32)}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    times = OnnxRuntime().operation_times(artifact, Options(threads=1), feeds)
    assert list(scratch.iterdir()) == [], "nothing stays behind"
    assert set(times) == {"small", "large"}
    assert times["large"] > times["small"] > 0
    with pytest.raises(BackendError, match="cannot profile"):
        OnnxRuntime().operation_times(artifact, Options(threads=1), {})
