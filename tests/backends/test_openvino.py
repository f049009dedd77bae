"""The OpenVINO backend: what it writes, what can be read back out of that, and how it runs."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("openvino")
from backends.openvino import OpenVino
from backends.openvino.runner import OpenVinoOptions
from backends.openvino.sdk import core
from deploy.adapter.profiles import load_profile
from deploy.errors import BackendError, DataError, UnsupportedError
from deploy.execute.compare import relative_error
from deploy.execute.reference import open_graph
from deploy.graph.qdq import data_digest, insert, quantize_array
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.plan import Plan, QuantParams, TensorPlan, differences

RUNTIME = load_profile("x86-vnni").runtime_named("openvino")
PLAIN = Plan(graph_sha256="", target="x86", runtime="openvino")
ROWS = "float[N,8]"
OPTIONS = OpenVinoOptions()


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def graph(text: str, domains: str = "", **weights: np.ndarray) -> ir.Model:
    tensors = [ir.tensor(a, name=n) for n, a in weights.items()]
    head = f'<ir_version: 10, opset_import: ["" : 21{domains}]>'
    model = ir.from_onnx_text(f"{head} {text}", initializers=tensors)
    for i, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph)):
        node.name = node.name or f"n{i}"
    return infer(model)


def of_weight(array: np.ndarray, axis: int | None) -> tuple[TensorPlan, np.ndarray]:
    axes = tuple(i for i in range(array.ndim) if i != axis)
    scale = np.atleast_1d(np.abs(array).max(axis=axes if axis is not None else None) / 127)
    scales = tuple(map(float, scale.astype(np.float32)))
    params = QuantParams(type="int8", scale=scales, zero_point=(0,) * len(scales), axis=axis)
    codes = quantize_array(array, params)
    return TensorPlan(**params.model_dump(), origin="weight", digest=data_digest(codes)), codes


def activation(scale: float, zero: int, kind: str = "uint8", readers: tuple[str, ...] = ()) -> TensorPlan:
    stored = float(np.float32(scale))
    return TensorPlan(type=kind, scale=(stored,), zero_point=(zero,), origin="calibration", readers=readers)


CONV = """g (float[N,3,8,8] x) => (float[N,4,8,8] y, float[N,8,8,8] z) {
    [c] c = Conv<pads=[1,1,1,1]>(x, w, b)  [r] r = Relu(c)  [s] z = Sigmoid(r)  [d] y = Conv(r, v) }"""


def quantized(kind: str = "uint8", zero: int = 117) -> tuple[Plan, ir.Model]:
    """Two convolutions, an int32 bias, a value that one of its readers reads as it was."""
    model = graph(CONV, w=weight(8, 3, 3, 3), b=weight(8), v=weight(4, 8, 1, 1))
    of_w, w = of_weight(weight(8, 3, 3, 3), 0)
    of_v, v = of_weight(weight(4, 8, 1, 1), 0)
    x = activation(0.0312345, zero, kind)
    scales = tuple(map(float, np.float32(x.scale[0]) * np.asarray(of_w.scale, np.float32)))
    params = QuantParams(type="int32", scale=scales, zero_point=(0,) * 8, axis=0)
    b = quantize_array(weight(8), params)
    of_b = TensorPlan(**params.model_dump(), origin="bias", bias_of=("x", "w"), digest=data_digest(b))
    r = activation(0.02345, -128 if kind == "int8" else 0, kind, ("d",))
    y = activation(0.0521, 3, kind)
    plan = PLAIN.model_copy(update={"tensors": {"w": of_w, "v": of_v, "b": of_b, "x": x, "r": r, "y": y}})
    return plan, insert(model, plan.tensors, {"w": w, "v": v, "b": b})


@pytest.fixture
def lowered(tmp_path):
    plan, qdq = quantized()
    return plan, qdq, OpenVino().lower(qdq, plan, RUNTIME, tmp_path, SILENT)


def test_the_file_carries_the_plan(lowered):
    plan, _, artifact = lowered
    assert artifact.files == ("model.xml", "model.bin")
    assert (artifact.inputs[0].name, [o.name for o in artifact.outputs]) == ("x", ["y", "z"])
    assert artifact.inputs[0].shape == ("N", 3, 8, 8)
    assert differences(plan, OpenVino().read_plan(artifact)) == []


@pytest.mark.parametrize(("kind", "zero"), [("uint8", 0), ("uint8", 255), ("int8", 0), ("int8", -7)])
def test_types_and_zero_points_come_back(tmp_path, kind, zero):
    plan, qdq = quantized(kind, zero)
    artifact = OpenVino().lower(qdq, plan, RUNTIME, tmp_path, SILENT)
    assert differences(plan, OpenVino().read_plan(artifact)) == []


def test_integers_are_stored_as_integers(lowered):
    artifact = lowered[2]
    codes = 8 * 3 * 9 + 4 * 8
    assert codes <= artifact.weight_bytes < codes + 300
    assert artifact.size_bytes() == sum(p.stat().st_size for p in artifact.folder.iterdir())


@pytest.mark.parametrize(
    ("text", "shape", "axis"),
    [
        ("g (float[N,3,8,8] x) => (float[N,1,8,8] y) { [o] y = Conv(x, w) }", (1, 3, 1, 1), 0),
        ("g (float[N,1,8,8] x) => (float[N,1,16,16] y) { [o] y = ConvTranspose<strides=[2,2]>(x, w) }",
         (1, 1, 2, 2), 1),
        ("g (float[N,8] x) => (float[N,1] y) { [o] y = MatMul(x, w) }", (8, 1), 1),
        ("g (float[N,1] x) => (float[N,1] y) { [o] y = MatMul(x, w) }", (1, 1), 1),
        ("g (float[N,8] x) => (float[N,1] y) { [o] y = Gemm<transB=1>(x, w) }", (1, 8), 0),
        ("g (float[N,8] x) => (float[N,5] y) { [o] y = MatMul(x, w) }", (8, 5), None),
        ("g (float[N,4,8,8] x) => (float[N,4,6,6] y) { [o] y = Conv<group=4>(x, w) }", (4, 1, 3, 3), 0),
    ],
)  # fmt: skip
def test_the_axis_of_a_single_channel_is_known(tmp_path, text, shape, axis):
    of_w, codes = of_weight(weight(*shape), axis)
    plan = PLAIN.model_copy(update={"tensors": {"w": of_w, "x": activation(0.03, 9)}})
    qdq = insert(graph(text, w=weight(*shape)), plan.tensors, {"w": codes})
    artifact = OpenVino().lower(qdq, plan, RUNTIME, tmp_path, SILENT)
    assert differences(plan, OpenVino().read_plan(artifact)) == []


def test_a_range_that_was_tampered_with_is_what_is_read_back(lowered):
    """The scale stands twice in the file: the plugin quantizes by the range, so the range counts."""
    plan, _, artifact = lowered
    model = core().read_model(artifact.main)
    fake = next(op for op in model.get_ops() if op.get_friendly_name() == "x/q/FakeQuantize")
    high = fake.input_value(2).get_node().get_data()
    raw = (artifact.folder / "model.bin").read_bytes()
    assert raw.count(np.float32(high).tobytes()) == 1
    raw = raw.replace(np.float32(high).tobytes(), np.float32(2 * high).tobytes())
    del model, fake
    (artifact.folder / "model.bin").write_bytes(raw)
    wrong = differences(plan, OpenVino().read_plan(artifact))
    assert wrong and all(line.startswith("x:") for line in wrong)


def test_overrides_for_one_reader_come_back(tmp_path):
    model = graph(f"g ({ROWS} x) => ({ROWS} y, {ROWS} z) {{ [a] y = Relu(x)  [b] z = Neg(x) }}")
    other = QuantParams(type="uint8", scale=(0.5,), zero_point=(7,))
    tensors = {"x": activation(0.25, 9).model_copy(update={"uses": {"b": other}})}
    plan = PLAIN.model_copy(update={"tensors": tensors})
    artifact = OpenVino().lower(insert(model, tensors, {}), plan, RUNTIME, tmp_path, SILENT)
    assert differences(plan, OpenVino().read_plan(artifact)) == []


def test_equal_graphs_give_equal_files(tmp_path):
    def digests(folder: Path) -> list[str]:
        folder.mkdir()
        plan, qdq = quantized()
        OpenVino().lower(qdq, plan, RUNTIME, folder, SILENT)
        return [hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())]

    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "a" / "model.xml").read_text()


def test_it_computes_what_the_graph_says_and_gives_inner_values(lowered):
    _, qdq, artifact = lowered
    x = weight(5, 3, 8, 8)
    names = [out.name for node in qdq.graph for out in node.outputs if out.dtype == ir.DataType.FLOAT]
    with open_graph(qdq, optimised=False, expose=names) as literal:
        want = literal.run({"x": x}, names)
    with OpenVino().open(artifact, OPTIONS) as runner:
        got = runner.run({"x": x}, [*names, "not there"])
        plain = runner.run({"x": x})
        one = runner.run({"x": x[:1]})
    assert set(plain) == {"y", "z"} and set(got) == set(names)
    step = {"y": 0.0521 / np.abs(want["y"]).max()}
    for name in names:
        assert relative_error(want[name], got[name]) <= step.get(name, 0.0) * 1.01 + 2e-2, name
    np.testing.assert_allclose(one["z"], plain["z"][:1], atol=1e-5)
    for name in ("x/dq", "w", "b", "v"):
        np.testing.assert_array_equal(got[name], want[name])


def test_more_shapes_than_are_kept_still_run(lowered):
    with OpenVino().open(lowered[2], OPTIONS) as runner:
        for n in range(1, 8):
            assert runner.run({"x": weight(n, 3, 8, 8)})["y"].shape == (n, 4, 8, 8)


def test_floats_are_float32_unless_bfloat16_is_wanted(tmp_path):
    model = graph(f"g ({ROWS} x) => ({ROWS} y) {{ [m] y = MatMul(x, w) }}", w=weight(8, 8))
    artifact = OpenVino().lower(model, PLAIN, RUNTIME, tmp_path, SILENT)
    x = weight(64, 8)
    exact = x.astype(float) @ weight(8, 8).astype(float)

    def error(around: str) -> float:
        options = OpenVino().options(RUNTIME.model_copy(update={"around": around}), 1)
        with OpenVino().open(artifact, options) as runner:
            return relative_error(exact, runner.run({"x": x})["y"])

    assert error("float32") < 1e-6
    if "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert 1e-4 < error("bfloat16") < 2e-2


CUSTOM = ', "acme" : 1'


def test_every_unsupported_node_is_listed_with_its_reason():
    model = graph(
        f"""g ({ROWS} x) => ({ROWS} y, {ROWS} z) {{ [a] a = MatMul(x, w)  [bad1] b = acme.Twist(a)
        [sq] s = Mul(a, a)  [bad2] y = acme.Turn(s)  [e] z = Relu(s) }}""",
        CUSTOM,
        w=weight(8, 8),
    )
    found = OpenVino().check(model, RUNTIME)
    refused = {v.node: v.reason for v in found if v.support == "unsupported"}
    assert list(refused) == ["bad1", "bad2"] and "acme" in refused["bad1"]
    assert {v.node for v in found} == {"a", "bad1", "sq", "bad2", "e"}
    with pytest.raises(UnsupportedError, match=r"(?s)cannot run 2 of 5 nodes:\n.*bad1.*\n.*bad2") as caught:
        OpenVino().lower(model, PLAIN, RUNTIME, Path("/nonexistent"), SILENT)
    assert caught.value.hint


def test_what_it_would_compute_wrong_is_refused():
    model = graph(
        """g (float[1,1,8,8] x) => (float[1,1,4,4] y, float[1,1,4,4] z) {
        [good] y = Resize<mode="linear">(x, , sc)  [bad] z = Resize<mode="linear",antialias=1>(x, , sc) }""",
        sc=np.float32([1, 1, 0.5, 0.5]),
    )
    found = {v.node: v for v in OpenVino().check(model, RUNTIME)}
    assert (found["good"].support, found["bad"].support) == ("supported", "unsupported")
    assert "antialias" in found["bad"].reason


def test_what_it_would_compute_wrong_of_computed_sizes_is_refused():
    model = graph(
        """g (float[2,3] x, float[2,3,4,5] u, int64[2] r, int64[4] s, float[1,1,4,4] v, float[4] f)
           => (float[a,b] y, float[c,d,e,g] z, float[1,1,h,i] w) {
        [few] y = Tile(x, r)  [many] z = Tile(u, s)
        [corners] w = Resize<mode="linear",coordinate_transformation_mode="align_corners">(v, , f) }"""
    )
    found = {v.node: v.reason for v in OpenVino().check(model, RUNTIME) if v.support == "unsupported"}
    assert found.keys() == {"many", "corners"}
    assert "unwritten" in found["many"] and "corners" in found["corners"]


def test_inputs_that_its_reader_leaves_out(tmp_path):
    """The ratio of a Dropout that does nothing; what is left is an output, too, whose name alone it has."""
    model = graph("g (float[2,3] x, float r) => (float[2,3] y) { y = Dropout(x, r) }")
    artifact = OpenVino().lower(model, PLAIN, RUNTIME, tmp_path, SILENT)
    feeds = {"x": weight(2, 3), "r": np.asarray(0.5, np.float32)}
    with OpenVino().open(artifact, OPTIONS) as runner:
        assert np.array_equal(runner.run(feeds)["y"], feeds["x"])


def test_feeds_that_do_not_fit(lowered):
    with OpenVino().open(lowered[2], OPTIONS) as runner:
        with pytest.raises(DataError, match="'x' is missing"):
            runner.run({})
        with pytest.raises(DataError, match=r"float64\[1, 3, 8, 8\]"):
            runner.run({"x": np.zeros((1, 3, 8, 8))})
        with pytest.raises(DataError, match=r"float32\[1, 3, 8, 9\]"):
            runner.run({"x": np.zeros((1, 3, 8, 9), np.float32)})
        with pytest.raises(DataError, match="no input 'q'"):
            runner.run({"x": weight(1, 3, 8, 8), "q": np.zeros(1)})
    with pytest.raises(BackendError, match="closed"):
        runner.run({"x": weight(1, 3, 8, 8)})


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
@pytest.mark.parametrize("kept", [0, 100])
def test_a_damaged_file_is_a_backend_error(lowered, name, kept):
    path = lowered[2].folder / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BackendError, match="cannot open"):
        OpenVino().open(lowered[2], OPTIONS)


def test_missing_weights_and_an_exchanged_file_are_backend_errors(lowered, tmp_path):
    artifact = lowered[2]
    renamed = artifact.model_copy(update={"outputs": artifact.outputs[:1]})
    with pytest.raises(BackendError, match="2 outputs, 1 were written"):
        OpenVino().open(renamed, OPTIONS)
    (artifact.folder / "model.bin").unlink()
    with pytest.raises(BackendError, match="weights are missing"):
        OpenVino().open(artifact, OPTIONS)


def test_times_stand_under_the_nodes_of_the_graph(lowered):
    _, qdq, artifact = lowered
    times = OpenVino().operation_times(artifact, OPTIONS, {"x": weight(4, 3, 8, 8)})
    assert {"r", "d"} <= {*times} <= {"", *(node.name for node in qdq.graph)}
    assert all(ms > 0 for ms in times.values())


FIXED = RUNTIME.model_copy(update={"static_shapes": True, "options": {"device": "NPU"}})


def test_an_input_that_nothing_reads_stays_an_input(tmp_path):
    model = graph("g (float[N,8] unread, float[N,8] x) => (float[N,8] y) { [r] y = Relu(x) }")
    artifact = OpenVino().lower(model, PLAIN, RUNTIME, tmp_path, SILENT)
    x = weight(3, 8)
    with OpenVino().open(artifact, OPTIONS) as runner:
        assert [spec.name for spec in runner.inputs] == ["unread", "x"]
        np.testing.assert_array_equal(runner.run({"unread": x, "x": x})["y"], np.maximum(x, 0))
        with pytest.raises(DataError, match="unread"):
            runner.run({"x": x})


def test_a_device_of_fixed_sizes_gets_batch_1(tmp_path):
    plan, qdq = quantized()
    artifact = OpenVino().lower(qdq, plan, FIXED, tmp_path, SILENT)
    assert artifact.inputs[0].shape == (1, 3, 8, 8)
    assert {o.shape for o in artifact.outputs} == {(1, 4, 8, 8), (1, 8, 8, 8)}
    with OpenVino().open(artifact, OpenVino().options(FIXED, 1)) as runner:
        assert runner.run({"x": weight(1, 3, 8, 8)})["y"].shape == (1, 4, 8, 8)
        if "NPU" not in core().available_devices:
            assert runner.executed_by.endswith("on the CPU, in place of the NPU")
    assert {v.support for v in OpenVino().check(qdq, FIXED)} == {"unknown"}


def test_other_free_sizes_are_refused_with_the_way_out(tmp_path):
    model = graph("g (float[N,T] x) => (float[N,T] y) { [a] y = Relu(x) }")
    with pytest.raises(UnsupportedError, match="'T' of x") as caught:
        OpenVino().lower(model, PLAIN, FIXED, tmp_path, SILENT)
    assert "--shape x=1,N" in caught.value.hint


def kernels(artifact) -> dict[str, str]:
    """By operation of the file: the type that the kernel it became computes in."""
    model = core().read_model(artifact.main)
    model.reshape({port.get_any_name(): [2, *list(port.get_partial_shape())[1:]] for port in model.inputs})
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = {}
    for kernel in compiled.get_runtime_model().get_ops():
        info = kernel.get_rt_info()
        for name in info["originalLayersNames"].astype(str).split(","):
            found[name] = info["runtimePrecision"].astype(str)
    return found


RESIDUAL = """g (float[N,16,8,8] x) => (float[N,16,8,8] y) { [s] s = Conv(x, k)
    [c] c = Conv<pads=[1,1,1,1]>(x, w)  [a] a = Add(c, s)  [r] r = Relu(a)
    [y] y = Conv<pads=[1,1,1,1]>(r, v) }"""


@pytest.mark.parametrize("paired", [False, True])
def test_a_sum_reads_floats_as_well_as_codes(tmp_path, paired):
    """``float_input`` in the profile: no kernel around it computes in floats because of that."""
    assert RUNTIME.quant.float_input == ("Add",)
    weights = {"k": weight(16, 16, 1, 1), "w": weight(16, 16, 3, 3), "v": weight(16, 16, 3, 3) + 1}
    stored = {name: of_weight(array, 0) for name, array in weights.items()}
    tensors = {name: plan for name, (plan, _) in stored.items()}
    tensors |= {"x": activation(0.03, 120), "r": activation(0.05, 0)}
    tensors |= {"s": activation(0.05, 120)} if paired else {}
    qdq = insert(graph(RESIDUAL, **weights), tensors, {name: codes for name, (_, codes) in stored.items()})
    found = kernels(OpenVino().lower(qdq, PLAIN, RUNTIME, tmp_path, SILENT))
    assert [found[name] for name in ("s", "c", "y")] == ["u8", "u8", "u8"]


MOVERS = {
    "MaxPool": "MaxPool<kernel_shape=[2,2],strides=[2,2]>(a)",
    "Reshape": "Reshape(a, shape)",
    "Transpose": "Transpose<perm=[0,1,3,2]>(a)",
    "Slice": "Slice(a, start, end, ax)",
    "DepthToSpace": "DepthToSpace<blocksize=2>(a)",
    "Concat": "Concat<axis=1>(a, a2)",
    "Squeeze": "Squeeze(u, ax)",
    "Unsqueeze": "Squeeze(u, ax)",
    "Split": "Split<axis=1,num_outputs=2>(a)",
    "Flatten": "Flatten(a)",
}
"""How each operation that the profile calls a mover may stand between a value and who reads it quantized."""


@pytest.mark.parametrize("op", [*RUNTIME.quant.forward, *RUNTIME.quant.unify])
def test_integers_go_through_what_only_moves_data(tmp_path, op):
    """The profile says so: without a pair behind it, the next convolution still computes in integers."""
    channels = {"DepthToSpace": 4, "Concat": 32, "Split": 8}.get(op, 16)
    mover, result = MOVERS[op], "r, r2" if op == "Split" else "r"
    second = "[c2] a2 = Conv<pads=[1,1,1,1]>(x, w2)" if op == "Concat" else ""
    before = "[u] u = Unsqueeze(a, ax)" if "u," in mover else ""
    last = "[y] y = Gemm<transB=1>(r, v)" if op == "Flatten" else "[y] y = Conv(r, v)"
    text = f"""g (float[N,3,8,8] x) => (float[N,M,K,L] y) {{ [c] a = Conv<pads=[1,1,1,1]>(x, w)
        {second} {before} [m] {result} = {mover} {last} }}"""
    weights = {
        "w": weight(16, 3, 3, 3),
        "w2": weight(16, 3, 3, 3),
        "v": weight(*((4, 1024) if op == "Flatten" else (4, channels, 1, 1))),
    }
    numbers = {"shape": [0, 16, 4, 16], "start": [0], "end": [4], "ax": [2]}
    constants = weights | {name: np.asarray(n, np.int64) for name, n in numbers.items()}
    used = {name: array for name, array in constants.items() if re.search(rf"\b{name}\b", text)}
    stored = {name: of_weight(array, 0) for name, array in used.items() if name in weights}
    tensors = {name: plan for name, (plan, _) in stored.items()}
    tensors |= {"x": activation(0.03, 120), "a": activation(0.05, 100)}
    if op == "Concat":
        tensors["a2"] = tensors["a"]
    qdq = insert(graph(text, **used), tensors, {name: codes for name, (_, codes) in stored.items()})
    artifact = OpenVino().lower(qdq, PLAIN, RUNTIME, tmp_path, SILENT)
    assert kernels(artifact)["y"] in ("u8", "i8")


SILENT_IMPORT = """
import sys
seen = []
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.mkdir"):
        seen.append((event, args))
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append((event, args))
sys.addaudithook(hook)
from backends.openvino.sdk import core, sdk
core()
convert, loaded = sdk().convert_model, "openvino.tools.ovc" in sys.modules
try:
    convert(sys.argv[1])
