"""Energy as the objective of whole builds. The counter is a file that the forms themselves move, by joules
that the test says: so the pick can only follow the counter, whatever the clock says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy.adapter.protocol import Runner
from deploy.bundle.read import Bundle, load_plan
from deploy.errors import ToolchainError, UsageError
from deploy.measure.energy import EnergyPlan
from deploy.measure.latency import Timing
from deploy.pipeline import build, build_all, dry_run
from deploy.spec.project import Budget
from deploy.stages.baseline import Contender
from deploy.stages.request import Request

Build = Callable[..., Bundle]
TAKES = {"as given": 3.0, "ort float": 2.0, "ort int8": 1.0}
ELSEWHERE = "iphone15"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for /sys/class: a machine that shows no counter."""
    monkeypatch.setattr("deploy.measure.energy.ROOT", tmp_path / "sys")
    return tmp_path / "sys"


@pytest.fixture
def counter(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Microjoules of one inference by precision; the package's counter goes on by so many with every run."""
    zone = root / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    for file, text in (("name", "package-0"), ("energy_uj", "7"), ("max_energy_range_uj", "999999999")):
        (zone / file).write_text(text)
    used, opened = {"int8": 5000, "float": 4000}, Contender.open

    def counted(contender: Contender) -> Runner:
        runner = opened(contender)
        nodes = onnx.load(contender.artifact.main).graph.node
        takes = used["int8" if any("Quant" in node.op_type for node in nodes) else "float"]
        run = runner.run

        def moves(*given: Any) -> dict[str, np.ndarray]:
            file = zone / "energy_uj"
            file.write_text(str((int(file.read_text()) + takes) % 1_000_000_000))
            return run(*given)

        monkeypatch.setattr(runner, "run", moves)
        return runner

    monkeypatch.setattr(Contender, "open", counted)
    plan = EnergyPlan(slice_s=0.001, rounds=4)
    monkeypatch.setattr("deploy.stages.energy._PLANS", dict.fromkeys(("off", "quick", "full"), plan))
    return used


@pytest.fixture
def make(
    network: Path, images: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Build:
    """By the clock INT8 is always the fastest."""

    def race(contenders: Mapping[str, object], *_: object) -> dict[str, Timing]:
        return {name: Timing(np.full(20, TAKES[name]), np.full(20, TAKES[name])) for name in contenders}

    for module in ("contest", "by_table"):
        monkeypatch.setattr(f"deploy.stages.{module}.race", race)
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: self.name != ELSEWHERE)
    monkeypatch.setattr(
        "deploy.stages.baseline.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
    )

    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "runtime": "ort", "data": images, "out": tmp_path / "dist",
            "cache": tmp_path / "cache", "objective": "energy",
        }  # fmt: skip
        return build(network, **{**given, **settings})  # type: ignore[arg-type]

    return run


def precisions(bundle: Bundle) -> set[str]:
    return {block.precision for block in load_plan(bundle).blocks}


def test_the_least_energy_ships_whatever_the_clock_says(make: Build, counter: dict[str, int]) -> None:
    bundle = make()
    assert precisions(bundle) == {"float"}
    assert "precision: float (the least energy within the limits)" in bundle.manifest.verdict.reasons
    attempts = {a.name: a for a in bundle.measurements.attempts}
    assert {name: a.joules for name, a in attempts.items()} == pytest.approx(
        {"as given": 0.004, "float": 0.004, "int8": 0.005}
    )
    assert attempts["int8"].outcome == "takes more energy or time than ort float"
    comparison = bundle.measurements.comparison
    assert comparison is not None and comparison.energy is not None
    assert comparison.energy.saving == pytest.approx(1.0) and comparison.energy.counters == ("package-0",)


