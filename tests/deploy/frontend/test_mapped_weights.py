"""Large weights inside a file are mapped where they lie, and damaged files mean what they meant before."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from deploy.errors import DeployError, ModelError
from deploy.frontend import mapped
from deploy.frontend.onnx_file import digest, read, to_parts

LARGE = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)


@pytest.fixture(autouse=True)
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mapped.reduced
    monkeypatch.setattr(mapped, "reduced", lambda path, least=1: whole(path, least=least))


def model() -> onnx.ModelProto:
    """Two large initializers, a small one, one of large typed data, and a Constant."""
    typed = helper.make_tensor("typed", TensorProto.FLOAT, [300], LARGE[0])
    half = numpy_helper.from_array(LARGE[1].astype(np.float16).repeat(2), "half")
    initializers = [
        numpy_helper.from_array(LARGE, "a"),
        half,
        typed,
        numpy_helper.from_array(LARGE[:, :1], "s"),
    ]
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(LARGE)),
        helper.make_node("Sum", ["x", "a", "typed", "s", "c"], ["y"]),
        helper.make_node("Neg", ["half"], ["z"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 300]) for name in "xy")
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT16, [600])
    graph = helper.make_graph(nodes, "g", [x], [y, z], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outcome(path: Path, *, whole: bool) -> str:
    """The digest of the graph that was read, or the kind of error."""
    with pytest.MonkeyPatch.context() as patch:
        if whole:
            patch.setattr(mapped, "reduced", lambda path: None)
        try:
            return digest(read(path).model)
        except DeployError as e:
            return type(e).__name__


def test_large_raw_data_are_mapped_and_the_graph_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)
    source = read(path)
    tensors = {n: v.const_value for n, v in source.model.graph.initializers.items()}
    assert {n for n, t in tensors.items() if isinstance(t, ir.ExternalTensor)} == {"a", "half"}
    for proto in model().graph.initializer:
        tensor = tensors[proto.name]
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), numpy_helper.to_array(proto))
    assert source.bytes == path.stat().st_size
    assert outcome(path, whole=False) == outcome(path, whole=True)
    for array in to_parts(source.model)[1].values():
        assert array.flags.aligned and array.flags.c_contiguous


def test_a_file_put_in_its_place_changes_nothing(tmp_path: Path) -> None:
    path, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    onnx.save(model(), path)
    source = read(path)
    before = digest(source.model)
    other.write_bytes(b"shorter")
    other.replace(path)
    assert digest(source.model) == before


def test_small_models_and_links_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model(), path)
    assert mapped.reduced(path, least=1) is not None
    assert mapped.reduced(path, least=mapped.LEAST) is None
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "link.onnx").symlink_to(path)
    assert mapped.reduced(tmp_path / "inner" / "link.onnx", least=1) is None
    (tmp_path / "hard.onnx").hardlink_to(path)
    assert mapped.reduced(path, least=1) is None
    assert read(tmp_path / "hard.onnx").model.graph.initializers


def test_unusual_messages_are_left_to_the_parser(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    content = model().SerializeToString()
    path.write_bytes(content + onnx.ModelProto(graph=onnx.GraphProto(doc_string="more")).SerializeToString())
    assert mapped.reduced(path, least=1) is None
    for tail in (b"\x0b\x0c", b"\x00\x00", b"\xff" * 11, b"\x0a\xff\xff\xff\xff\x0f", b"\x09\x00"):
        path.write_bytes(content + tail)
        assert mapped.reduced(path, least=1) is None


def test_data_that_do_not_fit_their_shape_are_refused(tmp_path: Path) -> None:
    proto = model()
    proto.graph.initializer[0].dims[0] = 4
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="'a' needs 4800 bytes"):
        read(tmp_path / "model.onnx")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_means_what_it_means_to_the_parser(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(model().SerializeToString())
    marks = [content.find(name) for name in (b"\x42\x01a", b"\x42\x04half", b"\x42\x05typed", b"\x42\x01s")]
    near = st.builds(lambda mark, by: max(0, mark + by), st.sampled_from(marks), st.integers(-12, 12))
    for _ in range(data.draw(st.integers(1, 3))):
        at = min(data.draw(near | st.integers(0, 80) | st.integers(0, len(content))), len(content))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path = tmp_path_factory.getbasetemp() / "damaged_weights.onnx"
    path.write_bytes(content)
    assert outcome(path, whole=False) == outcome(path, whole=True)
