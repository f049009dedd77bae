import numpy as np
import onnx_ir as ir
import pytest

from deploy.errors import UsageError
from deploy.graph import shapes


def model(body: str, header: str = "float[n,3,8,8] x", outputs: str = "float[k,m] y") -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> g ({header}) => ({outputs}) {body}')


def shape(m: ir.Model, name: str) -> list[int | str | None]:
    value = ir.convenience.create_value_mapping(m.graph)[name]
    return [d if isinstance(d, int) else d.value for d in value.shape]


def test_names_come_from_the_inputs():
    m = shapes.infer(model("<int64[2] t = {-1, 192}> { a = Relu(x) y = Reshape(a, t) }"))
    assert shape(m, "a") == ["n", 3, 8, 8]
    assert shape(m, "y") == ["n", 192]


def test_free_dimensions_survive_reshape_expand_and_what_follows():
    m = shapes.infer(
        model(
            "<int64[3] t = {-1, 8, 8}, "
            "int64[1] zero = {0}, int64[2] tail = {1, 64}, float[1,1,64] token = {0}>{"
            "a = Reshape(x, t) b = Softmax(a) s = Shape(x) f = Gather(s, zero) e = Concat<axis = 0>(f, tail)"
            "  c = Expand(token, e) y = Relu(c) }",
            outputs="float[k,m,o] y",
        )
    )
    assert shape(m, "b") == ["3*n", 8, 8]
    assert shape(m, "y") == ["n", 1, 64]


def test_a_resize_to_computed_sizes_has_those():
    m = shapes.infer(
        ir.from_onnx_text(
            """<ir_version: 10, opset_import: ["" : 21]> g (float[n,3,1,1] x) => (float[a,b,c,d] y)
            <int64[2] sides = {6, 8}, int64[1] zero = {0}, int64[1] two = {2}> {
                all = Shape(x)
                first = Slice(all, zero, two)
                size = Concat<axis=0>(first, sides)
                y = Resize<mode="linear">(x, , , size)
            }"""
        )
    )
    assert shape(m, "y") == ["n", 3, 6, 8]


def test_normalisations_keep_type_and_shape():
    body = "<float[3] s = {1, 2, 3}> { a = GroupNormalization<num_groups = 3>(x, s, s)"
    m = shapes.infer(
        model(body + " b = MeanVarianceNormalization(a) y = Relu(b) }", outputs="float[a,b,c,d] y")
    )
    for name in "aby":
        assert shape(m, name) == ["n", 3, 8, 8]
        assert ir.convenience.create_value_mapping(m.graph)[name].dtype == ir.DataType.FLOAT


def test_unnamed_and_negative_dimensions_get_names():
    m = model("{ y = Relu(x) }", outputs="float[] y")
    m.graph.inputs[0].shape = ir.Shape([-1, 3, None, -1])
    m.graph.outputs[0].shape = ir.Shape([-1, 3, -1, -1])
    shapes.infer(m)
    assert shape(m, "x") == shape(m, "y") == ["batch", 3, "x_2", "x_3"]


def test_several_inputs_share_a_batch_only_if_all_are_unnamed_there():
    m = model("{ y = Relu(x) }", header="float[2,2] x, float[2,2] z, float[2] w")
    for value in m.graph.inputs:
        value.shape = ir.Shape([None, *list(value.shape)[1:]])
    assert shapes.batch_axis(shapes.name_dimensions(m)) == "batch"
    assert shapes.free_dimensions(m) == {"batch": (("x", 0), ("z", 0), ("w", 0))}
    m.graph.inputs[0].shape = ir.Shape(["n", 2])
    m.graph.inputs[1].shape = ir.Shape([None, 2])
    assert list(shapes.free_dimensions(shapes.name_dimensions(m))) == ["n", "z_0", "batch"]
    assert shapes.batch_axis(m) is None


