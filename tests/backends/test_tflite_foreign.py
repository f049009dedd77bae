"""Files that we did not write: read in a child, so that none of them harms the process that asks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.adapter.child import Allowance, Child
from deploy.adapter.discover import find_inspector
from deploy.bundle.read import file_digest, load_bundle, open_bundle
from deploy.bundle.verify import verify_bundle
from deploy.cli import main
from deploy.errors import BackendError, DataError
from deploy.pipeline import build
from deploy.spec.artifact import Artifact

pytest.importorskip("ai_edge_litert")
import flatbuffers
from ai_edge_litert import schema_py_generated as tfl

from backends.tflite import TFLite, child
from backends.tflite.runner import TFLiteOptions

FUZZER = Path(__file__).parents[2] / "benchmarks" / "fuzz_tflite.py"
NET = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,8,8] x) => (float[n,4] y) {
    a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Softmax(f)
}"""
FEEDS = {"x": np.random.default_rng(1).normal(0, 1, (5, 3, 8, 8)).astype(np.float32)}
Change = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    proto = onnx.parser.parse_model(NET)
    kernel = np.random.default_rng(0).normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "w"))
    onnx.save(proto, folder / "net.onnx")
    bundle = build(
        folder / "net.onnx",
        target="android",
        data=FEEDS,
        precision="int8",
        measure=False,
        cache=folder / "cache",
        out=folder,
    )
    return bundle.folder


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def artifact_of(bundle: Path, *, foreign: bool) -> Artifact:
    artifact = load_bundle(bundle).manifest.artifact
    return artifact.model_copy(update={"folder": bundle / "artifact", "foreign": foreign})


def exchange(bundle: Path, change: Change) -> Path:
    """Another artifact, and the manifest says that it is the one."""
    file, manifest = bundle / "artifact" / "model.tflite", bundle / "manifest.json"
    file.write_bytes(change(file.read_bytes()))
    said = json.loads(manifest.read_text())
    said["files"]["artifact/model.tflite"] = file_digest(file)
    manifest.write_text(json.dumps(said))
    return file


def rewritten(content: bytes, change: Callable[[tfl.ModelT], object]) -> bytes:
    model = tfl.ModelT.InitFromPackedBuf(content, 0)
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def crashing(content: bytes) -> bytes:
    """LiteRT multiplies by a scale that is none, and reads where nothing is."""

    def change(model: tfl.ModelT) -> None:
        graph = model.subgraphs[0]
        for tensor in graph.tensors:
            if tensor.quantization is not None and tensor.quantization.scale is not None:
                tensor.quantization.scale = np.full_like(tensor.quantization.scale, np.nan)

    return rewritten(content, change)


def test_a_child_computes_what_we_would(bundle: Path) -> None:
    with (
        TFLite().open(artifact_of(bundle, foreign=True), TFLiteOptions()) as apart,
        TFLite().open(artifact_of(bundle, foreign=False), TFLiteOptions()) as here,
    ):
        assert apart.executed_by == here.executed_by
        for count in (5, 1, 3):
            feeds = {"x": FEEDS["x"][:count]}
            got, want = apart.run(feeds, ("r", "none")), here.run(feeds, ("r", "none"))
            assert set(got) == set(want)
            assert all(np.array_equal(got[name], want[name]) for name in want)
        with pytest.raises(DataError, match="'x' is missing"):
            apart.run({})


