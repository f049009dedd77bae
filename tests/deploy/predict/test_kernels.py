"""What a runtime runs as one, with sizes counted by hand."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.graph.blocks import partition
from deploy.graph.cost import macs
from deploy.graph.shapes import infer
from deploy.predict.classes import class_of
from deploy.predict.kernels import Kernel, UnknownSizeError, kernels
from deploy.quantize.place import find_chains, outline, place
from deploy.spec.plan import TensorPlan
from deploy.spec.profile import Runtime
from deploy.spec.tensors import Precision

TODAY = datetime.date(2026, 11, 21)


def runtime(
    fuses: Iterable[str] = (),
    fuses_float: Iterable[str] = (),
    absorbs: Iterable[str] = (),
    around: str = "float32",
    **rules: object,
) -> Runtime:
    given: dict[str, object] = {
        "activation": "uint8",
        "compute": ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul"),
        "forward": ("MaxPool", "Reshape", "Flatten", "Transpose"),
        "unify": ("Concat",),
        "source": "made up",
        "date": TODAY,
    }
    return Runtime.model_validate({
        "name": "ort",
        "onnx_opset": 21,
        "fuses": tuple(fuses),
        "fuses_float": tuple(fuses_float),
        "absorbs": tuple(absorbs),
        "around": around,
        "quant": given | rules,
        "source": "made up",
        "date": TODAY,
    })  # fmt: skip


PLAIN = runtime()
ORT_LIKE = runtime(
    fuses=("Conv+Relu", "Gemm+Relu", "MatMul+Relu", "Add+Relu"),
    fuses_float=("Conv+Add", "Conv+Add+Relu", "MatMul+Bias"),
)
GREEDY = runtime(absorbs=("Conv", "MatMul", "elementwise"), fuses=("Conv+Relu", "Conv+Add", "Conv+Add+Relu"))


def graph(text: str, **weights: tuple[int, ...]) -> ir.Model:
    """ONNX text with float weights of these shapes; nodes are named like what they make."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    by_name = {value.name: value for node in model.graph for value in node.inputs if value is not None}
    for name, shape in weights.items():
        array = np.zeros(shape, np.int64 if name.startswith("i_") else np.float32)
        by_name[name].const_value = ir.tensor(array, name=name)
        by_name[name].dtype, by_name[name].shape = (
            ir.DataType(array.dtype == np.float32 or 7),
            ir.Shape(shape),
        )
        model.graph.register_initializer(by_name[name])
    for node in model.graph:
        node.name = node.outputs[0].name
    return infer(model)


def plan(model: ir.Model, rules: Runtime, floats: Iterable[str] = ()) -> Mapping[str, TensorPlan]:
    """What is quantized when all blocks but those named are INT8, as a build places it."""
    blocks = partition(model)
    assert rules.quant is not None
    precision = {b.id: rules.float_precision if b.id in floats else "int8" for b in blocks}
    placed = place(model, blocks, precision, find_chains(model, blocks, rules), rules)
    return outline(placed, rules.quant)


def names(found: Iterable[Kernel]) -> list[tuple[str, ...]]:
    return [kernel.nodes for kernel in found]


def one(found: Iterable[Kernel]) -> Kernel:
    (kernel,) = found
    return kernel


RESIDUAL = """g (float[n, 8, 4, 4] x) => (float[n, 8, 4, 4] r2) {
    a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
    r1 = Relu (a)
    b = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r1, w2)
    s = Add (b, x)
    r2 = Relu (s)
}"""


def residual() -> ir.Model:
    return graph(RESIDUAL, w1=(8, 8, 3, 3), w2=(8, 8, 3, 3))


def test_nothing_is_fused_unless_the_profile_says_so() -> None:
    assert names(kernels(residual(), {}, PLAIN)) == [("a",), ("r1",), ("b",), ("s",), ("r2",)]


def test_chains_of_floats_are_longer_than_those_of_integers() -> None:
    model = residual()
    assert names(kernels(model, {}, ORT_LIKE)) == [("a", "r1"), ("b", "s", "r2")]
    integer = kernels(model, plan(model, ORT_LIKE), ORT_LIKE)
    assert names(integer) == [("a", "r1"), ("b",), ("s", "r2")]
    assert {kernel.precision for kernel in integer} == {"int8"}
    assert [kernel.op for kernel in integer] == ["conv", "conv", "elementwise"]


