"""Models that TFLite cannot express: one message each, that names the node and a way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.cli import main
from deploy.errors import UnsupportedError
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.plan import Plan

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite, write

RUNTIME = load_profile("android").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")


def graph(text: str, *, inferred: bool = True) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model) if inferred else model


def reasons(model: ir.Model) -> dict[str, str]:
    """What is said of each node that is refused; building for the runtime says the same."""
    said = {v.node: v.reason for v in TFLite().check(model, RUNTIME) if v.support == "unsupported"}
    with pytest.raises(UnsupportedError) as e:
        TFLite().lower(model, PLAN, RUNTIME, Path(), SILENT)
    assert e.value.hint and all(
        name in e.value.message and why in e.value.message for name, why in said.items()
    )
    return said


def test_an_operation_outside_the_table() -> None:
    said = reasons(graph("g (float[2,3,3] x) => (float[2] y) { a = Relu(x)  y = Det(a) }"))
    assert list(said) == ["Det1"]
    assert "not written" in said["Det1"] and "other operations" in said["Det1"]


def test_an_operation_of_another_domain() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21, "own" : 1]> g (float[2] x) => (float[2] y)'
        " { y = own.Relu(x) }"
    )
    next(iter(model.graph)).name = "mine"
    assert "not written" in reasons(model)["mine"]


def test_a_rank_that_is_not_known() -> None:
    model = graph(
        "g (float[n,3] x, int64[k] sizes) => (float[m] y) { a = Reshape(x, sizes)  y = Relu(a) }",
        inferred=False,
    )
    said = reasons(model)
    assert "rank of 'a' is unknown" in said["Reshape0"] and "--shape" in said["Reshape0"]
    assert "rank of 'a' is unknown" in said["Relu1"]


def test_a_size_of_zero() -> None:
    model = graph("g (float[2,4] x) => (float[2,0] y) { a = Relu(x)  y = Slice(a, s, s, s) }")
    zero = ir.Value(name="s", const_value=ir.tensor(np.array([1], np.int64), name="s"))
    zero.shape, zero.dtype = ir.Shape([1]), ir.DataType.INT64
    slicing = list(model.graph)[1]
    for index in (1, 2, 3):
        slicing.replace_input_with(index, zero)
    model.graph.register_initializer(zero)
    assert "'y' has a size of 0" in reasons(infer(model))["Slice1"]


def test_an_input_with_a_size_of_zero() -> None:
    said = reasons(graph("g (float[0,4] x) => (float[0,4] y) { a = Relu(x)  y = Neg(a) }"))
    assert "input 'x': 'x' has a size of 0" in said["Relu0"]


def test_an_input_of_a_type_that_the_format_lacks_here() -> None:
    said = reasons(graph("g (double[2] x, double[2] z) => (double[2] y) { y = Neg(x) }"))
    assert said == {"Neg0": "input 'x': a tensor of float64"}


def test_an_unused_input_is_told_too() -> None:
    model = graph("g (float[2] x, double[2] z) => (float[2] y) { y = Neg(x) }")
    with pytest.raises(UnsupportedError, match="input 'z': a tensor of float64"):
        TFLite().lower(model, PLAN, RUNTIME, Path(), SILENT)


def test_more_axes_than_there_are() -> None:
    shape = ",".join("2" * 7)
    said = reasons(graph(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Abs(x) }}"))
    assert "more than 6 axes" in said["Abs0"] and "Reshape" in said["Abs0"]


def test_more_than_two_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, w) }")
    weights = ir.Value(name="w", const_value=ir.tensor(np.ones((64, 64), np.float32), name="w"))
    weights.shape, weights.dtype = ir.Shape([64, 64]), ir.DataType.FLOAT
    next(iter(model.graph)).replace_input_with(1, weights)
    model.graph.register_initializer(weights)
    monkeypatch.setattr(write, "_LARGEST", 2**12)
    with pytest.raises(UnsupportedError, match=r"file holds 2; most take 'w.*' of node 'MatMul0'") as e:
        TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
    assert "--precision w8" in e.value.hint and not list(tmp_path.iterdir())


def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,3] x) => (float[n] y)'
        " { a = Relu(x)  y = Det(a) }"
    )
    onnx.save(proto, tmp_path / "net.onnx")
    words = ["build", tmp_path / "net.onnx", "-t", "android", "--runtime", "tflite", "--out", tmp_path]
    assert main([str(word) for word in (*words, "--cache", tmp_path / "cache")]) == 5
    err = capsys.readouterr().err
    assert "android (tflite) cannot run" in err and "not written for TFLite yet" in err and "hint:" in err
