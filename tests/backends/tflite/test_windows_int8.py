"""Convolutions, poolings and resizing in INT8: one step from the Q/DQ graph at most, and the plan stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.execute.reference import open_graph
from deploy.graph.qdq import insert, quantize_array
from deploy.graph.qdq import read_tensors as planned_by
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences

pytest.importorskip("ai_edge_litert")
from backends.tflite import TFLite
from backends.tflite.runner import TFLiteOptions

RUNTIME = load_profile("android").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")


def quantized(
    text: str, x: np.ndarray, weights: dict[str, tuple[np.ndarray, int | None]], same: bool
) -> ir.Model:
    """Every value as INT8 by its range, or with ``same`` by the input's; weights along the axis given."""
    declared = "".join(f", float{list(array.shape)} {name}" for name, (array, _) in weights.items())
    model = ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 21]> g {text.replace("WEIGHTS", declared)}'
    )
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.tensor(weights[value.name or ""][0], name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    model = infer(model)
    names = [node.outputs[0].name or "" for node in model.graph]
    with open_graph(model, optimised=False, expose=names[:-1]) as session:
        seen = {"x": x} | session.run({"x": x}, names[:-1])
    tensors = {name: by_range(seen["x" if same else name]) for name in ["x", *names]}
    fused = [node.outputs[0].name or "" for node in model.graph if node.outputs[0].uses() and is_relu(node)]
    for name in fused:
        del tensors[name]
    codes = {}
    for name, (array, axis) in weights.items():
        if axis == AS_IT_IS:
            continue
        along = array[None] if axis is None else np.moveaxis(array, axis, 0)
        scale = np.abs(along).reshape(len(along), -1).max(axis=1) / 127
        tensors[name] = planned("int8", scale, axis)
        if name == "b":  # of what w makes of x, and after it in the table
            product = np.float32(tensors["x"].scale[0]) * np.array(tensors["w"].scale, np.float32)
            tensors[name] = planned("int32", product, 0)
        codes[name] = quantize_array(
            array, QuantParams(**tensors[name].model_dump(include=set(QuantParams.model_fields)))
        )
    return insert(model, tensors, codes)


def is_relu(node: ir.Node) -> bool:
    return [user.op_type for user, _ in node.outputs[0].uses()] == ["Relu"]


def by_range(array: np.ndarray) -> TensorPlan:
    low, high = min(float(array.min()), 0), max(float(array.max()), 0)
    scale = (high - low) / 255
    made = planned("int8", np.array([scale]), None)
    return made.model_copy(update={"zero_point": (round(-128 - low / scale),), "origin": "calibration"})


def planned(kind: str, scale: np.ndarray, axis: int | None) -> TensorPlan:
    numbers = tuple(map(float, scale.astype(np.float32)))
    zero = (0,) * len(numbers)
    return TensorPlan.model_validate(
        {"type": kind, "scale": numbers, "zero_point": zero, "axis": axis, "origin": "weight"}
    )


RNG = np.random.default_rng(0)
AS_IT_IS = -1
"""In the place of an axis: a constant that is not quantized."""


def w(*shape: int, axis: int | None = 0) -> tuple[np.ndarray, int | None]:
    return RNG.normal(0, 0.3, shape).astype(np.float32), axis


CASES = {
    "grouped": ("n,4,8,9", "y = Conv<pads=[1,1,1,1], group=2>(x, w)", {"w": w(6, 2, 3, 3)}),
    "bias that stayed float": (  # for it is shared with another input's convolution
        "n,3,6,7",
        "y = Conv<pads=[1,1,1,1]>(x, w, b)",
        {"w": w(5, 3, 3, 3), "b": w(5, axis=AS_IT_IS)},
    ),
    "signals": (
        "n,4,20",
        """t = Conv<pads=[1,1]>(x, w) r = Relu(t) s = Conv<pads=[2,2], group=6>(r, v)
        u = Add(r, s) y = Conv<strides=[2]>(u, z)""",
        {"w": w(6, 4, 3), "v": w(6, 1, 5), "z": w(3, 6, 2)},
    ),
    "blocks": ("2,4,8,9", "y = ConvTranspose<strides=[2,2]>(x, w)", {"w": w(4, 6, 2, 2, axis=1)}),
    "any batch": (
        "n,4,8,9",
        "y = ConvTranspose<strides=[3,2]>(x, w, b)",
        {"w": w(4, 6, 4, 3, axis=1), "b": w(6)},
    ),
    "free sides": (
        "n,4,h,w",
        "y = ConvTranspose<strides=[2,2]>(x, w, b)",
        {"w": w(4, 6, 2, 2, axis=1), "b": w(6)},
    ),
    "cropped": (
        "2,4,8,9",
        "t = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w, b) y = Relu(t)",
        {"w": w(4, 6, 3, 3, axis=1), "b": w(6)},
    ),
    "inside": (
        "2,4,8,9",
        "y = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w)",
        {"w": w(4, 6, 4, 4, axis=1)},
    ),
    "signal up": (
        "n,4,9",
        "y = ConvTranspose<strides=[2], pads=[1,0]>(x, w, b)",
        {"w": w(4, 6, 4, axis=1), "b": w(6)},
    ),
    "another up": ("2,4,9", "y = ConvTranspose<strides=[2], pads=[1,0]>(x, w)", {"w": w(4, 6, 4, axis=1)}),
    "groups up": (
        "n,4,8,9",
        "y = ConvTranspose<strides=[2,2], group=2>(x, w)",
        {"w": w(4, 3, 2, 2, axis=None)},
    ),
    "mean": ("n,4,8,9", "y = GlobalAveragePool(x)", {}),
    "mean of a signal": ("n,4,9", "y = GlobalAveragePool(x)", {}),
}
MOVING = {
    "maximum": ("n,4,8,9", "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)"),
    "maximum with gaps": ("n,4,8,9", "MaxPool<kernel_shape=[3,3], dilations=[2,2]>(x)"),
    "maximum of a signal": ("n,4,9", "MaxPool<kernel_shape=[3], strides=[2]>(x)"),
    "maximum of a volume": ("n,4,6,6,9", "MaxPool<kernel_shape=[3,2,2], strides=[2,2,2]>(x)"),
    "largest": ("n,4,8,9", "GlobalMaxPool(x)"),
    "mean": ("n,4,8,9", "AveragePool<kernel_shape=[2,3], strides=[2,2]>(x)"),
    "pads do not count": ("n,4,8,9", "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)"),
    "pixels": ("n,12,6,6", 'DepthToSpace<mode="CRD", blocksize=2>(x)'),
    "channels": ("n,3,6,6", "SpaceToDepth<blocksize=2>(x)"),
}
RESIZED = [
    *(("nearest", "asymmetric", factor) for factor in (2.0, 3.0, 4.0, 1.5)),
    *(("linear", kind, factor) for kind in ("half_pixel", "align_corners") for factor in (1.5, 2.0)),
]


def check(
    shape: str, body: str, weights: dict[str, tuple[np.ndarray, int | None]], tmp_path: Path, *, same: bool
) -> None:
    free = {"n": 2, "h": 8, "w": 9}
    sizes = [free[size] if size in free else int(size) for size in shape.split(",")]
    x = np.random.default_rng(1).normal(0, 1, sizes).astype(np.float32)
    made = ",".join("nabcde"[: len(sizes)])
    model = quantized(f"(float[{shape}] x WEIGHTS) => (float[{made}] y) {{ {body} }}", x, weights, same)
    artifact = TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
    decided = planned_by(model)
    back = TFLite().read_plan(artifact)
    assert differences(PLAN.model_copy(update={"tensors": decided}), back) == []
    with open_graph(model, optimised=False) as session:
        want = session.run({"x": x})["y"]
    for delegate in ("xnnpack", "none"):
        options = TFLiteOptions.model_validate({"threads": 1, "delegate": delegate})
        with TFLite().open(artifact, options) as runner:
            got = runner.run({"x": x})["y"]
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1.01 * decided["y"].scale[0]


@pytest.mark.parametrize("name", CASES)
def test_what_computes(name: str, tmp_path: Path) -> None:
    check(*CASES[name], tmp_path, same=False)


@pytest.mark.parametrize("name", MOVING)
def test_what_keeps_the_parameters(name: str, tmp_path: Path) -> None:
    shape, node = MOVING[name]
    check(shape, f"y = {node}", {}, tmp_path, same=True)


@pytest.mark.parametrize(("mode", "coordinates", "factor"), RESIZED)
def test_resizing(mode: str, coordinates: str, factor: float, tmp_path: Path) -> None:
    rounding = ', nearest_mode="floor"' if mode == "nearest" else ""
    node = f'Resize<axes=[2,3], mode="{mode}", coordinate_transformation_mode="{coordinates}"{rounding}>'
    scale = np.array([factor, factor], np.float32), AS_IT_IS
    check("n,4,6,6", f"y = {node}(x, , s)", {"s": scale}, tmp_path, same=True)
