import numpy as np
import onnx_ir as ir
import pytest

from deploy.graph import shapes, spelling
from deploy.graph.clean import clean


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def cleaned(model: ir.Model, prove) -> ir.Model:
    done = clean(model, prove)
    assert all(rewrite.kept for rewrite in done.rewrites)
    return done.model


def test_computed_zeros_are_no_bias(parse, prove) -> None:
    """As torch.onnx.export writes a convolution without bias; 512 zeros are too many to be folded."""
    text = """g (float[n,3,4,4] x) => (float[n,512,4,4] y) <float zero = {0}, int64[1] size = {512}> {
        b = CastLike(zero, x)
        e = Expand(b, size)
        y = Conv(x, w, e)
    }"""
    model = parse(text, {"w": weights(512, 3, 1, 1)})
    after = cleaned(model, prove)
    assert ops(after) == ["Conv"] and len(after.graph[0].inputs) == 2


def test_zeros_that_are_a_parameter_stay(parse) -> None:
    text = "g (float[n,3,4,4] x) => (float[n,2,4,4] y) { y = Conv(x, w, b) }"
    model = parse(text, {"w": weights(2, 3, 1, 1), "b": np.zeros(2, np.float32)})
    assert spelling.drop_zero_biases(model) == 0


def test_other_computed_biases_stay(parse) -> None:
    text = """g (float[n,3,4,4] x) => (float[n,2,4,4] y) <float one = {1}, int64[1] size = {2}> {
        e = Expand(one, size)
        y = Conv(x, w, e)
    }"""
    assert spelling.drop_zero_biases(parse(text, {"w": weights(2, 3, 1, 1)})) == 0


@pytest.mark.parametrize(
    ("axes", "keep", "found"),
    [
        ("2, 3", 1, ["GlobalAveragePool", "Exp"]),
        ("-1, -2", 1, ["GlobalAveragePool", "Exp"]),
        ("-1, 2", 0, ["GlobalAveragePool", "Flatten", "Exp"]),
        ("1, 2", 1, ["ReduceMean", "Exp"]),
        ("1, 2, 3", 1, ["ReduceMean", "Exp"]),
    ],
)
def test_a_mean_over_the_image_is_a_pool(parse, prove, axes: str, keep: int, found: list[str]) -> None:
    text = f"""g (float[n,3,4,5] x) => (float y) <int64[{len(axes.split(","))}] a = {{{axes}}}> {{
        h = ReduceMean<keepdims = {keep}>(x, a)
        y = Exp(h)
    }}"""
    model = shapes.infer(parse(text))
    after = model.clone()
    spelling.pool_globally(after)
    assert ops(after) == found and prove(model, after) is None


@pytest.mark.parametrize(
    ("sizes", "split"),
    [("n,4,17,16", "-1, 4, 16, 17"), ("1,n,4,17,16", "-1, 4, 16, 17"), ("n,4,17,16", "-1, 2, 2, 16, 17")],
)
def test_keys_of_attention_are_transposed_once(parse, prove, sizes: str, split: str) -> None:
    text = f"""g (float[{sizes}] x) => (float y)
        <int64[3] joined = {{-1, 17, 16}}, int64[{len(split.split(","))}] split = {{{split}}}> {{
        a = Reshape(x, joined)
        b = Transpose<perm = [0, 2, 1]>(a)
        c = Reshape(b, split)
        y = Exp(c)
    }}"""
    model = shapes.infer(parse(text))
    after = model.clone()
    assert spelling.merge_batched_transposes(after) == 1
    assert ops(after) == ["Transpose", "Reshape", "Exp"] and prove(model, after) is None
    again = cleaned(model, prove)
    assert ops(again) == (["Transpose", "Exp"] if sizes[0] == "n" and "2, 2" not in split else ops(after))


@pytest.mark.parametrize(
    ("joined", "permutation", "split"),
    [
        ("-1, 17, 16", "1, 0, 2", "17, -1, 4, 16"),  # the joined axes move
        ("-1, 16, 17", "0, 2, 1", "-1, 4, 17, 16"),  # the rest is not what it was
        ("-1, 17, 16", "0, 2, 1", "0, 16, -1"),  # a size is copied
    ],
)
def test_others_are_not_taken_for_it(parse, joined: str, permutation: str, split: str) -> None:
    text = f"""g (float[n,4,17,16] x) => (float y)
        <int64[3] joined = {{{joined}}}, int64[{len(split.split(","))}] split = {{{split}}}> {{
        a = Reshape(x, joined)
        b = Transpose<perm = [{permutation}]>(a)
        y = Reshape(b, split)
    }}"""
    assert spelling.merge_batched_transposes(shapes.infer(parse(text))) == 0


def test_a_computed_reshape_that_allows_zeros_becomes_constant(parse, prove) -> None:
    """As torch.onnx.export flattens; no size in it is zero, so the flag says nothing."""
    text = """g (float[n,6,1,1] x) => (float[n,6] y) <int64[1] six = {6}> {
        s = Shape<start = 0, end = 1>(x)
        t = Concat<axis = 0>(s, six)
        y = Reshape<allowzero = 1>(x, t)
    }"""
    after = cleaned(parse(text), prove)
    assert ops(after) == ["Reshape"] and "allowzero" not in after.graph[0].attributes


def test_zeros_that_are_meant_keep_their_flag(parse) -> None:
    text = "g (float[0,6] x) => (float[6,0] y) <int64[2] t = {6, 0}> { y = Reshape<allowzero = 1>(x, t) }"
    model = parse(text)
    assert spelling.plain_targets(model) == 0 and "allowzero" in model.graph[0].attributes
