"""TensorFlow Lite Micro: what is written for it runs in its own interpreter, in the memory reckoned."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import date
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deploy.adapter.profiles as profiles
from deploy import build
from deploy.adapter.profiles import load_profile
from deploy.bundle.read import Bundle
from deploy.bundle.report.running import running, snippets
from deploy.bundle.verify import verify_bundle
from deploy.errors import UnsupportedError
from deploy.execute.reference import open_graph
from deploy.progress import SILENT
from deploy.spec.plan import Plan
from deploy.spec.profile import Figure
from deploy.spec.project import IoSection

pytest.importorskip("ai_edge_litert")
from small_graphs import drawn, with_weights

from backends.tflite import TFLite, runner
from backends.tflite.emitter import Emitter
from backends.tflite.micro.arena import HERE, Buffer, _tensors, arena, extent
from backends.tflite.micro.bare import bare
from backends.tflite.micro.fit import refusals
from backends.tflite.micro.interpreter import MicroInterpreter, _said
from backends.tflite.micro.kernels import KERNELS
from backends.tflite.micro.sdk import runtime
from backends.tflite.micro.source import source
from backends.tflite.network import Operator, Tensor
from backends.tflite.sdk import schema

MICRO = runtime()
needs_micro = pytest.mark.skipif(MICRO is None, reason="tflite-micro is not installed")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
RUNTIME = load_profile("microcontroller").runtime_named("tflite")
PLAN = Plan(graph_sha256="", target="", runtime="tflite")

HEAD = '<ir_version: 10, opset_import: ["" : 21]> '
NET = (
    HEAD
    + """g (float[n,3,16,16] x) => (float[n,5] y) {
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)
    r = Relu(a)
    d = Conv<pads=[1,1,1,1], group=8>(r, v)
    h = HardSwish(d)
    s = Add(r, h)
    q = AveragePool<kernel_shape=[2,2], strides=[2,2]>(s)
    p = GlobalAveragePool(q)
    f = Flatten(p)
    y = Gemm<transB=1>(f, u)
}"""
)
SHAPES = {"w": (8, 3, 3, 3), "v": (8, 1, 3, 3), "u": (5, 8)}


def graph(text: str, shapes: dict[str, tuple[int, ...]], numbers: dict[str, float] | None = None) -> ir.Model:
    """``shapes`` are those of random weights, ``numbers`` lone constants."""
    lone = {name: np.array(number, np.float32) for name, number in (numbers or {}).items()}
    return with_weights(text, drawn(shapes, 0.4) | lone)


def samples(count: int = 40) -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, (count, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("micro") / "net.onnx"
    ir.save(graph(NET, SHAPES), path)
    return path


def made(network: Path, name: str = "plain", io: IoSection | None = None) -> Bundle:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 3, 16, 16)).astype(np.float32)
    data = samples() if io is None else pixels
    return build(
        network, target="microcontroller", data={"x": data}, precision="int8", io=io or IoSection(),
        samples=32, out=network.parent / name, cache=network.parent / "cache", measure=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(network: Path) -> Bundle:
    return made(network)


def sketched(content: bytes) -> Emitter:
    """What a file holds, as it was before it was written."""
    model = schema().ModelT.InitFromPackedBuf(content, 0)
    main, out = model.subgraphs[0], Emitter()
    types, codes = (
        {v: k for k, v in vars(table).items() if k.isupper()}
        for table in (schema().TensorType, schema().BuiltinOperator)
    )
    for tensor in main.tensors:
        data = model.buffers[tensor.buffer].data
        shape = tuple(map(int, () if tensor.shape is None else tensor.shape))
        constant = None if data is None or not len(data) else np.asarray(data)
        out.tensors.append(Tensor("", shape, types[tensor.type].lower(), (), None, constant))
    for op in main.operators:
        code = codes[model.operatorCodes[op.opcodeIndex].builtinCode]
        options = ("", {} if op.builtinOptions is None else dict(vars(op.builtinOptions)))
        out.operators.append(
            Operator(code, 1, tuple(map(int, op.inputs)), tuple(map(int, op.outputs)), options, "n")
        )
    out.inputs, out.outputs = list(map(int, main.inputs)), list(map(int, main.outputs))
    return out


def codes(bundle: Bundle) -> list[str]:
    return [op.code for op in sketched(artifact_file(bundle).read_bytes()).operators]


def artifact_file(bundle: Bundle) -> Path:
    return bundle.folder / "artifact" / "model.tflite"


@needs_micro
def test_a_bundle_is_verified_by_its_own_interpreter(bundle: Bundle) -> None:
    said = bundle.manifest.verification
    assert said.passed and re.fullmatch(
        r"TensorFlow Lite Micro \S+ on the CPU, in [\d,]+ bytes of arena", said.executed_by
    )
    assert verify_bundle(bundle.folder).error <= said.tolerance
    assert bundle.manifest.artifact.files == ("model.tflite", "model.h", "model.cc")


def test_everything_is_computed_in_integers(bundle: Bundle) -> None:
    found = codes(bundle)
    assert (found[0], found[-1]) == ("QUANTIZE", "DEQUANTIZE")
    assert found.count("QUANTIZE") == found.count("DEQUANTIZE") == 1
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "HARD_SWISH", "AVERAGE_POOL_2D", "MEAN", "FULLY_CONNECTED"} <= {
        *found
    }
    assert [h for h in bundle.manifest.hazards if h.kind == "float"] == []


def test_fully_connected_weights_have_one_scale_and_filters_one_a_channel(bundle: Bundle) -> None:
    model = schema().ModelT.InitFromPackedBuf(artifact_file(bundle).read_bytes(), 0)
    main = model.subgraphs[0]
    scales = {
        code: len(main.tensors[int(op.inputs[1])].quantization.scale)
        for code, op in zip(codes(bundle), main.operators, strict=True)
        if code in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    }
    assert scales == {"CONV_2D": 8, "DEPTHWISE_CONV_2D": 8, "FULLY_CONNECTED": 1}


def test_the_batch_is_fixed_at_one_and_any_number_of_samples_runs(bundle: Bundle) -> None:
    assert bundle.manifest.artifact.inputs[0].shape == (1, 3, 16, 16)


ATTENTION = """g (float[n,12,24] x, float[n,24,10] k) => (float[n,12,10] y) {
    p = MatMul(x, k)
    y = Softmax(p)
}"""


def check_arena(content: bytes) -> None:
    assert MICRO is not None
    needed = arena(sketched(content), HERE)
    engine = MicroInterpreter(MICRO, content, inner=False)
    said = _said(engine._engine.print_allocations)[1]
    head, tail = (int(re.search(rf"{part} (\d+) bytes", said)[1]) for part in ("head", "tail"))  # type: ignore[index]
    assert needed.tensors == head, "what the planner does is computed, not estimated"
    assert tail <= needed.records < 1.12 * tail, "an estimate, rather too high than too low"
    _said(lambda: MICRO.Interpreter.from_bytes(content, arena_size=needed.tensors + needed.records))


@needs_micro
def test_the_arena_is_as_large_as_reckoned(bundle: Bundle) -> None:
    check_arena(bare(artifact_file(bundle).read_bytes()))


@needs_micro
def test_matrix_products_keep_copies_of_what_they_read_the_other_way_round(tmp_path: Path) -> None:
    TFLite().lower(graph(HEAD + ATTENTION, {}), PLAN, RUNTIME, tmp_path, SILENT)
    check_arena(bare((tmp_path / "model.tflite").read_bytes()))


@given(st.lists(st.tuples(st.integers(1, 500), st.integers(0, 12), st.integers(0, 5)), max_size=25))
def test_the_planner_fits_all_that_lives_together(drawn: list[tuple[int, int, int]]) -> None:
    buffers = [Buffer(size, first, first + more) for size, first, more in drawn]
    rounded = [(-(-b.size // 16) * 16, b) for b in buffers]
    at_once = [sum(size for size, b in rounded if b.first <= time <= b.last) for time in range(20)]
    assert max(at_once, default=0) <= extent(buffers) <= sum(size for size, _ in rounded)


@needs_micro
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_planner_places_as_the_interpreter_does(data: st.DataObject) -> None:
    """Sums over earlier tensors, in any order, live long and short."""
    assert MICRO is not None
    from backends.tflite.write import to_bytes
    from deploy.spec.tensors import TensorSpec

    out = Emitter()
    size = data.draw(st.integers(50, 4000))
    shape = (1, size)
    out.inputs = [out.add(Tensor("x", shape, "float32", (0, 1)))]
    for _ in range(data.draw(st.integers(1, 8))):
        reads = [data.draw(st.sampled_from(range(len(out.tensors)))) for _ in range(2)]
        if data.draw(st.booleans()) and all(out.tensors[i].shape == shape for i in reads):
            result = out.add(Tensor("t", shape, "float32", (0, 1)))
            out.operators.append(Operator("ADD", 1, tuple(reads), (result,), ("AddOptions", {}), "n"))
        else:
            sizes = out.tensors[reads[0]].shape
            result = out.add(Tensor("t", (1, 2 * sizes[1]), "float32", (0, 1)))
            out.operators.append(
                Operator(
                    "CONCATENATION", 1, (reads[0],) * 2, (result,), ("ConcatenationOptions", {"axis": 1}), "n"
                )
            )
    out.outputs = [len(out.tensors) - 1]
    ports = [[TensorSpec(name="p", dtype="float32", shape=(1,))]] * 2
    engine = MicroInterpreter(MICRO, bare(to_bytes(out, *ports)), inner=False)
    said = _said(engine._engine.print_allocations)[1]
    found = re.search(r"head (\d+) bytes", said)
    needed = arena(out, HERE)
    planned = extent(list(_tensors(out)))
    assert found is not None and planned == int(found[1]) <= needed.tensors


PROGRAM = r"""
#include "model.h"
#include <cstdint>
#include <cstdio>
#include <set>
#include <string>
struct Resolver {
    std::set<std::string> added;
    ADDS
};
int main() {
    Resolver resolver;
    const bool worked = AddOperators(resolver);
    std::printf("%d %u %zu %zu %d\n", worked, kOperators, resolver.added.size(), kArenaBytes,
                static_cast<int>(reinterpret_cast<std::uintptr_t>(g_model) % 16));
    std::fwrite(g_model, 1, kModelBytes, stdout);
}
"""


@needs_compiler
def test_the_array_holds_the_file_that_runs_and_the_header_says_how_large_it_is(
    bundle: Bundle, tmp_path: Path
) -> None:
    adds = "".join(f'int Add{k.add}() {{ added.insert("{k.add}"); return 0; }}' for k in KERNELS.values())
    folder = bundle.folder / "artifact"
    (tmp_path / "main.cc").write_text(PROGRAM.replace("ADDS", adds))
    words = [
        "g++",
        "-std=c++17",
        "-Wall",
        "-Werror",
        f"-I{folder}",
        tmp_path / "main.cc",
        folder / "model.cc",
    ]
    subprocess.run([*words, "-o", tmp_path / "program"], check=True)
    first, _, content = subprocess.run(
        [tmp_path / "program"], check=True, capture_output=True
    ).stdout.partition(b"\n")
    assert content == bare(artifact_file(bundle).read_bytes())
    memory = bundle.manifest.artifact.memory_bytes
    distinct = len(set(codes(bundle)))
    assert list(map(int, first.split())) == [1, distinct, distinct, memory["arena"], 0]
    assert memory["flash"] == len(content)
    assert memory["arena"] >= memory["tensors"] + memory["records"] + memory["scratch"]


def test_an_array_is_text_of_every_byte() -> None:
    content = bytes(range(256)) * 3 + b"\x07"
    text = source(content).decode()
    inside = text[text.index("{") + 1 : text.rindex("}")]
    assert bytes(int(word) for word in inside.replace("\n", "").rstrip(",").split(",")) == content


STUBS = {
    "tensorflow/lite/schema/schema_generated.h": """#pragma once
        namespace tflite {
        struct Model {};
        inline const Model* GetModel(const void*) { static Model model; return &model; }
        }
    """,
    "tensorflow/lite/micro/micro_mutable_op_resolver.h": """#pragma once
        namespace tflite { template <unsigned int n> struct MicroMutableOpResolver { ADDS }; }
    """,
    "tensorflow/lite/micro/micro_interpreter.h": """#pragma once
        #include <cstddef>
        #include <cstdint>
        enum TfLiteStatus { kTfLiteOk = 0, kTfLiteError = 1 };
        struct TfLiteTensor { union { char* raw; } data; std::size_t bytes; };
        namespace tflite {
        struct MicroInterpreter {
            float memory[4096] = {};
            TfLiteTensor in{{reinterpret_cast<char*>(memory)}, 0}, out{{reinterpret_cast<char*>(memory)}, 12};
            template <typename M, typename R>
            MicroInterpreter(const M*, const R&, std::uint8_t*, std::size_t) {}
            TfLiteStatus AllocateTensors() { return kTfLiteOk; }
            TfLiteStatus Invoke() { memory[0] += 2; return kTfLiteOk; }
            TfLiteTensor* input(int) { return &in; }
            TfLiteTensor* output(int) { return &out; }
            std::size_t arena_used_bytes() const { return 1; }
        };
        }
    """,
}  # fmt: skip
"""As much of the library's headers as the program needs; its interpreter adds 2 to the first number."""


