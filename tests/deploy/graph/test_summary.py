"""What `deploy inspect` tells of a graph."""

import onnx_ir as ir
import pytest

from deploy.errors import ModelError
from deploy.graph.shapes import infer
from deploy.graph.summary import summary, tensor_specs
from deploy.spec.tensors import TensorSpec

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'

NET = """g (float[n,2,4,4] x) => (float[n,2,4,4] y) <float[2,2,1,1] w = {1,2,3,4}, float k = {2}> {
  [scale] t = Mul(k, x)
  [a] t1 = Conv(t, w)
  [r] t2 = Relu(t1)
  [b] t3 = Conv(t2, w)
  [add] y = Add(t3, t2)
}"""


def test_a_small_network():
    found = summary(infer(ir.from_onnx_text(HEAD + NET)))
    x = TensorSpec(name="x", dtype="float32", shape=("n", 2, 4, 4), layout="NCHW")
    y = TensorSpec(name="y", dtype="float32", shape=("n", 2, 4, 4))
    assert (found.opset, found.inputs, found.outputs) == (21, (x,), (y,))
    assert (found.parameters, found.weight_bytes) == (4, 20)
    assert (found.macs, found.uncounted) == (2 * 2 * 2 * 16, ())
    assert found.peak_activation_bytes == 3 * 4 * 32  # t2 waits for the sum of t3 and itself
    assert found.operations == (("Conv", 2), ("Add", 1), ("Mul", 1), ("Relu", 1))
    assert found.blocks == 3


def test_computed_sizes_are_counted_with_as_numbers_and_the_graph_stays_as_it_is():
    text = """g (float[n,2,4,4] x) => (float[n,2,6,6] y)
      <float[2,2,1,1] w = {1,2,3,4}, int64[4] z = {0,0,1,1}> {
      [c] t = Concat<axis = 0>(z, z)
      [p] p = Pad(x, t)
      [y] y = Conv(p, w)
    }"""
    model = infer(ir.from_onnx_text(HEAD + text))
    found = summary(model)
    assert (found.macs, found.uncounted) == (2 * 2 * 36, ())
    assert found.operations == (("Concat", 1), ("Conv", 1), ("Pad", 1))
    assert len(model.graph) == 3


def specs(signature: str, body: str = "y = Identity(x)") -> tuple[TensorSpec, ...]:
    return tensor_specs(
        ir.from_onnx_text(f"{HEAD}g ({signature}) => (float[a,b,c,d] y) {{ {body} }}").graph.inputs
    )


@pytest.mark.parametrize(
    ("body", "layout"),
    [
        ("y = MaxPool<kernel_shape = [1, 1]>(x)", "NCHW"),
        ("t = Relu(x) y = Conv(t, x)", "NCHW"),
        ("t = Transpose<perm = [0, 3, 1, 2]>(x) y = MaxPool<kernel_shape = [1, 1]>(t)", "NHWC"),
        ("t = Transpose<perm = [0, 2, 1, 3]>(x) y = MaxPool<kernel_shape = [1, 1]>(t)", "any"),
        ("y = Relu(x)", "any"),
        ("y = Softmax(x)", "any"),
    ],
)
def test_layout_follows_from_what_reads_the_input(body, layout):
    assert specs("float[1,3,8,8] x", body)[0].layout == layout


def test_types_and_dimensions():
    found = specs("float[1] x, float16[n,3] h, int64 i, bfloat16[2] b, bool[2] f, string[1] s")
    assert [(t.dtype, t.shape) for t in found[1:]] == [
        ("float16", ("n", 3)),
        ("int64", ()),
        ("bfloat16", (2,)),
        ("bool", (2,)),
        ("str", (1,)),
    ]
    unnamed = ir.val("u", ir.DataType.FLOAT, ir.Shape([None, 3, -1]))
    assert tensor_specs([unnamed])[0].shape == ("u_0", 3, "u_2")


def test_what_is_no_plain_tensor_is_refused():
    with pytest.raises(ModelError, match="'s' is not a tensor"):
        tensor_specs([ir.Value(name="s", type=ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)))])
    with pytest.raises(ModelError, match="the rank of 'r' is unknown"):
        tensor_specs([ir.Value(name="r", type=ir.TensorType(ir.DataType.FLOAT))])
