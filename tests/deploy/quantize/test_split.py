"""Concats of unlike ranges: split where readers win, measured against running both plans."""

from __future__ import annotations

import numpy as np

from deploy.quantize import split


def found(whole, runtime):
    int8 = {block.id: "int8" for block in whole.blocks}
    return split.apply(
        whole.model, whole.blocks, int8, whole.chains, runtime, whole.histograms, whole.dataset,
        observer="minmax", samples=16,
    )  # fmt: skip


def detector(graph, ratio: float, behind: str = "[e] y = Exp(k)"):
    """Boxes and scores that one Concat joins."""
    rng = np.random.default_rng(0)
    return graph(
        f"""g (float[N,4,6,6] x) => (float[N,8,6,6] y) {{ [c1] a = Conv(x, w1) [c2] b = Conv(x, w2)
        [k] k = Concat<axis=1>(a, b) {behind} }}""",
        {
            "w1": (rng.standard_normal((4, 4, 1, 1)) / 4).astype(np.float32),
            "w2": (ratio * rng.standard_normal((4, 4, 1, 1)) / 4).astype(np.float32),
            **({"w3": (8, 8, 1, 1)} if "w3" in behind else {}),
        },
    )


def test_boxes_and_scores_read_in_float_are_split(graph, quantize, session, random_feeds, unsigned):
    """A layer reads them too: that is why the Concat would be one of integers."""
    model = detector(graph, 0.01, "[c3] h = Conv(k, w3) [n] y = Neg(k)")
    whole = quantize(model, unsigned)
    rung = found(whole, unsigned)
    assert rung.result == {"k"}
    assert rung.steps[0].gain > 3
    feeds = random_feeds(model)
    exact = session(model, False).run(None, feeds)[0][:, 4:]
    shared = session(whole.qdq, False).run(None, feeds)[0][:, 4:]
    apart = session(quantize(model, unsigned, excluded=rung.result).qdq, False).run(None, feeds)[0][:, 4:]
    assert np.square(apart - exact).mean() < 0.05 * np.square(shared - exact).mean()


def test_a_layer_behind_wins_nothing(graph, quantize, unsigned):
    """It reads one tensor with one scale, split or not."""
    rung = found(quantize(detector(graph, 0.01, "[c3] y = Conv(k, w3)"), unsigned), unsigned)
    assert rung.result == frozenset() and "left" in rung.steps[0].what and not rung.changed


def test_like_operands_are_not_even_tried(graph, quantize, unsigned):
    rung = found(quantize(detector(graph, 0.8, "[n] y = Neg(k)"), unsigned), unsigned)
    assert rung.steps == () and rung.passes == 0
