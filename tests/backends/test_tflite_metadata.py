"""TFLITE_METADATA, read field by field as its schema numbers them, and what is appended to the file."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.bundle.read import load_bundle, load_plan, open_bundle
from deploy.pipeline import build
from deploy.spec.artifact import Description
from deploy.spec.plan import differences
from deploy.spec.project import InputSection
from deploy.spec.tensors import Normalisation, TensorSpec

pytest.importorskip("ai_edge_litert")
from flatbuffers import number_types
from flatbuffers.table import Table

from backends.tflite import TFLite
from backends.tflite.metadata import add
from backends.tflite.runner import TFLiteOptions, TFLiteRunner
from backends.tflite.write import read_file

NET = """<ir_version: 8, opset_import: ["" : 17]> g (float[n,3,8,8] x) => (float[n,4] y) {
    a = Conv<kernel_shape=[3,3]>(x, w)
    p = GlobalAveragePool(a)
    y = Flatten(p)
}"""
NORMALISATION = Normalisation(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
CLASSES = ("cat", "dog\nof prey", "Füchse", "d")
FEEDS = {"x": np.random.default_rng(1).normal(0, 1, (6, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("described")
    proto = onnx.parser.parse_model(NET)
    kernel = np.random.default_rng(0).normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "w"))
    onnx.save(proto, folder / "net.onnx")
    made = build(
        folder / "net.onnx",
        target="android",
        runtime="tflite",
        data=FEEDS,
        precision="int8",
        measure=False,
        inputs={"x": InputSection(normalisation=NORMALISATION, layout="NCHW")},
        classes=CLASSES,
        cache=folder / "cache",
        out=folder,
    )
    return made.folder


@pytest.fixture
def file(bundle: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes((bundle / "artifact" / "model.tflite").read_bytes())
    return path


class Fields:
    """A table of a flatbuffer by field numbers."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def _at(self, field: int) -> int:
        offset = self._table.Offset(4 + 2 * field)
        return self._table.Pos + offset if offset else 0

    def text(self, field: int) -> str:
        return self._table.String(self._at(field)).decode() if self._at(field) else ""

    def number(self, field: int) -> int:
        return int(self._table.Get(number_types.Uint8Flags, self._at(field))) if self._at(field) else 0

    def table(self, field: int) -> Fields:
        return Fields(Table(self._table.Bytes, self._table.Indirect(self._at(field))))

    def tables(self, field: int) -> list[Fields]:
        if not self._at(field):
            return []
        offset = self._at(field) - self._table.Pos
        start = self._table.Vector(offset)
        return [
            Fields(Table(self._table.Bytes, self._table.Indirect(start + 4 * i)))
            for i in range(self._table.VectorLen(offset))
        ]

    def floats(self, field: int) -> list[float]:
        offset = self._at(field) - self._table.Pos
        return [float(n) for n in self._table.GetVectorAsNumpy(number_types.Float32Flags, offset)]


def metadata(path: Path) -> Fields:
    model = read_file(path)
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    content = bytes(model.buffers[entry.buffer].data)
    assert content[4:8] == b"M001"
    buffer = bytearray(content)
    return Fields(Table(buffer, int.from_bytes(buffer[:4], "little")))


def described(**changed: object) -> Description:
    inputs = (TensorSpec(name="x", dtype="float32", shape=("n", 3, 8, 8)),)
    outputs = (TensorSpec(name="y", dtype="float32", shape=("n", 4)),)
    given: dict[str, object] = {
        "name": "net",
        "text": "",
        "version": "1",
        "inputs": inputs,
        "outputs": outputs,
    }
    return Description.model_validate({**given, **changed})


