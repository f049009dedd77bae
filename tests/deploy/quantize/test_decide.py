"""The decision with judges whose verdicts are known: searching, refusals, locks and precisions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from deploy.data.interval import Drop
from deploy.progress import SILENT
from deploy.quantize.candidate import Candidate
from deploy.quantize.decide import Decided, decide, decide_float
from deploy.spec.document import render

PAD = "<pads=[1,1,1,1]>"
COUNT = 6
NET = "g (float[N,4,6,6] x) => (float[N,4,6,6] y) { " + "  ".join(
    f"[c{i}] {'y' if i == COUNT else f'v{i}'} = Conv{PAD}({'x' if i == 1 else f'v{i - 1}'}, w{i})"
    for i in range(1, COUNT + 1)
) + " }"  # fmt: skip


@pytest.fixture
def built(graph, quantize, unsigned, as_subject):
    """The subject, and the data it was calibrated on."""
    model = graph(NET, {f"w{i}": (4, 4, 3, 3) for i in range(1, COUNT + 1)})
    result = quantize(model)
    subject = as_subject(model, unsigned, result)
    return subject, result.dataset


class Judge:
    """Scores by the number of blocks that stay float; remembers which candidates it saw."""

    def __init__(self, *drops: float) -> None:
        self.drops = drops
        self.seen: list[int] = []

    def __call__(self, candidate: Candidate) -> Drop:
        count = sum(b.precision == "float" for b in candidate.plan.blocks)
        self.seen.append(count)
        drop = self.drops[min(count, len(self.drops) - 1)]
        return Drop(drop, drop, drop)


@pytest.fixture
def decided(built, tmp_path):
    subject, dataset = built

    def run(precision="auto", judge=None, accept=None, locked=None, calibration=dataset, name="w") -> Decided:
        return decide(
            subject,
            precision=precision,
            max_drop=0.01,
            calibration=calibration,
            judge=judge,
            accept=accept,
            locked=locked,
            workdir=tmp_path / name,
            threads=1,
            progress=SILENT,
        )

    return run


def test_all_int8_where_nothing_is_lost(decided):
    judge, accept = Judge(0.0), Judge(0.002)
    result = decided(judge=judge, accept=accept)
    assert result.float_blocks == frozenset()
    assert (judge.seen, accept.seen) == ([0], [0])
    assert result.drop == Drop(0.002, 0.002, 0.002), "what counts is the eval data"
    assert result.within_budget
    assert result.candidate.artifact.main.is_file()


def test_the_noisiest_blocks_go_first(decided):
    result = decided(judge=Judge(0.5, 0.5, 0.0), accept=Judge(0.0))
    noise = {b.id: b.sqnr_db for b in result.candidate.plan.blocks}
    worst = sorted(noise, key=lambda block: noise[block])[:2]
    assert result.float_blocks == frozenset(worst)
    kept = {b.id for b in result.candidate.plan.blocks if b.precision == "float"}
    assert kept == result.float_blocks


def test_eval_data_that_refuse_are_looked_at_again(decided):
    judge, accept = Judge(0.0), Judge(0.5, 0.5, 0.5, 0.5, 0.001)
    result = decided(judge=judge, accept=accept)
    assert accept.seen == [0, 1, 2, 4]
    assert len(result.float_blocks) == 4
    assert result.within_budget
    assert sum("eval data refused" in c.reason for c in result.choices) == 3


def test_eval_data_that_always_refuse_end_with_all_float(decided):
    accept = Judge(0.5)
    result = decided(judge=Judge(0.0), accept=accept)
    assert accept.seen == [0, 1, 2, 4, 6]
    assert not result.candidate.plan.quantized
    assert not result.within_budget
    assert result.drop is not None
    assert result.drop.drop == 0.5


def test_eval_data_alone_decide_where_there_are_no_others(decided):
    accept = Judge(0.5, 0.5, 0.0)
    result = decided(accept=accept)
    assert accept.seen == [0, 1, 2]
    assert len(result.float_blocks) == 2


def test_a_score_that_is_no_number_is_no_pass(decided):
    result = decided(judge=Judge(0.0), accept=Judge(math.nan, 0.0))
    assert len(result.float_blocks) == 1


def test_without_anybody_to_judge_all_is_int8(decided):
    result = decided()
    assert (result.float_blocks, result.drop, result.within_budget) == (frozenset(), None, True)
    assert result.candidate.plan.quantized


@pytest.mark.parametrize("precision", ["float", "fp16"])
def test_float_was_asked_for(precision, decided):
    judge, accept = Judge(0.0), Judge(0.0)
    result = decided(precision, judge=judge, accept=accept)
    assert not result.candidate.plan.quantized
    assert (judge.seen, accept.seen) == ([], [COUNT])
    assert len(result.float_blocks) == COUNT


def test_no_data_no_int8(decided):
    assert not decided("int8", calibration=None).candidate.plan.quantized


def test_int8_whatever_it_costs(decided):
    judge, accept = Judge(0.3), Judge(0.4)
    result = decided("int8", judge=judge, accept=accept)
    assert result.float_blocks == frozenset()
    assert (judge.seen, accept.seen) == ([0], [0])
    assert not result.within_budget
    assert {b.precision for b in result.candidate.plan.blocks} == {"int8"}


def test_mixed_is_guarded(decided):
    assert len(decided("mixed", judge=Judge(0.5, 0.0)).float_blocks) == 1


@pytest.mark.parametrize("drops", [(0.0,), (0.5, 0.5, 0.5, 0.0), (0.5,) * COUNT + (0.0,)])
def test_a_lock_replays_the_choice_without_searching(drops, decided):
    first = decided(judge=Judge(*drops), accept=Judge(0.0), name="first")
    judge, accept = Judge(0.9), Judge(0.9)
    again = decided(judge=judge, accept=accept, locked=first.float_blocks, name="again")
    assert again.float_blocks == first.float_blocks
    assert (judge.seen, len(accept.seen)) == ([], 1)
    assert render(again.candidate.plan) == render(first.candidate.plan)
    one, two = first.candidate.artifact.main, again.candidate.artifact.main
    assert one.read_bytes() == two.read_bytes()
    assert not again.within_budget, "a locked build is scored all the same"


def test_nothing_to_quantize(built, tmp_path):
    subject, dataset = built
    result = decide(
        replace(subject, chains=[]), precision="auto", max_drop=0.01, calibration=dataset, judge=Judge(0.0),
        accept=None, locked=None, workdir=tmp_path, threads=1, progress=SILENT,
    )  # fmt: skip
    assert not result.candidate.plan.quantized
    assert result.float_blocks == frozenset()


def test_the_float_artifact_alone(built, tmp_path):
    judge = Judge(0.02)
    result = decide_float(built[0], judge, None, 0.01, tmp_path)
    assert not result.candidate.plan.quantized
    assert judge.seen == [COUNT]
    assert not result.within_budget
