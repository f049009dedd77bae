"""Objectives in whole builds: float builds are scored and forms run for their memory where that decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.adapter.protocol import Runner
from deploy.bundle.read import Bundle, load_plan
from deploy.data.interval import Drop
from deploy.measure.latency import Timing
from deploy.pipeline import build
from deploy.spec.project import Budget
from deploy.stages.baseline import Examiner

Build = Callable[..., Bundle]
TAKES = {"as given": 3.0, "ort float": 2.0, "ort int8": 1.0}


@pytest.fixture
def weighed(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Peak bytes by name; filled in by whoever is asked."""
    memory = {"ort int8": 5000, "ort float": 4000}

    def peak(asked: Mapping[str, object], *_: object) -> dict[str, int]:
        assert len(asked) <= 2, "not all at once"
        return {name: memory[name] for name in asked}

    monkeypatch.setattr("deploy.stages.weigh.peak_memory", peak)
    return memory


@pytest.fixture
def drops() -> list[float]:
    """What the data that choose say, by look; the last of all that follow."""
    return [0.005, 0.0]


@pytest.fixture
def make(
    network: Path, images: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    drops: list[float],
) -> Build:  # fmt: skip
    def race(contenders: Any, *_: object) -> dict[str, Timing]:
        return {name: Timing(np.full(20, TAKES[name]), np.full(20, TAKES[name])) for name in contenders}

    original = Examiner.examine

    def examine(self: Examiner, runner: Runner) -> Drop:
        original(self, runner)
        drop = drops[min(len(self._examined), len(drops)) - 1]
        self._examined[-1] = (Drop(drop, drop, drop), self._examined[-1][1])
        return self._examined[-1][0]

    monkeypatch.setattr(Examiner, "examine", examine)
    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)
    monkeypatch.setattr("deploy.stages.contest.race", race)
    monkeypatch.setattr("deploy.stages.tune.variants_of", lambda *_: ())
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: True)
    monkeypatch.setattr(
        "deploy.stages.baseline.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
    )

    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "runtime": "ort", "data": images, "out": tmp_path / "dist",
            "cache": tmp_path / "cache",
        }  # fmt: skip
        return build(network, **{**given, **settings})  # type: ignore[arg-type]

    return run


def precisions(bundle: Bundle) -> set[str]:
    return {block.precision for block in load_plan(bundle).blocks}


def test_for_latency_no_float_build_is_asked_before_it_wins(make: Build, drops: list[float]) -> None:
    bundle = make(tune="quick")
    assert "int8" in precisions(bundle)
    told = {a.name: a.drop for a in bundle.measurements.attempts}
    assert told == {"as given": 0.0, "float": 0.0, "int8": 0.005}, "the fastest float, for the front"


def test_the_most_accurate_ships_and_a_lock_of_it_leads_to_the_same(make: Build, tmp_path: Path) -> None:
    bundle = make(objective="accuracy")
    assert precisions(bundle) == {"float"}
    assert "precision: float (the most accurate within the limits)" in bundle.manifest.verdict.reasons
    assert {a.name: a.outcome for a in bundle.measurements.attempts}["int8"].startswith("less accurate")
    again = make(lock=bundle.folder / "deploy.lock", out=tmp_path / "again")
    assert load_plan(again) == load_plan(bundle)


def test_the_most_accurate_within_a_limit(make: Build) -> None:
    bundle = make(objective="accuracy", budget=Budget(max_latency_ms=1.5))
    assert "int8" in precisions(bundle)


def test_the_least_memory_ships_and_all_of_it_is_told(make: Build, weighed: dict[str, int]) -> None:
    bundle = make(objective="memory")
    assert precisions(bundle) == {"float"}
    assert "precision: float (the least memory within the limits)" in bundle.manifest.verdict.reasons
    found = {a.name: a.peak_memory_bytes for a in bundle.measurements.attempts}
    assert found == {"as given": None, "float": 4000, "int8": 5000}


def test_what_breaks_a_limit_is_not_run_for_its_memory(make: Build, weighed: dict[str, int]) -> None:
    del weighed["ort float"]
    bundle = make(objective="memory", budget=Budget(max_latency_ms=1.5))
    assert "int8" in precisions(bundle)


def test_the_smallest_ships(make: Build) -> None:
    bundle = make(objective="size")
    sizes = {a.name: a.bytes for a in bundle.measurements.attempts if a.name != "as given"}
    assert bundle.manifest.size_bytes.artifact == min(sizes.values())


def test_nothing_is_run_for_its_memory_where_nothing_is_timed(make: Build) -> None:
    bundle = make(objective="memory", measure=False)
    assert all(a.peak_memory_bytes is None for a in bundle.measurements.attempts)


class TestWithoutAClock:
    """Bytes and points choose among all runtimes and forms where nothing is raced."""

    @pytest.fixture(params=[{"measure": False}, {"tune": "off"}], ids=["unmeasured", "untuned"])
    def still(self, make: Build, request: pytest.FixtureRequest) -> Build:
        return partial(make, **request.param)

    def test_the_most_accurate_ships(self, still: Build) -> None:
        bundle = still(objective="accuracy")
        assert precisions(bundle) == {"float"}
        assert "precision: float (the most accurate within the limits)" in bundle.manifest.verdict.reasons
        assert bundle.manifest.verdict.status == "float"

    def test_the_most_accurate_within_a_limit(self, still: Build, tmp_path: Path) -> None:
        sizes = {a.name: a.bytes for a in still(objective="accuracy").measurements.attempts}
        budget = Budget(max_drop=0.01, max_size_bytes=sizes["float"] - 1)
        assert "int8" in precisions(still(objective="accuracy", budget=budget, out=tmp_path / "small"))

    def test_the_smallest_of_all_runtimes_ships(self, still: Build, drops: list[float]) -> None:
        drops[:] = [0.0]
        bundle = still(objective="size", target="x86-vnni", runtime=None)
        sizes = {(a.runtime, a.name): a.bytes for a in bundle.measurements.attempts if a.name != "as given"}
        assert {runtime for runtime, _ in sizes} == {"ort", "openvino", "tflite"}
        assert bundle.manifest.size_bytes.artifact == min(sizes.values())

    @pytest.mark.parametrize("runtime", ["tflite", "ort"])
    def test_weights_of_four_bits_are_tried_where_size_counts(
        self, still: Build, drops: list[float], runtime: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drops[:] = [0.0]
        monkeypatch.setattr("deploy.graph.weights.SMALLEST", 500)
        asked = {"target": "android" if runtime == "tflite" else "x86-vnni", "runtime": runtime}
        tried = [a.name[:2] for a in still(**asked, objective="size").measurements.attempts]
        assert ("w4" in tried) == (runtime == "tflite"), "ONNX Runtime has them for products alone"
        assert "w4" not in [a.name[:2] for a in still(**asked).measurements.attempts]

    def test_eval_data_see_winners_only(
        self, still: Build, images: dict[str, np.ndarray], drops: list[float]
    ) -> None:
        drops[:] = [0.0]
        bundle = still(objective="size", target="x86-vnni", runtime=None, eval=images)
        assert bundle.manifest.evaluation is not None and bundle.manifest.evaluation.looks == 1

    def test_a_lock_of_it_leads_to_the_same(self, still: Build, tmp_path: Path) -> None:
        bundle = still(objective="accuracy")
        again = still(lock=bundle.folder / "deploy.lock", out=tmp_path / "again")
        assert load_plan(again) == load_plan(bundle)
