"""Every way in which a model file can be bad has one clear error: what, where, and what to do about it."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploy.errors import DeployError, ModelError, UnsupportedError
from deploy.frontend import normalise, recognise
from deploy.frontend.onnx_file import read

SMALL = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
net (float[n,3] x) => (float[n,2] y) <float[3,2] w = {1,2,3,4,5,6}> { h = MatMul (x, w)  y = own.double (h) }
<domain: "own", opset_import: ["": 17]> double (v) => (r) { r = Add (v, v) }"""


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return content.getvalue()


class Bomb:
    """A pickle of this leaves a file behind when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, ("exploded",))


@pytest.mark.parametrize(
    ("name", "content", "said", "hinted"),
    [
        ("empty.onnx", b"", "empty", "again"),
        ("text.onnx", b"hello, this is no model\n", "text", "binary"),
        ("page.onnx", "<!DOCTYPE html><p>404 – nicht gefunden</p>".encode(), "text", "download"),
        ("lfs.onnx", b"version https://git-lfs.github.com/spec/v1\noid 00\n", "Git LFS", "git lfs pull"),
        ("noise.onnx", bytes(range(200, 256)) * 9, "not a readable ONNX", "damaged"),
        ("model.pkl", pickle.dumps(Bomb()), "pickle", "torch.export.save"),
        ("old.pth", pickle.dumps(Bomb(), protocol=2), "pickle", "torch.export.save"),
        ("model.pth", archive("archive/data.pkl", "archive/data/0"), "checkpoint", "torch.export.save"),
        ("model.bin", archive("m/data.pkl", "m/version"), "checkpoint", "torch.export.save"),
        ("script.pt", archive("m/data.pkl", "m/code/__torch__.py"), "TorchScript", "torch.export.save"),
        ("model.pt2", archive("archive_format", "models/model.json"), "torch.export", "torch.export.save"),
        ("cut.pt", archive("archive/data.pkl")[:40], "damaged zip", "torch.export.save"),
        ("model.keras", archive("config.json", "model.weights.h5", "metadata.json"), "Keras", "tf2onnx"),
        ("data.npz", archive("x.npy", "y.npy"), "npz", "--data"),
        ("model.zip", archive("model.onnx"), "zip archive", "unpack"),
        ("model.safetensors", struct.pack("<Q", 30) + b'{"w":{"dtype":"F32"}}' + bytes(40),
         "safetensors", "export"),
        ("model.gguf", b"GGUF\x03\x00\x00\x00" + bytes(64), "GGUF", "ONNX"),
        ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5", "tf2onnx"),
        ("model.tflite", b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite", "tf2onnx"),
        ("model.ort", b"\x1c\x00\x00\x00ORTM" + bytes(64), "ONNX Runtime", ".onnx"),
        ("graph.pb", b"\x0a\x10\x0a\x01x\x12\x0bPlaceholder" + b"\xff\x01" * 20, "TensorFlow", "tf2onnx"),
        ("x.npy", b"\x93NUMPY\x01\x00" + bytes(64), "NumPy", "--data"),
        ("model.onnx.gz", b"\x1f\x8b\x08" + bytes(64), "compressed", "unpack"),
    ],
    ids=lambda given: "bytes" if isinstance(given, bytes) else None,
)  # fmt: skip
def test_other_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str, hinted: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError) as error:
        read(tmp_path / name)
    assert said in error.value.message and name in error.value.message and hinted in error.value.hint
    assert error.value.exit_code == 3
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_no_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelError, match="folder"):
        read(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ModelError, match="SavedModel"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        read(tmp_path / "pipe")


def test_a_file_cut_anywhere(tmp_path: Path) -> None:
    content = onnx.parser.parse_model(SMALL).SerializeToString()
    path = tmp_path / "cut.onnx"
    for end in range(len(content)):
        path.write_bytes(content[:end])
        try:
            read(path)
        except ModelError as e:
            assert e.hint and "cut.onnx" in e.message
        except UnsupportedError as e:  # the cut took the function at the end of the file
            assert "double" in e.message


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_never_surprises(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(onnx.parser.parse_model(SMALL).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    try:
        read(path)
    except DeployError as e:
        assert e.message and e.hint


# ---------------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(float[2] x) => (float[2] y) { y = Add (x, z) }", "reads 'z', which nothing defines"),
        ("(float[2] x) => (float[2] y) { z = Relu (x) }", "output 'y' is computed by nothing"),
        ("(float[2] x) => (float[2] y) { y = Relu (x)  y = Neg (x) }", "'y' is defined twice"),
        ("(float[2] x) => (float[2] y) { [a] a = Add (x, b)  [b] b = Neg (a)  y = Relu (x) }",
         "cycle through Add 'a', Neg 'b'"),
        ("(float[2] x) => () { y = Relu (x) }", "no outputs"),
        ("(float[2] x) => (float[2] x) { }", "no operations"),
        ("(float[2] x, float[2] x) => (float[2] y) { y = Relu (x) }", "'x' is defined twice"),
        ("(float[2] x) => (float[2] y) { y = Relu (x, x) }", "has 2 inputs"),
        ("(float[2] x) => (float[2] y) { y = Relu <alpha=1.0> (x) }", "attribute 'alpha', which opset 17"),
        ("(float[2] x) => (float[2] y) { y = Cast (x) }", "lacks attribute 'to'"),
        ("(float[2] x) => (float[2] y) { y = Cast <to=1.0> (x) }", "attribute 'to' of type FLOAT"),
        ("""(bool c, float[2] x) => (float[2] y) { y = If (c) <
            then_branch = t () => (float[2] a) { a = Add (x, q) },
            else_branch = e () => (float[2] b) { b = Neg (x) }> }""", "reads 'q'"),
    ],
)  # fmt: skip
def test_unsound_graphs(tmp_path: Path, text: str, said: str) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError) as error:
        read(path)
    assert said in error.value.message and str(path) in error.value.message and error.value.hint


@pytest.mark.parametrize(("opset", "kind"), [(6, ModelError), (99, UnsupportedError)])
def test_opsets_out_of_range(tmp_path: Path, opset: int, kind: type[DeployError]) -> None:
    proto = onnx.parser.parse_model(SMALL.replace("17", str(opset)))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(kind, match=f"opset {opset} is") as error:
        read(tmp_path / "m.onnx")
    assert "export" in error.value.hint


def test_every_unknown_operation_is_listed(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 12, "com.microsoft": 1, "acme": 1, "ai.onnx.ml": 2]>
        g (float[2] x) => (float[2] y) {
            [one] a = acme.Magic (x)  [two] b = HardSwish (a)  [three] c = com.microsoft.Gelu (b)
            [four] d = com.microsoft.NoSuchThing (c)  [five] e = ai.onnx.ml.Scaler (d)  y = Relu (e) }"""
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    with pytest.raises(UnsupportedError, match="3 operations") as error:
        read(tmp_path / "m.onnx")
    for node in ("acme.Magic 'one'", "HardSwish 'two'", "com.microsoft.NoSuchThing 'four'"):
        assert node in error.value.message
    assert error.value.exit_code == 5