def test_a_chain_ends_where_somebody_else_reads() -> None:
    text = """g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] r, float[1, 4, 4, 4] t) {
        a = Conv (x, w)
        r = Relu (a)
        t = Tanh (a)
    }"""
    found = kernels(graph(text, w=(4, 4, 1, 1)), {}, ORT_LIKE)
    assert names(found) == [("a",), ("r",), ("t",)]


def test_a_longer_pattern_that_does_not_end_leaves_the_shorter_one() -> None:
    """Conv+Relu is a kernel, Conv+Relu+Add+Clip would be: without the Clip only the first two are one."""
    rules = runtime(fuses_float=("Conv+Relu", "Conv+Relu+Add+Clip"))
    text = """g (float[1, 4, 4, 4] x) => (float[1, 4, 4, 4] s) {
        a = Conv (x, w)
        r = Relu (a)
        s = Add (r, x)
    }"""
    assert names(kernels(graph(text, w=(4, 4, 1, 1)), {}, rules)) == [("a", "r"), ("s",)]


def test_a_kernel_that_absorbs_takes_all_elementwise_behind_it() -> None:
    text = """g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] m) {
        a = Conv (x, w)
        s = Sigmoid (a)
        t = Tanh (s)
        u = Mul (t, x)
        m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (u)
    }"""
    model = graph(text, w=(8, 8, 1, 1))
    assert names(kernels(model, {}, GREEDY)) == [("a", "s", "t", "u"), ("m",)]
    integer = kernels(model, plan(model, GREEDY), GREEDY)
    assert integer[0].nodes[:1] == ("a",) and integer[0].precision == "int8"


@pytest.mark.parametrize(("around", "each", "called"), [("float32", 4, "float"), ("bfloat16", 2, "bf16")])
def test_heavy_activations_in_passing_are_told_as_they_would_be_alone(
    around: str, each: int, called: str
) -> None:
    """What is light is not worth telling."""
    text = """g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] m) {
        a = Conv (x, w)
        r = Relu (a)
        t = Tanh (r)
        h = HardSwish (t)
        m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (h)
    }"""
    model, rules = graph(text, w=(8, 8, 1, 1)), GREEDY.model_copy(update={"around": around})
    moved = 2 * each * 8 * 16
    alone = [
        Kernel(op, called, (name,), 0, moved)  # type: ignore[arg-type]
        for op, name in (("transcendental", "t"), ("hard", "h"))
    ]
    first, *rest = kernels(model, {}, rules)
    assert first.nodes == ("a", "r", "t", "h") and list(first.along) == alone
    assert not any(kernel.along for kernel in rest)
    assert kernels(model, {}, PLAIN)[0].along == ()


def test_classes_absorb_too() -> None:
    text = """g (float[1, 8] x) => (float[1, 8] t) {
        a = Add (x, x)
        t = Tanh (a)
    }"""
    assert names(kernels(graph(text), {}, GREEDY)) == [("a", "t")]
    assert names(kernels(graph(text), {}, PLAIN)) == [("a",), ("t",)]


@pytest.mark.parametrize(("order", "takes"), [(("a", "b"), "b"), (("b", "a"), "a")])
def test_of_two_products_that_are_added_up_the_later_takes_the_addition(
    order: tuple[str, str], takes: str
) -> None:
    lines = "".join(f"{n} = Conv (x, w_{n})\n" for n in order)
    text = f"g (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] r) {{ {lines} s = Add (a, b) r = Relu (s) }}"
    found = kernels(graph(text, w_a=(4, 4, 1, 1), w_b=(4, 4, 1, 1)), {}, ORT_LIKE)
    assert names(found) == [(order[0],), (takes, "s", "r")]


def test_a_bias_behind_a_product_is_no_addition_of_data() -> None:
    text = "g (float[1, 6, 4] x) => (float[1, 6, 8] s) {{ a = MatMul (x, w) s = Add (a, {}) }}"
    assert names(kernels(graph(text.format("bias"), w=(4, 8), bias=(8,)), {}, ORT_LIKE)) == [("a", "s")]
    two = "g (float[1, 6, 4] x, float[1, 6, 8] z) => (float[1, 6, 8] s) { a = MatMul (x, w) s = Add (a, z) }"
    assert names(kernels(graph(two, w=(4, 8)), {}, ORT_LIKE)) == [("a",), ("s",)]


