"""Usual architectures, small: right, in one stretch of XNNPACK, images turned at the borders only."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import deploy
from deploy.adapter.profiles import load_profile
from deploy.execute.compare import largest_error
from deploy.execute.reference import open_graph
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan

pytest.importorskip("ai_edge_litert")
from ai_edge_litert.schema_py_generated import BuiltinOperator, ModelT, OperatorT

from backends.tflite import TFLite
from backends.tflite.partitions import partitions
from backends.tflite.runner import TFLiteOptions, open_interpreter
from backends.tflite.write import read_file

SAME, DOWN, TWICE = "pads=[1,1,1,1]", "pads=[1,1,1,1], strides=[2,2]", "kernel_shape=[2,2], strides=[2,2]"
STEM = f"s = Conv<{DOWN}>(x, F8x3x3x3, F8) a = Relu(s)"
HEAD = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB=1>(f, F5x8, F5)"

NETWORKS = {
    "classifier of flattened images": f"""{STEM} m = MaxPool<{TWICE}>(a) f = Flatten(m)
        y = Gemm<transB=1>(f, F5x512)""",
    "bottleneck": f"""{STEM} m = MaxPool<kernel_shape=[3,3], {DOWN}>(a)
        b = Conv(m, F4x8x1x1) c = Relu(b) d = Conv<{SAME}>(c, F4x4x3x3) e = Relu(d) g = Conv(e, F8x4x1x1, F8)
        h = Add(m, g) z = Relu(h) {HEAD}""",
    "groups": f"{STEM} b = Conv<{SAME}, group=4>(a, F8x2x3x3, F8) z = Relu(b) {HEAD}",
    "dense": f"""{STEM} b = BatchNormalization(a, P8, F8, F8, P8) c = Relu(b) d = Conv<{SAME}>(c, F8x8x3x3)
        e = Concat<axis=1>(a, d) g = AveragePool<{TWICE}>(e) z = Conv(g, F8x16x1x1) {HEAD}""",
    "squeeze and excite": f"""s = Conv<{DOWN}>(x, F8x3x3x3, F8) a = HardSwish(s)
        b = Conv<{SAME}, group=8>(a, F8x1x3x3) c = HardSwish(b) q = GlobalAveragePool(c)
        r = Conv(q, F2x8x1x1, F2)
        t = Relu(r) u = Conv(t, F8x2x1x1, F8) v = HardSigmoid<alpha=0.16666667>(u) w = Mul(c, v)
        l = Conv(w, F8x8x1x1) z = Add(a, l) {HEAD}""",
    "swish": f"""s = Conv<{DOWN}>(x, F8x3x3x3, F8) g = Sigmoid(s) a = Mul(s, g) q = GlobalAveragePool(a)
        r = Conv(q, F8x8x1x1, F8) t = Sigmoid(r) z = Mul(a, t) {HEAD}""",
    "upsampling of both kinds": f"""{STEM} m = MaxPool<{TWICE}>(a) b = Conv<{SAME}>(m, F16x8x3x3, F16)
        c = Relu(b)
        t = ConvTranspose<strides=[2,2]>(c, F16x8x2x2, F8) d = Concat<axis=1>(t, a)
        e = Conv<{SAME}>(d, F8x16x3x3)
        g = Relu(e) h = Resize<mode="linear">(g, , SCALES) i = Concat<axis=1>(h, x) y = Conv(i, F2x11x1x1)""",
    "pyramid of dilations": f"""{STEM} b = Conv<pads=[2,2,2,2], dilations=[2,2]>(a, F4x8x3x3)
        c = Conv(a, F4x8x1x1)
        q = GlobalAveragePool(a) r = Conv(q, F4x8x1x1) all = Shape(r) n = Slice(all, I0, I2)
        k = Concat<axis=0>(n, SIDES) e = Resize<mode="linear">(r, , , k) g = Concat<axis=1>(b, c, e)
        h = Relu(g)
        o = Conv(h, F3x12x1x1) y = Resize<mode="linear">(o, , SCALES)""",
    "unpooling": f"""{STEM} m, i = MaxPool<{TWICE}>(a) b = Conv<{SAME}>(m, F8x8x3x3) c = Relu(b)
        u = MaxUnpool<{TWICE}>(c, i) d = Conv<{SAME}>(u, F3x8x3x3) y = Relu(d)""",
    "pyramid of features": f"""{STEM} b = Conv<{DOWN}>(a, F8x8x3x3) c = Relu(b) l = Conv(c, F8x8x1x1)
        n = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(l,
        , SCALES)
        k = Conv(a, F8x8x1x1) e = Add(k, n) y = Conv<{SAME}>(e, F4x8x3x3)""",
    "heads of a detector": f"""{STEM} b = Conv<{DOWN}>(a, F8x8x3x3) c = Relu(b)
        d = Conv(a, F6x8x1x1) e = Transpose<perm=[0,2,3,1]>(d) g = Reshape(e, BOXES)
        h = Conv(c, F6x8x1x1) i = Transpose<perm=[0,2,3,1]>(h) j = Reshape(i, BOXES)
        k = Concat<axis=1>(g, j) y = Sigmoid(k)""",
    "focus": f"""e = Slice(x, I0, FAR, I2, I2) o = Slice(x, I1, FAR, I2, I2) g = Slice(e, I0, FAR, I3, I2)
        h = Slice(o, I1, FAR, I3, I2) c = Concat<axis=1>(g, h) d = Conv<{SAME}>(c, F8x6x3x3)
        z = Relu(d) {HEAD}""",
    "subpixels": f"""{STEM} b = Conv<{SAME}>(a, F12x8x3x3) d = DepthToSpace<blocksize=2, mode="CRD">(b)
        y = PRelu(d, F3x1x1)""",
    "normalised channels last": f"""{STEM} d = Conv<pads=[3,3,3,3], group=8>(a, F8x1x7x7, F8)
        t = Transpose<perm=[0,2,3,1]>(d) l = LayerNormalization(t, P8, F8) b = MatMul(l, F8x16) c = Gelu(b)
        e = MatMul(c, F16x8) g = Transpose<perm=[0,3,1,2]>(e) z = Add(a, g) {HEAD}""",
    "attention over patches": """c = Conv<strides=[8,8]>(x, F8x3x8x8) f = Reshape(c, TOKENS)
        t = Transpose<perm=[0,2,1]>(f) q = MatMul(t, F8x8) k = MatMul(t, F8x8) v = MatMul(t, F8x8)
        u = Transpose<perm=[0,2,1]>(k) w = MatMul(q, u) s = Softmax(w) o = MatMul(s, v) r = Add(t, o)
        y = LayerNormalization(r, P8, F8)""",
}  # fmt: skip
NUMBERS = {
    "SCALES": np.array([1, 1, 2, 2], np.float32), "SIDES": np.array([16, 16]), "BOXES": np.array([0, -1, 3]),
    "TOKENS": np.array([0, 8, 16]), "FAR": np.array([2**62]), **{f"I{i}": np.array([i]) for i in range(4)},
}  # fmt: skip
UNAVOIDABLE = {"subpixels": 1, "focus": 1}
"""TRANSPOSE operators inside: of subpixels whose colours lie apart; the input's, behind what slices that."""
RANKS = {
    "upsampling of both kinds": 4, "pyramid of dilations": 4, "unpooling": 4, "pyramid of features": 4,
    "heads of a detector": 3, "subpixels": 4, "attention over patches": 3,
}  # fmt: skip
"""Of results that are no scores of classes."""
X = np.random.default_rng(1).normal(size=(16, 3, 32, 32)).astype(np.float32)


