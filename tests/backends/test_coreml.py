"""The Core ML backend: what it writes computes what ONNX Runtime computes, and carries the plan."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.profiles import load_profile
from deploy.errors import UnsupportedError
from deploy.execute.compare import largest_error
from deploy.graph.qdq import insert, quantize_array
from deploy.graph.qdq import read_tensors as planned_by
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact, Description
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences
from deploy.spec.profile import Runtime
from deploy.spec.tensors import Normalisation

pytest.importorskip("coremltools")
from small_graphs import drawn, reference, weights_of, with_weights

from backends.coreml import CoreML
from backends.coreml.sdk import sdk

HALF = load_profile("iphone15").runtime_named("coreml")
EXACT = HALF.model_copy(update={"around": "float32"})
PLAN = Plan(graph_sha256="", target="", runtime="coreml")

NET = """<ir_version: 10, opset_import: ["" : 21]> g (float[n,3,8,8] x) => (float[n,4] y) {
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)
    r = Relu(a)
    d = Conv<pads=[1,1,1,1], group=8>(r, v)
    s = Add(r, d)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    m = MatMul(f, t)
    y = Gemm<transB=1>(m, u)
}"""
SHAPES = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 1, 3, 3), "t": (8, 6), "u": (4, 6)}
FEEDS = {"x": np.random.default_rng(1).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)}


def graph(text: str, shapes: dict[str, tuple[int, ...]], **given: np.ndarray) -> ir.Model:
    """The graph with random weights of these shapes, and those that are given."""
    return with_weights(text, {**drawn(shapes), **given})


def lowered(model: ir.Model, folder: Path, runtime: Runtime = EXACT, **options: str | bool) -> Artifact:
    chosen = runtime.model_copy(update={"options": {**runtime.options, **options}})
    return CoreML().lower(model, PLAN, chosen, folder, SILENT)


def run(
    artifact: Artifact, feeds: dict[str, np.ndarray], want: tuple[str, ...] = (), runtime: Runtime = EXACT
) -> dict[str, np.ndarray]:
    with CoreML().open(artifact, CoreML().options(runtime, 1)) as runner:
        return runner.run(feeds, want)


def quantized(kind: str = "int8", *, activations: bool = True, group: int | None = None) -> ir.Model:
    """NET with its values and weights as integers, weights by output channel or in groups of inputs."""
    model = graph(NET, SHAPES)
    scales = {"x": 0.03, "r": 0.02, "d": 0.021, "s": 0.033, "p": 0.01, "f": 0.01, "m": 0.02, "y": 0.011}
    tensors = {
        name: TensorPlan(type="int8", scale=(scale,), zero_point=(0,), origin="calibration")
        for name, scale in scales.items()
        if activations
    }
    codes, largest = {}, 7 if kind == "int4" else 127
    for name, axis in (("w", 0), ("v", 0), ("t", 1), ("u", 0)):
        array = weights_of(model, name)
        if group and name == "u":
            scale = np.abs(array).reshape(4, -1, group).max(axis=2) / largest
            params = {"axis": 1, "group": group}
        else:
            scale = np.abs(np.moveaxis(array, axis, 0)).reshape(array.shape[axis], -1).max(axis=1) / largest
            params = {"axis": axis}
        flat = tuple(map(float, scale.astype(np.float32).ravel()))
        given = QuantParams.model_validate(
            {"type": kind, "scale": flat, "zero_point": (0,) * len(flat), **params}
        )
        codes[name] = quantize_array(array, given)
        tensors[name] = TensorPlan(**given.model_dump(), origin="weight")
    return insert(model, tensors, codes)


def test_float_computes_the_same_and_inner_values_have_the_graphs_names(tmp_path: Path) -> None:
    model = graph(NET, SHAPES)
    inner = ("r", "s", "p")
    got = run(lowered(model, tmp_path), FEEDS, (*inner, "no such value"))
    want = reference(model, FEEDS, inner)
    assert set(got) == {"y", *inner}
    assert largest_error(want, got) < 1e-5


def test_float16_rounds_as_much_as_float16_does(tmp_path: Path) -> None:
    model = graph(NET, SHAPES)
    got = run(lowered(model, tmp_path, HALF), FEEDS, runtime=HALF)["y"]
    want = reference(model, FEEDS)["y"]
    assert 0 < np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_integers_are_those_of_the_reference(tmp_path: Path, target: str) -> None:
    """At float32 the operations are the same ones in the same order: identical but for sums."""
    model = quantized()
    artifact = lowered(model, tmp_path, minimum_deployment_target=target)
    np.testing.assert_allclose(run(artifact, FEEDS)["y"], reference(model, FEEDS)["y"], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "group", "target"), [("int8", None, "iOS16"), ("int4", None, "iOS18"), ("int4", 3, "iOS18")]
)
def test_integers_at_rest(tmp_path: Path, kind: str, group: int | None, target: str) -> None:
    model = quantized(kind, activations=False, group=group)
    artifact = lowered(model, tmp_path, minimum_deployment_target=target)
    assert largest_error(reference(model, FEEDS), run(artifact, FEEDS)) < 1e-5
    decided = PLAN.model_copy(update={"tensors": planned_by(model)})
    assert differences(decided, CoreML().read_plan(artifact)) == []


def test_the_plan_is_read_back_out_of_the_package(tmp_path: Path) -> None:
    model = quantized()
    back = CoreML().read_plan(lowered(model, tmp_path))
    decided = PLAN.model_copy(update={"tensors": planned_by(model)})
    assert differences(decided, back) == []
    assert len(back.tensors) == 12


def test_a_changed_package_carries_another_plan(tmp_path: Path) -> None:
    model = quantized()
    artifact = lowered(model, tmp_path)
    program = next(tmp_path.rglob("*.mlmodel"))
    content, scale = program.read_bytes(), np.float32(0.033).tobytes()
    assert scale in content
    program.write_bytes(content.replace(scale, np.float32(0.034).tobytes()))
    decided = PLAN.model_copy(update={"tensors": planned_by(model)})
    assert {line.split(":")[0] for line in differences(decided, CoreML().read_plan(artifact))} == {"s"}


def test_equal_graphs_give_equal_packages(tmp_path: Path) -> None:
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        artifact = lowered(quantized(), tmp_path / name, HALF)
        found.append([hashlib.sha256((tmp_path / name / f).read_bytes()).hexdigest() for f in artifact.files])
    assert found[0] == found[1]


def test_an_old_target_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedError, match="rounding activations needs iOS 17 or macOS 14, and this is for iOS 16"
    ):
        lowered(quantized(), tmp_path, minimum_deployment_target="iOS16")
    with pytest.raises(UnsupportedError, match="weights of 4 bits needs iOS 18"):
        lowered(quantized("int4", activations=False), tmp_path)
    with pytest.raises(UnsupportedError, match="not written for 'iOS15'"):
        lowered(graph(NET, SHAPES), tmp_path, minimum_deployment_target="iOS15")


def test_everything_refused_is_listed_with_its_reason() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
        a = Det(x)
        r = RandomNormalLike(x)
        y = Relu(r)
    }"""
    said = {v.op: v.reason for v in CoreML().check(graph(text, {}), EXACT)}
    assert "not written" in said["Det"]
    assert "not written" in said["RandomNormalLike"]
    assert said["Relu"] == ""