@needs_compiler
def test_the_program_of_the_report_compiles_and_runs(bundle: Bundle, tmp_path: Path) -> None:
    (found,) = snippets(bundle)
    assert (found.language, found.file) == ("C++", "run_micro.cpp")
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        adds = "".join(f"int Add{k.add}() {{ return 0; }}" for k in KERNELS.values())
        (tmp_path / name).write_text(text.replace("ADDS", adds))
    (tmp_path / found.file).write_text(found.code)
    folder = bundle.folder / "artifact"
    words = ["g++", "-std=c++17", "-Wall", "-Werror", f"-I{folder}", f"-I{tmp_path}", tmp_path / found.file]
    subprocess.run([*words, folder / "model.cc", "-o", tmp_path / "program"], check=True)
    said = subprocess.run([tmp_path / "program"], check=True, capture_output=True, text=True).stdout
    memory = bundle.manifest.artifact.memory_bytes
    assert said == f"arena: 1 of {memory['arena']} bytes\n2\n0\n0\n"
    note = running(bundle).note
    assert f"{memory['flash']:,} bytes of flash" in note and f"{memory['arena']:,} bytes of memory" in note


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_pixels_go_in_as_bytes(network: Path, dtype: str) -> None:
    found = made(network, dtype, IoSection(dtype=dtype))  # type: ignore[arg-type]
    assert found.manifest.artifact.inputs[0].dtype == dtype
    assert codes(found)[0] == ("TRANSPOSE" if dtype == "int8" else "QUANTIZE")  # nothing in float
    assert found.manifest.verification.passed