def test_a_build_says_what_it_knows(bundle: Path) -> None:
    said = metadata(bundle / "artifact" / "model.tflite")
    assert said.text(0) == "net" and "Android" in said.text(1) and len(said.text(2)) == 12
    assert said.text(7) == "1.0.0"
    (graph,) = said.tables(3)
    (image,), (scores,) = graph.tables(2), graph.tables(3)
    assert (image.text(0), scores.text(0)) == ("x", "y")
    assert image.table(3).number(0) == 2 and image.table(3).table(1).number(0) == 1, "an image, in colours"
    assert scores.table(3).number(0) == 1
    (unit,) = image.tables(4)
    assert unit.number(0) == 1
    options = unit.table(1)
    pixels = np.random.default_rng(0).uniform(0, 255, (10, 3))
    theirs = (pixels - options.floats(0)) / options.floats(1)
    ours = (pixels * NORMALISATION.scale - NORMALISATION.mean) / NORMALISATION.std
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6)
    (labels,) = scores.tables(6)
    assert (labels.text(0), labels.number(2)) == ("labels.txt", 2) and image.tables(6) == []


def test_names_of_classes_lie_behind_the_model(bundle: Path) -> None:
    with zipfile.ZipFile(bundle / "artifact" / "model.tflite") as archive:
        assert archive.namelist() == ["labels.txt"] and archive.testzip() is None
        assert archive.read("labels.txt").decode() == "cat\ndog of prey\nFüchse\nd\n"


def test_the_network_is_as_it_was(bundle: Path, file: Path) -> None:
    artifact = bundle / "artifact" / "model.tflite"
    add(file, described(classes=("a", "b", "c", "d")))
    before, after = read_file(artifact), read_file(file)
    assert [t.name for t in before.subgraphs[0].tensors] == [t.name for t in after.subgraphs[0].tensors]
    assert [entry.name for entry in after.metadata].count(b"TFLITE_METADATA") == 1, (
        "the new one replaces the old"
    )
    loaded = load_bundle(bundle)
    plan = TFLite().read_plan(loaded.manifest.artifact.model_copy(update={"folder": file.parent}))
    assert differences(load_plan(loaded), plan) == []
    content = file.read_bytes()
    for tensor in after.subgraphs[0].tensors:
        data = after.buffers[tensor.buffer].data
        if data is not None and len(data) > 16:
            assert content.index(bytes(data)) % 16 == 0
    with open_bundle(bundle) as one, _runner(bundle, file) as other:
        np.testing.assert_array_equal(one.run(FEEDS)["y"], other.run(FEEDS)["y"])


def _runner(bundle: Path, file: Path) -> TFLiteRunner:
    artifact = load_bundle(bundle).manifest.artifact
    return TFLiteRunner(file, artifact.inputs, artifact.outputs, artifact.values, TFLiteOptions())


def test_equal_descriptions_give_equal_files(file: Path) -> None:
    found = []
    for _ in range(2):
        add(file, described(classes=CLASSES))
        found.append(file.read_bytes())
    assert found[0] == found[1]


def test_what_is_not_known_is_not_said(file: Path) -> None:
    add(file, described())
    (graph,) = metadata(file).tables(3)
    (image,) = graph.tables(2)
    assert image.tables(4) == [] and image.table(3).number(0) == 1
    assert not zipfile.is_zipfile(file)


def test_names_that_fit_no_output_are_left_out(file: Path) -> None:
    add(file, described(classes=("a", "b")))
    assert not zipfile.is_zipfile(file)


@pytest.mark.parametrize(("dtype", "units"), [("float32", 1), ("uint8", 0)])
def test_what_the_graph_normalises_itself_is_not_done_again(file: Path, dtype: str, units: int) -> None:
    folded = NORMALISATION.model_copy(update={"folded": True})
    spec = TensorSpec(name="x", dtype=dtype, shape=("n", 3, 8, 8), layout="NCHW", normalisation=folded)
    add(file, described(inputs=(spec,)))
    (graph,) = metadata(file).tables(3)
    (image,) = graph.tables(2)
    assert len(image.tables(4)) == units and image.table(3).number(0) == 2
    for unit in image.tables(4):
        assert unit.table(1).floats(0) == [0.0] and unit.table(1).floats(1) == [1.0]
