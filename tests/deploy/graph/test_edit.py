import numpy as np
import onnx_ir as ir

from deploy.graph import edit

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[n,2] x) => (float[n,2] y, float[n,2] z)
<float[1,2] w = {1, 2}, float s = {3}>
{
  [one] a = Mul(x, w)
  [two] b = Add(a, s)
  [three] y = Relu(b)
  [four] z = Relu(a)
}
"""


def graph() -> tuple[ir.Model, dict[str, ir.Value]]:
    model = ir.from_onnx_text(TEXT)
    return model, ir.convenience.create_value_mapping(model.graph)


def test_constants_and_scalars():
    _, values = graph()
    assert edit.is_constant(values["w"]) and not edit.is_constant(values["a"]) and not edit.is_constant(None)
    np.testing.assert_array_equal(edit.constant(values["w"]), [[1, 2]])
    assert edit.constant(values["x"]) is None
    assert edit.scalar(values["s"]) == 3.0 and edit.scalar(values["w"]) is None


def test_an_initializer_that_is_an_input_is_not_constant():
    model, values = graph()
    model.graph.inputs.append(values["w"])
    assert not edit.is_constant(values["w"])


def test_weight_bytes_counts_constant_nodes_too():
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[1] x) => (float[1] y) <float[2] w = {1, 2}>'
        "{ c = Constant<value = float[3] {1, 2, 3}>() y = Sum(x, w, c) }"
    )
    assert edit.weight_bytes(model) == 8 + 12


def test_sole_consumer():
    _, values = graph()
    assert edit.sole_consumer(values["b"]).name == "three"
    assert edit.sole_consumer(values["a"]) is None  # two readers
    assert edit.sole_consumer(values["y"]) is None  # an output


def test_fresh_names_avoid_values_and_nodes():
    model, _ = graph()
    assert edit.fresh_name(model, "w") == "w_2"
    assert edit.fresh_name(model, "three") == "three_2"
    taken = edit.names(model)
    assert [edit.fresh_name(model, "w", taken) for _ in range(3)] == ["w_2", "w_3", "w_4"]
    assert edit.add_initializer(model, "w", np.zeros(1, np.float32)).name == "w_2"
    assert "w_2" in model.graph.initializers


def test_substitute_keeps_the_output_name():
    model, values = graph()
    relu = values["y"].producer()
    assert edit.substitute(values["y"], values["b"])
    edit.remove([relu])
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert model.graph.outputs[0].producer().name == "two"


def test_substitute_refuses_an_input_or_a_second_output():
    model, values = graph()
    assert not edit.substitute(values["y"], values["x"])
    assert not edit.substitute(values["y"], values["z"])
    assert [v.name for v in model.graph.outputs] == ["y", "z"]


def test_replace_node_keeps_the_output_and_its_readers():
    model, values = graph()
    shape = values["a"].shape
    node = edit.replace_node(values["a"].producer(), "Div", [values["x"], values["w"]])
    assert node.name == "one" and node.outputs[0].name == "a" and node.outputs[0].shape == shape
    assert {n.name for n in node.outputs[0].consumers()} == {"two", "four"}
    assert len(model.graph) == 4