def test_a_bundle_is_opened_in_a_child(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.tflite.backend.TFLiteRunner", None)
    verify_bundle(bundle)
    with open_bundle(bundle) as runner:
        assert runner.run(FEEDS)["y"].shape == (5, 4)


def test_a_file_that_crashes_litert_is_one_error(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = exchange(bundle, crashing)
    for ask in (lambda: verify_bundle(bundle), lambda: open_bundle(bundle), lambda: TFLite().contents(file)):
        with pytest.raises(BackendError, match=r"model\.tflite crashes LiteRT \(SIG\w+\)") as e:
            ask()
        assert e.value.hint
    np.savez(bundle / "x.npz", x=FEEDS["x"])
    for words in (["inspect", file], ["verify", bundle], ["run", bundle, bundle / "x.npz"]):
        assert main([str(word) for word in words]) == 7
        assert "crashes LiteRT" in capsys.readouterr().err


def other_output(content: bytes) -> bytes:
    def change(model: tfl.ModelT) -> None:
        graph = model.subgraphs[0]
        graph.outputs = list(graph.inputs)

    return rewritten(content, change)


DAMAGE: dict[str, tuple[Change, str]] = {
    "empty": (lambda c: b"", r"no \.tflite file"),
    "nothing behind the head": (lambda c: c[:8], "damaged"),
    "half": (lambda c: c[: len(c) // 2], "damaged|cannot"),
    "no metadata": (lambda c: c.replace(b"deploy", b"device"), "not written by deploy"),
    "metadata of another form": (lambda c: c.replace(b'"orders"', b'"ordres"'), "cannot be read"),
    "an output that is another tensor": (other_output, "'y' came as|cannot open"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_a_bundle_says_wrongly_is_told(bundle: Path, what: str) -> None:
    change, said = DAMAGE[what]
    exchange(bundle, change)
    with pytest.raises(BackendError, match=said) as e:
        verify_bundle(bundle)
    assert e.value.hint


def cyclic(content: bytes) -> bytes:
    """Every one of 2^16 subgraphs is the same, with the same 2^16 operators: 4 G objects in 1 MB."""
    many = 2**16
    builder = flatbuffers.Builder(1024)

    def repeated(table: int, start: Callable[[flatbuffers.Builder, int], int]) -> int:
        start(builder, many)
        for _ in range(many):
            builder.PrependUOffsetTRelative(table)
        return int(builder.EndVector())

    tfl.OperatorStart(builder)
    operators = repeated(tfl.OperatorEnd(builder), tfl.SubGraphStartOperatorsVector)
    tfl.SubGraphStart(builder)
    tfl.SubGraphAddOperators(builder, operators)
    graphs = repeated(tfl.SubGraphEnd(builder), tfl.ModelStartSubgraphsVector)
    tfl.ModelStart(builder)
    tfl.ModelAddVersion(builder, 3)
    tfl.ModelAddSubgraphs(builder, graphs)
    builder.Finish(tfl.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_a_small_file_of_many_objects_takes_neither_time_nor_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many.tflite").write_bytes(cyclic(b""))
    monkeypatch.setattr(child, "READING", replace(child.READING, opening_s=1.0))
    began = time.monotonic()
    with pytest.raises(BackendError, match=r"many\.tflite (keeps LiteRT busy|is damaged|: it takes more)"):
        child.contents(tmp_path / "many.tflite")
    assert time.monotonic() - began < 20


def test_memory_follows_from_size_and_feeds(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Allowance] = []
    real = Child.ask

    def ask(self: Child, message: child.Message, allowed: Allowance) -> child.Message:
        asked.append(allowed)
        return real(self, message, allowed)

    monkeypatch.setattr(Child, "ask", ask)
    with TFLite().open(artifact_of(bundle, foreign=True), TFLiteOptions(threads=2)) as runner:
        runner.run(FEEDS)
    opening, running = asked
    assert opening.memory < 2.1 * 2**30 < running.memory + 2**28
    assert running.cpu_s == 2 * running.clock_s


def test_too_large_a_file_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "huge.tflite").open("wb") as file:
        file.truncate(3 * 2**30)
    with pytest.raises(BackendError, match=r"huge\.tflite has 3\.0 GB"):
        TFLite().contents(tmp_path / "huge.tflite")


def test_inspect_shows_a_file(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = bundle / "artifact" / "model.tflite"
    assert main(["inspect", str(file)]) == 0
    out, err = capsys.readouterr()
    said = {" ".join(line.split()) for line in out.splitlines()}
    assert err == "" and "input x: float32[n, 3, 8, 8]" in said and "written by deploy" in said
    assert any("1 partition computed by XNNPACK" in line for line in said)
    assert main(["inspect", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = tfl.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    assert sum(operator["count"] for operator in found["operators"]) == len(model.subgraphs[0].operators)
    assert found["tensors"] == len(model.subgraphs[0].tensors) and found["bytes"] == file.stat().st_size
    assert found["signatures"][0]["inputs"] == {"x": "x"} and found["metadata"].keys() >= {"deploy"}
    assert found["execution"]["partitions"] == 1 and found["execution"]["outside"] == []


def test_inspect_shows_files_of_others(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without metadata or signature, integers at its ends, an operator that nobody knows, and a name that
    would turn the terminal red."""

    def change(model: tfl.ModelT) -> None:
        graph = model.subgraphs[0]
        model.metadata, model.signatureDefs = None, None
        first, last = graph.operators[0], graph.operators[-1]
        graph.inputs, graph.outputs = [first.outputs[0]], [last.inputs[0]]
        graph.operators = graph.operators[1:-1]
        code = tfl.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = tfl.BuiltinOperator.CUSTOM
        code.customCode, code.version = b"Own\x1b[31m", 7
        model.operatorCodes.append(code)
        graph.operators[-1].opcodeIndex = len(model.operatorCodes) - 1

    file = tmp_path / "theirs.TFLITE"
    file.write_bytes(rewritten((bundle / "artifact" / "model.tflite").read_bytes(), change))
    assert main(["inspect", str(file)]) == 0
    out = capsys.readouterr().out
    assert "another program" in out and "scale" in out and "zero point" in out and "signatures" not in out
    assert "1 CUSTOM Own" in out and "\x1b" not in out and "does not open it" in out
    found = TFLite().contents(file)
    assert found.inputs[0].dtype == "int8" and len(found.inputs[0].scale) == 1
    assert found.execution.partitions is None and "custom" in found.execution.refusal.lower()


def test_partitions_are_counted(tmp_path: Path, bundle: Path) -> None:
    """An operation in the middle that the delegate does not have leaves one stretch before and one behind."""

    def change(model: tfl.ModelT) -> None:
        graph = model.subgraphs[0]
        codes = [code.builtinCode for code in model.operatorCodes]
        conv = next(
            i for i, o in enumerate(graph.operators) if codes[o.opcodeIndex] == tfl.BuiltinOperator.CONV_2D
        )
        result = graph.operators[conv].outputs[0]
        copy = tfl.TensorT()
        vars(copy).update(vars(graph.tensors[result]))
        copy.name = b"after"
        graph.tensors.append(copy)
        code = tfl.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = tfl.BuiltinOperator.RELU
        code.version = 2
        model.operatorCodes.append(code)
        relu = tfl.OperatorT()
        relu.opcodeIndex, relu.inputs, relu.outputs = len(codes), [result], [len(graph.tensors) - 1]
        for operator in graph.operators[conv + 1 :]:
            operator.inputs = [relu.outputs[0] if i == result else i for i in operator.inputs]
        graph.operators.insert(conv + 1, relu)

    file = tmp_path / "split.tflite"
    file.write_bytes(rewritten((bundle / "artifact" / "model.tflite").read_bytes(), change))
    found = TFLite().contents(file).execution
    assert found.partitions == 2 and [(o.op, o.count) for o in found.outside] == [("RELU", 1)]


def test_only_files_of_a_format_are_claimed() -> None:
    assert isinstance(find_inspector(".tflite"), TFLite) and isinstance(find_inspector(".TFLite"), TFLite)
    assert find_inspector(".onnx") is None


def fuzz(seconds: float, seed: int) -> str:
    words = [sys.executable, str(FUZZER), "--minutes", str(seconds / 60), "--seed", str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_few_hundred_damaged_files() -> None:
    assert "0 broke the promise" in fuzz(3, seed=1)


@pytest.mark.slow
def test_damaged_files() -> None:
    assert "0 broke the promise" in fuzz(20, seed=2)
