"""Which values are quantized, stated graph by graph, and what ONNX Runtime makes of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from deploy.adapter.profiles import load_profile
from deploy.frontend.onnx_file import to_bytes
from deploy.graph.blocks import partition
from deploy.quantize.place import Placement, find_chains, observed_values, place

IMAGE, PAD = "float[N,4,6,6]", "<pads=[1,1,1,1]>"
W = (4, 4, 3, 3)


@dataclass
class Placed:
    chains: list[str]
    groups: list[set[str]]
    readers: dict[str, set[str]]
    placement: Placement

    @property
    def values(self) -> set[str]:
        return set().union(*self.groups)


@pytest.fixture
def placed(graph, unsigned):
    def run(text, runtime=unsigned, *, float_blocks=(), excluded=(), **weights) -> Placed:
        model = text if not isinstance(text, str) else graph(text, weights)
        blocks = partition(model)
        chains = find_chains(model, blocks, runtime)
        assert set(float_blocks) <= {b.id for b in blocks}
        precision = {b.id: "float" if b.id in float_blocks else "int8" for b in blocks}
        result = place(model, blocks, precision, chains, runtime, excluded)
        groups: dict[str, set[str]] = {}
        for name, leader in result.groups.items():
            groups.setdefault(leader, set()).add(name)
        assert all(leader in members for leader, members in groups.items())
        assert set(result.groups) <= set(observed_values(model, chains, runtime))
        inner = {n.outputs[0].name for c in result.chains for n in c.nodes[:-1]}
        assert not inner & set(result.groups), "no pair lies inside a fused chain"
        return Placed(
            ["+".join(n.op_type for n in c.nodes) for c in result.chains],
            sorted(groups.values(), key=sorted),
            {name: set(users) for name, users in result.readers.items()},
            result,
        )

    return run


def image(nodes: str, outputs: str = f"{IMAGE} y") -> str:
    return f"g ({IMAGE} x) => ({outputs}) {{ {nodes} }}"


RESIDUAL = image(
    f"[c1] a = Conv{PAD}(x, w, b)  [r1] r = Relu(a)  [c2] c = Conv{PAD}(r, w2)  [s] s = Add(c, x) "
    " [r2] y = Relu(s)"
)


def test_residual(placed):
    p = placed(RESIDUAL, w=W, b=(4,), w2=W)
    assert p.chains == ["Conv+Relu", "Conv", "Add+Relu"]
    assert p.groups == [{"c"}, {"r"}, {"x"}, {"y"}]
    assert p.readers == {}
    assert set(p.placement.weights) == {"w", "w2"}
    assert p.placement.biases == {"b": ("x", "w")}


def test_residual_as_one_kernel(placed, symmetric):
    p = placed(RESIDUAL, symmetric, w=W, b=(4,), w2=W)
    assert p.chains == ["Conv+Relu", "Conv+Add+Relu"]
    assert p.groups == [{"r"}, {"x"}, {"y"}]
    assert p.placement.biases == {}


SHORTCUT = image(
    f"[c1] d = Conv{PAD}(x, w)  [c2] a = Conv{PAD}(x, w)  [r1] r = Relu(a)  [c3] c = Conv{PAD}(r, w)"
    f" [s1] s = Add(c, d)  [r2] t = Relu(s)  [c4] e = Conv{PAD}(t, w)  [s2] y = Add(e, t)"
)


def test_a_sum_that_reads_floats_as_well_asks_for_no_codes(placed, symmetric):
    assert symmetric.quant is not None
    loose = symmetric.quant.model_copy(
        update={"float_input": ("Add",), "float_output": (*symmetric.quant.float_output, "Conv+Add")}
    )
    strict = placed(SHORTCUT, symmetric, w=W)
    eased = placed(SHORTCUT, symmetric.model_copy(update={"quant": loose}), w=W)
    assert strict.chains == eased.chains == ["Conv", "Conv+Relu", "Conv+Add+Relu", "Conv+Add"]
    assert strict.values == {"x", "r", "d", "t", "y"}
    assert eased.values == {"x", "r", "t"}, "t are codes for a convolution's sake, and the sum reads these"
    assert eased.readers == {}


def test_concat_shares_one_set(placed):
    p = placed(
        image(
            f"a = Conv{PAD}(x, w1)  r = Relu(a)  c = Conv{PAD}(x, w2)  d = Concat<axis=1>(r, c, x)"
            "  y = Conv<kernel_shape=[1,1]>(d, w3)"
        ),
        w1=W, w2=W, w3=(4, 12, 1, 1),
    )  # fmt: skip
    assert p.groups == [{"r", "c", "x", "d"}, {"y"}]


def test_concats_that_share_an_operand_share_one_set(placed):
    p = placed(
        image(
            f"a = Conv{PAD}(x, w)  b = Conv{PAD}(x, w)  c = Conv{PAD}(x, w)  d = Concat<axis=1>(a, b)"
            "  e = Concat<axis=1>(b, c)  f = Conv<kernel_shape=[1,1]>(d, w2)"
            "  g = Conv<kernel_shape=[1,1]>(e, w2)  y = Add(f, g)"
        ),
        w=W, w2=(4, 8, 1, 1),
    )  # fmt: skip
    assert {"a", "b", "c", "d", "e"} in p.groups


def test_a_concat_with_a_constant_is_left_float(placed):
    p = placed(
        "g (float[1,4,6,6] x) => (float[1,4,6,6] y) { [c] a = Conv<pads=[1,1,1,1]>(x, w)"
        "  [j] d = Concat<axis=1>(a, k)  [e] y = Conv<kernel_shape=[1,1]>(d, w2) }",
        w=W, k=(1, 1, 6, 6), w2=(4, 5, 1, 1),
    )  # fmt: skip
    assert p.groups == [{"a"}, {"d"}, {"x"}, {"y"}]
    assert p.readers == {}


def test_what_a_runtime_prescribes_is_not_forced_on_others(placed, affine):
    p = placed(
        image(
            f"a = Conv{PAD}(x, w)  s = Sigmoid(a)  t = Transpose<perm=[0,1,3,2]>(s)  c = Conv{PAD}(x, w)"
            "  d = Concat<axis=1>(t, c)  y = Conv<kernel_shape=[1,1]>(d, w2)"
        ),
        affine,
        w=W, w2=(4, 8, 1, 1),
    )  # fmt: skip
    assert {"d"} in p.groups
    assert {"c"} in p.groups


def test_the_maximum_unifies_all_its_operands_where_the_rules_say_so(placed, affine):
    p = placed(image(f"a = Conv{PAD}(x, w)  m = Max(a, x)  y = Conv{PAD}(m, w)"), affine, w=W)
    assert p.groups == [{"a", "m", "x"}, {"y"}]


def test_movement_between_shares_parameters(placed):
    p = placed(
        image(
            f"a = Conv{PAD}(x, w)  p = MaxPool<kernel_shape=[2,2]>(a)  t = Transpose<perm=[0,2,3,1]>(p)"
            "  f = Flatten(t)  r = Reshape(f, s)  y = MatMul(r, m)",
            "float[N,S,D] y",
        ),
        w=W, s=np.int64([0, 10, 10]), m=(10, 3),
    )  # fmt: skip
    assert p.groups == [{"a", "p", "t", "f", "r"}, {"x"}]  # y: the product may leave as float
    assert p.readers == {}


def test_movement_that_leads_to_no_kernel_stays_float(placed):
    p = placed(image(f"a = Conv{PAD}(x, w)  t = Transpose<perm=[0,1,3,2]>(a)  y = Exp(t)"), w=W)
    assert p.groups == [{"a"}, {"x"}]


def test_movement_in_a_float_block_joins_nothing(placed):
    text = image(f"[c] a = Exp(x)  [m] p = MaxPool<kernel_shape=[1,1]>(a)  [d] y = Conv{PAD}(p, w)")
    assert placed(text, w=W).groups == [{"a", "p"}, {"y"}]
    p = placed(text, float_blocks=["m"], w=W)
    assert p.groups == [{"p"}, {"y"}]
    assert placed(text, excluded=["m"], w=W).groups == [{"p"}, {"y"}]


def test_a_split_moves_only_where_all_parts_are_wanted(placed):
    both = image(
        f"a = Conv{PAD}(x, w)  p, q = Split<axis=1, num_outputs=2>(a)  c = Conv{PAD}(p, w2)"
        f"  y = Conv{PAD}(q, w2)",
        f"{IMAGE} y, {IMAGE} c",
    )
    assert {"a", "p", "q"} in placed(both, w=W, w2=(4, 2, 3, 3)).groups
    one = both.replace(f"y = Conv{PAD}(q, w2)", "y = Exp(q)")
    assert placed(one, w=W, w2=(4, 2, 3, 3)).groups == [{"a"}, {"c"}, {"p"}, {"x"}]


def test_indices_of_a_pooling_keep_it_float(placed):
    p = placed(
        image(
            f"a = Conv{PAD}(x, w)  p, i = MaxPool<kernel_shape=[1,1]>(a)  y = Conv{PAD}(p, w)",
            f"{IMAGE} y, int64[N,4,6,6] i",
        ),
        w=W,
    )
    assert {"p"} in p.groups


def test_depthwise_and_the_tail(placed):
    p = placed(
        f"""g ({IMAGE} x) => (float[N,5] y) {{ a = Conv<group=4, pads=[1,1,1,1]>(x, w1, b)
        r = Clip(a, lo, hi)
        p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm<transB=1>(f, m, c) }}""",
        w1=(4, 1, 3, 3), b=(4,), lo=np.float32(0), hi=np.float32(6), m=(5, 4), c=(5,),
    )  # fmt: skip
    assert p.chains == ["Conv+Clip", "GlobalAveragePool", "Gemm"]
    assert p.groups == [{"f", "p"}, {"r"}, {"x"}]
    assert p.placement.biases == {"b": ("x", "w1"), "c": ("f", "m")}


def test_two_activations_multiplied(placed):
    p = placed(
        """g (float[N,5,8] x) => (float[N,5,8] y) {
        t = Transpose<perm=[0,2,1]>(x)  a = MatMul(x, t)  y = MatMul(a, x) }"""
    )
    assert p.groups == [{"a"}, {"x", "t"}]
    assert p.placement.weights == {}


def test_outputs_and_values_read_twice(placed):
    p = placed(
        image(f"[c] a = Conv{PAD}(x, w)  [r] r = Relu(a)  [d] y = Conv{PAD}(r, w)", f"{IMAGE} a, {IMAGE} y"),
        w=W,
    )
    assert p.chains == ["Conv", "Conv"], "a value that is put out is not inside a kernel"
    assert p.groups == [{"a"}, {"r"}, {"x"}, {"y"}]
    assert p.readers == {}


def test_a_value_of_float_making_is_quantized_only_for_kernels(placed):
    p = placed(image(f"[e] e = Exp(x)  [c] a = Conv{PAD}(e, w)  [n] n = Neg(e)  [s] y = Sub(a, n)"), w=W)
    assert p.readers == {"e": {"c"}}
    p = placed(image(f"[c] a = Conv{PAD}(x, w)  [e] e = Exp(a)  [n] n = Neg(a)  [s] y = Sub(e, n)"), w=W)
    assert p.readers == {}, "what a kernel made is integers for everybody"
    p = placed(f"g ({IMAGE} x) => ({IMAGE} x, {IMAGE} y) {{ [c] y = Conv{PAD}(x, w) }}", w=W)
    assert p.readers == {"x": {"c"}}


def test_a_reader_inside_a_body_is_a_reader(placed):
    p = placed(
        image(
            f"""[c] a = Conv{PAD}(x, w)
            [i] y = If(k) <then_branch = t () => ({IMAGE} tt) {{ [tn] tt = Abs(x) }},
            else_branch = e () => ({IMAGE} ee) {{ [en] ee = Add(x, a) }}>"""
        ),
        w=W, k=np.bool_(True),
    )  # fmt: skip
    assert p.readers == {"x": {"c"}}
    assert p.chains == ["Conv"], "bodies are left float"


def test_who_asks_for_a_size_does_not_read_the_value(placed):
    text = f"g ({IMAGE} x) => ({IMAGE} y, int64[4] z) {{ y = Conv{PAD}(x, w)  z = Shape(x) }}"
    assert placed(text, w=W).readers == {}


def test_a_shared_weight_has_all_its_readers(placed):
    p = placed(image(f"[c] a = Conv{PAD}(x, w)  [d] y = Conv{PAD}(a, w)"), w=W)
    assert [(n.name, slot) for n, slot in p.placement.weights["w"]] == [("c", 1), ("d", 1)]


@pytest.mark.parametrize("shape", [(1, 6), (1,), (), (4, 6), (4, 1)])
def test_an_unusual_bias_stays_float(shape, placed):
    p = placed("g (float[4,8] x) => (float[4,6] y) { z = Gemm(x, w, c)  y = Relu(z) }", w=(8, 6), c=shape)
    assert p.placement.biases == {}
    assert set(p.placement.weights) == {"w"}


def test_a_shared_bias_stays_float(placed):
    text = image(f"a = Conv{PAD}(x, w1, b)  c = Conv{PAD}(x, w2, b)  y = Add(a, c)")
    assert placed(text, w1=W, w2=W, b=(4,)).placement.biases == {}


def test_float_blocks_and_excluded_nodes(placed):
    p = placed(RESIDUAL, float_blocks=["c1"], w=W, b=(4,), w2=W)
    assert p.chains == ["Conv", "Add+Relu"]
    assert p.groups == [{"c"}, {"r"}, {"x"}, {"y"}]
    assert p.readers == {"x": {"s"}}
    assert placed(RESIDUAL, float_blocks=["c1", "c2"], w=W, b=(4,), w2=W).groups == []
    assert placed(RESIDUAL, excluded=["c1"], w=W, b=(4,), w2=W).chains == ["Conv", "Add+Relu"]
    assert placed(RESIDUAL, excluded=["r1"], w=W, b=(4,), w2=W).chains == ["Conv", "Add+Relu"]
    everything = placed(RESIDUAL, excluded=["c1", "c2", "s"], w=W, b=(4,), w2=W)
    assert (everything.chains, everything.groups) == ([], [])


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,8,6] x) => (float[N,5,6] y) { y = MatMul(w, x) }",
        "g (float[N,8] x) => (float[N,5] y) { y = Gemm<alpha=2.0>(x, v) }",
        "g (float[N,8] x) => (float[N,8] y) { y = Add(x, u) }",
        "g (float[1,4,6,6] x, float[1,4,3,3] k) => (float[1,1,4,4] y) { y = Conv(x, k) }",
        "g (float16[N,8] x) => (float16[N,8] y) { y = Add(x, x) }",
        "g (int64[N,8] x) => (int64[N,8] y) { y = Add(x, x) }",
        "g (float[N,8] x) => (float[N,8] y) { y = com.microsoft.Gelu(x) }",
    ],
)
def test_what_has_no_integer_kernel(text, placed):
    weights = {"w": (5, 8), "v": (8, 5), "u": (8,)}
    used = {n: s for n, s in weights.items() if f"({n}," in text or f", {n})" in text}
    p = placed(text, **used)
    assert (p.chains, p.groups) == ([], [])


def test_no_rules_no_placement(graph, unsigned):
    model = graph(RESIDUAL, {"w": W, "b": (4,), "w2": W})
    runtime = unsigned.model_copy(update={"quant": None})
    assert find_chains(model, partition(model), runtime) == []
    assert place(model, partition(model), {}, [], runtime).groups == {}


# --- after ONNX Runtime's own optimisation


def optimised_operations(model, tmp_path) -> Counter[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    # As every session of ours: else float weights become integers that nobody planned.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "WeightBiasQuantization")
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node)


OPENVINO = load_profile("x86-vnni").runtime_named("openvino")


def test_where_pairs_go_through_movers_the_moved_values_get_none(placed):
    p = placed(
        image(f"c = Conv{PAD}(x, w)  r = Relu(c)  m = MaxPool<kernel_shape=[1,1]>(r)  y = Conv{PAD}(m, v)"),
        OPENVINO, w=W, v=W,
    )  # fmt: skip
    assert p.chains == ["Conv+Relu", "Conv"]
    assert p.groups == [{"r"}, {"x"}]
    assert p.readers == {}


def test_joined_values_still_share_one_set_where_the_joined_one_gets_none(placed):
    p = placed(
        image(f"a = Conv{PAD}(x, w)  b = Conv{PAD}(x, w)  d = Concat<axis=1>(a, b)  y = Conv(d, v)"),
        OPENVINO, w=W, v=(4, 8, 1, 1),
    )  # fmt: skip
    assert p.groups == [{"a", "b"}, {"x"}]


def test_a_product_of_two_activations_is_left_float_where_weights_are_asked_for(placed):
    text = """g (float[N,4,4] x) => (float[N,4,4] y) {
        a = MatMul(x, w)  b = MatMul(x, w)  s = MatMul(a, b)  y = MatMul(s, v) }"""
    p = placed(text, OPENVINO, w=(4, 4), v=(4, 4))
    assert p.chains == ["MatMul"] * 3
    assert p.groups == [{"s"}, {"x"}]


def test_a_chain_may_end_in_float(placed):
    p = placed(image(f"c = Conv{PAD}(x, w)  r = Relu(c)  y = Neg(r)"), OPENVINO, w=W)
    assert p.chains == ["Conv+Relu"]
    assert p.values == {"x"}


def test_a_bias_is_left_float_where_the_input_has_no_parameters_of_its_own(placed):
    rules = OPENVINO.quant.model_copy(update={"bias": "int32"})
    p = placed(
        image(f"c = Conv{PAD}(x, w, b)  m = MaxPool<kernel_shape=[1,1]>(c)  y = Conv{PAD}(m, v, e)"),
        OPENVINO.model_copy(update={"quant": rules}), w=W, v=W, b=(4,), e=(4,),
    )  # fmt: skip
    assert p.placement.biases == {"b": ("x", "w")}


INTEGER = {
    "residual": (RESIDUAL, {"w": W, "b": (4,), "w2": W}, {"QLinearConv": 2, "QLinearAdd": 1}),
    "concat": (
        image(
            f"a = Conv{PAD}(x, w, b)  r = Relu(a)  e = Conv{PAD}(x, u)  c = Relu(e)"
            "  d = Concat<axis=1>(r, c)  y = Conv<kernel_shape=[1,1]>(d, v)"
        ),
        {"w": W, "u": W, "b": (4,), "v": (4, 8, 1, 1)},
        {"QLinearConv": 3, "QLinearConcat": 1, "Conv": 0, "Concat": 0},
    ),
    "movement": (
        image(
            f"a = Conv{PAD}(x, w, b)  p = MaxPool<kernel_shape=[2,2]>(a) "
            " t = Transpose<perm=[0,2,3,1]>(p)  r = Reshape(t, s)  q = MatMul(r, m)  y = MatMul(q, n)",
            "float[N,S,D] y",
        ),
        {"w": W, "b": (4,), "s": np.int64([0, 10, 10]), "m": (10, 8), "n": (8, 8)},
        {"QLinearConv": 1, "NhwcMaxPool": 1, "MatMulIntegerToFloat": 1, "QLinearMatMul": 1},
    ),
    "depthwise and tail": (
        f"""g ({IMAGE} x) => (float[N,5] y) {{ a = Conv<group=4, pads=[1,1,1,1]>(x, w, b)  r = Clip(a, lo, hi)
        p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm<transB=1>(f, m, c) }}""",
        {"w": (4, 1, 3, 3), "b": (4,), "lo": np.float32(0), "hi": np.float32(6), "m": (5, 4), "c": (5,)},
        {"QLinearConv": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    ),
    "attention": (
        """g (float[N,5,8] x) => (float[N,5,8] y) {
        q = MatMul(x, w)  k = MatMul(x, w)  v = MatMul(x, w)
        t = Transpose<perm=[0,2,1]>(k)  s = MatMul(q, t)  p = Softmax(s)  o = MatMul(p, v)
        y = MatMul(o, w) }""",
        {"w": (8, 8)},
        {"QLinearMatMul": 4, "MatMulIntegerToFloat": 2, "Softmax": 1, "MatMul": 0},
    ),
    "a float block between": (
        image(f"[a] a = Conv{PAD}(x, w)  [b] b = Conv{PAD}(a, v)  [c] y = Conv{PAD}(b, w)"),
        {"w": W, "v": W},
        {"QLinearConv": 2, "Conv": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INTEGER)
def test_onnx_runtime_makes_integer_kernels_of_it(name, graph, quantize, tmp_path):
    text, weights, expected = INTEGER[name]
    runtime = load_profile("x86-vnni").runtime_named("ort")
    model = graph(text, weights)
    result = quantize(model, runtime, float_blocks=["b"] if name == "a float block between" else ())
    found = optimised_operations(result.qdq, tmp_path)
    assert {op: found[op] for op in expected} == expected
    if name == "residual":
        assert found["QuantizeLinear"] == found["DequantizeLinear"] == 1, "only at the borders of the graph"


@pytest.mark.parametrize(
    ("spoilt", "chains"), [("", ["MatMul+Add+Relu"]), ("read twice", ["MatMul", "MatMul"])]
)
def test_the_bias_behind_a_product_is_part_of_its_kernel_where_the_runtime_adds_it(
    placed, affine, spoilt, chains
):
    runtime = affine.model_copy(update={"fuses": ("MatMul+Relu", "MatMul+Bias", "MatMul+Bias+Relu")})
    again = "m2 = MatMul(x, w)  z = Add(m2, b)" if spoilt else "z = Identity(x)"
    text = f"""g (float[N,5,4] x) => (float[N,5,4] y, float[N,5,4] z) {{
        m = MatMul(x, w)  a = Add(b, m)  y = Relu(a)  {again}
    }}"""
    found = placed(text, runtime, w=(4, 4), b=(4,))
    assert found.chains == chains
    assert found.placement.biases == ({} if spoilt else {"b": ("x", "w")})


def test_a_residual_behind_a_product_is_no_bias(placed, affine):
    runtime = affine.model_copy(update={"fuses": ("MatMul+Bias",)})
    text = "g (float[N,5,4] x) => (float[N,5,4] y) { m = MatMul(x, w)  y = Add(m, x) }"
    assert "MatMul+Add" not in placed(text, runtime, w=(4, 4)).chains


ATTENTION = """g (float[N,5,8] x) => (float[N,5,8] y) {
    q = MatMul(x, w)  k = MatMul(x, w)  v = MatMul(x, w)  t = Transpose<perm=[0,2,1]>(k)
    s = MatMul(q, t)  p = Softmax(s)  y = MatMul(p, v) }"""


def centred(runtime):
    quant = runtime.quant.model_copy(update={"centred": {"MatMul": (1,)}})
    return runtime.model_copy(update={"quant": quant})


def test_what_is_read_where_a_zero_point_must_be_0_is_centred_with_all_that_share_it(placed, affine):
    p = placed(ATTENTION, centred(affine), float_blocks=("Softmax_5",), w=(8, 8))
    assert p.chains == ["MatMul"] * 5
    leaders = p.placement.groups
    assert p.placement.centred == {leaders["k"], leaders["v"]}
    assert leaders["k"] == leaders["t"]
    rules = centred(affine).quant
    assert p.placement.rules_of(leaders["v"], rules).symmetric_activation
    assert not p.placement.rules_of(leaders["q"], rules).symmetric_activation
    assert placed(ATTENTION, affine, w=(8, 8)).placement.centred == set()


@pytest.mark.parametrize(("made_by", "integer"), [("Sigmoid", False), ("Tanh", True)])
def test_a_product_with_what_has_another_zero_point_stays_float(placed, affine, made_by, integer):
    text = (
        "g (float[N,5,8] x) => (float[N,5,5] y) {"
        f" q = MatMul(x, w)  a = {made_by}(q)  t = Transpose<perm=[0,2,1]>(a)  y = MatMul(q, t) }}"
    )
    p = placed(text, centred(affine), w=(8, 8))
    assert p.chains == ["MatMul", made_by] + ["MatMul"] * integer
