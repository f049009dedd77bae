"""The TFLite backend: what it writes computes what ONNX Runtime computes, and carries the plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.adapter.optable import joined
from deploy.adapter.profiles import load_profile
from deploy.bundle.operations import Deviation, deviations
from deploy.errors import BackendError, UnsupportedError
from deploy.execute.compare import largest_error
from deploy.graph.qdq import insert, quantize_array
from deploy.graph.qdq import read_tensors as planned_by
from deploy.progress import SILENT
from deploy.quantize.candidate import Candidate, Subject
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences

pytest.importorskip("ai_edge_litert")
from small_graphs import drawn, reference, weights_of, with_weights

from backends.tflite import TFLite
from backends.tflite.ops import OPERATIONS
from backends.tflite.optable import OpTable
from backends.tflite.write import read_file

RUNTIME = load_profile("android").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")

NET = """<ir_version: 10, opset_import: ["" : 21]> g (float[n,3,8,8] x) => (float[n,4] y) {
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, b)
    r = Relu(a)
    d = Conv<pads=[1,1,1,1], group=8>(r, v)
    s = Add(r, d)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = Gemm<transB=1>(f, u)
}"""
SHAPES = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 1, 3, 3), "u": (4, 8)}


def graph(text: str, shapes: dict[str, tuple[int, ...]]) -> ir.Model:
    return with_weights(text, drawn(shapes))


def lowered(model: ir.Model, folder: Path) -> Artifact:
    return TFLite().lower(model, PLAN, RUNTIME, folder, SILENT)


def operators(artifact: Artifact) -> list[str]:
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    names = {code: name for name, code in vars(BuiltinOperator).items() if name.isupper()}
    model = read_file(artifact.main)
    return [names[model.operatorCodes[o.opcodeIndex].builtinCode] for o in model.subgraphs[0].operators]


def run(
    artifact: Artifact, feeds: dict[str, np.ndarray], want: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    with TFLite().open(artifact, TFLite().options(RUNTIME, 1)) as runner:
        return runner.run(feeds, want)


def activation(scale: float, zero: int) -> TensorPlan:
    return TensorPlan(type="int8", scale=(scale,), zero_point=(zero,), origin="calibration")


def quantized() -> ir.Model:
    """NET with every value as INT8: weights by output channel, the bias by the product of scales."""
    model = graph(NET, SHAPES)
    tensors = {"x": activation(0.03, -3), "r": activation(0.02, -128), "d": activation(0.021, 4)}
    tensors |= {"s": activation(0.033, -20), "p": activation(0.01, -100), "f": activation(0.01, -100)}
    tensors["y"] = activation(0.011, 7)
    codes = {}
    weights = {}
    for name in ("w", "v", "u"):
        array = weights_of(model, name)
        scale = np.abs(array).reshape(len(array), -1).max(axis=1) / 127
        weights[name] = QuantParams(
            type="int8",
            scale=tuple(map(float, scale.astype(np.float32))),
            zero_point=(0,) * len(array),
            axis=0,
        )
    product = np.float32(0.03) * np.array(weights["w"].scale, np.float32)
    weights["b"] = QuantParams(type="int32", scale=tuple(map(float, product)), zero_point=(0,) * 8, axis=0)
    for name, params in weights.items():
        codes[name] = quantize_array(weights_of(model, name), params)
        tensors[name] = TensorPlan(**params.model_dump(), origin="weight")
    return insert(model, tensors, codes)


FEEDS = {"x": np.random.default_rng(1).normal(0, 1, (5, 3, 8, 8)).astype(np.float32)}


def test_float_computes_the_same_for_any_batch_and_turns_once(tmp_path: Path) -> None:
    model = graph(NET, SHAPES)
    artifact = lowered(model, tmp_path)
    assert operators(artifact).count("TRANSPOSE") == 1, "the input"
    for count in (1, 5, 2):
        feeds = {"x": FEEDS["x"][:count]}
        assert largest_error(reference(model, feeds), run(artifact, feeds)) < 1e-5


def test_inner_values_come_back_in_the_graphs_own_order(tmp_path: Path) -> None:
    model = graph(NET, SHAPES)
    inner = ("r", "s", "p")
    got = run(lowered(model, tmp_path), FEEDS, (*inner, "no such value", "w"))
    want = reference(model, FEEDS, inner)
    assert set(got) == {"y", *inner}
    for name in inner:
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def test_int8_is_off_by_a_code_at_most_and_computes_in_integers(tmp_path: Path) -> None:
    model = quantized()
    artifact = lowered(model, tmp_path)
    found = operators(artifact)
    assert (found[0], found[-1]) == ("QUANTIZE", "DEQUANTIZE")
    assert found.count("QUANTIZE") == found.count("DEQUANTIZE") == found.count("TRANSPOSE") == 1
    got, want = run(artifact, FEEDS)["y"], reference(model, FEEDS)["y"]
    assert np.abs(got - want).max() <= 0.011 * 1.01


def test_the_plan_is_read_back_out_of_the_file(tmp_path: Path) -> None:
    model = quantized()
    artifact = lowered(model, tmp_path)
    back = TFLite().read_plan(artifact)
    decided = PLAN.model_copy(update={"tensors": planned_by(model)})
    assert differences(decided, back) == []
    assert len(back.tensors) == 11


def test_a_changed_file_carries_another_plan(tmp_path: Path) -> None:
    model = quantized()
    artifact = lowered(model, tmp_path)
    content = artifact.main.read_bytes()
    scale = np.float32(0.033).tobytes()
    assert content.count(scale) == 1
    artifact.main.write_bytes(content.replace(scale, np.float32(0.034).tobytes()))
    decided = PLAN.model_copy(update={"tensors": planned_by(model)})
    assert [line.split(":")[0] for line in differences(decided, TFLite().read_plan(artifact))] == ["s"]


def test_equal_graphs_give_equal_files_with_aligned_constants(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (lowered(quantized(), tmp_path / name).main.read_bytes() for name in "ab")
    assert first == second
    kernel = np.arange(64, dtype=np.float32).reshape(4, 16)
    model = graph(NET, SHAPES)
    model.graph.initializers["u"].const_value = ir.tensor(kernel[:, :8].copy(), name="u")
    content = lowered(model, tmp_path).main.read_bytes()
    assert content.index(kernel[:, :8].tobytes()) % 16 == 0


def test_everything_refused_is_listed_with_its_reason(tmp_path: Path) -> None:
    model = graph(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[1,4,8,8] x, float[1,18,8,8] o) => (float[1,4,8,8] y) {
            a = DeformConv<pads=[1,1,1,1]>(x, w, o)
            e = RandomNormalLike(a)
            y = Relu(e)
        }""",
        {"w": (4, 4, 3, 3)},
    )
    said = {v.op: v.reason for v in TFLite().check(model, RUNTIME)}
    assert said["DeformConv"] and "not written" in said["RandomNormalLike"]
    assert said["Relu"] == ""
    with pytest.raises(UnsupportedError, match=r"2 nodes.*DeformConv0.*RandomNormalLike1") as e:
        lowered(model, tmp_path)
    assert e.value.hint


