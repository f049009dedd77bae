"""The deferred artifact through ONNX Runtime; build_engine.py against stand-ins of TensorRT 8, 10 and 11.

The stand-ins have the names that the bindings of those versions have, and no others.
"""

from __future__ import annotations

import ast
import ctypes
import enum
import hashlib
import importlib.util
import sys
import types
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from backends import tensorrt as package
from backends.tensorrt import TensorRT, support
from backends.tensorrt.runner import OnnxRuntimeStandIn
from deploy.adapter.discover import find_backend
from deploy.errors import UnsupportedError
from deploy.graph import qdq
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Options
from deploy.spec.plan import BlockPlan, Plan, TensorPlan, differences
from deploy.spec.profile import Runtime

SCRIPT = Path(package.__file__).with_name("build_engine.py")
RNG = np.random.default_rng(3)


def runtime(opset: int = 21, around: str = "float16") -> Runtime:
    return Runtime(
        name="tensorrt",
        versions=("10.3",),
        onnx_opset=opset,
        around=around,
        options={"workspace": 256},
        source="test",
        date=date(2026, 11, 21),
    )


def graph(text: str, **weights: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n{text}')
    for name, array in weights.items():
        value = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        tensor = ir.tensor(array, name=name)
        value.const_value, value.type, value.shape = (
            tensor,
            ir.TensorType(tensor.dtype),
            ir.Shape(array.shape),
        )
        model.graph.register_initializer(value)
    for index, node in enumerate(model.graph):
        node.name = node.name or f"n{index}"
    return infer(model)


def network() -> ir.Model:
    text = """
    g (float[N, 3, 8, 8] x) => (float[N, 2] y) {
        [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        [relu] r = Relu (a)
        [pool] p = GlobalAveragePool (r)
        [flat] f = Flatten (p)
        [head] y = Gemm <transB = 1> (f, v)
    }
    """
    w, b, v = (RNG.normal(size=s).astype(np.float32) / 3 for s in ((4, 3, 3, 3), (4,), (2, 4)))
    return graph(text, w=w, b=b, v=v)


def quantized() -> tuple[ir.Model, Plan]:
    """The network with its convolution in INT8, and the plan; every scale is a float16 number."""
    model = network()
    scale = tuple(float(s) for s in np.float16([0.011, 0.012, 0.013, 0.009]))
    weight = TensorPlan(type="int8", scale=scale, zero_point=(0,) * 4, axis=0, origin="weight")
    codes = qdq.quantize_array(model.graph.initializers["w"].const_value.numpy(), weight, low=-127)
    tensors = {
        name: TensorPlan(type="int8", scale=(2.0**-5,), zero_point=(0,), origin="calibration")
        for name in ("x", "r")
    }
    tensors["w"] = weight.model_copy(update={"digest": qdq.data_digest(codes)})
    return qdq.insert(model, tensors, {"w": codes}), Plan(
        graph_sha256="0", target="t", runtime="tensorrt", tensors=tensors
    )


def empty_plan(**blocks: str) -> Plan:
    parts = tuple(BlockPlan(id=name, nodes=(name,), precision=kind) for name, kind in blocks.items())
    return Plan(graph_sha256="0", target="t", runtime="tensorrt", blocks=parts)


# ----------------------------------------------------------------------------------------------- the artifact


def test_is_found_by_its_entry_point() -> None:
    assert isinstance(find_backend("tensorrt"), TensorRT)


def test_absent_bindings_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = TensorRT().available()
    assert found.version is None and "on the device" in found.missing
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.3.0"))
    assert TensorRT().available().version == "10.3.0"


def test_artifact_is_a_float16_file_and_its_script(tmp_path: Path) -> None:
    model = network()
    artifact = TensorRT().lower(model, empty_plan(), runtime(), tmp_path, SILENT)
    assert artifact.deferred and artifact.toolchain == {"tensorrt": "10.3"}
    assert artifact.files == ("model.onnx", "build_engine.py")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(artifact.files)
    assert (tmp_path / "build_engine.py").read_bytes() == SCRIPT.read_bytes()
    proto = onnx.load(artifact.main)
    assert {t.data_type for t in proto.graph.initializer} == {onnx.TensorProto.FLOAT16}
    onnx.checker.check_model(proto, full_check=True)
    assert [str(s) for s in artifact.inputs] == ["x: float32[N, 3, 8, 8]"]

    x = RNG.normal(size=(3, 3, 8, 8)).astype(np.float32)
    backend = TensorRT()
    with backend.open(artifact, backend.options(runtime(), 1)) as runner:
        assert isinstance(runner, OnnxRuntimeStandIn)
        assert runner.executed_by.startswith("ONNX Runtime")
        got = runner.run({"x": x}, ["r"])
    assert got["r"].dtype == np.float16
    (want,) = reference(model, x)
    assert got["y"].dtype == np.float32
    assert np.abs(got["y"] - want).max() < 5e-3 * np.abs(want).max()


def reference(model: ir.Model, x: np.ndarray) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize("opset", [17, 20, 21])
def test_the_plan_is_read_back_out_of_the_file(tmp_path: Path, opset: int) -> None:
    model, plan = quantized()
    backend = TensorRT()
    artifact = backend.lower(model, plan, runtime(opset), tmp_path, SILENT)
    assert differences(plan, backend.read_plan(artifact)) == []
    found = onnx.load(artifact.main)
    assert found.opset_import[0].version == opset
    scales = {t.name: t.data_type for t in found.graph.initializer}
    assert scales["w/scale"] == (onnx.TensorProto.FLOAT if opset == 17 else onnx.TensorProto.FLOAT16)
    x = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
    (want,) = reference(model, x)
    with backend.open(artifact, Options()) as runner:
        assert np.abs(runner.run({"x": x})["y"] - want).max() < 2e-2 * np.abs(want).max()


def test_a_changed_file_no_longer_carries_the_plan(tmp_path: Path) -> None:
    model, plan = quantized()
    backend = TensorRT()
    artifact = backend.lower(model, plan, runtime(), tmp_path, SILENT)
    proto = onnx.load(artifact.main)
    scale = next(t for t in proto.graph.initializer if t.name == "x/scale")
    scale.raw_data = np.float16(0.5).tobytes()
    onnx.save(proto, artifact.main)
    (difference,) = differences(plan, backend.read_plan(artifact))
    assert difference.startswith("x: scale 0.5, planned 0.03125")


def test_blocks_planned_float_stay_float32(tmp_path: Path) -> None:
    plan = empty_plan(conv="float", relu="fp16", head="fp16", gone="float")
    artifact = TensorRT().lower(network(), plan, runtime(), tmp_path, SILENT)
    kinds = {t.name: t.data_type for t in onnx.load(artifact.main).graph.initializer}
    assert kinds == {"w": 1, "b": 1, "v": onnx.TensorProto.FLOAT16}


def test_all_unsupported_nodes_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    text = """
    g (float[1, 4, 8, 8] x) => (float[K, 4] y, float[1, 4, 8, 8] z) {
        [u] y = Unique <axis = 0> (x)
        [q] z = com.microsoft.QuickGelu (x)
        [r] t = Relu (x)
    }
    """
    with pytest.raises(
        UnsupportedError, match=r"2 of 3 nodes:\n  Unique 'u': .*\n  QuickGelu 'q': .*com.microsoft"
    ):
        TensorRT().lower(graph(text), empty_plan(), runtime(), tmp_path, SILENT)
    assert not list(tmp_path.iterdir())


VERDICTS = {
    'y = Resize <mode = "cubic"> (x, , s)': ("unsupported", "mode must be one of"),
    'y = Resize <mode = "linear"> (x, , s)': ("supported", ""),
    'y = Resize <mode = "linear", antialias = 1> (x, , s)': ("unsupported", "antialiasing"),
    "y = Acos (x)": ("supported", ""),
    "y, i = MaxPool <kernel_shape = [2, 2]> (x)\n j = Shape (i)": ("unsupported", "Indices"),
    "y = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (x)": ("unsupported", "dilations"),
    "f = Squeeze (x, a)\n y = MaxPool <kernel_shape = [2]> (f)": (
        "unknown",
        "two and three dimensions",
    ),
    "y, i = TopK (x, k)": ("unsupported", "K must be less than 3840"),
    "y = QuantizeLinear (x, one, zero)": ("unsupported", "int8, not UINT8"),
    "d = Cast <to = 11> (x)\n y = Relu (d)": ("unknown", "float64"),
    "d = Cast <to = 3> (x)\n y = Relu (d)": ("unsupported", "not INT8"),
    "d = Cast <to = 7> (x)\n y = CumSum (d, ax)": ("unsupported", "not INT64"),
    "y = Gelu (x)": ("supported", ""),
    "y = Swish (x)": ("unknown", "not in NVIDIA's table"),
}


@pytest.mark.parametrize("nodes", VERDICTS)
def test_check_follows_the_table(nodes: str) -> None:
    constants = {
        "s": np.float32([1, 1, 2, 2]),
        "a": np.int64([0]),
        "k": np.int64([5000]),
        "one": np.float32(1),
        "zero": np.uint8(3),
        "ax": np.int64(0),
    }
    if "Swish" in nodes:
        model = network()
        model.graph[1].op_type = "Swish"
        found = {v.op: v for v in TensorRT().check(model, runtime())}
        assert (found["Swish"].support, found["Conv"].support) == ("unknown", "supported")
        return
    model = graph(
        f"g (float[1, 1, 8, 8] x) => (y) {{ {nodes} }}",
        **{n: a for n, a in constants.items() if f"{n})" in nodes or f"{n}," in nodes},
    )
    want, reason = VERDICTS[nodes]
    node = next(n for n in model.graph if any(o.name == "y" for o in n.outputs))
    (verdict,) = [v for v in TensorRT().check(model, runtime()) if v.node == node.name]
    assert verdict.support == want and reason in verdict.reason


def test_tensorrt_8_is_judged_by_its_own_table() -> None:
    model = graph("g (float[2, 8] x) => (y) { y = Gelu (x) }")
    assert TensorRT().check(model, runtime(21))[0].support == "supported"
    assert TensorRT().check(model, runtime(17))[0].support == "unknown"


def test_the_table_names_real_operations() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(support.SUPPORTED) | support.UNSUPPORTED | support.NOT_IN_8 <= known
    assert not set(support.SUPPORTED) & support.UNSUPPORTED


# ------------------------------------------------------------------------------------------------- the script


class Recorder:
    """A stand-in of the bindings: what was asked of it, and what its engine computes (twice its input)."""

    def __init__(
        self, version: str, *, half_scales: bool = False, pairs: bool = True, free: bool = True
    ) -> None:
        self.calls: list[tuple[str, object]] = []
        self.timed = b"tactics"
        self.parser_errors: list[dict[str, object]] = []
        self.wrong = False
        self.builds = True
        self.shape = (-1 if free else 2, 3)
        major = int(version.split(".")[0])
        self.module = self._module(version, major, half_scales, pairs)

    def named(self, call: str) -> list[object]:
        return [arguments for name, arguments in self.calls if name == call]

    def _module(self, version: str, major: int, half_scales: bool, pairs: bool) -> types.ModuleType:
        trt = types.ModuleType("tensorrt")
        trt.__version__ = version
        creation = {8: {"EXPLICIT_BATCH": 0}, 10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}}
        trt.NetworkDefinitionCreationFlag = enum.IntEnum(
            "Creation", creation.get(major, {"STRONGLY_TYPED": 0})
        )
        flags = {8: ["FP16", "INT8"], 10: ["FP16", "INT8", "ERROR_ON_TIMING_CACHE_MISS"]}
        trt.BuilderFlag = enum.Enum("BuilderFlag", flags.get(major, ["ERROR_ON_TIMING_CACHE_MISS"]))
        trt.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
        trt.LayerType = enum.Enum("LayerType", ["QUANTIZE", "DEQUANTIZE", "CONVOLUTION"])
        trt.DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL"])
        trt.TensorIOMode = enum.Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
        trt.TensorLocation = enum.Enum("TensorLocation", ["DEVICE", "HOST"])
        outer = self

        class Logger:
            WARNING = "warning"

            def __init__(self, severity: str) -> None:
                assert severity == self.WARNING

        class Layer:
            name = "x/q"
            type = trt.LayerType.QUANTIZE if pairs else trt.LayerType.CONVOLUTION

            def get_input(self, index: int) -> object:
                assert index == 1
                return types.SimpleNamespace(dtype=trt.DataType.HALF if half_scales else trt.DataType.FLOAT)

        class Network:
            num_inputs, num_layers = 1, 1

            def get_input(self, index: int) -> object:
                return types.SimpleNamespace(name="x", shape=outer.shape)

            def get_layer(self, index: int) -> Layer:
                return Layer()

        class Profile:
            def set_shape(self, name: str, low: tuple, usual: tuple, high: tuple) -> None:
                outer.calls.append(("set_shape", (name, low, usual, high)))

        class Cache:
            def __init__(self, data: bytes) -> None:
                self.data = data

            def serialize(self) -> bytes:
                return self.data

        class Config:
            def set_flag(self, flag: enum.Enum) -> None:
                outer.calls.append(("set_flag", flag.name))

            def set_memory_pool_limit(self, pool: enum.Enum, size: int) -> None:
                outer.calls.append(("set_memory_pool_limit", (pool.name, size)))

            def add_optimization_profile(self, profile: Profile) -> int:
                outer.calls.append(("add_optimization_profile", None))
                return 0

            def create_timing_cache(self, data: bytes) -> Cache:
                return Cache(data)

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                assert not ignore_mismatch
                self.cache = cache
                return True

            def get_timing_cache(self) -> Cache:
                return self.cache

        class Builder:
            def __init__(self, logger: Logger) -> None: ...

            def create_network(self, flags: int) -> Network:
                outer.calls.append(("create_network", flags))
                return Network()

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
                if hasattr(config, "cache"):
                    config.cache.data = outer.timed
                return b"engine" if outer.builds else None

        class ParserError:
            def __init__(self, facts: dict[str, object]) -> None:
                for name, value in facts.items():
                    setattr(self, name, lambda value=value: value)

        class OnnxParser:
            def __init__(self, network: Network, logger: Logger) -> None:
                self.num_errors = len(outer.parser_errors)

            def parse_from_file(self, path: str) -> bool:
                assert Path(path).is_file()
                return not outer.parser_errors

            def get_error(self, index: int) -> ParserError:
                return ParserError(outer.parser_errors[index])

        class Context:
            def __init__(self) -> None:
                self.addresses: dict[str, int] = {}

            def set_input_shape(self, name: str, shape: tuple) -> bool:
                self.shape = shape
                outer.calls.append(("set_input_shape", shape))
                return outer.shape[0] in (-1, shape[0])

            def get_tensor_shape(self, name: str) -> tuple:
                return self.shape

            def set_tensor_address(self, name: str, memory: int) -> bool:
                self.addresses[name] = memory
                return True

            def execute_async_v3(self, stream: int) -> bool:
                count = int(np.prod(self.shape))
                x, y = ((ctypes.c_float * count).from_address(self.addresses[n]) for n in ("x", "y"))
                y[:] = [3 * v if outer.wrong else 2 * v for v in x]
                return True

        class Engine:
            num_io_tensors = 2

            def create_execution_context(self) -> Context:
                return Context()

            def get_tensor_name(self, index: int) -> str:
                return "xy"[index]

            def get_tensor_mode(self, name: str) -> enum.Enum:
                return trt.TensorIOMode.INPUT if name == "x" else trt.TensorIOMode.OUTPUT

            def get_tensor_dtype(self, name: str) -> enum.Enum:
                return trt.DataType.FLOAT

            def get_tensor_shape(self, name: str) -> tuple:
                return outer.shape

            def get_tensor_location(self, name: str) -> enum.Enum:
                return trt.TensorLocation.DEVICE

            def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple]:
                _, low, usual, high = outer.named("set_shape")[-1]
                return [low, usual, high]

        class Runtime:
            def __init__(self, logger: Logger) -> None: ...

            def deserialize_cuda_engine(self, plan: bytes) -> Engine:
                assert plan == b"engine"
                return Engine()

        for kind in (Logger, Builder, OnnxParser, Runtime):
            setattr(trt, kind.__name__, kind)
        return trt


