"""Climbing: what is kept, when it ends, and that an earlier climb can be followed to the same plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deploy.data.interval import Drop
from deploy.errors import BackendError
from deploy.graph.qdq import insert
from deploy.progress import SILENT
from deploy.quantize import ladder as ladders
from deploy.quantize.decide import decide
from deploy.quantize.ladder import Ladder, climb, climb_again, climb_until
from deploy.quantize.patience import Patience
from deploy.quantize.retrain import Retraining, planned_epochs
from deploy.spec.document import render
from deploy.spec.ladder import ALL, CHEAP

OUTLIERS = np.where(np.arange(16) % 8 == 3, 60.0, 1.0).astype(np.float32)


@pytest.fixture
def built(graph, quantize, unsigned, as_subject, random_feeds):
    """A norm with outlying channels before two products, which SmoothQuant mends; and its samples."""
    rng = np.random.default_rng(0)
    model = graph(
        """g (float[N,6,16] x) => (float[N,6,16] y) { [n] h = LayerNormalization(x, g, b)
        [p] p = MatMul(h, w1) [q] q = MatMul(h, w2) [s] s = Add(p, q)
        [r] r = Relu(s) [y] y = MatMul(r, w3) }""",
        {
            "g": OUTLIERS,
            "b": np.zeros(16, np.float32),
            **{f"w{i}": (rng.standard_normal((16, 16)) / 4).astype(np.float32) for i in (1, 2, 3)},
        },
    )
    result = quantize(model, feeds=random_feeds(model, 64))
    return as_subject(model, unsigned, result), result.dataset


@pytest.fixture
def ladder(built):
    return Ladder(rungs=CHEAP, dataset=built[1], samples=64, training=Retraining(seconds=5.0))


def noise(subject, session, random_feeds, sqnr) -> float:
    """Signal over noise of everything INT8, in decibels, on samples that nobody has seen."""
    feeds = random_feeds(subject.graph, 32, seed=5)
    found = subject.quantization(())
    quantized = insert(found.graph, found.assignment.tensors, found.assignment.codes)
    return sqnr(session(subject.graph).run(None, feeds)[0], session(quantized).run(None, feeds)[0])


def test_what_is_kept_wins_on_samples_that_nobody_saw(built, ladder, session, random_feeds, sqnr):
    subject, _ = built
    plain = noise(subject, session, random_feeds, sqnr)
    stands = list(climb(ladder, subject))
    assert [stand.record.name for stand in stands] == list(CHEAP)
    top = stands[-1].subject
    kept = [stand.record for stand in stands if stand.record.kept]
    assert "smooth" in [record.name for record in kept]
    assert top.refinement.rungs == tuple(record.name for record in kept)
    won = noise(top, session, random_feeds, sqnr) - plain
    assert won == pytest.approx(sum(record.gain_db for record in kept), abs=2.5)
    for stand in stands:
        assert stand.record.kept or stand.record.why or stand.record.gain_db < 0.5


def test_nobody_climbs_where_the_budget_holds(built, ladder):
    subject, _ = built
    same, records = climb_until(ladder, subject, lambda s: Drop(0.0, 0.0, 0.0), 0.01)
    assert same is subject and records == ()


def test_the_climb_ends_where_the_budget_holds(built, ladder):
    subject, _ = built
    scored = []

    def score(s):
        scored.append(s.refinement.rungs)
        drop = 0.0 if "smooth" in s.refinement.rungs else 0.5
        return Drop(drop, drop, drop)

    top, records = climb_until(ladder, subject, score, 0.01)
    assert top.refinement.rungs[-1] == "smooth"
    assert records[-1].name == "smooth" and records[-1].drop == 0.0
    assert scored[0] == () and len(scored) == 1 + len(top.refinement.rungs), "only what is kept is scored"


def test_a_rung_is_left_out_where_the_score_is_worse_by_more_than_chance(built, ladder):
    subject, _ = built

    def score(s):
        rungs = s.refinement.rungs
        if "smooth" in rungs:
            return Drop(0.9, 0.6, 1.0)
        return Drop(0.55, 0.4, 0.7) if rungs else Drop(0.5, 0.4, 0.6)

    top, records = climb_until(ladder, subject, score, 0.01)
    found = {record.name: record for record in records}
    assert not found["smooth"].kept and found["smooth"].gain_db > 0.5
    assert found["smooth"].why == "the score is worse by it, drop +0.9000"
    assert top.refinement.rungs == tuple(record.name for record in records if record.kept)


def test_rungs_are_not_begun_when_time_is_over(built, ladder):
    stands = list(climb(replace(ladder, patience=Patience(0.0)), built[0]))
    assert {s.record.why for s in stands} == {"the time for choosing was over"}
    assert stands[-1].subject is built[0]


def test_a_rung_that_wins_nothing_is_left_out(graph, quantize, unsigned, as_subject, random_feeds):
    model = graph("g (float[N,8] x) => (float[N,8] y) { [m] y = MatMul(x, w) }", {"w": (8, 8)})
    result = quantize(model, feeds=random_feeds(model, 64))
    subject = as_subject(model, unsigned, result)
    ladder = Ladder(rungs=("equalize", "smooth", "split"), dataset=result.dataset, samples=64)
    stands = list(climb(ladder, subject))
    assert all(not s.record.kept and s.record.why for s in stands)
    assert stands[-1].subject is subject


def test_a_rung_that_fails_is_told_and_the_next_one_tried(built, ladder, monkeypatch):
    def fails(*_):
        raise BackendError("the kernel is out of order", hint="wait")

    monkeypatch.setitem(ladders._RUNGS, "equalize", fails)
    stands = list(climb(replace(ladder, rungs=("equalize", "smooth")), built[0]))
    assert stands[0].record.why == "it failed: the kernel is out of order"
    assert stands[1].record.kept


def test_an_earlier_climb_is_followed_to_the_same_plan(built, ladder, tmp_path):
    subject, dataset = built
    drops = iter([0.5, 0.4, 0.3, 0.2, 0.0, 0.0, 0.0])

    def judge(candidate):
        drop = next(drops)
        return Drop(drop, drop, drop)

    common = {
        "precision": "auto", "max_drop": 0.01, "calibration": dataset, "accept": None, "ladder": ladder,
        "threads": 1, "progress": SILENT,
    }  # fmt: skip
    first = decide(subject, judge=judge, locked=None, workdir=tmp_path / "a", **common)
    rungs = first.subject.refinement.rungs
    assert rungs and first.choices[0].chosen == ", ".join(rungs)
    again = decide(
        subject, judge=None, locked=first.float_blocks, locked_rungs=rungs, workdir=tmp_path / "b", **common
    )
    assert again.subject.refinement.rungs == rungs
    assert render(again.candidate.plan) == render(first.candidate.plan)


def test_corrected_biases_follow_what_is_quantized(graph, quantize, unsigned, as_subject, random_feeds):
    """With some blocks float the correction is found for these candidates, not taken over."""
    pads = "<pads=[1,1,1,1]>"
    model = graph(
        f"g (float[N,4,6,6] x) => (float[N,4,6,6] y) {{ [a] a = Conv{pads}(x, w1) [r] r = Relu(a) "
        f"[y] y = Conv{pads}(r, w2) }}",
        {"w1": (4, 4, 3, 3), "w2": (4, 4, 3, 3)},
    )
    result = quantize(model, feeds=random_feeds(model, 64))
    subject = as_subject(model, unsigned, result)
    top = climb_again(Ladder(rungs=("correct",), dataset=result.dataset, samples=64), subject, ("correct",))
    whole = top.quantization(())
    assert whole is top.quantization(()), "found once"
    part = top.quantization(top.int8_blocks()[1:])
    assert whole.assignment.tensors.keys() > part.assignment.tensors.keys()
    plain = subject.quantization(())
    assert plain.graph is model and whole.graph is not model
    assert whole.assignment.codes.keys() > plain.assignment.codes.keys(), "a bias where there was none"


@pytest.mark.parametrize("name", ["round", "train"])
def test_rungs_that_train(built, ladder, name):
    """They leave whole assignments of the same values; what they won is for the climb to judge."""
    pytest.importorskip("torch")
    subject, _ = built
    top = climb_again(ladder, subject, (name,))
    before, after = subject.assignment(()), top.assignment(())
    assert before.tensors.keys() == after.tensors.keys()
    assert all(t.digest is None or t.origin for t in after.tensors.values())
    assert top.refinement.rungs == (name,)
    assert set(ALL) > {name}


def test_training_fits_its_time(built):
    subject, _ = built
    assert planned_epochs(subject.graph, 64, Retraining(seconds=60.0)) == 20
    assert planned_epochs(subject.graph, 10**9, Retraining(seconds=1.0)) == 0