def test_an_operation_stands_in_one_family_only() -> None:
    one, other = OpTable(), OpTable()
    for table in (one, other):
        table.lower("Conv")(lambda node, out: None)
    with pytest.raises(ValueError, match="Conv is lowered twice"):
        joined((one, other))
    assert {"Conv", "Gemm", "MaxPool", "Softmax"} <= set(OPERATIONS)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"\x1c\0\0\0TFL3" + bytes(20), b"\xff\xff\xff\x7fTFL3"]
)
def test_a_damaged_file_is_an_error_of_ours(content: bytes, tmp_path: Path) -> None:
    artifact = lowered(graph(NET, SHAPES), tmp_path)
    artifact.main.write_bytes(content)
    with pytest.raises(BackendError, match=r"model\.tflite|not written by deploy"):
        TFLite().open(artifact, TFLite().options(RUNTIME, 1))


def deviations_of(model: ir.Model, artifact: Artifact) -> list[Deviation]:
    candidate = Candidate(PLAN, model, model, artifact)
    subject = Subject(
        graph=model, graph_sha256="", target="android", runtime=RUNTIME, backend=TFLite(),
        options=TFLite().options(RUNTIME, 1), blocks=(), chains=[], histograms={}, observer="mse",
        excluded=frozenset(),
    )  # fmt: skip
    return deviations(
        candidate, subject, {"x": np.random.default_rng(3).normal(size=(4, 3, 8, 8)).astype("f")}
    )


def test_each_operation_is_right_to_one_step_where_it_is_fed_the_right_values(tmp_path: Path) -> None:
    model = quantized()
    found = deviations_of(model, lowered(model, tmp_path))
    assert {d.value for d in found} >= {"x/q", "r/q", "d/q", "s/q", "p/q", "y/q"}
    assert [str(d) for d in found if d.wrong] == []


def test_an_operation_that_is_wrong_is_found_and_those_behind_it_are_not_blamed(tmp_path: Path) -> None:
    model = quantized()
    artifact = lowered(model, tmp_path)
    tensor = next(t for t in read_file(artifact.main).subgraphs[0].tensors if t.name == b"v")
    codes = bytes(read_file(artifact.main).buffers[tensor.buffer].data)
    content = artifact.main.read_bytes()
    assert content.count(codes) == 1
    artifact.main.write_bytes(content.replace(codes, codes[::-1]))
    assert [(d.node, d.value) for d in deviations_of(model, artifact) if d.wrong] == [("Conv2", "d/q")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            'raise ImportError("libLiteRt.so: cannot open shared object file")',
            "cannot be loaded: libLiteRt.so",
        ),
        ("", "LiteRT is installed, but cannot be loaded: No module named 'ai_edge_litert.interpreter'"),
        ('raise ModuleNotFoundError("none", name="ai_edge_litert")', "LiteRT is not installed;"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_a_missing_toolchain(
    tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert" / "__init__.py").write_text(content)
    ask = (
        "from backends.tflite import TFLite; found = TFLite().available(); print(found.usable, found.missing)"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", ask], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )  # fmt: skip
    assert done.stdout.startswith("False ")
    assert said in done.stdout and "deploy-compiler[tflite]" in done.stdout


def test_inputs_and_outputs_bear_the_names_that_the_model_gives_them(tmp_path: Path) -> None:
    for model in (graph(NET, SHAPES), quantized()):
        made = read_file(lowered(model, tmp_path).main).subgraphs[0]
        assert [made.tensors[i].name for i in (*made.inputs, *made.outputs)] == [b"x", b"y"]
