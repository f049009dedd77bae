"""What rungs report, and the noise of a whole network against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deploy.quantize.rung import Rung, Step, output_noise


def test_gains_are_decibels():
    assert Step("a", "halved", 2.0, 0.2).gain == pytest.approx(10)
    assert Step("a", "all", 2.0, 0.0).gain == math.inf
    assert Step("a", "left alone").gain == 0
    assert not Rung("r", None, (Step("a", "left alone"),), 0).changed
    assert Rung("r", None, (Step("a", "halved", 2.0, 1.0),), 0).changed


def test_noise_of_a_network(graph, quantize, session, random_feeds, unsigned):
    model = graph("g (float[N,8] x) => (float[N,4] y) { [y] y = Gemm(x, w, b) }", {"w": (8, 4), "b": (4,)})
    whole = quantize(model, unsigned)
    feeds = random_feeds(model)
    exact, got = (session(m, False).run(None, feeds)[0] for m in (model, whole.qdq))
    share = np.square(exact - got).sum() / np.square(exact).sum()
    assert output_noise(model, whole.qdq, whole.dataset, samples=16) == pytest.approx(share, rel=0.05)
