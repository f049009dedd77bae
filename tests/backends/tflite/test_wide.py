"""Activations of 16 bits beside weights of 8: what is listed for them is right to one step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.errors import UnsupportedError
from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.qdq import insert, quantize_array, read_tensors
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.wide import OPERATIONS
from backends.tflite.write import read_file

RUNTIMES = {
    name: runtime.model_copy(update={"quant": runtime.quant16})
    for name in ("android", "microcontroller")
    for runtime in [load_profile(name).runtime_named("tflite")]
}
"""As they are where 16 bits are asked for."""
RUNTIME = RUNTIMES["android"]
PLAN = Plan(graph_sha256="", target="", runtime="tflite")
IMAGE = "float[2,8,6,6]"
STEP = 8 / 32767
ARRAYS = {
    "w": (12, 8, 3, 3), "v": (8, 1, 3, 3), "b": (12,), "k": (8, 5), "u": (5, 8), "c": (5,),
}  # fmt: skip
CASES = {
    "Conv": ("float[2,12,6,6]", "Conv<pads=[1,1,1,1]>(x, w, b)"),
    "depthwise": (IMAGE, "Conv<pads=[1,1,1,1], group=8>(x, v)"),
    "strided": ("float[2,12,3,3]", "Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)"),
    "Gemm": ("float[2,5]", "Gemm<transB=1>(m, u, c)"),
    "MatMul": ("float[2,5]", "MatMul(m, k)"),
    "Add": (IMAGE, "Add(x, z)"),
    "Sub": (IMAGE, "Sub(x, z)"),
    "Mul": (IMAGE, "Mul(x, z)"),
    "GlobalAveragePool": ("float[2,8,1,1]", "GlobalAveragePool(x)"),
    "LeakyRelu": (IMAGE, "LeakyRelu<alpha=0.1>(x)"),
    "AveragePool": ("float[2,8,3,3]", "AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)"),
    "MaxPool": ("float[2,8,3,3]", "MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)"),
    "padded MaxPool": (IMAGE, "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)"),
    "Pad": ("float[2,8,8,8]", "Pad(x, pads)"),
    "Pad with a number": ("float[2,8,8,8]", "Pad(x, pads, half)"),
    "mirroring Pad": ("float[2,8,8,8]", 'Pad<mode="reflect">(x, pads)'),
    "Reshape": ("float[2,8,36]", "Reshape(x, shape)"),
    "Flatten": ("float[2,288]", "Flatten(x)"),
    "Transpose": ("float[2,6,8,6]", "Transpose<perm=[0,2,1,3]>(x)"),
    "Slice": ("float[2,4,6,6]", "Slice(x, one, five, one)"),
    "Split": ("float[2,4,6,6]", "y, rest = Split<axis=1, num_outputs=2>(x)"),
    "ReduceMean": ("float[2,8]", "ReduceMean<keepdims=0>(x, sides)"),
    "Min": (IMAGE, "Min(x, z)"),
    "Gather": ("float[2,2,6,6]", "Gather<axis=1>(x, picks)"),
    "Concat": ("float[2,16,6,6]", "Concat<axis=1>(x, z)"),
    "Max": (IMAGE, "Max(x, z)"),
}
INTS = {
    "pads": [0, 0, 1, 1, 0, 0, 1, 1], "shape": [2, 8, 36], "sides": [2, 3], "one": [1], "five": [5],
    "picks": [1, 3],
}  # fmt: skip
NOT_MICRO = ("Gather", "mirroring Pad")
MOVING = ("AveragePool", "MaxPool", "padded MaxPool", "Pad", "Reshape", "Flatten", "Transpose", "Slice")
MOVING += ("Gather", "Concat", "Max", "Min", "Split", "Pad with a number", "mirroring Pad")


def graph(shape: str, call: str) -> ir.Model:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.3, size).astype(np.float32) for name, size in ARRAYS.items()}
    arrays |= {name: np.array(value, np.int64) for name, value in INTS.items()}
    arrays["half"] = np.array(0.5, np.float32)
    read = {
        name: array
        for name, array in arrays.items()
        if name in call.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    made = call if " = " in call else f"y = {call}"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
        g ({IMAGE} x, {IMAGE} z, float[2,8] m) => ({shape} y) {{ {made} }}"""
    model = ir.from_onnx_text(text, initializers=[ir.tensor(a, name=n) for n, a in read.items()])
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)