except Exception as e:
    print(loaded, type(e).__name__)
assert "openvino_telemetry" not in sys.modules and sdk().convert_model is not convert
print(seen)
"""


def test_importing_openvino_sends_and_writes_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-B", "-c", SILENT_IMPORT, "none.onnx"], capture_output=True, text=True, check=True,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("False Error\n[]\n", "")
    assert list(tmp_path.iterdir()) == []


def test_available_says_the_version():
    found = OpenVino().available()
    assert found.usable and found.version == core().get_versions("CPU")["CPU"].build_number.split("-")[0]


BROKEN = 'raise ImportError("libopenvino.so.2640: cannot open shared object file\\nand more")'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BROKEN, "cannot be loaded: libopenvino.so.2640: cannot open shared object file;"),
        ("", "cannot be loaded: the folder of the package is empty;"),
        ('raise ModuleNotFoundError("none", name="openvino")', "OpenVINO is not installed;"),
    ],
)
def test_a_package_that_cannot_be_loaded_is_a_missing_toolchain(tmp_path, content, said):
    """Its metadata are there all the same; the answer must be one error of its kind, not refused nodes."""
    (tmp_path / "openvino").mkdir()
    (tmp_path / "openvino" / "__init__.py").write_text(content)
    model = graph("g (float[N,8] x) => (float[N,8] y) { y = Relu (x) }")
    ir.save(model, tmp_path / "model.onnx")
    asked = ["build", "model.onnx", "--target", "x86-vnni", "--runtime", "openvino", "--cache", "cache"]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "deploy", *asked],
        capture_output=True, text=True, cwd=tmp_path,
        env={"HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()][1:] == ["error", "hint"]
    assert said in done.stderr and "deploy-compiler[openvino]" in done.stderr


def test_settings_worth_trying():
    backend = OpenVino()
    assert backend.variants(RUNTIME, backend.options(RUNTIME, 1)) == []
    (bound,) = backend.variants(RUNTIME, backend.options(RUNTIME, 2))
    assert bound.around is None and bound.options == OpenVinoOptions(threads=2, pinned=True)
    narrow = RUNTIME.model_copy(update={"around": "bfloat16"})
    (wide,) = backend.variants(narrow, backend.options(narrow, 1))
    assert wide.around == "float32" and wide.options == OpenVinoOptions(inference_precision="f32")
    npu = OpenVinoOptions(device="NPU", threads=2)
    assert backend.variants(RUNTIME, npu) == []


def test_results_are_the_same_with_threads_bound_to_cores(lowered):
    backend, x = OpenVino(), {"x": weight(1, 3, 8, 8)}
    with backend.open(lowered[2], OPTIONS) as runner:
        expected = runner.run(x)
    for variant in backend.variants(RUNTIME, OpenVinoOptions(threads=2)):
        with backend.open(lowered[2], variant.options) as runner:
            for name, array in runner.run(x).items():
                np.testing.assert_array_equal(array, expected[name])


def test_what_was_given_is_not_written_over(lowered):
    """Outputs lie where OpenVINO makes them: each run's are a copy, whatever is run next."""
    with OpenVino().open(lowered[2], OPTIONS) as runner:
        first = runner.run({"x": weight(2, 3, 8, 8)})
        kept = {name: array.copy() for name, array in first.items()}
        for scale in (0.5, 2.0):
            other = runner.run({"x": weight(2, 3, 8, 8) * np.float32(scale)})
            assert any(not np.array_equal(other[name], kept[name]) for name in kept)
        runner.run({"x": weight(2, 3, 8, 8)}, want=("c",))
        again = runner.run({"x": weight(2, 3, 8, 8)})
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize("size", [8, 20_000])
@pytest.mark.parametrize("free", ["N", "1"])
def test_what_only_passes_through_is_that_of_each_run(tmp_path, size, free):
    """Inputs of either size: small ones are copied into place, large ones read where they lie."""
    rows = f"float[{free},{size}]"
    model = graph(f"g ({rows} x) => ({rows} y, {rows} z) {{ [a] y = Identity(x)  [b] z = Relu(x) }}")
    artifact = OpenVino().lower(model, PLAIN, RUNTIME, tmp_path, SILENT)
    feeds = [np.random.default_rng(i).standard_normal((1, size)).astype(np.float32) for i in range(3)]
    with OpenVino().open(artifact, OPTIONS) as runner:
        found = [runner.run({"x": x}) for x in feeds]
    for x, outputs in zip(feeds, found, strict=True):
        np.testing.assert_array_equal(outputs["y"], x)
        np.testing.assert_array_equal(outputs["z"], np.maximum(x, 0))
