"""Limits of latency and size: who keeps them, by how much others miss them, and what could not be checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from deploy.bundle.read import Bundle, load_bundle
from deploy.bundle.report.content import report
from deploy.bundle.report.summary import reasons
from deploy.errors import UsageError
from deploy.measure.latency import Timing
from deploy.pipeline import build
from deploy.spec.project import Budget
from deploy.stages.request import Request

Build = Callable[..., Bundle]
NAN = float("nan")


@pytest.fixture
def make(network: Path, images: dict[str, np.ndarray], tmp_path: Path) -> Build:
    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "runtime": "ort", "data": images, "out": tmp_path / "dist",
            "cache": tmp_path / "cache", "measure": False,
        }  # fmt: skip
        return build(network, **{**given, **settings})  # type: ignore[arg-type]

    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """INT8 takes a millisecond, everything else two."""

    def race(contenders: Any, *_: object) -> dict[str, Timing]:
        ms = {name: 1.0 if "int8" in name else 2.0 for name in contenders}
        return {name: Timing(np.full(20, ms[name]), np.full(20, ms[name])) for name in contenders}

    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)
    monkeypatch.setattr("deploy.stages.contest.race", race)
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: True)
    monkeypatch.setattr(
        "deploy.stages.baseline.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
    )


def test_limits_that_are_kept_are_not_spoken_of(make: Build, clock: None) -> None:
    bundle = make(measure=True, tune="off", budget=Budget(max_latency_ms=1.0, max_size_bytes=10**6))
    assert bundle.manifest.verdict.status == "met"
    assert not any("limit" in reason for reason in bundle.manifest.verdict.reasons)
    assert bundle.measurements.missed == {}


def test_a_size_that_nothing_keeps_is_a_miss_by_so_much(make: Build) -> None:
    weighs = make().manifest.size_bytes.artifact
    bundle = make(budget=Budget(max_size_bytes=weighs * 4 // 5))
    assert bundle.manifest.verdict.status == "missed"
    assert "25 % over the limit" in bundle.manifest.verdict.reasons[0]
    assert bundle.manifest.size_bytes.artifact == weighs, "the best model is written all the same"


def test_a_latency_that_nothing_keeps_is_told_without_a_number_in_the_manifest(
    make: Build, clock: None
) -> None:
    bundle = make(measure=True, budget=Budget(max_latency_ms=0.8))
    assert bundle.manifest.verdict.status == "missed"
    assert bundle.manifest.verdict.reasons[0] == "slower than the limit of 0.800 ms"
    told = "1.00 ms (median), 25 % over the limit of 0.800 ms"
    assert bundle.measurements.missed == {"slower than the limit of 0.800 ms": told}
    assert reasons(bundle)[0] == report(load_bundle(bundle.folder)).reasons[0] == told


def test_all_that_is_missed_is_named(make: Build, clock: None) -> None:
    bundle = make(measure=True, budget=Budget(max_latency_ms=0.8, max_size_bytes=10))
    first, second, *_ = bundle.manifest.verdict.reasons
    assert first.startswith("slower") and "times the limit of 10 B" in second


def test_a_latency_that_nobody_can_check_is_said_not_passed(make: Build) -> None:
    bundle = make(target="android", runtime=None, budget=Budget(max_latency_ms=5.0))
    said = next(r for r in bundle.manifest.verdict.reasons if "limit" in r)
    assert said.startswith("the limit of 5.00 ms was not checked: measuring was switched off")
    assert bundle.manifest.verdict.status == "met"


def test_no_limit_no_word(make: Build) -> None:
    assert not any("limit" in reason for reason in make().manifest.verdict.reasons)


def test_a_survey_of_such_a_device_stands_in_for_a_clock(
    make: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy.predict.latency import Costs
    from deploy.spec.overlay import Cost
    from deploy.stages.costs import Foresight, Known

    points = tuple(
        Cost(op=op, precision=p, macs=10**5, bytes=10**4, ms=1.0, spread=0.01)
        for op in ("stem", "conv", "gemm", "elementwise", "convert", "activation", "pool", "move", "reduce")
        for p in ("float", "int8")
    )
    known = Known(Costs(points), "measured on one of these", False, "key", alike=True)
    monkeypatch.setattr("deploy.stages.steps.costs_of", lambda *_: Foresight({"ort": known}))
    kept = make(budget=Budget(max_latency_ms=1e6))
    said = next(r for r in kept.manifest.verdict.reasons if "limit" in r)
    assert "was checked by prediction alone (measured on one of these)" in said
    assert kept.manifest.verdict.status == "met"
    missed = make(budget=Budget(max_latency_ms=1e-3))
    assert missed.manifest.verdict.status == "missed"
    assert all("(expected)" in told for told in missed.measurements.missed.values())


@pytest.mark.parametrize("field", ["max_latency_ms", "max_size_bytes"])
@pytest.mark.parametrize("value", [0, -1, NAN, float("inf"), "much"])
def test_a_limit_that_is_none_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field) as caught:
        Budget.model_validate({field: value})
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "speed"}, "unknown objective 'speed'"),
        ({"tune": "hard"}, "unknown tune 'hard'"),
        ({"pick": 0}, "pick must be a whole number from 1"),
        ({"pick": -3}, "pick must be a whole number from 1"),
        ({"pick": 1, "lock": Path("deploy.lock")}, "both a lock and a point to pick"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_done(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Request(source="model.onnx", target="x86-cpu", **settings)