def test_views_and_sizes_cost_nothing() -> None:
    text = """g (float[n, 4, 2, 2] x) => (float[n, 16] y) {
        a = Relu (x)
        i = Identity (a)
        z = Shape (i)
        f = Flatten (i)
        u = Unsqueeze (f, i_axes)
        y = Squeeze (u, i_axes)
    }"""
    assert names(kernels(graph(text, i_axes=(1,)), {}, PLAIN)) == [("a",)]


# Sizes by hand. Floats have four bytes, codes one.

CONV = "g (float[n, 8, 6, 6] x) => (float[n, 16, 6, 6] y) { y = Conv <%s> (x, w, b) }"


def test_convolution() -> None:
    text = CONV % "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
    found = one(kernels(graph(text, w=(16, 8, 3, 3), b=(16,)), {}, PLAIN))
    moved = 4 * (8 * 36 + 16 * 8 * 9 + 16 + 16 * 36)
    assert found == Kernel("conv", "float", ("y",), 16 * 36 * 8 * 9, moved, depth=72, align=8)


def test_one_by_one_and_first_convolutions_are_classes_of_their_own() -> None:
    found = one(kernels(graph(CONV % "kernel_shape = [1, 1]", w=(16, 8, 1, 1), b=(16,)), {}, PLAIN))
    assert (found.op, found.depth, found.macs) == ("pointwise", 8, 16 * 36 * 8)
    stem = """g (float[1, 3, 6, 6] x) => (float[1, 24, 3, 3] y) {
        y = Conv <strides = [2, 2], kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    }"""
    found = one(kernels(graph(stem, w=(24, 3, 3, 3)), {}, PLAIN))
    assert (found.op, found.depth, found.align, found.macs) == ("stem", 27, 8, 24 * 9 * 27)
    assert found.bytes == 4 * (3 * 36 + 24 * 27 + 24 * 9 + 9 * 27), "with a patch for each of nine results"
    model = graph(stem, w=(24, 3, 3, 3))
    found = next(iter(kernels(model, plan(model, PLAIN), PLAIN)))
    assert found.precision == "int8"
    assert found.bytes == 3 * 36 + 24 * 27 + 24 * 9 + 9 * 4 * 9, "of four channels where three are fed"


@pytest.mark.parametrize(
    ("groups", "per_group", "op"), [(8, 1, "depthwise"), (4, 2, "grouped"), (2, 4, "grouped")]
)
def test_depthwise_and_grouped_convolutions(groups: int, per_group: int, op: str) -> None:
    text = f"""g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) {{
        y = Conv <group = {groups}, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    }}"""
    found = one(kernels(graph(text, w=(8, per_group, 3, 3)), {}, PLAIN))
    macs_by_hand, moved = 8 * 36 * per_group * 9, 4 * (2 * 8 * 36 + 8 * per_group * 9)
    assert found == Kernel(op, "float", ("y",), macs_by_hand, moved, 9 * per_group, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(("groups", "after"), [(1, 12), (2, 6)])
def test_transposed_convolution(groups: int, after: int) -> None:
    """Every output is the sum over a group's input channels and those taps that meet it: at most all."""
    text = f"""g (float[1, 8, 5, 5] x) => (float[1, 12, 10, 10] y) {{
        y = ConvTranspose <group = {groups}, strides = [2, 2], kernel_shape = [2, 2]> (x, w)
    }}"""
    found = one(kernels(graph(text, w=(8, after, 2, 2)), {}, PLAIN))
    assert (found.op, found.macs) == ("transposed", 8 * 25 * after * 4)
    assert (found.depth, found.align) == (8 // groups * 4, 4)
    assert found.bytes == 4 * (8 * 25 + 8 * after * 4 + 12 * 100)


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("y = Gemm (x, w, b)", {"w": (20, 12), "b": (12,)}),
        ("y = Gemm <transB = 1> (x, w, b)", {"w": (12, 20), "b": (12,)}),
        ("y = Gemm <transA = 1> (t, w, b)", {"w": (20, 12), "b": (12,), "t": (20, 3)}),
    ],
)
def test_gemm(text: str, shapes: dict[str, tuple[int, ...]]) -> None:
    found = one(kernels(graph(f"g (float[3, 20] x) => (float[3, 12] y) {{ {text} }}", **shapes), {}, PLAIN))
    assert found == Kernel("gemm", "float", ("y",), 3 * 20 * 12, 4 * (60 + 240 + 12 + 36), 20, 4)


