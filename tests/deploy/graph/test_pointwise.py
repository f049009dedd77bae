"""Linear layers as convolutions by 1, against ONNX Runtime on what was given."""

from __future__ import annotations

import re
import warnings
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import shapes
from deploy.graph.blocks import partition
from deploy.graph.cost import macs
from deploy.graph.rules import apply_rules, rules_for

RNG = np.random.default_rng(3)
K, N = 6, 5


def floats(*sizes: int) -> np.ndarray:
    return RNG.normal(size=sizes).astype(np.float32)


def turned(model: ir.Model, prove) -> ir.Model:
    """The model with its layers rewritten, proved equal; what could not be would warn, and fail here."""
    found = apply_rules(shapes.infer(model), ["linear-as-convolution"], prove)
    assert [(r.kept, r.why) for r in found.rewrites] == [(True, "")]
    result = shapes.infer(found.model)
    assert macs(result) == macs(model)
    assert len({node.name for node in result.graph}) == len(result.graph)
    partition(result)  # its blocks have no cycle
    return result


def read_by(body: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the arrays that the text names."""
    return {name: array for name, array in arrays.items() if re.search(rf"[(,] ?{name}[,)]", body)}


def operations(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    ("sizes", "around"),
    [
        ("n", {"Unsqueeze": 1, "Squeeze": 1}),
        ("7", {"Transpose": 2, "Unsqueeze": 1, "Squeeze": 1}),
        ("n,9", {"Transpose": 2, "Unsqueeze": 1, "Squeeze": 1}),
        ("9,n", {"Transpose": 2, "Unsqueeze": 1, "Squeeze": 1}),
        ("n,m", {"Transpose": 2, "Unsqueeze": 1, "Squeeze": 1}),
        ("1,n", {"Transpose": 2, "Unsqueeze": 1, "Squeeze": 1}),
        ("2,n", {"Transpose": 2, "Unsqueeze": 1, "Squeeze": 1}),
        ("n,1", {"Unsqueeze": 2, "Squeeze": 2}),
        ("1,1", {"Unsqueeze": 2, "Squeeze": 2}),
        ("2,9", {"Transpose": 2, "Unsqueeze": 1, "Squeeze": 1}),
        ("n,4,3", {"Transpose": 2}),
    ],
)
def test_a_layer_of_any_rank(parse, prove, sizes: str, around: dict[str, int]) -> None:
    model = parse(
        f"g (float[{sizes},{K}] x) => (float y) {{ [mm] p = MatMul(x, w) [add] y = Add(b, p) }}",
        {"w": floats(K, N), "b": floats(N)},
    )
    result = turned(model, prove)
    assert operations(result) == {"Conv": 1, **around}
    conv = next(node for node in result.graph if node.op_type == "Conv")
    assert conv.name == "mm"
    assert all(len(value.shape) == 4 for value in (conv.inputs[0], conv.outputs[0]))
    assert result.graph.initializers["w"].shape == (N, K, 1, 1), "the weight keeps its name"


@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("y = Gemm(x, w, b)", (K, N)),
        ("y = Gemm(x, w)", (K, N)),
        ("y = Gemm<transB = 1>(x, w, b)", (N, K)),
        ("y = Gemm<transB = 1>(x, w, c)", (N, K)),
    ],
)
def test_gemm(parse, prove, layer: str, weight: tuple[int, int]) -> None:
    arrays = {"w": floats(*weight), "b": floats(N), "c": floats(1, 1)}
    result = turned(
        parse(f"g (float[n,{K}] x) => (float y) {{ [fc] {layer} }}", read_by(layer, arrays)), prove
    )
    assert operations(result) == {"Conv": 1, "Unsqueeze": 1, "Squeeze": 1}


def test_between_two_layers_nothing_is_turned(parse, prove) -> None:
    model = parse(
        f"""g (float[n,9,{K}] x) => (float y)
        {{
            a = MatMul(x, w) c = Add(a, b) [act] d = Gelu(c) [cut] e = Clip(d, low, high)
            f = MatMul(e, v) y = Add(f, u)
        }}""",
        {
            "w": floats(K, 8), "b": floats(8), "v": floats(8, N), "u": floats(N),
            "low": np.float32(-0.1), "high": np.float32(0.7),
        },
    )  # fmt: skip
    result = turned(model, prove)
    kinds = [node.op_type for node in result.graph]
    assert kinds == ["Transpose", "Unsqueeze", "Conv", "Gelu", "Clip", "Conv", "Squeeze", "Transpose"]


def test_those_who_read_one_value_share_it(parse, prove) -> None:
    """An attention: queries and values read what was turned once, and so does who turned it for the keys."""
    model = parse(
        f"""g (float[n,9,{K}] x) => (float y)
        {{
            r = Relu(x)
            q = MatMul(r, w)
            t = Transpose<perm = [0, 2, 1]>(r)
            s = MatMul(q, t)
            p = Softmax(s)
            v = MatMul(r, u)
            y = MatMul(p, v)
        }}""",
        {"w": floats(K, K), "u": floats(K, N)},
    )
    found = operations(turned(model, prove))
    assert (found["Transpose"], found["Unsqueeze"], found["Conv"]) == (3, 1, 2)


def test_who_turns_a_result_again_reads_it_as_it_lay(parse, prove) -> None:
    model = parse(
        f"""g (float[n,9,{K}] x) => (float y, float z)
        {{ a = MatMul(x, w) z = Softmax(a) t = Transpose<perm = [0, 2, 1]>(a) y = Softmax(t) }}""",
        {"w": floats(K, N)},
    )
    assert operations(turned(model, prove))["Transpose"] == 2


def test_what_was_flattened_for_the_layer_is_not(parse, prove) -> None:
    model = parse(
        f"g (float[n,{K},4,4] x) => (float y) {{ a = GlobalAveragePool(x) c = Flatten(a) y = Gemm(c, w) }}",
        {"w": floats(K, N)},
    )
    assert [n.op_type for n in turned(model, prove).graph] == ["GlobalAveragePool", "Conv", "Squeeze"]


def test_steps_of_a_recurrent_layer_share_their_weights_and_blocks(parse, prove) -> None:
    arrays = {"w": floats(1, 3 * N, K), "r": floats(1, 3 * N, N), "b": floats(1, 6 * N)}
    model = parse(
        f"g (float[4,n,{K}] x) => (float y) {{ [gru] y = GRU<hidden_size = {N}>(x, w, r, b) }}", arrays
    )
    rules = ["unroll-recurrent", "linear-as-convolution"]
    assert rules_for(model, rules) == tuple(rules), "the second finds what the first makes"
    result = apply_rules(shapes.infer(model), rules, prove).model
    assert operations(result)["MatMul"] == 0 and operations(result)["Conv"] > 4
    convs = [node for node in result.graph if node.op_type == "Conv"]
    assert len({node.inputs[1] for node in convs}) < len(convs)
    assert {block.id for block in partition(shapes.infer(result))} == {"gru/inputs", "gru/steps"}


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul(x, z)",  # of two activations
        "y = MatMul(w, x)",  # from the left
        "y = MatMul(x, f)",  # a batch of matrices
        "a = MatMul(x, w) y = Add(a, w)",  # the matrix is read as numbers, too
        "y = Gemm<alpha = 2.0>(x, w, b)",
        "y = Gemm<transA = 1>(x, w, b)",
        "y = Gemm(x, w, full)",  # what is added differs from row to row
        "c = Gemm(x, w) d = Gemm<transB = 1>(x, w) y = Add(c, d)",
    ],
)
def test_what_stays(parse, body: str) -> None:
    arrays = {"w": floats(K, K), "b": floats(K), "full": floats(K, K), "f": floats(2, K, K)}
    model = shapes.infer(
        parse(f"g (float[{K},{K}] x, float[{K},{K}] z) => (float y) {{ {body} }}", read_by(body, arrays))
    )
    before = operations(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not apply_rules(model, ["linear-as-convolution"], lambda *_: "must not be asked").rewrites
    assert operations(model) == before


def test_an_addend_that_is_no_bias_stays(parse, prove) -> None:
    model = parse(
        f"g (float[n,9,{K}] x) => (float y) {{ a = MatMul(x, w) y = Add(a, b) }}",
        {"w": floats(K, N), "b": floats(9, N)},
    )
    assert operations(turned(model, prove))["Add"] == 1


def test_a_result_that_others_read_keeps_its_name(parse, prove) -> None:
    model = parse(
        f"g (float[n,9,{K}] x) => (float a, float y) {{ a = MatMul(x, w) y = Relu(a) }}", {"w": floats(K, N)}
    )
    assert operations(turned(model, prove))["Relu"] == 1