class HostCuda:
    """libcudart on the host's memory."""

    def __init__(self) -> None:
        self.held: list[object] = []

    def cudaMalloc(self, pointer: object, size: ctypes.c_size_t) -> int:  # noqa: N802
        self.held.append(memory := ctypes.create_string_buffer(size.value))
        pointer._obj.value = ctypes.addressof(memory)
        return 0

    def cudaMemcpy(self, to: object, source: object, size: ctypes.c_size_t, kind: object) -> int:  # noqa: N802
        ctypes.memmove(to, source, size.value)
        return 0

    def cudaEventElapsedTime(self, elapsed: object, begin: object, end: object) -> int:  # noqa: N802
        elapsed._obj.value = 1.5
        return 0

    def __getattr__(self, name: str) -> object:
        return lambda *arguments: 0


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """build_engine.py as it lies in an artifact, with a model beside it and a self-test above."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "build_engine.py").write_bytes(SCRIPT.read_bytes())
    (folder / "model.onnx").write_bytes(b"read by the bindings alone")
    spec = importlib.util.spec_from_file_location("build_engine", folder / "build_engine.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.Cuda, "_load", lambda self: HostCuda())
    x = RNG.normal(size=(5, 3)).astype(np.float32)
    np.savez(tmp_path / "selftest.npz", **{"input/x": x, "output/y": 2 * x})
    return module


def use(monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> Recorder:
    monkeypatch.setitem(sys.modules, "tensorrt", recorder.module)
    return recorder


@pytest.mark.parametrize(
    ("version", "creation", "flags"),
    [
        ("8.5.2.2", 1 << 0, ["FP16", "INT8"]),
        ("8.6.2", 1 << 0, ["FP16", "INT8"]),
        ("10.3.0", 1 << 1, []),
        ("10.13.0.35", 1 << 1, []),
        ("11.4.0.106", 1 << 0, []),
    ],
)
def test_each_version_gets_its_flags(
    monkeypatch: pytest.MonkeyPatch, script: types.ModuleType, version: str, creation: int, flags: list[str]
) -> None:
    fake = use(monkeypatch, Recorder(version))
    assert script.main(["--workspace", "64", "--max-batch", "4"]) == 0
    assert fake.named("create_network") == [creation]
    assert fake.named("set_flag") == flags
    assert fake.named("set_memory_pool_limit") == [("WORKSPACE", 64 * 2**20)]
    assert fake.named("set_shape") == [("x", (1, 3), (1, 3), (4, 3))]
    assert (script.HERE / "model.engine").read_bytes() == b"engine"
    left = sorted(p.name for p in script.HERE.iterdir() if p.is_file())
    assert left == ["build_engine.py", "model.engine", "model.onnx"]


def test_tensorrt_8_without_pairs_asks_for_no_calibrator(
    monkeypatch: pytest.MonkeyPatch, script: types.ModuleType
) -> None:
    fake = use(monkeypatch, Recorder("8.6.2", pairs=False, free=False))
    assert script.main([]) == 0
    assert fake.named("set_flag") == ["FP16"]
    assert fake.named("add_optimization_profile") == []
    assert script.main(["--no-fp16"]) == 0
    assert fake.named("set_flag") == ["FP16"]


def test_tensorrt_8_refuses_float16_scales(
    monkeypatch: pytest.MonkeyPatch, script: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Recorder("8.6.2", half_scales=True))
    assert script.main([]) == script.TOOLCHAIN
    assert "misreads float16 scales, and x/q has one" in capsys.readouterr().err
    assert not (script.HERE / "model.engine").exists()


def test_self_test_and_timing(
    monkeypatch: pytest.MonkeyPatch, script: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = use(monkeypatch, Recorder("10.3.0"))
    selftest = ["--check", str(script.HERE.parent / "selftest.npz")]
    assert script.main([*selftest, "--max-batch", "2", "--time", "5"]) == 0
    assert fake.named("set_input_shape") == [(2, 3), (2, 3), (1, 3), (1, 3)]
    out = capsys.readouterr().out
    assert "output 'y': max relative error 0" in out and "self-test passed" in out
    assert "p50 1.500 ms, p95 1.500 ms, p99 1.500 ms over 5 runs, batch 1" in out


def test_other_outputs_end_with_8(
    monkeypatch: pytest.MonkeyPatch, script: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, Recorder("11.4.0")).wrong = True
    selftest = ["--check", str(script.HERE.parent / "selftest.npz"), "--max-batch", "8"]
    assert script.main(selftest) == 8
    streams = capsys.readouterr()
    assert "max relative error 0.5" in streams.out and "0.5 relative, 0.05 allowed" in streams.err
    assert script.main([*selftest, "--tolerance", "0.6"]) == 0


def test_every_parser_error_is_listed_with_its_node(
    monkeypatch: pytest.MonkeyPatch, script: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = use(monkeypatch, Recorder("10.3.0"))
    facts = {"node": 3, "desc": "no importer", "code": "UNSUPPORTED_NODE"}
    named = {"node_name": "u", "node_operator": "Unique"}
    fake.parser_errors = [facts | named, facts | named | {"node_name": "v"}]
    assert script.main([]) == script.UNSUPPORTED
    err = capsys.readouterr().err
    assert "Unique 'u': no importer" in err and "Unique 'v': no importer" in err

    fake = use(monkeypatch, Recorder("8.6.2"))
    fake.parser_errors = [facts | {"desc": "Scale coefficients must all be positive"}]
    assert script.main([]) == script.UNSUPPORTED
    err = capsys.readouterr().err
    assert "node 3: Scale" in err and "reads no float16 scales" in err


def test_a_timing_cache_is_pinned(
    monkeypatch: pytest.MonkeyPatch, script: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = use(monkeypatch, Recorder("10.3.0"))
    cache = script.HERE.parent / "tactics.cache"
    locked = ["--timing-cache", str(cache), "--locked"]
    assert script.main(locked) == script.USAGE
    assert script.main(["--timing-cache", str(cache)]) == 0
    assert cache.read_bytes() == b"tactics"
    pin = cache.with_name("tactics.cache.sha256")
    assert pin.read_text().split() == [hashlib.sha256(b"tactics").hexdigest(), "tactics.cache"]

    engine = script.HERE / "model.engine"
    engine.unlink()
    assert script.main(locked) == 0 and engine.exists()
    assert fake.named("set_flag") == ["ERROR_ON_TIMING_CACHE_MISS"]

    engine.unlink()
    fake.timed = b"tactics and one more"
    assert script.main(locked) == script.BACKEND and not engine.exists()
    assert "timed tactics that" in capsys.readouterr().err
    assert cache.read_bytes() == b"tactics"

    cache.write_bytes(b"another cache")
    assert script.main(locked) == script.USAGE
    assert "is not the pinned timing cache" in capsys.readouterr().err


def test_failures_have_their_codes(
    monkeypatch: pytest.MonkeyPatch, script: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert script.main([]) == script.TOOLCHAIN
    assert "python3-libnvinfer" in capsys.readouterr().err
    use(monkeypatch, Recorder("8.4.1"))
    assert script.main([]) == script.TOOLCHAIN
    use(monkeypatch, Recorder("10.3.0")).builds = False
    assert script.main([]) == script.BACKEND
    assert script.main(["--model", "nothing.onnx"]) == script.MODEL
    assert script.main(["--check", "nothing.npz"]) == script.USAGE
    with pytest.raises(SystemExit) as end:
        script.main(["--locked"])
    assert end.value.code == 2


def test_a_free_inner_dimension_takes_the_self_tests_size(
    monkeypatch: pytest.MonkeyPatch, script: types.ModuleType
) -> None:
    fake = use(monkeypatch, Recorder("10.3.0"))
    fake.shape = (-1, -1)
    assert script.main([]) == script.USAGE
    assert script.main(["--check", str(script.HERE.parent / "selftest.npz"), "--max-batch", "5"]) == 0
    assert fake.named("set_shape")[-1] == ("x", (1, 3), (1, 3), (5, 3))


def test_the_script_is_python_3_8_and_needs_numpy_and_tensorrt_alone() -> None:
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m.split(".")[0] for m in modules} - set(sys.stdlib_module_names) == {"numpy", "tensorrt"}
