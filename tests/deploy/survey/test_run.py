"""A survey of this machine, small but real: what it keeps, and how it goes on."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from deploy.adapter.overlays import find_overlay, overlay_folder, read_overlay, runs_here
from deploy.adapter.profiles import profile_for
from deploy.errors import ToolchainError, UsageError
from deploy.measure.host import host, this_machine
from deploy.predict.kernels import Kernel
from deploy.predict.latency import Costs
from deploy.progress import SILENT, Silent
from deploy.spec.overlay import Cost, Failure, Overlay
from deploy.spec.profile import Figure, Runtime
from deploy.spec.tensors import Precision
from deploy.survey import point, run
from deploy.survey.point import Place
from deploy.survey.pulse import Pulse
from deploy.survey.run import survey
from deploy.survey.unit import Unit
from deploy.survey.units import units

FACTS = {"cores": Figure(value=2, unit="", source="made up", date=datetime.date(2026, 11, 21))}
THREE = [next(unit for unit in units(quick=True) if unit.op == op) for op in ("overhead", "gemm", "softmax")]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three units, timed a few times; figures of the machine have tests of their own."""
    monkeypatch.setattr(run, "units", lambda *, quick: THREE[:2] if quick else THREE)
    monkeypatch.setattr(run, "machine_facts", lambda *, quick, threads, pulse: FACTS)
    monkeypatch.setattr(run, "_CALM", 100.0)
    monkeypatch.setattr(run, "_LISTEN_S", 0.1)
    monkeypatch.setattr(point, "_ROUNDS", 2)
    monkeypatch.setattr(point, "_SLICE_MS", 0.1)
    monkeypatch.setattr(point, "LONGEST", 6)


def small(root: Path, *, quick: bool = False, fresh: bool = False, progress: Silent = SILENT) -> Overlay:
    kept = survey(runtimes=["ort"], threads=1, quick=quick, fresh=fresh, progress=progress, root=root)
    assert read_overlay(kept.path) == kept.overlay
    return kept.overlay


def test_a_survey_end_to_end(tmp_path: Path) -> None:
    overlay = small(tmp_path)
    assert overlay.machine == this_machine() and overlay.facts == FACTS
    assert overlay.profile == profile_for(host().arch, host().features).name
    assert (overlay.command, overlay.quick) == ("deploy profile --runtime ort", False)
    assert overlay.seconds > 0 and 0 <= overlay.noise < 10
    (measured,) = overlay.runtime
    assert (measured.name, measured.version, measured.threads) == ("ort", onnxruntime.__version__, 1)
    classes = {(cost.op, cost.precision) for cost in measured.cost} | {
        (failure.op, failure.precision) for failure in measured.failures
    }
    assert {("overhead", "float"), ("gemm", "float"), ("gemm", "int8"), ("softmax", "float")} <= classes
    assert ("softmax", "int8") not in classes, "there is no such kernel"
    for cost in measured.cost:
        assert cost.ms > 0 and np.isfinite(cost.ms) and cost.bytes > 0
        assert (cost.macs > 0) == (cost.op == "gemm")
    fit = find_overlay(this_machine(), runs_here([_ort()], 1), tmp_path)
    assert fit.overlay == overlay and not fit.reasons, "and it is what is used here from now on"
    assert list(tmp_path.rglob("*.jsonl")) == []


def _ort() -> Runtime:
    return profile_for(host().arch, host().features).runtime_named("ort")


def test_what_was_measured_predicts(tmp_path: Path) -> None:
    costs = Costs.of(small(tmp_path, quick=True).runtime[0])
    gemm = next(cost for cost in costs.points if cost.op == "gemm")
    found = costs.kernel(Kernel("gemm", gemm.precision, (), gemm.macs, gemm.bytes, gemm.depth, gemm.align))
    assert found.estimate.ms > 0 and not found.stand_in and found.estimate.nearest == 0


class Counting:
    """Counts what is measured, and stops as Ctrl-C would when so many are."""

    def __init__(self, most: int = 1000) -> None:
        self.measured: list[tuple[str, Precision]] = []
        self.most = most

    def __call__(
        self, unit: Unit, precision: Precision, place: Place, known: Costs, workdir: Path
    ) -> list[Cost | Failure]:
        if len(self.measured) == self.most:
            raise KeyboardInterrupt
        self.measured.append((unit.shape, precision))
        ms = 0.001 * (1 + len(self.measured))
        return [Cost(op=unit.op, precision=precision, macs=8, bytes=8, ms=ms, spread=0.0, shape=unit.shape)]


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.seen: list[tuple[int, int]] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def advance(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def test_one_that_was_stopped_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Counting(most=4)
    monkeypatch.setattr(run, "measure_unit", first)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path)
    assert not overlay_folder(tmp_path).exists(), "half a survey is no overlay"
    second, notes = Counting(), Notes()
    monkeypatch.setattr(run, "measure_unit", second)
    overlay = small(tmp_path, progress=notes)
    assert len(first.measured) == 4 and len(second.measured) == 2
    assert not set(first.measured) & set(second.measured)
    assert len(overlay.runtime[0].cost) == 6, "what was measured before is there, too"
    assert any("4 of 6 points are measured" in said for said in notes.said)
    assert notes.seen[-1] == (6, 6)


