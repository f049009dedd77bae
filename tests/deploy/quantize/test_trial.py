"""Candidates on the way: what is built again, and what is left of them."""

from __future__ import annotations

import time

import pytest

from deploy.data.interval import Drop
from deploy.quantize import trial
from deploy.quantize.choose import UNTRIED
from deploy.quantize.patience import Patience
from deploy.quantize.trial import Search

NET = """g (float[N,4,6,6] x) => (float[N,4,6,6] y) {
  [a] m = Conv<pads=[1,1,1,1]>(x, v)  [b] y = Conv<pads=[1,1,1,1]>(m, w)
}"""
FORMS = (frozenset(), frozenset({"a"}), frozenset({"b"}))


@pytest.fixture
def subject(graph, quantize, unsigned, as_subject):
    model = graph(NET, {"v": (4, 4, 3, 3), "w": (4, 4, 3, 3)})
    return as_subject(model, unsigned, quantize(model))


@pytest.mark.parametrize("large", [False, True])
def test_what_is_asked_for_again(subject, large, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trial, "_KEPT_BYTES", 0 if large else 1 << 20)
    made = []
    lowered = trial.lowered
    monkeypatch.setattr(trial, "lowered", lambda s, f, *a, **k: made.append(f) or lowered(s, f, *a, **k))
    search = Search(lambda candidate: Drop(0.0, 0.0, 0.0), tmp_path / "work")
    for form in (*FORMS, *FORMS):
        search.score(subject, form)
    assert made == list(FORMS)
    chosen = search.candidate(subject, FORMS[0], {})
    assert made == [*FORMS, *(FORMS[:1] if large else ())]
    assert chosen.artifact.main.is_file()
    assert {b.id for b in chosen.plan.blocks if b.precision == "float"} == FORMS[0]
    assert len(list((tmp_path / "work").iterdir())) == (1 if large else 3)
    assert [t.float_blocks for t in search.ending_with(chosen, subject, FORMS[0], None)] == [
        *FORMS[1:],
        FORMS[0],
    ]


def test_without_patience_only_floats_are_tried(subject, tmp_path, monkeypatch) -> None:
    judged = []

    def judge(candidate) -> Drop:
        judged.append(candidate)
        return Drop(0.0, 0.0, 0.0)

    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    patience = Patience(60.0)
    search = Search(judge, tmp_path / "work", patience=patience)
    patience.begin()
    known = search.score(subject, FORMS[1])
    clock[0] = 60.0
    assert search.score(subject, FORMS[1]) == known
    assert not patience.lost
    assert search.score(subject, FORMS[0]) is UNTRIED
    assert patience.lost
    assert len(judged) == 1
    assert search.score(subject, frozenset({"a", "b"})) == known
    assert len(judged) == 2
    patience.begin()
    assert search.score(subject, FORMS[0]) == known