def test_a_product_with_weights_is_a_gemm_and_one_of_data_is_batched() -> None:
    text = "g (float[1, 6, 48] x) => (float[1, 6, 32] y) { y = MatMul (x, w) }"
    found = one(kernels(graph(text, w=(48, 32)), {}, PLAIN))
    assert found == Kernel("gemm", "float", ("y",), 6 * 48 * 32, 4 * (288 + 1536 + 192), 48, 16)
    text = """g (float[1, 2, 6, 8] x, float[1, 2, 8, 5] z) => (float[1, 2, 6, 5] y) { y = MatMul (x, z) }"""
    found = one(kernels(graph(text), {}, PLAIN))
    assert found == Kernel("batched", "float", ("y",), 2 * 6 * 8 * 5, 4 * (96 + 80 + 60), 8, 1)


@pytest.mark.parametrize(
    ("left", "right", "made", "macs_by_hand"),
    [("6", "6", "", 6), ("3, 6", "6", "3", 18), ("6", "6, 5", "5", 30)],
)
def test_products_of_vectors(left: str, right: str, made: str, macs_by_hand: int) -> None:
    out = f"float[{made}]" if made else "float[]"
    text = f"g (float[{left}] x, float[{right}] z) => ({out} y) {{ y = MatMul (x, z) }}"
    found = one(kernels(graph(text), {}, PLAIN))
    assert (found.op, found.macs, found.depth) == ("batched", macs_by_hand, 6)
    assert 1 <= found.align <= 2


def test_a_recurrent_layer_is_one_large_product_and_its_steps() -> None:
    text = """g (float[7, 1, 10] x) => (float[7, 1, 1, 6] y, float[1, 1, 6] h) {
        y, h = GRU <hidden_size = 6, linear_before_reset = 1> (x, w, r, b)
    }"""
    model = graph(text, w=(1, 18, 10), r=(1, 18, 6), b=(1, 36))
    inputs, steps = kernels(model, {}, PLAIN)
    moved = 4 * (7 * (10 + 18) + 10 * 18)
    assert inputs == Kernel("gemm", "float", ("y",), 7 * 10 * 18, moved, depth=10, align=2)
    assert (steps.op, steps.nodes, steps.macs, steps.depth) == ("recurrent", ("y",), 7 * 18 * 6, 6)
    # The steps read what the product made, their own weights and biases, and write all states and the last.
    assert steps.bytes == 4 * (70 + 180 + 108 + 36 + 42 + 6) - 4 * 10 * (7 + 18)
    assert inputs.macs + steps.macs == macs(model)


def test_where_the_reset_gate_acts_makes_another_class() -> None:
    text = """g (float[7, 1, 10] x) => (float[7, 1, 1, 6] y) {
        y = GRU <hidden_size = 6> (x, w, r)
    }"""
    found = kernels(graph(text, w=(1, 18, 10), r=(1, 18, 6)), {}, PLAIN)
    assert [kernel.op for kernel in found] == ["gemm", "gru"]


def test_windows_and_rows() -> None:
    text = "g (float[n, 4, 8, 8] x) => (float[n, 4, 4, 4] y) { y = %s }"
    text %= "MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 0, 0]> (x)"
    pool = one(kernels(graph(text), {}, PLAIN))
    assert pool == Kernel("pool", "float", ("y",), 0, 4 * (256 + 64), depth=6)
    text = "g (float[n, 5, 9] x) => (float[n, 5, 9] y) { y = Softmax <axis = -1> (x) }"
    assert one(kernels(graph(text), {}, PLAIN)) == Kernel("softmax", "float", ("y",), 0, 4 * 90, depth=9)
    text = "g (float[n, 4, 8, 8] x) => (float[n, 4, 1, 1] y) { y = GlobalAveragePool (x) }"
    assert one(kernels(graph(text), {}, PLAIN)) == Kernel("reduce", "float", ("y",), 0, 4 * 260, depth=64)


def test_what_is_read_twice_moves_once() -> None:
    text = "g (float[1, 8] x) => (float[1, 8] y) { y = Mul (x, x) }"
    assert one(kernels(graph(text), {}, PLAIN)).bytes == 4 * 16


@pytest.mark.parametrize(("around", "each", "called"), [("float16", 2, "fp16"), ("bfloat16", 2, "bf16")])
def test_narrow_floats(around: str, each: int, called: str) -> None:
    text = "g (float[1, 8] x) => (float[1, 8] y) { y = Tanh (x) }"
    found = one(kernels(graph(text), {}, runtime(around=around)))
    assert (found.precision, found.bytes) == (called, each * 16)