def test_fresh_measures_all_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "measure_unit", Counting(most=4))
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path)
    again = Counting()
    monkeypatch.setattr(run, "measure_unit", again)
    small(tmp_path, fresh=True)
    assert len(again.measured) == 6


def test_a_short_survey_says_so_and_does_not_replace_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure_unit", Counting())
    full, short = small(tmp_path), small(tmp_path, quick=True)
    assert short.quick and short.command.endswith("--quick") and len(short.runtime[0].cost) == 4
    fit = find_overlay(this_machine(), runs_here([_ort()], 1), tmp_path)
    assert fit.overlay == full


def test_a_disturbed_point_is_measured_once_more_and_the_calmer_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spreads = iter([0.5, 0.2, 0.01, 0.3, 0.4, 0.5])

    def measured(*args: object) -> list[Cost | Failure]:
        spread = next(spreads)
        return [Cost(op="gemm", precision="float", macs=8, bytes=8, ms=1 + spread, spread=spread)]

    monkeypatch.setattr(run, "_CALM", 0.1)
    monkeypatch.setattr(run, "measure_unit", measured)
    place = Place(_ort(), None, 1, Pulse(lambda: None, patience=1.0))  # type: ignore[arg-type]
    found = [run._calmest(THREE[1], "float", place, Costs(())) for _ in range(3)]
    assert [cost.ms for (cost,) in found if isinstance(cost, Cost)] == [1.2, 1.01, 1.3]
    place.pulse.patience = 0.0
    (hurried,) = run._calmest(THREE[1], "float", place, Costs(()))
    assert isinstance(hurried, Cost) and hurried.ms == 1.5, "a machine that stays busy is taken as it is"


def test_what_fails_twice_is_a_failure_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Unit("norm", "unheard of", ("n", 8), lambda s, v: s.node("Unheard", [v]))
    monkeypatch.setattr(run, "units", lambda *, quick: [THREE[0], wrong])
    overlay = small(tmp_path)
    (failure, *_) = overlay.runtime[0].failures
    assert (failure.op, failure.shape) == ("norm", "unheard of") and "Unheard" in failure.reason
    assert {cost.op for cost in overlay.runtime[0].cost} == {"overhead"}


def test_a_failure_is_not_tried_again_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def failing(unit: Unit, precision: Precision, *rest: object) -> list[Cost | Failure]:
        if len(tried) == 4:
            tried.append("stop")
            raise KeyboardInterrupt
        tried.append(f"{unit.op} {precision}")
        return [Failure(op=unit.op, precision=precision, shape=unit.shape, reason="no")]

    monkeypatch.setattr(run, "measure_unit", failing)
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path)
    overlay = small(tmp_path)
    assert tried[:2] == ["overhead float", "overhead float"], "a failure may be chance: once more at once"
    assert len(overlay.runtime[0].failures) == 6 and overlay.noise == 0
    assert tried.count("overhead float") == 2 and tried.count("overhead int8") == 2


def test_points_measured_before_are_known_to_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that come out of the journal: what has to be taken off is there."""
    known_to: dict[tuple[str, Precision], int] = {}

    class Watching(Counting):
        def __call__(
            self, unit: Unit, precision: Precision, place: Place, known: Costs, workdir: Path
        ) -> list[Cost | Failure]:
            found = super().__call__(unit, precision, place, known, workdir)
            known_to[unit.op, precision] = len(known.points)
            return found

    monkeypatch.setattr(run, "measure_unit", Watching(most=3))
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path)
    monkeypatch.setattr(run, "measure_unit", Watching())
    small(tmp_path)
    assert list(known_to.values()) == [0, 1, 2, 3, 4, 5]


def test_nothing_to_measure_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    def asked(runtimes: Sequence[str]) -> None:
        survey(runtimes=runtimes, threads=1, quick=True, fresh=False, progress=SILENT, root=tmp_path)

    with pytest.raises(ToolchainError, match="no runtime is found here"):
        asked(["unheard-of"])
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    monkeypatch.setattr(run, "measure_unit", counting)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        small(tmp_path / "file")
    assert not counting.measured


def test_the_command_is_what_one_types() -> None:
    assert run._command(None, 1, quick=False) == "deploy profile"
    assert run._command(["ort", "tflite"], 4, quick=True) == (
        "deploy profile --runtime ort --runtime tflite --threads 4 --quick"
    )