def test_what_has_no_kernel_is_refused_by_node(tmp_path: Path) -> None:
    model = graph(
        HEAD
        + """g (float[1,4] x) => (float[1,4] y) {
            p = Pow(x, c)
            e = Sign(p)
            t = Tanh(e)
            y = Round(t)
        }""",
        {},
        {"c": 2.5},
    )
    said = {v.op: v.reason for v in TFLite().check(model, RUNTIME) if v.support == "unsupported"}
    assert {"Pow", "Sign"} <= said.keys() and not {"Tanh", "Round"} & said.keys()
    assert "no kernel for POW" in said["Pow"]


def test_a_type_without_a_kernel_is_refused(tmp_path: Path) -> None:
    model = graph(HEAD + "g (int64[1,4] x) => (int64[1,4] y) { y = Add(x, x) }", {})
    with pytest.raises(UnsupportedError, match="int64") as e:
        TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
    assert e.value.hint


def test_more_axes_than_a_kernel_takes_are_refused() -> None:
    sketch = Emitter()
    shape = (1, 2, 3, 4, 5)
    reads = [sketch.add(Tensor(name, shape, "float32", ())) for name in "xy"]
    sketch.operators.append(Operator("PRELU", 1, (reads[0], reads[0]), (reads[1],), ("", {}), "steep"))
    assert "takes 4 axes, not 5" in refusals(sketch)["steep"]