def test_functions_that_multiply_are_refused_before_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '<ir_version: 8, opset_import: ["": 17, "f": 1]> g (float[2] x) => (float[2] y) { y = f.f0 (x) }'
    for level in range(60):
        inner = f"f.f{level + 1}" if level < 59 else "Neg"
        text += f' <domain: "f", opset_import: ["": 17, "f": 1]> f{level} (v) => (w)'
        text += f" {{ t = {inner} (v)  w = {inner} (t) }}"
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    with pytest.raises(ModelError, match=f"more than {normalise.MAX_NODES}"):
        read(tmp_path / "m.onnx")
    loop = text.replace("t = Neg (v)", "t = f.f0 (v)")
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(loop).SerializeToString())
    with pytest.raises(ModelError, match="calls itself"):
        read(tmp_path / "m.onnx")


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("value", "said"), [(np.nan, "'w' has 1 NaN"), (np.inf, "'w' has 1 infinite values")]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_broken_weights_are_named(tmp_path: Path, value: float, said: str, dtype: type) -> None:
    weights: np.ndarray = np.zeros((3, 2), dtype)
    weights[1, 1] = value
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (helper.make_tensor_value_info(name, kind, ["n", None]) for name in "xy")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [x],
        [y],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="broken weights") as error:
        read(tmp_path / "m.onnx")
    assert said in error.value.message


