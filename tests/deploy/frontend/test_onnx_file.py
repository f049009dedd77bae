"""Reading good files from good and bad exporters, and writing: same graph, same bytes."""

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.errors import ModelError
from deploy.frontend import onnx_file
from deploy.frontend.onnx_file import digest, read, to_bytes, write
from deploy.graph.shapes import infer

SMALL = """<ir_version: 8, opset_import: ["": 17], producer_name: "somebody", doc_string: "prose">
net (float[n,3] x) => (float[n,2] y) <float[3,2] w = {1,2,3,4,5,6}> { h = MatMul (x, w)  y = Relu (h) }"""


def save(path: Path, text: str = SMALL) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def execute(model: Path | bytes, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
    )
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


def save_external(folder: Path, arrays: dict[str, np.ndarray], data: str = "weights.bin") -> Path:
    """A model that sums its external initializers, all in one data file."""
    offset, tensors = 0, []
    with (folder / data).open("wb") as file:
        for name, array in arrays.items():
            tensor = TensorProto(
                name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location="EXTERNAL"
            )
            for key, value in (("location", data), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += file.write(array.tobytes())
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Sum", ["x", *arrays], ["y"])
    graph = helper.make_graph([node], "sum", [x], [y], tensors)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_source_says_what_the_file_was(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx")
    source = read(path)
    assert (source.path, source.name, source.opset) == (path, "net", 17)
    assert source.bytes == path.stat().st_size
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.model.opset_imports == {"": 21}
    assert [node.name for node in source.model.graph] == ["MatMul_0", "Relu_1"]
    assert [node.outputs[0].name for node in source.model.graph] == ["h", "y"]


def test_initializers_listed_as_inputs_are_constants(tmp_path: Path) -> None:
    text = SMALL.replace("(float[n,3] x)", "(float[n,3] x, float[3,2] w)")
    graph = read(save(tmp_path / "old.onnx", text)).model.graph
    assert [value.name for value in graph.inputs] == ["x"]
    assert list(graph.initializers) == ["w"]


def test_constants_of_every_form_become_initializers(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[3] x) => (float[3] y, int64[2] k, string s) {
        a = Constant <value_float = 2.0> ()  b = Constant <value_floats = [1.0, 2.0, 3.0]> ()
        c = Constant <value = float[3] {4, 5, 6}> ()  i = Constant <value_int = 1> ()
        k = Constant <value_ints = [1, 2]> ()  s = Constant <value_string = "text"> ()
        p = Mul (x, a)  q = Add (p, b)  r = Add (q, c)  t = Cast <to=1> (i)  y = Add (r, t) }"""
    path = save(tmp_path / "constants.onnx", text)
    model = read(path).model
    assert "Constant" not in {node.op_type for node in model.graph}
    assert {"a", "b", "c", "i"} <= set(model.graph.initializers)
    assert [value.name for value in model.graph.outputs] == ["y", "k", "s"]
    x = np.ones(3, np.float32)
    for want, got in zip(execute(path, x=x), execute(to_bytes(model), x=x), strict=True):
        np.testing.assert_array_equal(want, got)


def test_functions_are_inlined_and_nodes_named_apart(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[2] x) => (float[2] y) {
            [twice] a = own.scaled <by = 2.0> (x)  [twice] b = own.scaled <by = 3.0> (a)  y = Relu (b) }
        <domain: "own", opset_import: ["": 17]> scaled <by> (v) => (w) {
            c = Constant <value_float: float = @by> ()  w = Mul (v, c) }"""
    model = read(save(tmp_path / "functions.onnx", text)).model
    assert [node.op_type for node in model.graph] == ["Mul", "Mul", "Relu"]
    assert len({node.name for node in model.graph}) == 3 and not model.functions
    assert execute(to_bytes(model), x=np.array([1, -1], np.float32))[0].tolist() == [6, 0]


def test_unsorted_nodes_and_inner_constants(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (bool c, float[2] x) => (float[2] y) {
        h = Neg (x)
        y = If (c) <
            then_branch = t () => (float[2] p) { k = Constant <value_float = 2.0> ()  p = Mul (h, k) },
            else_branch = e () => (float[2] q) { k = Constant <value_float = 5.0> ()  q = Mul (h, k) }> }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.node.reverse()
    onnx.save(proto, tmp_path / "m.onnx")
    model = read(tmp_path / "m.onnx").model
    assert [node.op_type for node in model.graph] == ["Neg", "If"]
    assert len(model.graph.initializers) == 2
    x = np.array([1, 2], np.float32)
    assert execute(to_bytes(model), c=np.array(True), x=x)[0].tolist() == [-2, -4]
    assert execute(to_bytes(model), c=np.array(False), x=x)[0].tolist() == [-5, -10]


def test_another_spelling_of_the_standard_domain(tmp_path: Path) -> None:
    text = SMALL.replace('["": 17]', '["ai.onnx": 12]').replace("MatMul", "ai.onnx.MatMul")
    proto = onnx.parser.parse_model(text.replace("ai.onnx.MatMul", "MatMul"))
    proto.graph.node[0].domain = "ai.onnx"
    onnx.save(proto, tmp_path / "m.onnx")
    source = read(tmp_path / "m.onnx")
    assert source.opset == 12 and {node.domain for node in source.model.graph} == {""}


def test_stack_traces_of_the_exporter_are_dropped_and_the_users_own_words_kept(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(SMALL)
    proto.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody/net.py")
    proto.metadata_props.add(key="classes", value="cat, dog")
    onnx.save(proto, tmp_path / "m.onnx")
    model = read(tmp_path / "m.onnx").model
    assert model.metadata_props == {"classes": "cat, dog"}
    assert b"somebody" not in to_bytes(model) and b"cat, dog" in to_bytes(model)


def test_a_size_of_minus_one_is_a_free_size(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(SMALL)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "m.onnx")
    shape = read(tmp_path / "m.onnx").model.graph.inputs[0].shape
    assert shape is not None and not isinstance(shape[0], int) and shape[1] == 3


def test_infinities_of_a_mask_are_no_broken_weights(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(SMALL.replace("y = Relu (h)", "y = Add (h, mask)"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, -np.inf], np.float32), "mask"))
    onnx.save(proto, tmp_path / "m.onnx")
    assert read(tmp_path / "m.onnx").model.graph.num_nodes() == 2


# ---------------------------------------------------------------------- external data


def test_external_data_stay_on_disk_and_count(tmp_path: Path) -> None:
    path = save_external(tmp_path, {"a": np.ones(4, np.float32), "b": np.arange(4, dtype=np.float32)})
    source = read(path)
    assert all(isinstance(v.const_value, ir.ExternalTensor) for v in source.model.graph.initializers.values())
    data = tmp_path / "weights.bin"
    assert source.bytes == path.stat().st_size + data.stat().st_size
    assert source.sha256 == hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()
    x = np.zeros(4, np.float32)
    np.testing.assert_array_equal(execute(to_bytes(source.model), x=x)[0], execute(path, x=x)[0])


def test_reading_and_writing_external_data_needs_little_memory(tmp_path: Path) -> None:
    size = 16 << 20
    path = save_external(tmp_path, {"a": np.ones(size // 4, np.float32), "b": np.ones(size // 4, np.float32)})
    tracemalloc.start()
    model = read(path).model
    write(model, tmp_path / "again.onnx")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * size  # two tensors of that size: one is in memory at a time while writing


# ---------------------------------------------------------------------- writing


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    model = read(save(tmp_path / "net.onnx")).model
    again = read(
        save(tmp_path / "other.onnx", SMALL.replace("somebody", "another").replace("prose", ""))
    ).model
    node = next(iter(again.graph))
    node.metadata_props["b"], node.metadata_props["a"] = "2", "1"
    first = next(iter(model.graph))
    first.metadata_props["a"], first.metadata_props["b"] = "1", "2"
    assert to_bytes(model) == to_bytes(again) == to_bytes(model.clone())
    assert digest(model) == hashlib.sha256(to_bytes(model)).hexdigest()
    onnx.checker.check_model(onnx.load_from_string(to_bytes(model)), full_check=True)


def test_order_of_initializers_does_not_matter_but_their_values_do(tmp_path: Path) -> None:
    text = SMALL.replace("y = Relu (h)", "g = Mul (h, a)  y = Add (g, b)")
    one = text.replace("<float[3,2]", "<float a = {1}, float b = {2}, float[3,2]")
    two = text.replace("<float[3,2]", "<float b = {2}, float a = {1}, float[3,2]")
    other = text.replace("<float[3,2]", "<float b = {3}, float a = {1}, float[3,2]")
    a, b, c = (digest(read(save(tmp_path / "m.onnx", t)).model) for t in (one, two, other))
    assert a == b != c


def test_written_files_are_read_back_the_same(tmp_path: Path) -> None:
    model = read(save(tmp_path / "net.onnx")).model
    found = write(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == to_bytes(model)
    assert found == digest(model) == hashlib.sha256(to_bytes(model)).hexdigest()
    assert to_bytes(read(tmp_path / "out.onnx").model) == to_bytes(model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "out.onnx"]


OPEN = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
net (float[n,3] x, int64[k] s) => (float[n,3] y) <float[n,3] c> {
    a = Reshape (x, s)  b = NonZero (x)  c = com.microsoft.QuickGelu (x)  d = Shape (b)  e = Cast <to = 1> (d)
    f = ReduceSum <keepdims = 0> (e)  g = ReduceSum <keepdims = 0> (a)  h = Add (f, g)  y = Add (c, h) }"""


def test_what_was_inferred_of_inner_values_is_read_back(tmp_path: Path) -> None:
    """So that nobody who reads a file of ours has to infer anything."""
    model = infer(read(save(tmp_path / "net.onnx", OPEN)).model)
    write(model, tmp_path / "out.onnx")
    back = ir.load(tmp_path / "out.onnx")
    known = [[(v.name, v.type, v.shape) for n in m.graph for v in n.outputs] for m in (model, back)]
    assert known[0] == known[1]
    assert known[0][0][1:] == (ir.TensorType(ir.DataType.FLOAT), None)  # a type, and no sizes


def test_a_session_needs_to_be_told_of_other_peoples_operators_only(tmp_path: Path) -> None:
    model = infer(read(save(tmp_path / "net.onnx", OPEN)).model)
    bare = to_bytes(model, inner=False)
    assert [v.name for v in onnx.load_from_string(bare).graph.value_info] == ["c"]
    x, s = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([3, 2], np.int64)
    np.testing.assert_array_equal(execute(bare, x=x, s=s)[0], execute(to_bytes(model), x=x, s=s)[0])


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "int4", "uint8", "bool", "float8e4m3fn", "int64", "double"]
)
def test_every_type_survives(tmp_path: Path, dtype: str) -> None:
    kind = ir.DataType[dtype.upper()]
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind.numpy())
    graph = read(save(tmp_path / "net.onnx")).model
    value = ir.val("k", const_value=ir.Tensor(array, dtype=kind, name="k"))
    value.type, value.shape = ir.TensorType(kind), ir.Shape([2, 3])
    graph.graph.register_initializer(value)
    back = ir.from_proto(onnx.load_from_string(to_bytes(graph))).graph.initializers["k"].const_value
    assert back is not None and back.dtype == kind
    np.testing.assert_array_equal(back.numpy().astype(np.float32), array.astype(np.float32))


def test_large_models_are_written_with_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "EXTERNAL_BEYOND", 1000)
    monkeypatch.setattr(onnx_file, "MAX_PROTOBUF_BYTES", 1000)
    arrays = {name: np.full(400, i, np.float32) for i, name in enumerate("abc")}
    model = read(save_external(tmp_path, arrays)).model
    (tmp_path / "out").mkdir()
    assert write(model, tmp_path / "out" / "big.onnx") == digest(model)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["big.onnx", "big.onnx.data"]
    back = read(tmp_path / "out" / "big.onnx").model
    assert digest(back) == digest(model)
    x = np.zeros(400, np.float32)
    assert execute(tmp_path / "out" / "big.onnx", x=x)[0][0] == 3
    with pytest.raises(ModelError, match="2 GiB"):
        to_bytes(model)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read(save(tmp_path / "net.onnx")).model
    write(model, tmp_path / "out.onnx")
    before = (tmp_path / "out.onnx").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(ir.Tensor, "tobytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "out.onnx"]