def quantized(model: ir.Model, y_step: float) -> ir.Model:
    """All values as int16, weights as int8 by channel, biases as they are."""
    steps = {"x": STEP, "z": STEP, "m": STEP, "y": y_step}
    read = {v.name for node in model.graph for v in node.inputs if v is not None} | {"y"}
    tensors = {
        name: TensorPlan(type="int16", scale=(float(np.float32(s)),), zero_point=(0,), origin="calibration")
        for name, s in steps.items()
        if name in read
    }
    codes = {}
    for name in ("w", "v", "k", "u"):
        array = constant(model.graph.initializers.get(name))
        if array is not None:
            axis = 1 if name == "k" else 0
            rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
            scale = tuple(map(float, (np.abs(rows).max(axis=1) / 127).astype(np.float32)))
            params = QuantParams(type="int8", scale=scale, zero_point=(0,) * len(scale), axis=axis)
            codes[name] = quantize_array(array, params)
            tensors[name] = TensorPlan(**params.model_dump(), origin="weight")
    return insert(model, tensors, codes)


def operators(artifact: Artifact) -> list[str]:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {code: name for name, code in vars(BuiltinOperator).items() if name.isupper()}
    model = read_file(artifact.main)
    return [names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in model.subgraphs[0].operators]


@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize("name", CASES)
def test_each_operation_is_right_to_one_step(name: str, target: str, tmp_path: Path) -> None:
    shape, call = CASES[name]
    model = quantized(graph(shape, call), STEP if name in MOVING else 4 * STEP)
    if target == "microcontroller" and name in NOT_MICRO:
        with pytest.raises(UnsupportedError, match="GATHER takes float32, int8, not int16"):
            TFLite().lower(model, PLAN, RUNTIMES[target], tmp_path, SILENT)
        return
    artifact = TFLite().lower(model, PLAN, RUNTIMES[target], tmp_path, SILENT)
    found = operators(artifact)
    assert found.count("DEQUANTIZE") == 1, f"it computes in integers: {found}"
    assert found.count("QUANTIZE") <= 2, "one for each input that it reads"
    rng = np.random.default_rng(1)
    feeds = {
        v.name: rng.normal(0.2, 1.5, tuple(v.shape)).clip(-7.9, 7.9).astype(np.float32)
        for v in model.graph.inputs
    }
    with open_graph(model, optimised=False) as session:
        want = session.run(feeds)["y"]
    with TFLite().open(artifact, TFLite().options(RUNTIMES[target], 1)) as runner:
        got = runner.run(feeds)["y"]
    step = STEP if name in MOVING else 4 * STEP
    assert np.abs(got - want).max() <= step * 1.01
    decided = PLAN.model_copy(update={"tensors": read_tensors(model)})
    assert differences(decided, TFLite().read_plan(artifact)) == []


def test_all_that_the_profiles_list_is_written() -> None:
    for runtime in RUNTIMES.values():
        rules = runtime.quant16
        assert rules is not None
        assert {*rules.compute, *rules.forward, *rules.unify} <= OPERATIONS


def test_microcontrollers_have_less() -> None:
    rules = RUNTIMES["microcontroller"].quant16
    assert rules is not None
    assert not {"Gather", "Sigmoid", "Tanh", "Softmax", "Resize", "ConvTranspose"} & {
        *rules.compute,
        *rules.forward,
    }


def test_biases_are_rounded_by_the_product_of_scales(tmp_path: Path) -> None:
    from ai_edge_litert.schema_py_generated import TensorType

    plain = graph(*CASES["Conv"])
    model = quantized(plain, STEP)
    artifact = TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
    file = read_file(artifact.main)
    bias = next(t for t in file.subgraphs[0].tensors if t.type == TensorType.INT64)
    codes = np.asarray(file.buffers[bias.buffer].data, np.uint8).view(np.int64)
    weights = read_tensors(model)["w"]
    scale = np.float32(STEP) * np.array(weights.scale, np.float64)
    np.testing.assert_allclose(bias.quantization.scale, scale, rtol=1e-6)
    given = constant(plain.graph.initializers["b"])
    np.testing.assert_allclose(codes * scale, given, atol=float(scale.max()))