def test_a_shape_that_nobody_can_infer_stays():
    m = model("{ a = custom.Thing(x) y = Relu(a) }", outputs="float[k,m] y")
    m.opset_imports["custom"] = 1
    values = ir.convenience.create_value_mapping(m.graph)
    values["a"].shape, values["a"].type = ir.Shape(["n", 7]), ir.TensorType(ir.DataType.FLOAT)
    shapes.infer(m)
    assert shape(m, "a") == shape(m, "y") == ["n", 7]


def test_sizes_that_the_file_computed_from_a_negative_batch_are_not_believed():
    m = model("{ a = Relu(x) b = Relu(a) y = Flatten(b) }")
    values = ir.convenience.create_value_mapping(m.graph)
    values["x"].shape, values["a"].shape = ir.Shape([-1, 3, -1, -1]), ir.Shape([-1, 3, 0, 1])
    shapes.infer(m)
    assert shape(m, "a") == shape(m, "b") == ["batch", 3, "x_2", "x_3"]


def test_weights_are_neither_copied_nor_lost():
    m = model("<float[192,512] w = {0}, int64[2] t = {-1, 192}> { a = Reshape(x, t) y = MatMul(a, w) }")
    tensor = ir.tensor(np.zeros((192, 512), np.float32), name="w")
    m.graph.initializers["w"].const_value = tensor
    shapes.infer(m)
    assert m.graph.initializers["w"].const_value is tensor
    assert [v.name for v in m.graph.inputs] == ["x"] and shape(m, "y") == ["n", 512]


def test_pin_resolves_the_dimension_everywhere():
    m = shapes.infer(
        model("{ a = Relu(x) b = Flatten(z) y = Flatten(a) }", header="float[n,3,h,8] x, float[n,4] z")
    )
    pinned = shapes.pin(m, {"x": (2, None, 8, 8)})
    assert shape(pinned, "x") == [2, 3, 8, 8] and shape(pinned, "z") == [2, 4]
    assert shape(pinned, "b") == [2, 4] and shape(pinned, "y") == [2, 192]
    assert shapes.free_dimensions(pinned) == {}
    assert shape(m, "x") == ["n", 3, "h", 8] and shape(m, "y") != [2, 192]  # the model itself stays


def test_pin_forgets_a_batch_that_the_file_wrongly_promises():
    m = model("{ y = Flatten(x) }", outputs="float[1,192] y")
    assert shape(shapes.pin(m, {"x": (4, 3, 8, 8)}), "y") == [4, 192]


@pytest.mark.parametrize(
    ("wanted", "message", "hint"),
    [
        ({"imput": (1, 3, 8, 8)}, "no input 'imput'", "'input'"),
        ({"input": (1, 3, 8)}, "4 dimensions, 3 were given", "n,3,8,8"),
        ({"input": (1, 4, 8, 8)}, "dimension 1 is fixed at 3", "n,3,8,8"),
        ({"input": (0, 3, 8, 8)}, "dimension 0 cannot be 0", "1 or more"),
        ({"input": (1, 3, 8, 8), "z": (2, 4)}, "'n' is asked to be both 1 and 2", "same size"),
    ],
)
def test_pin_refuses(wanted: dict[str, tuple[int, ...]], message: str, hint: str):
    m = model("{ y = Flatten(input) w = Relu(z) }", header="float[n,3,8,8] input, float[n,4] z")
    with pytest.raises(UsageError) as error:
        shapes.pin(m, wanted)
    assert message in error.value.message and hint in error.value.hint


def test_static_shape_replaces_only_the_batch():
    m = shapes.infer(model("<int64[3] t = {-1, 8, 8}> { a = Reshape(x, t) y = Flatten(a) }"))
    values = ir.convenience.create_value_mapping(m.graph)
    assert shapes.static_shape(values["x"]) == (1, 3, 8, 8)
    assert shapes.static_shape(values["a"], batch=4) == (12, 8, 8)
    assert shapes.static_shape(values["t"]) == (3,)
    free = shapes.infer(model("{ y = Flatten(x) }", header="float[n,3,h,8] x"))
    assert shapes.static_shape(free.graph.inputs[0]) is None
