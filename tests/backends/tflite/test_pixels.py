"""Inputs of pixels in INT8 files: the tensor that is fed is quantized, and no float is computed of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.execute.reference import open_graph
from deploy.graph.qdq import insert, quantize_array, read_tensors
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.write import read_file

RUNTIME = load_profile("android").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")


def graph(kind: str, steps: str, layout: str) -> ir.Model:
    shape = "[n,6,6,3]" if layout == "NHWC" else "[n,3,6,6]"
    turn = "t = Transpose<perm=[0,3,1,2]>(v)" if layout == "NHWC" else "t = Identity(v)"
    body = f"f = Cast<to=1>(x) {steps} {turn} y = Conv<pads=[1,1,1,1]>(t, w)"
    if layout == "NCHW":
        body = body.replace("t = Identity(v)", "").replace("Conv<pads=[1,1,1,1]>(t", "Conv<pads=[1,1,1,1]>(v")
    numbers = {"a": 1 / 255, "o": 128.0, "m": 127.5, "i": np.array([0.2, 0.3, 0.4])}
    arrays = {
        name: np.asarray(value, np.float32).reshape((3,) if layout == "NHWC" else (3, 1, 1))
        if name == "i"
        else np.float32(value).reshape(())
        for name, value in numbers.items()
        if f", {name})" in steps
    }
    arrays["w"] = np.random.default_rng(0).normal(0, 0.3, (8, 3, 3, 3)).astype(np.float32)
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({kind}{shape} x) => (float[n,8,6,6] y) {{ {body} }}'
    model = ir.from_onnx_text(text, initializers=[ir.tensor(v, name=n) for n, v in arrays.items()])
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)


def quantized(model: ir.Model, scale: float, zero: int) -> ir.Model:
    weights = model.graph.initializers["w"].const_value.numpy()
    step = tuple(map(float, (np.abs(weights).reshape(8, -1).max(axis=1) / 127).astype(np.float32)))
    params = QuantParams(type="int8", scale=step, zero_point=(0,) * 8, axis=0)
    image = next(node.inputs[0].name for node in model.graph if node.op_type == "Conv")
    read = TensorPlan(
        type="int8", scale=(float(np.float32(scale)),), zero_point=(zero,), origin="calibration"
    )
    tensors = {image: read, "w": TensorPlan(**params.model_dump(), origin="weight")}
    tensors["y"] = TensorPlan(
        type="int8", scale=(0.02 if scale < 0.1 else 4.0,), zero_point=(3,), origin="calibration"
    )
    return insert(model, tensors, {"w": quantize_array(weights, params)})


def operators(path: Path) -> list[str]:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {code: name for name, code in vars(BuiltinOperator).items() if name.isupper()}
    model = read_file(path)
    return [names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in model.subgraphs[0].operators]


PIXEL = "v = Mul(f, a)"
CENTRED = "s = Add(f, o) v = Mul(s, a)"
MOVES = {"RESHAPE", "TRANSPOSE", "CONV_2D", "DEQUANTIZE"}


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    ("kind", "steps", "scale", "zero", "own", "more"),
    [
        ("int8", CENTRED, 1 / 255, -128, (1 / 255, -128), set()),
        ("uint8", PIXEL, 1 / 255, -128, (1 / 255, 0), {"QUANTIZE"}),
        ("int8", CENTRED, 0.9 / 255, -128, (1 / 255, -128), {"QUANTIZE"}),
        ("uint8", PIXEL, 0.9 / 255, -128, (1 / 255, 0), {"QUANTIZE"}),
    ],
    ids=["int8", "uint8", "int8 clipped", "uint8 clipped"],
)
def test_the_input_is_quantized_itself(kind, steps, scale, zero, own, more, layout, tmp_path: Path) -> None:
    model = quantized(graph(kind, steps, layout), scale, zero)
    artifact = TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
    assert set(operators(artifact.main)) <= MOVES | more
    assert more <= set(operators(artifact.main))
    file = read_file(artifact.main)
    fed = file.subgraphs[0].tensors[file.subgraphs[0].inputs[0]].quantization
    np.testing.assert_allclose((fed.scale[0], fed.zeroPoint[0]), own, rtol=1e-6)
    low = -128 if kind == "int8" else 0
    shape = (3, 6, 6, 3) if layout == "NHWC" else (3, 3, 6, 6)
    pixels = np.random.default_rng(1).integers(low, low + 256, shape).astype(kind)
    with open_graph(model, optimised=False) as session:
        want = session.run({"x": pixels})["y"]
    with TFLite().open(artifact, TFLite().options(RUNTIME, 1)) as runner:
        got = runner.run({"x": pixels})["y"]
    assert np.abs(got - want).max() <= 0.0201
    decided = PLAN.model_copy(update={"tensors": read_tensors(model)})
    assert differences(decided, TFLite().read_plan(artifact)) == []


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    ("steps", "scale", "zero"),
    [("v = Mul(f, i)", 0.5, -128), ("s = Sub(f, m) v = Mul(s, a)", 1 / 255, 0)],
    ids=["a scale a channel", "a zero point between two codes"],
)
def test_what_is_no_quantized_tensor_stays_float(steps, scale, zero, layout, tmp_path: Path) -> None:
    model = quantized(graph("uint8", steps, layout), scale, zero)
    artifact = TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
    assert "CAST" in operators(artifact.main)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)
    feeds = {"x": pixels if layout == "NHWC" else pixels.transpose(0, 3, 1, 2).copy()}
    with open_graph(model, optimised=False) as session:
        want = session.run(feeds)["y"]
    with TFLite().open(artifact, TFLite().options(RUNTIME, 1)) as runner:
        got = runner.run(feeds)["y"]
    assert np.abs(got - want).max() <= (4.01 if scale == 0.5 else 0.0201)