def network(name: str) -> ir.Model:
    """F and P in the text stand for random constants of the sizes behind them, P for positive ones."""
    rng = np.random.default_rng(0)
    body = NETWORKS[name]
    constants: dict[str, np.ndarray] = {}

    def constant(found: re.Match[str]) -> str:
        sizes = [int(size) for size in found[2].split("x")]
        array = rng.normal(0, 1 / np.sqrt(np.prod(sizes[1:])), sizes).astype(np.float32)
        constants[f"c{len(constants)}"] = np.abs(array) + 0.5 if found[1] == "P" else array
        return f"c{len(constants) - 1}"

    body = re.sub(r"\b([FP])(\d[\dx]*)\b", constant, body)
    constants |= {name: array for name, array in NUMBERS.items() if re.search(rf"\b{name}\b", body)}
    tensors = [ir.tensor(array, name=name) for name, array in constants.items()]
    made = ",".join("abcd"[: RANKS.get(name, 2)])
    head = '<ir_version: 10, opset_import: ["" : 21]> g (float[n,3,32,32] x) => '
    model = ir.from_onnx_text(f"{head}(float[{made}] y) {{ {body} }}", initializers=tensors)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)


def turned_inside(path: Path) -> int:
    """TRANSPOSE operators that are neither an input's nor an output's."""
    model = read_file(path)
    graph = model.subgraphs[0]
    borders = {int(i) for i in (*graph.inputs, *graph.outputs)}
    for _ in range(2):  # through a change of type, too
        for operator in graph.operators:
            if code(model, operator) in (BuiltinOperator.QUANTIZE, BuiltinOperator.DEQUANTIZE):
                ends = {int(operator.inputs[0]), int(operator.outputs[0])}
                borders |= ends if ends & borders else set()
    turns = [o for o in graph.operators if code(model, o) == BuiltinOperator.TRANSPOSE]
    return sum(not {int(o.inputs[0]), int(o.outputs[0])} & borders for o in turns)


def code(model: ModelT, operator: OperatorT) -> int:
    return int(model.operatorCodes[operator.opcodeIndex].builtinCode)


def stretches(artifact: Artifact) -> int:
    return partitions(open_interpreter(TFLiteOptions(threads=1), path=artifact.main))[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_float(name: str, tmp_path: Path) -> None:
    model, runtime = network(name), load_profile("android").runtime_named("tflite")
    plan = Plan(graph_sha256="", target="", runtime="tflite")
    artifact = TFLite().lower(model, plan, runtime, tmp_path, SILENT)
    with TFLite().open(artifact, TFLiteOptions(threads=1)) as runner, open_graph(model, optimised=False) as r:
        for feeds in ({"x": X[:1]}, {"x": X[:3]}):
            want = r.run(feeds)
            assert largest_error(want, runner.run(feeds)) < 1e-4 * np.abs(want["y"]).max()
    assert turned_inside(artifact.main) <= UNAVOIDABLE.get(name, 0)
    assert stretches(artifact) == 1


@pytest.mark.parametrize("name", ["bottleneck", "groups", "squeeze and excite", "pyramid of dilations"])
def test_int8(name: str, tmp_path: Path) -> None:
    ir.save(network(name), tmp_path / "model.onnx")
    bundle = deploy.build(
        tmp_path / "model.onnx", target="android", runtime="tflite", precision="int8", data={"x": X},
        measure=False, out=tmp_path / "dist", cache=tmp_path / "cache",
    )  # fmt: skip
    precision, hazards = bundle.manifest.precision, [h.kind for h in bundle.manifest.hazards]
    assert precision["int8"] > 1
    assert "partitions" not in hazards
    assert turned_inside(bundle.folder / "artifact" / "model.tflite") <= UNAVOIDABLE.get(name, 0)
