"""A build that fails leaves a small model: it fails alike, and nothing of the user's weights is in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from backends.ort import OnnxRuntime
from deploy.errors import BackendError, DataError, DeployError, UnsupportedError, VerificationError
from deploy.pipeline import build
from deploy.spec.artifact import Artifact, Options, Verdict

NETWORK = """g (float[n, 64, 8, 8] x) => (float[n, 4] y) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
    b = Relu (a)
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2, b2)
    d = HardSwish (c)
    e = Add (d, b)
    f = GlobalAveragePool (e)
    h = Flatten (f)
    s = Softmax (h)
    y = Gemm <transB = 1> (s, w3, b3)
}"""
SHAPES = {
    "w1": (256, 64, 3, 3),
    "b1": (256,),
    "w2": (256, 256, 3, 3),
    "b2": (256,),
    "w3": (4, 256),
    "b3": (4,),
}
SAMPLES = {"x": np.random.default_rng(1).standard_normal((8, 64, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {NETWORK}')
    for name, shape in SHAPES.items():
        array = (generator.standard_normal(shape) / 16).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for number, node in enumerate(proto.graph.node):
        node.name = f"/home/user/{node.op_type}{number}"
        node.doc_string = "File /home/user/secret.py"
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    onnx.save(proto, path)
    return path


def failed(
    path: Path, out: Path, data: Mapping[str, np.ndarray] | None = None
) -> tuple[DeployError, list[Path]]:
    """What a build of the model raises, and the models that are left."""
    with pytest.raises(DeployError) as caught:
        build(
            path, target="x86-cpu", runtime="ort", data=data, precision="int8" if data else "auto",
            measure=False, out=out, cache=out / "cache",
        )  # fmt: skip
    return caught.value, sorted((out / "repro").glob("*")) if (out / "repro").exists() else []


def operations(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def require_nothing_of(model: Path, small: Path) -> None:
    """No weight of the user's, no path, and a few kB."""
    assert small.stat().st_size < 40_000
    weights = [onnx.numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer]
    theirs = {n.tobytes() for array in weights for n in array.ravel()[:2000]}
    for tensor in onnx.load(small).graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.size > 64 and len(np.unique(array)) > 1:
            ours = {n.tobytes() for n in array.ravel()}
            assert len(ours & theirs) < len(ours) / 100
    assert b"secret" not in small.read_bytes()


def require_alike(model: Path, error: DeployError, small: Path, out: Path) -> None:
    require_nothing_of(model, small)
    assert str(small) in error.hint and small.parent == out / "repro"
    again, _ = failed(small, out / "again")
    assert type(again) is type(error)


