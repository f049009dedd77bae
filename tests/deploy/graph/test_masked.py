"""Channels zeroed where they are read, against weights zeroed by hand and norms in closed form."""

from __future__ import annotations

import numpy as np

from deploy.graph.groups import find_groups
from deploy.graph.masked import masked


def test_a_mask_is_as_good_as_columns_of_zeros(parse, run):
    rng = np.random.default_rng(0)
    shapes = {"w": (6, 3, 3, 3), "b": (6,), "u": (4, 6, 1, 1), "c": (4,)}
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    text = """g (float[n, 3, 8, 8] x) => (float[n, 4, 6, 6] y) {
        p = Conv (x, w, b)  q = Sigmoid (p)  y = Conv (q, u, c) }"""
    model = parse(text, arrays)
    groups = find_groups(model)
    gone = [1, 4]
    hidden = masked(model, groups, [groups.families[0].atoms[i].label for i in gone])
    by_hand = arrays["u"].copy()
    by_hand[:, gone] = 0
    x = {"x": rng.standard_normal((2, 3, 8, 8)).astype(np.float32)}
    (a,), (b,) = run(hidden, x), run(parse(text, arrays | {"u": by_hand}), x)
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_norm_is_over_what_is_kept(parse, run):
    """Layer normalization of the four features left, in float64."""
    rng = np.random.default_rng(1)
    shapes = {"w": (5, 6), "s": (6,), "o": (6,), "u": (6, 3)}
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    model = parse(
        """g (float[n, 5] x) => (float[n, 3] y) {
            a = MatMul (x, w)  b = LayerNormalization <axis = -1, epsilon = 0.001> (a, s, o)
            y = MatMul (b, u) }""",
        arrays,
    )
    groups = find_groups(model)
    assert groups.families[0].restricted
    kept = [0, 1, 3, 5]
    hidden = masked(model, groups, [groups.families[0].atoms[i].label for i in (2, 4)])
    x = rng.standard_normal((7, 5)).astype(np.float32)
    (y,) = run(hidden, {"x": x})
    w, s, o, u = (arrays[k].astype(np.float64) for k in ("w", "s", "o", "u"))
    a = (x @ w)[:, kept]
    normal = (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 0.001)
    np.testing.assert_allclose(y, (normal * s[kept] + o[kept]) @ u[kept], atol=1e-5)


def test_a_norm_that_is_written_out_is_over_what_is_kept_too(parse, run):
    rng = np.random.default_rng(2)
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in {"w": (5, 6), "u": (6, 3)}.items()}
    model = parse(
        """g (float[n, 5] x) => (float[n, 3] y) {
            a = MatMul (x, w)  m = ReduceMean (a, last)  d = Sub (a, m)  q = Mul (d, d)
            v = ReduceMean (q, last)  e = Add (v, eps)  r = Sqrt (e)  b = Div (d, r)  y = MatMul (b, u) }""",
        arrays | {"last": np.array([-1]), "eps": np.float32(1e-3).reshape(())},
    )
    groups = find_groups(model)
    assert groups.families[0].restricted
    kept = [0, 2, 3, 5]
    x = rng.standard_normal((7, 5)).astype(np.float32)
    a = (x @ arrays["w"].astype(np.float64))[:, kept]
    normal = (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-3)
    (y,) = run(masked(model, groups, [groups.families[0].atoms[i].label for i in (1, 4)]), {"x": x})
    np.testing.assert_allclose(y, normal @ arrays["u"][kept], atol=1e-5)