def test_a_size_that_is_free_besides_the_batch_is_named_with_the_way_out(tmp_path: Path) -> None:
    model = graph(HEAD + "g (float[n,m] x) => (float[n,m] y) { y = Relu(x) }", {})
    with pytest.raises(UnsupportedError, match="'m' of x") as e:
        TFLite().check(model, RUNTIME)
    assert "--shape x=1,N" in e.value.hint


@needs_micro
def test_powers_and_clips_are_said_by_kernels_that_there_are(tmp_path: Path) -> None:
    model = graph(
        HEAD
        + """g (float[n,6] x) => (float[n,6] y) {
            s = Neg(x)
            c = Clip(s, low, high)
            y = Pow(c, two)
        }""",
        {},
        {"two": 2.0, "low": -1.0, "high": 1.0},
    )
    found = TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
    kinds = {op.code for op in sketched((tmp_path / "model.tflite").read_bytes()).operators}
    assert kinds == {"NEG", "MINIMUM", "MAXIMUM", "SQUARE"}
    x = np.array([[-3, -0.5, 0, 0.25, 1, 7]], np.float32)
    with TFLite().open(found, TFLite().options(RUNTIME, 1)) as opened, open_graph(model) as reference:
        np.testing.assert_allclose(opened.run({"x": x})["y"], reference.run({"x": x})["y"], atol=1e-6)