def test_a_saving_is_told_where_int8_has_one(make: Build, counter: dict[str, int]) -> None:
    counter["int8"] = 1000
    bundle = make()
    assert "int8" in precisions(bundle)
    comparison = bundle.measurements.comparison
    assert comparison is not None and comparison.energy is not None
    assert (comparison.energy.saving, *comparison.energy.interval) == pytest.approx((4.0, 4.0, 4.0))
    assert (comparison.energy.baseline, comparison.energy.artifact) == pytest.approx((0.004, 0.001))


def test_of_those_that_take_as_much_the_faster_ships(make: Build, counter: dict[str, int]) -> None:
    counter["int8"] = counter["float"]
    assert "int8" in precisions(make())


def test_who_was_metered_ships_under_the_settings_that_he_was_metered_with(
    make: Build, counter: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "deploy.stages.tune._tried", lambda *_: pytest.fail("settings are chosen by the clock")
    )
    assert precisions(make()) == {"float"}


def test_what_breaks_a_limit_is_not_metered(make: Build, counter: dict[str, int]) -> None:
    bundle = make(budget=Budget(max_latency_ms=1.5))
    assert "int8" in precisions(bundle)
    found = {a.name: a.joules for a in bundle.measurements.attempts}
    assert found["float"] is None and found["int8"] == pytest.approx(0.005)


def test_untuned_nobody_is_raced_and_the_winner_is_metered_all_the_same(
    make: Build, counter: dict[str, int]
) -> None:
    bundle = make(tune="off")
    comparison = bundle.measurements.comparison
    assert comparison is not None and comparison.energy is not None
    assert comparison.energy.artifact == pytest.approx(counter["int8"] / 1e6)
    assert all(a.joules is None for a in bundle.measurements.attempts)


def test_for_another_objective_nothing_is_metered(make: Build, counter: dict[str, int]) -> None:
    bundle = make(objective="latency")
    comparison = bundle.measurements.comparison
    assert comparison is not None and comparison.energy is None
    assert all(a.joules is None for a in bundle.measurements.attempts)


def test_a_replay_leads_to_the_same_and_needs_no_counter(
    make: Build, counter: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make()
    given = {"lock": bundle.folder / "deploy.lock", "cache": tmp_path / "other"}
    again = make(**given, out=tmp_path / "again")
    assert again.digest == bundle.digest
    assert again.measurements.comparison is not None and again.measurements.comparison.energy is not None
    monkeypatch.setattr("deploy.measure.energy.ROOT", tmp_path / "none")
    elsewhere = make(**{**given, "cache": tmp_path / "third"}, out=tmp_path / "elsewhere")
    assert elsewhere.digest == bundle.digest
    assert elsewhere.measurements.comparison is not None
    assert elsewhere.measurements.comparison.energy is None


@pytest.mark.parametrize("tune", ["off", "quick"])
def test_without_a_counter_nothing_is_built(make: Build, root: Path, tmp_path: Path, tune: str) -> None:
    with pytest.raises(ToolchainError, match="shows no counter of joules"):
        make(tune=tune)
    assert not (tmp_path / "dist").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": ELSEWHERE, "runtime": None}, "least for Apple iPhone 15 .*cannot stand in for it"),
        ({"measure": False}, "least where nothing is measured"),
    ],
    ids=["another machine", "unmeasured"],
)
def test_what_cannot_be_metered_is_not_built(
    make: Build, counter: dict[str, int], tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=f"energy cannot be made {said}"):
        make(**settings)
    assert not (tmp_path / "cache").exists()


def test_a_preview_and_a_second_target_are_refused_as_early(
    make: Build, counter: dict[str, int], network: Path, tmp_path: Path
) -> None:
    request = Request(
        source=network, target=ELSEWHERE, objective="energy", out=tmp_path / "dist", cache=tmp_path / "cache"
    )
    with pytest.raises(UsageError, match="energy cannot be made least"):
        dry_run(request)
    with pytest.raises(UsageError, match="energy cannot be made least"):
        build_all(request, ["x86-avx2", ELSEWHERE])
    assert not (tmp_path / "dist").exists()