def test_integers_have_a_byte_and_biases_four() -> None:
    text = CONV % "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
    model = graph(text, w=(16, 8, 3, 3), b=(16,))
    found = one(kernels(model, plan(model, PLAIN), PLAIN))
    assert (found.precision, found.bytes) == ("int8", 8 * 36 + 16 * 8 * 9 + 4 * 16 + 16 * 36)
    wide = runtime(activation="int16")
    found = one(kernels(model, plan(model, wide), wide))
    assert (found.precision, found.bytes) == ("w8a16", 2 * 8 * 36 + 16 * 8 * 9 + 4 * 16 + 2 * 16 * 36)


def test_blocks_of_two_widths_change_integers_between_them() -> None:
    """Three bytes a number, one on one side and two on the other."""
    text = """g (float[1, 20] x) => (float[1, 8] y) {
        a = Gemm (x, w)  b = Gemm (a, v)  y = Gemm (b, u) }"""
    model = graph(text, w=(20, 12), v=(12, 10), u=(10, 8))
    narrow = runtime(activation="int8")
    quant16 = narrow.quant.model_copy(update={"activation": "int16"}) if narrow.quant else None
    both = narrow.model_copy(update={"quant16": quant16, "forms": ("w8a16",)})
    blocks = partition(model)
    precision: dict[str, Precision] = {"a": "int8", "b": "w8a16", "y": "int8"}
    placed = place(model, blocks, precision, find_chains(model, blocks, both), both)
    assert both.quant is not None
    found = kernels(model, outline(placed, both.quant), both)
    said = [
        (k.op, k.precision, k.nodes, k.bytes) for k in found if k.op != "convert" or "first" not in k.nodes
    ]
    assert said == [
        ("gemm", "int8", ("a",), 20 + 240 + 12),
        ("gemm", "w8a16", ("b",), 2 * 12 + 120 + 2 * 10),
        ("gemm", "int8", ("y",), 10 + 80 + 8),
        ("convert", "w8a16", ("b",), 3 * 12),
        ("convert", "w8a16", ("y",), 3 * 10),
    ]


def test_an_integer_kernel_that_leaves_floats_writes_four_bytes() -> None:
    rules = runtime(float_output=("Gemm",))
    model = graph("g (float[1, 20] x) => (float[1, 12] y) { y = Gemm (x, w) }", w=(20, 12))
    found = one(kernels(model, plan(model, rules), rules))
    assert (found.precision, found.bytes) == ("int8", 20 + 240 + 4 * 12)


def test_a_free_batch_counts_as_often_as_asked() -> None:
    text = CONV % "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
    model = graph(text, w=(16, 8, 3, 3), b=(16,))
    once, thrice = one(kernels(model, {}, PLAIN)), one(kernels(model, {}, PLAIN, batch=3))
    weights = 4 * (16 * 8 * 9 + 16)
    assert thrice.macs == 3 * once.macs
    assert thrice.bytes - weights == 3 * (once.bytes - weights)


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("g (float[n, 8, h, 6] x) => (float[n, 8, h, 6] y) { a = Relu (x) y = Conv (a, w) }", "a"),
        ("g (float[n, 8, 4, 4] x, int64[2] i) => (float[?, ?] z) { c = Conv (x, w) y = Reshape (c, i) "
         "z = Tanh (y) }", "y"),
    ],
)  # fmt: skip
def test_a_free_size_is_named_by_its_node(text: str, node: str) -> None:
    model = graph(text, w=(8, 8, 1, 1))
    with pytest.raises(UnknownSizeError) as caught:
        kernels(model, {}, PLAIN)
    assert caught.value.node == node


# Changes of form.