def test_ends_keep_names_types_and_shapes_that_core_ml_does_not_have(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[2,3] x, int64[2] k, bool[2] on) => (int64[2] best, float s, bool[2] off, float[2,3] same) {
        best = ArgMax<axis=1, keepdims=0>(x)
        c = Cast<to=1>(k)
        s = ReduceSum<keepdims=0>(c)
        off = Not(on)
        same = Identity(x)
    }"""
    model = graph(text, {})
    renamed = {v.name: f"in/{v.name}.0" for v in model.graph.inputs}
    for value in model.graph.inputs:
        value.name = renamed[value.name]
    feeds = {
        "in/x.0": np.array([[1, 3, 2], [9, 7, 8]], np.float32),
        "in/k.0": np.array([2**40, 5]),
        "in/on.0": np.array([True, False]),
    }
    got, want = run(lowered(model, tmp_path), feeds), reference(model, feeds)
    assert {n: (a.dtype, a.shape) for n, a in got.items()} == {n: (a.dtype, a.shape) for n, a in want.items()}
    for name in ("best", "off", "same"):
        np.testing.assert_array_equal(got[name], want[name])
    assert got["s"] == np.float32(2**31 - 1 + 5), "integers end at 32 bits"


def test_sizes_may_stay_free(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1,3,h,w] x) => (float[1,8] y, float[1,8,q] z) {
        a = Conv<pads=[1,1,1,1]>(x, k)
        p = GlobalAveragePool(a)
        y = Flatten(p)
        z = Reshape(a, s)
    }"""
    model = graph(text, {"k": (8, 3, 3, 3)}, s=np.array([0, 0, -1]))
    artifact = lowered(model, tmp_path)
    for size in ((5, 7), (9, 4)):
        feeds = {"x": np.random.default_rng(2).normal(size=(1, 3, *size)).astype(np.float32)}
        assert largest_error(reference(model, feeds), run(artifact, feeds)) < 1e-5


def test_what_is_known_of_the_model_stands_in_the_package(tmp_path: Path) -> None:
    model = quantized()
    artifact = lowered(model, tmp_path)
    before = run(artifact, FEEDS)["y"]
    pixels = artifact.inputs[0].model_copy(update={"normalisation": Normalisation(mean=(0.5,), std=(0.25,))})
    told = Description(
        name="net",
        text="tells four things apart",
        version="3",
        inputs=(pixels,),
        outputs=artifact.outputs,
        classes=("a", "b", "c", "d"),
    )
    for _ in range(2):
        CoreML().describe(artifact, told)
    spec = sdk().utils.load_spec(str(artifact.main.parent))
    about = spec.description.metadata
    assert (about.shortDescription, about.versionString) == ("tells four things apart", "3")
    assert json.loads(about.userDefined["classes"]) == ["a", "b", "c", "d"]
    assert "mean 0.5 and std 0.25" in spec.description.input[0].shortDescription
    np.testing.assert_array_equal(run(artifact, FEEDS)["y"], before)
    assert (
        differences(PLAN.model_copy(update={"tensors": planned_by(model)}), CoreML().read_plan(artifact))
        == []
    )