def test_data_that_do_not_fit_their_shape(tmp_path: Path) -> None:
    for field in ("raw_data", "float_data"):
        proto = onnx.parser.parse_model(SMALL)
        weight = proto.graph.initializer[0]
        weight.CopyFrom(TensorProto(name="w", data_type=1, dims=[3, 2]))
        if field == "raw_data":
            weight.raw_data = bytes(20)
        else:
            weight.float_data.extend([1.0] * 5)
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match=r"'w' do not fit its shape \[3, 2\]"):
            read(tmp_path / "m.onnx")


def test_sparse_weights(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(SMALL)
    proto.graph.sparse_initializer.add().values.name = "s"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="sparse"):
        read(tmp_path / "m.onnx")


def save_external(
    path: Path, location: str, *, offset: object = 0, length: object = 24, dims: tuple[int, ...] = (3, 2)
) -> Path:
    proto = onnx.parser.parse_model(SMALL)
    weight = proto.graph.initializer[0]
    weight.CopyFrom(TensorProto(name="w", data_type=1, dims=dims, data_location="EXTERNAL"))
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        weight.external_data.add(key=key, value=str(value))
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    [
        "/etc/hostname",
        "../secret.bin",
        "sub/../../secret.bin",
        "link.bin",
        "sub/link/secret.bin",
        "C:\\x.bin",
        "\\\\host\\x",
        "..\\secret.bin",
        "",
    ],
)
def test_external_data_outside_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(24))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "sub" / "link").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="outside the model's folder") as error:
        read(save_external(folder / "m.onnx", location))
    assert "'w'" in error.value.message


def test_external_data_missing_short_or_strange(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ModelError, match=r"'w\.bin' of tensor 'w' is missing"):
        read(save_external(path, "w.bin"))
    (tmp_path / "w.bin").write_bytes(bytes(24))
    read(save_external(path, "w.bin"))
    for change, said in (
        ({"offset": 4}, "reaches to byte 28"),
        ({"length": 20}, "needs 24 bytes but claims 20"),
        ({"length": 2**50, "dims": (2**24, 2**24)}, "beyond the scope"),
        ({"offset": -8}, "external offset or length '-8'"),
        ({"offset": "1e3"}, "external offset or length '1e3'"),
    ):
        with pytest.raises(ModelError, match=said):
            read(save_external(path, "w.bin", **change))
    (tmp_path / "folder.bin").mkdir()
    with pytest.raises(ModelError, match="not a regular file"):
        read(save_external(path, "folder.bin"))
    os.link(tmp_path / "w.bin", tmp_path / "hard.bin")
    with pytest.raises(ModelError, match="hard links"):
        read(save_external(path, "hard.bin"))


def test_a_link_inside_the_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(bytes(24))
    (tmp_path / "alias.bin").symlink_to("real.bin")
    assert (
        read(save_external(tmp_path / "m.onnx", "alias.bin")).bytes
        == (tmp_path / "m.onnx").stat().st_size + 24
    )


def test_weights_beyond_the_scope_are_told_by_size_alone(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    path.write_bytes(onnx.parser.parse_model(SMALL).SerializeToString())
    os.truncate(path, recognise.MAX_WEIGHT_BYTES + 1)  # sparse: takes no room
    with pytest.raises(ModelError, match="beyond the scope"):
        read(path)
    os.truncate(path, recognise.MAX_PROTOBUF_BYTES + 1)
    with pytest.raises(ModelError, match="more than one ONNX file can hold"):
        read(path)