def changes(model: ir.Model, rules: Runtime, floats: Iterable[str] = ()) -> list[tuple[tuple[str, ...], int]]:
    """Those that read them, and the numbers that change."""
    found = kernels(model, plan(model, rules, floats), rules)
    return [(k.nodes, k.bytes // 5) for k in found if k.op == "convert"]


CHAIN = """g (float[n, 8, 4, 4] x) => (float[n, 8, 4, 4] c) {
    a = Conv (x, w1)
    b = Conv (a, w2)
    c = Conv (b, w3)
}"""
W = (8, 8, 1, 1)


@pytest.mark.parametrize(
    ("floats", "read_by"),
    [
        ((), []), (("a",), ["b"]), (("b",), ["b", "c"]), (("c",), ["c"]), (("a", "c"), ["b", "c"]),
        (("a", "b", "c"), []),
    ],
)  # fmt: skip
def test_a_change_of_form_stands_where_floats_meet_integers(
    floats: tuple[str, ...], read_by: list[str]
) -> None:
    """None at the graph's ends, whatever stands there."""
    found = changes(graph(CHAIN, w1=W, w2=W, w3=W), PLAIN, floats)
    assert found == [((reader,), 8 * 16) for reader in read_by]


@pytest.mark.parametrize("pair_moved", [True, False])
@pytest.mark.parametrize(
    ("view", "last", "expected"),
    [
        ("v = Reshape (a, i_shape)", "y = Gemm (v, w2)", []),
        ("v = Flatten (a)", "y = Gemm (v, w2)", []),
        ("v = Flatten (a)", "y = Softmax (v)", [(("y",), 128)]),
        ("u = Flatten (a) v = Identity (u)", "y = Softmax (v)", [(("y",), 128)]),
    ],
)
def test_views_hide_no_change_of_form(
    pair_moved: bool, view: str, last: str, expected: list[tuple[tuple[str, ...], int]]
) -> None:
    rules = runtime(pair_moved=pair_moved)
    text = f"""g (float[1, 8, 4, 4] x) => (float[1, 128] y) {{
        a = Conv (x, w1) {view} {last} }}"""
    weights = {"w1": W, "w2": (128, 128)} if "Gemm" in last else {"w1": W}
    model = graph(text, **weights, **({"i_shape": (2,)} if "i_shape" in view else {}))
    if "i_shape" in view:
        model.graph.initializers["i_shape"].const_value = ir.tensor(np.array([1, 128]), name="i_shape")
        infer(model)
    assert changes(model, rules) == expected
    found = kernels(model, plan(model, rules), rules)
    assert [k.precision for k in found if k.op == "gemm"] == ["int8"] * ("Gemm" in last)


@pytest.mark.parametrize("pair_moved", [True, False])
def test_what_moves_integers_is_in_integers_with_a_pair_behind_it_or_without(pair_moved: bool) -> None:
    text = """g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] c) {
        a = Conv (x, w1)
        m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)
        c = Conv (m, w2)
    }"""
    rules = runtime(pair_moved=pair_moved)
    found = kernels(graph(text, w1=W, w2=W), plan(graph(text, w1=W, w2=W), rules), rules)
    assert [(k.op, k.precision) for k in found] == [
        ("pointwise", "int8"),
        ("pool", "int8"),
        ("pointwise", "int8"),
    ]
    assert found[1].bytes == 2 * 128


def test_what_only_floats_read_is_moved_as_floats() -> None:
    """Between a convolution in integers and a softmax nothing keeps a pool in integers."""
    text = """g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] s) {
        a = Conv (x, w1)
        m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a)
        s = Softmax (m)
    }"""
    model = graph(text, w1=W)
    assert changes(model, PLAIN) == [(("m",), 128)]
    pool = next(k for k in kernels(model, plan(model, PLAIN), PLAIN) if k.op == "pool")
    assert (pool.precision, pool.bytes) == ("float", 4 * 256)


def test_readers_that_differ() -> None:
    """One change for all that read the other form, wherever they stand."""
    text = """g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] b, float[1, 8, 4, 4] c, float[1, 8, 4, 4] d) {
        a = Conv (x, w1)
        b = Conv (a, w2)
        c = Softmax (a)
        d = Tanh (a)
    }"""
    model = graph(text, w1=W, w2=W)
    assert changes(model, PLAIN) == [(("c", "d"), 128)]
    assert changes(model, PLAIN, ("a",)) == [(("b",), 128)], (
        "floats were made: the integers' reader changes them"
    )
    tensors = plan(model, PLAIN, ("a",))
    assert tensors["a"].readers == ("b",)


def test_an_input_that_floats_read_too_is_no_change() -> None:
    text = """g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] b, float[1, 8, 4, 4] c) {
        b = Conv (x, w1)
        c = Tanh (x)
    }"""
    model = graph(text, w1=W)
    assert changes(model, PLAIN) == []
    assert [k.precision for k in kernels(model, plan(model, PLAIN), PLAIN)] == ["int8", "float"]


def test_pairs_that_a_graph_holds_cost_nothing_by_themselves() -> None:
    text = """g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] b) {
        a = Tanh (x)
        q = QuantizeLinear (a, scale, zero)
        d = DequantizeLinear (q, scale, zero)
        b = Conv (d, w1)
    }"""
    model = graph(text, w1=W, scale=(), zero=())
    tensors = {
        name: TensorPlan(type="uint8", scale=(0.1,), zero_point=(0,), origin="imported")
        for name in ("a", "d")
    } | {"w1": TensorPlan(type="int8", scale=(0.1,), zero_point=(0,), origin="weight")}
    found = kernels(model, tensors, PLAIN)
    assert [(k.op, k.precision, k.nodes) for k in found] == [
        ("transcendental", "float", ("a",)), ("pointwise", "int8", ("b",)), ("convert", "int8", ("b",)),
    ]  # fmt: skip


def test_a_weight_that_is_not_quantized_keeps_its_kernel_float() -> None:
    model = graph("g (float[1, 20] x) => (float[1, 12] y) { y = Gemm (x, w) }", w=(20, 12))
    tensors = {"x": TensorPlan(type="uint8", scale=(0.1,), zero_point=(0,), origin="calibration")}
    assert one(kernels(model, tensors, PLAIN)).precision == "float"


# Properties.

_STEPS = (
    "v{i} = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({a}, w{i})",
    "v{i} = Relu ({a})",
    "v{i} = Add ({a}, {b})",
    "v{i} = Mul ({a}, {b})",
    "v{i} = Sigmoid ({a})",
    "v{i} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({a})",
    "v{i} = Transpose <perm = [0, 1, 3, 2]> ({a})",
    "v{i} = Identity ({a})",
    "v{i} = MatMul ({a}, {b})",
    "v{i} = MatMul ({a}, m{i})",
    "v{i} = Softmax ({a})",
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_node_that_computes_is_in_one_kernel(data: st.DataObject) -> None:
    """And all multiply-accumulates are those of the graph; a change of form has a side of each kind."""
    lines, made = [], ["x"]
    weights: dict[str, tuple[int, ...]] = {}
    for i in range(data.draw(st.integers(1, 9))):
        step = data.draw(st.sampled_from(_STEPS))
        a, b = (data.draw(st.sampled_from(made[-3:])) for _ in range(2))
        lines.append(step.format(i=i, a=a, b=b))
        if "w{i}" in step:
            weights[f"w{i}"] = (4, 4, 3, 3)
        if "m{i}" in step:
            weights[f"m{i}"] = (4, 4)
        made.append(f"v{i}")
    outputs = ", ".join(f"float[n, 4, 4, 4] {name}" for name in made[1:])
    model = graph(f"g (float[n, 4, 4, 4] x) => ({outputs}) {{ {' '.join(lines)} }}", **weights)
    kept = data.draw(st.sets(st.sampled_from(made[1:])))
    for name in kept:  # what is no output any more may be fused
        model.graph.outputs[:] = [v for v in model.graph.outputs if v.name != name]
    rules = data.draw(st.sampled_from([PLAIN, ORT_LIKE, GREEDY, runtime(pair_moved=False)]))
    floats = data.draw(st.sets(st.sampled_from([b.id for b in partition(model)])))
    tensors = plan(model, rules, floats) if data.draw(st.booleans()) else {}
    batch = data.draw(st.integers(1, 3))
    found = kernels(model, tensors, rules, batch)
    work = [kernel for kernel in found if kernel.op != "convert"]
    computing = [node.name or "" for node in model.graph if node.op_type != "Identity"]
    assert sorted(name for kernel in work for name in kernel.nodes) == sorted(computing)
    assert sum(kernel.macs for kernel in found) == macs(model, batch)
    assert all(kernel.bytes > 0 for kernel in found)
    if not tensors:
        assert work == found and all(kernel.precision == "float" for kernel in found)


def test_all_names_of_a_kernel_are_known_to_the_partition() -> None:
    """What `by_block` relies on."""
    model = residual()
    owned = {name for block in partition(model) for name in block.nodes}
    tensors = plan(model, ORT_LIKE, ("a",))
    assert {name for kernel in kernels(model, tensors, ORT_LIKE) for name in kernel.nodes} <= owned


def test_what_is_unknown_only_moves() -> None:
    assert class_of(ir.node("Unheard", [], domain="mine")) == "move"