def refuse(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    def check(self: OnnxRuntime, graph: ir.Model, runtime: object) -> list[Verdict]:
        return [
            Verdict(
                node=node.name or "",
                op=node.op_type,
                support="unsupported" if node.op_type in kinds else "supported",
                reason=f"'{node.name}' is not wanted" if node.op_type in kinds else "",
            )
            for node in graph.graph
        ]

    monkeypatch.setattr(OnnxRuntime, "check", check)


def test_each_kind_of_node_that_is_refused_is_shown(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "Conv", "Softmax")
    error, files = failed(model, tmp_path)
    assert isinstance(error, UnsupportedError)
    assert [path.name for path in files] == [
        "x86-cpu-Conv-_home_user_Conv0.onnx",
        "x86-cpu-Softmax-_home_user_Softmax7.onnx",
    ]
    assert [operations(path) for path in files] == [["Conv"], ["Softmax"]]
    for path in files:
        require_alike(model, error, path, tmp_path)


Lower = Callable[..., Artifact]


def fail_to_lower(monkeypatch: pytest.MonkeyPatch, broken: Callable[[ir.Model], bool]) -> list[ir.Model]:
    """The backend fails at some graphs; the graphs that it was given."""
    seen: list[ir.Model] = []
    real: Lower = OnnxRuntime.lower

    def lower(self: OnnxRuntime, graph: ir.Model, *more: object) -> Artifact:
        seen.append(graph)
        if broken(graph):
            raise BackendError("the toolchain fails", hint="ask who made it")
        return real(self, graph, *more)

    monkeypatch.setattr(OnnxRuntime, "lower", lower)
    return seen


def reads(graph: ir.Model, kind: str, sources: Sequence[str]) -> bool:
    return any(
        node.op_type == kind
        and {v.producer().op_type for v in node.inputs if v is not None and v.producer() is not None}
        == set(sources)  # type: ignore[union-attr]
        for node in graph.graph
    )


def test_a_pair_of_nodes_is_found_by_halving(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = fail_to_lower(monkeypatch, lambda graph: reads(graph, "Add", ["HardSwish", "Relu"]))
    error, files = failed(model, tmp_path)
    assert error.hint.startswith("ask who made it; ") and len(files) == 1
    assert operations(files[0])[-2:] == ["HardSwish", "Add"] and "Softmax" not in operations(files[0])
    assert len(seen) < 30
    require_alike(model, error, files[0], tmp_path)


def test_a_quantized_form_is_shown_quantized(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_lower(monkeypatch, lambda graph: reads(graph, "Gemm", ["DequantizeLinear"]))
    error, files = failed(model, tmp_path, SAMPLES)
    assert len(files) == 1 and "Gemm" in operations(files[0]) and "Conv" not in operations(files[0])
    assert "DequantizeLinear" in operations(files[0])
    require_alike(model, error, files[0], tmp_path)


def test_a_failure_to_open_is_shown(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OnnxRuntime.open

    def open_(self: OnnxRuntime, artifact: Artifact, options: Options) -> object:
        if artifact.files[0] == "model.onnx" and "HardSwish" in operations(artifact.main):
            raise BackendError("it crashes at 'HardSwish'")
        return real(self, artifact, options)

    monkeypatch.setattr(OnnxRuntime, "open", open_)
    error, files = failed(model, tmp_path)
    assert [operations(path) for path in files] == [["HardSwish"]]
    require_alike(model, error, files[0], tmp_path)


def test_a_wrong_result_is_shown(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax becomes LogSoftmax in the file."""
    real: Lower = OnnxRuntime.lower

    def lower(
        self: OnnxRuntime, graph: ir.Model, plan: object, runtime: object, folder: Path, *more: object
    ) -> Artifact:
        artifact = real(self, graph, plan, runtime, folder, *more)
        proto = onnx.load(artifact.main)
        for node in proto.graph.node:
            node.op_type = "LogSoftmax" if node.op_type == "Softmax" else node.op_type
        onnx.save(proto, artifact.main)
        return artifact

    monkeypatch.setattr(OnnxRuntime, "lower", lower)
    error, files = failed(model, tmp_path)
    assert isinstance(error, VerificationError) and "Softmax" in error.hint
    assert [operations(path) for path in files] == [["Softmax"]]
    require_alike(model, error, files[0], tmp_path)


def test_a_failure_that_does_not_come_again_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [True]
    fail_to_lower(monkeypatch, lambda graph: bool(first and first.pop()))
    error, files = failed(model, tmp_path)
    assert error.hint == "ask who made it" and files == []


def test_attempts_are_bounded(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.stages.repro._ATTEMPTS", 3)
    seen = fail_to_lower(monkeypatch, lambda graph: True)
    error, files = failed(model, tmp_path)
    assert error.hint == "ask who made it" and files == [] and len(seen) <= 5


def test_wrong_data_leave_nothing(model: Path, tmp_path: Path) -> None:
    error, files = failed(model, tmp_path, {"z": SAMPLES["x"]})
    assert isinstance(error, DataError) and files == [] and "repro" not in error.hint


def test_a_defect_of_the_search_does_not_hide_the_failure(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_lower(monkeypatch, lambda graph: reads(graph, "Add", ["HardSwish", "Relu"]))
    monkeypatch.setattr("deploy.stages.repro._smallest", lambda graph, fails: next(iter(())))
    error, files = failed(model, tmp_path)
    assert error.hint == "ask who made it" and files == []
