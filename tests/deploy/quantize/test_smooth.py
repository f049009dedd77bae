"""SmoothQuant: the same function, and a norm's outlying channels no longer ruin the products behind."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.quantize import smooth

ROWS = "float[N,6,16]"
OUTLIERS = np.where(np.arange(16) % 8 == 3, 60.0, 1.0)


def block(graph, residual=False, turned=False):
    """A norm with two outlying channels in front of three products; behind a residual, too, if wished."""
    rng = np.random.default_rng(0)
    w = {f"w{i}": (rng.standard_normal((16, 16)) / 4).astype(np.float32) for i in "qkv"}
    sums = "[s1] s = Add(q, k) [s2] t = Add(s, v)"
    ends = f"{sums} [s3] u = Add(t, h)" if residual else f"{sums} [s3] u = Add(t, t)"
    return graph(
        f"""g ({ROWS} x) => ({ROWS} u) {{ [n] h = LayerNormalization(x, g, b)
        [q] q = MatMul(h, wq) [k] k = MatMul(h, wk) [v] v = MatMul(h, wv) {ends} }}""",
        {"g": OUTLIERS.astype(np.float32), "b": np.zeros(16, np.float32), **w},
    )


def raised(model, whole, runtime, **more):
    return smooth.apply(
        model, whole.placement, runtime.quant, whole.dataset, observer="minmax", samples=64, **more
    )


@pytest.fixture
def noise(session, random_feeds, sqnr, quantize):
    def of(model, reference, runtime) -> float:
        feeds = random_feeds(reference, 32, seed=5)
        excluded = [n.name for n in model.graph if n.op_type == "Add"]
        whole = quantize(model, runtime, feeds=random_feeds(reference, 64), excluded=excluded)
        return sqnr(session(reference).run(None, feeds)[0], session(whole.qdq).run(None, feeds)[0])

    return of


def same(model, other, session, feeds) -> bool:
    a, b = session(model, False).run(None, feeds)[0], session(other, False).run(None, feeds)[0]
    return bool(np.abs(a - b).max() <= 1e-5 * np.abs(a).max())


def test_a_norm_takes_the_factors(graph, quantize, session, random_feeds, unsigned, noise):
    model = block(graph)
    rung = raised(model, quantize(model, feeds=random_feeds(model, 64)), unsigned)
    assert [step.place for step in rung.steps] == ["q, k, v"], "products that read one value share factors"
    assert "into the norm" in rung.steps[0].what
    assert len(rung.result.graph) == len(model.graph)
    assert same(model, rung.result, session, random_feeds(model, 4, seed=9))
    assert noise(rung.result, model, unsigned) > noise(model, model, unsigned) + 3
    norm = next(n for n in rung.result.graph if n.op_type == "LayerNormalization")
    scale = norm.inputs[1].const_value.numpy()
    assert scale.max() / scale.min() < 20


def test_where_others_read_the_norm_a_mul_bears_them(
    graph, quantize, session, random_feeds, symmetric, noise
):
    model = block(graph, residual=True)
    whole = quantize(model, feeds=random_feeds(model, 64))
    rung = raised(model, whole, symmetric)
    assert [n.op_type for n in rung.result.graph].count("Mul") == 1
    assert same(model, rung.result, session, random_feeds(model, 4, seed=9))
    assert not raised(model, whole, symmetric, insert=False).changed


def test_a_lone_scale_is_a_norm_too(graph, quantize, session, random_feeds, unsigned):
    """As of an RMS norm: x / rms(x) * g, spelled out."""
    model = graph(
        f"""g ({ROWS} x) => ({ROWS} y) {{ [p] p = Mul(x, x) [m] m = ReduceMean(p, axes) [r] r = Sqrt(m)
        [d] d = Div(x, r) [g] h = Mul(d, g) [y] y = MatMul(h, w) }}""",
        {"g": OUTLIERS.astype(np.float32), "w": (16, 16), "axes": np.int64([2])},
    )
    rung = raised(model, quantize(model, feeds=random_feeds(model, 64)), unsigned)
    assert len(rung.steps) == 1 and "into the norm" in rung.steps[0].what
    assert same(model, rung.result, session, random_feeds(model, 4, seed=9))


def test_like_channels_are_left_alone(graph, quantize, random_feeds, unsigned):
    model = graph(
        f"g ({ROWS} x) => ({ROWS} y) {{ [n] h = LayerNormalization(x, g, b) [y] y = MatMul(h, w) }}",
        {"g": np.ones(16, np.float32), "b": np.zeros(16, np.float32), "w": (16, 16)},
    )
    assert raised(model, quantize(model, feeds=random_feeds(model, 64)), unsigned).steps == ()


def test_gemm_takes_factors_whichever_way_its_weights_lie(graph, quantize, session, random_feeds, unsigned):
    for turned in (0, 1):
        model = graph(
            f"""g (float[N,16] x) => (float[N,5] y) {{ [n] h = LayerNormalization(x, g, b)
            [y] y = Gemm<transB={turned}>(h, w, c) }}""",
            {"g": OUTLIERS.astype(np.float32), "b": np.zeros(16, np.float32),
             "w": (5, 16) if turned else (16, 5), "c": (5,)},
        )  # fmt: skip
        rung = raised(model, quantize(model, feeds=random_feeds(model, 256)), unsigned)
        assert rung.changed
        assert same(model, rung.result, session, random_feeds(model, 4, seed=9))
