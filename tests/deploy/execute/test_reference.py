"""The reference executor: right feeds run, wrong ones are named, inner values come out when asked for."""

from __future__ import annotations

import gc

import numpy as np
import onnx_ir as ir
import pytest

from deploy.errors import BackendError, DataError
from deploy.execute import reference
from deploy.execute.reference import Session, exposed, open_graph
from deploy.frontend.onnx_file import to_bytes, write

X = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
IDS = np.int64([0, 1, 1])

UNKNOWN = """<ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
g (float[2] x) => (float[2] y) { y = acme.Twist(x) }"""


def net() -> ir.Model:
    return ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,4] x, int64[N] i) => (float[N,4] y, float[N,4] z) <float[2,4] t = {0,1,2,3,4,5,6,7}> {
        [g] e = Gather(t, i)  [a] s = Add(x, e)  [r] y = Relu(s)  [n] z = Neg(y) }"""
    )


WANT = np.maximum(X + np.arange(8, dtype=np.float32).reshape(2, 4)[IDS], 0)


@pytest.mark.parametrize("optimised", [False, True])
def test_outputs_come_by_name(optimised):
    with open_graph(net(), optimised=optimised) as session:
        assert [s.name for s in session.inputs] == ["x", "i"]
        assert [s.name for s in session.outputs] == ["y", "z"]
        assert session.inputs[0].shape == ("N", 4)
        assert [s.dtype for s in session.inputs] == ["float32", "int64"]
        got = session.run({"x": X, "i": IDS})
    assert list(got) == ["y", "z"]
    np.testing.assert_allclose(got["y"], WANT, rtol=1e-6)


@pytest.mark.parametrize("optimised", [False, True])
def test_inner_values_and_inputs_can_be_exposed(optimised):
    model = net()
    with open_graph(model, optimised=optimised, expose=["s", "x", "y", "s"]) as session:
        assert [s.name for s in session.outputs] == ["y", "z"]
        assert list(session.run({"x": X, "i": IDS})) == ["y", "z"]
        got = session.run({"x": X, "i": IDS}, ["s", "x", "y"])
    assert list(got) == ["y", "z", "s", "x"]
    np.testing.assert_array_equal(got["x"], X)
    np.testing.assert_allclose(np.maximum(got["s"], 0), got["y"])
    assert [v.name for v in model.graph.outputs] == ["y", "z"], "the graph given is left alone"


def test_a_graph_is_as_it_was_after_inner_values_were_exposed():
    model = net()
    before = to_bytes(model)
    values = [out for node in model.graph for out in node.outputs]
    ends = [value.is_graph_output() for value in values]
    assert not all(ends)
    open_graph(model, expose=[value.name for value in values]).close()
    with pytest.raises(KeyError):
        open_graph(model, expose=["s", "nothing"])
    assert to_bytes(model) == before
    assert [value.is_graph_output() for value in values] == ends


def test_a_value_that_is_not_there_is_a_key_error():
    with pytest.raises(KeyError, match="nothing"):
        exposed(net(), ["nothing"])


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"x": X}, "input 'i' is missing"),
        ({}, r"input 'x' is missing \(got nothing\)"),
        ({"x": X, "i": IDS, "k": X}, "no input 'k'"),
        ({"x": X[:, :3], "i": IDS}, r"input 'x' is float32\[3, 3\]"),
        ({"x": X[0], "i": IDS}, r"input 'x' is float32\[4\]"),
        ({"x": X.astype(np.float64), "i": IDS}, r"input 'x' is float64\[3, 4\]"),
        ({"x": X, "i": IDS.astype(np.int32)}, r"input 'i' is int32\[3\]"),
        ({"x": X, "i": IDS.reshape(3, 1)}, r"input 'i' is int64\[3, 1\]"),
    ],
)
def test_feeds_that_do_not_fit_are_named(feeds, said):
    with open_graph(net()) as session, pytest.raises(DataError, match=said) as caught:
        session.run(feeds)
    assert caught.value.hint


def test_what_fails_while_running_is_the_runtimes_error():
    with open_graph(net()) as session, pytest.raises(BackendError, match="failed while running"):
        session.run({"x": X, "i": IDS + 7})


def test_a_closed_runner_says_so():
    session = open_graph(net())
    with session:
        session.run({"x": X, "i": IDS})
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.run({"x": X, "i": IDS})


def test_an_invalid_graph_is_refused_with_its_reason():
    with pytest.raises(BackendError, match="Twist"):
        open_graph(ir.from_onnx_text(UNKNOWN))


def test_a_file_gives_inner_values_too(tmp_path):
    write(net(), tmp_path / "net.onnx")
    with Session(tmp_path / "net.onnx") as session:
        got = session.run({"x": X, "i": IDS}, ["s"])
    np.testing.assert_allclose(np.maximum(got["s"], 0), got["y"])


@pytest.mark.parametrize("optimised", [True, False])
def test_weights_of_a_large_graph_are_handed_over_beside_it(monkeypatch, tmp_path, optimised):
    generator = np.random.default_rng(1)
    arrays = {
        "w": np.asfortranarray(generator.standard_normal((4, 300)).astype(np.float32)),
        "q": generator.integers(-128, 128, (300, 4)).astype(np.int8),
        "h": generator.standard_normal((1, 4)).astype(np.float16),
        "keep": generator.random((1000, 4)) < 0.5,
    }
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N,4] x, int64[N] i) => (float[N,4] y) <float s = {0.01}> {
        a = MatMul(x, w)  d = DequantizeLinear(q, s)  b = MatMul(a, d)  f = Cast<to = 1>(h)  c = Add(b, f)
        k = Gather(keep, i)  z = Neg(c)  y = Where(k, c, z) }""",
        initializers=[ir.tensor(array, name=name) for name, array in arrays.items()],
    )
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_graph(model, optimised=optimised) as session:
        want = session.run({"x": X, "i": IDS})["y"]
    monkeypatch.setattr(reference, "_ONE_MESSAGE", 0)
    with open_graph(model, optimised=optimised, expose=["c"]) as session:
        gc.collect()
        got = session.run({"x": X, "i": IDS}, ["c"])
        assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(got["y"], want)
    np.testing.assert_array_equal(np.abs(got["c"]), np.abs(want))


def test_a_large_graph_that_is_refused_says_why(monkeypatch):
    monkeypatch.setattr(reference, "_ONE_MESSAGE", 0)
    with pytest.raises(BackendError, match="Twist"):
        open_graph(ir.from_onnx_text(UNKNOWN))


def test_taken_literally_pairs_are_computed_as_they_stand():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N,4] x) => (float[N,4] y)
        <float s = {0.5}, uint8 z = {10}> { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
    )
    with open_graph(model, optimised=False) as session:
        got = session.run({"x": 3 * X})["y"]
    np.testing.assert_array_equal(got, (np.clip(np.rint(6 * X) + 10, 0, 255) - 10) / 2)


def test_scalars_and_other_types():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]> g (float16[N] h, bool b, double d) =>
        (float16[N] k, bool c, double e) { k = Neg(h)  c = Not(b)  e = Neg(d) }"""
    )
    with open_graph(model) as session:
        assert [s.dtype for s in session.inputs] == ["float16", "bool", "float64"]
        assert [s.shape for s in session.inputs] == [("N",), (), ()]
        got = session.run({"h": np.float16([1]), "b": np.asarray(True), "d": np.asarray(2.0)})
    assert (got["k"][0], bool(got["c"]), float(got["e"])) == (-1, False, -2)
