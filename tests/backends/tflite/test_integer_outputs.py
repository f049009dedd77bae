"""Outputs as the integers in which they are computed: the file holds them, a runner says what they mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from deploy.bundle.read import Bundle, open_bundle
from deploy.errors import UsageError
from deploy.pipeline import build
from deploy.spec.project import IoSection

pytest.importorskip("ai_edge_litert")
from backends.tflite.write import read_file

NET = """<ir_version: 10, opset_import: ["" : 21]> net (float[n,3,8,8] x) => (float[n,4] y, float[n,4] p) {
    c = Conv<pads=[1,1,1,1]>(x, w, b)
    g = GlobalAveragePool(c)
    h = Flatten(g)
    y = Gemm(h, u)
    r = Relu(c)
    m = GlobalAveragePool(r)
    f = Flatten(m)
    p = Softmax(f)
}"""


@pytest.fixture
def network(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(NET)
    for name, shape in {"w": (4, 3, 3, 3), "b": (4,), "u": (4, 4)}.items():
        array = rng.normal(0, 0.3, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def built(network: Path, target: str, io: IoSection) -> Bundle:
    data = {"x": np.random.default_rng(1).normal(size=(16, 3, 8, 8)).astype(np.float32)}
    out = network.parent / f"{target}-{io.outputs}"
    return build(
        network, target=target, data=data, precision="int8", io=io, measure=False,
        out=out, cache=network.parent / "cache",
    )  # fmt: skip


def test_the_file_holds_integers_and_a_runner_gives_what_they_mean(network: Path) -> None:
    plain, coded = (built(network, "android", io) for io in (IoSection(), IoSection(outputs="int8")))
    feeds = {"x": np.random.default_rng(2).normal(size=(5, 3, 8, 8)).astype(np.float32)}
    with open_bundle(plain.folder) as one, open_bundle(coded.folder) as other:
        want, got = one.run(feeds), other.run(feeds)
    np.testing.assert_allclose(got["y"], want["y"], rtol=0, atol=1e-7)
    graph = read_file(coded.folder / "artifact" / "model.tflite").subgraphs[0]
    tensor = graph.tensors[graph.outputs[0]]
    code = coded.manifest.artifact.codes["y"]
    assert (tensor.name, tensor.type) == (b"y", 9)  # INT8
    assert (float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])) == (
        code.scale[0],
        code.zero_point[0],
    )
    assert plain.manifest.artifact.codes == {}


def test_what_is_computed_in_float_is_given_so_and_said(network: Path) -> None:
    coded = built(network, "android", IoSection(outputs="int8"))
    assert set(coded.manifest.artifact.codes) == {"y"}
    assert [h.nodes for h in coded.manifest.hazards if h.kind == "float-outputs"] == [("p",)]


def test_a_target_without_such_files_is_refused(network: Path) -> None:
    with pytest.raises(UsageError, match=r"jetson \(tensorrt\) gives outputs as the model has them only"):
        built(network, "jetson", IoSection(outputs="int8"))