@needs_micro
@pytest.mark.parametrize("form", ["none", "tanh"])
def test_gelu_and_erf_are_computed_by_what_there_is_and_told_as_float(tmp_path: Path, form: str) -> None:
    text = f"""g (float[n,40] x) => (float[n,40] y, float[n,40] z) {{
        y = Gelu<approximate = "{form}">(x)
        z = Erf(x)
    }}"""
    model = graph(HEAD + text, {})
    assert all(v.support == "supported" for v in TFLite().check(model, RUNTIME))
    artifact = TFLite().lower(model, PLAN, RUNTIME, tmp_path, SILENT)
    options = TFLite().options(RUNTIME, 1)
    x = np.linspace(-9, 9, 40, dtype=np.float32)[None]
    with TFLite().open(artifact, options) as opened, open_graph(model) as reference:
        got, want = opened.run({"x": x}), reference.run({"x": x})
    np.testing.assert_allclose(got["y"], want["y"], atol=2e-6)
    np.testing.assert_allclose(got["z"], want["z"], atol=5e-6)
    (hazard,) = TFLite().hazards(artifact, options)
    assert set(hazard.nodes) == {"Gelu0", "Erf1"} and "four times the memory" in hazard.text


def test_without_its_interpreter_another_stands_in_and_is_named(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "runtime", lambda: None)
    artifact = bundle.manifest.artifact.model_copy(update={"folder": bundle.folder / "artifact"})
    with TFLite().open(artifact, TFLite().options(RUNTIME, 1)) as opened:
        assert (
            opened.executed_by.startswith("LiteRT ")
            and "in place of TensorFlow Lite Micro" in opened.executed_by
        )
        assert opened.run({"x": samples(1)})["y"].shape == (1, 5)


@needs_micro
def test_a_batch_is_as_many_runs(bundle: Bundle) -> None:
    assert MICRO is not None
    engine = MicroInterpreter(MICRO, bare(artifact_file(bundle).read_bytes()), inner=False)
    port, x = engine.get_input_details()[0]["index"], samples(3)
    engine.resize_tensor_input(port, [3, 3, 16, 16])
    engine.set_tensor(port, x)
    engine.invoke()
    together = engine.get_tensor(engine.get_output_details()[0]["index"])
    engine = MicroInterpreter(MICRO, bare(artifact_file(bundle).read_bytes()), inner=False)
    for one, want in zip(x, together, strict=True):
        engine.set_tensor(port, one[None])
        engine.invoke()
        np.testing.assert_array_equal(engine.get_tensor(engine.get_output_details()[0]["index"])[0], want)
    with pytest.raises(ValueError, match="shapes are fixed"):
        engine.resize_tensor_input(port, [1, 3, 8, 8])


@needs_micro
def test_what_the_interpreter_says_is_the_reason(bundle: Bundle) -> None:
    """Its reasons go to standard error only."""
    assert MICRO is not None
    content = bare(artifact_file(bundle).read_bytes())
    with pytest.raises(RuntimeError, match="Failed to"):
        _said(lambda: MICRO.Interpreter.from_bytes(content, arena_size=2000))


def test_a_network_larger_than_the_board_is_a_missed_budget(
    network: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load_profile("microcontroller")
    small = {
        key: Figure(value=1, unit="KB", source="data sheet", date=date(2026, 11, 21))
        for key in ("flash", "size")
    }
    board = kept.model_copy(update={"memory": small})
    monkeypatch.setattr(profiles, "_installed", lambda: {"microcontroller": board})
    found = made(network, "small").manifest.verdict
    assert found.status == "missed"
    flash, memory = [reason for reason in found.reasons if "the device has" in reason]
    needed = bundle.manifest.artifact.memory_bytes["flash"]
    assert flash == f"it takes {needed:,} bytes of flash, and the device has 1,024"
    assert "bytes of memory, and the device has 1,024" in memory
