"""Races with clocks of our own: what is told of them where they were not clear."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from deploy.measure.latency import Timing
from deploy.stages import doubts as module
from deploy.stages.doubts import doubts, too_few
from deploy.stages.entrants import Entrant, Race
from deploy.stages.job import Job

JOB = cast(Job, None)


def timing(ms: float, spread: float = 0.0, seed: int = 0) -> Timing:
    runs = ms * (1 + spread * np.random.default_rng(seed).standard_normal(200))
    return Timing(runs, runs[::10])


def alternating(even: float, odd: float) -> Timing:
    runs = np.resize([even, odd], 200)
    return Timing(runs, runs[:20])


def named(name: str) -> Entrant:
    return cast(Entrant, SimpleNamespace(name=name))


@pytest.fixture(autouse=True)
def _nobody_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "fits", lambda job, entrant, held: entrant.name != "over")


def race(**times: Timing) -> Race:
    return Race(
        tuple(named(name) for name in times if name != "given"), times={"as given": times["given"], **times}
    )


def test_a_clear_race_leaves_none() -> None:
    held = race(given=timing(4.0), fast=timing(1.0, 0.01), slow=timing(1.2, 0.01, 1))
    assert doubts(JOB, named("fast"), held) == ()
    assert doubts(JOB, named("fast"), Race(())) == ()


def test_who_may_be_as_fast_is_told_with_the_interval() -> None:
    held = race(
        given=timing(4.0), fast=alternating(0.95, 1.05), alike=alternating(1.05, 0.95), over=alternating(1, 1)
    )
    (told,) = doubts(JOB, named("fast"), held)
    assert told.startswith("alike may be as fast: ")
    assert "times the speed of fast (95 %: 0." in told


def test_a_busy_machine_is_told() -> None:
    held = race(given=timing(4.0, 0.5), fast=timing(1.0, 0.01))
    (told,) = doubts(JOB, named("fast"), held)
    assert told.startswith("the machine was busy: half of the runs lie ")


def chosen(grain: float, budget: float, *floats: str) -> tuple[str, ...]:
    examiner = SimpleNamespace(grain=grain, metric="top1")
    request = SimpleNamespace(budget=SimpleNamespace(max_drop=budget))
    job = cast(Job, SimpleNamespace(judge=examiner, accept=None, request=request))
    return too_few(job, cast(Entrant, SimpleNamespace(decided=SimpleNamespace(float_blocks=floats))))


def test_samples_too_few_for_the_budget_are_told() -> None:
    (told,) = chosen(1 / 64, 0.01, "a")
    assert told.startswith("one of the 64 samples that choose is worth 0.0156 of top1, more than the budget")
    assert "give 100 samples or more" in told
    assert chosen(1 / 64, 0.01) == (), "where all is INT8 nothing was refused"
    assert chosen(1 / 64, 0.02, "a") == chosen(0.0, 0.01, "a") == chosen(1 / 64, 0.0, "a") == ()
