"""The front: what stands on it, what is timed for it, and points of it built again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.adapter.protocol import Runner
from deploy.bundle.read import Bundle, load_lock, load_plan
from deploy.data.interval import Drop
from deploy.errors import UsageError
from deploy.measure.latency import Timing
from deploy.pipeline import build, dry_run
from deploy.spec.project import Budget
from deploy.stages.baseline import Examiner
from deploy.stages.front import _Form, carried, dominates, undominated
from deploy.stages.request import Request

Build = Callable[..., Bundle]


def form(ms: float | None, drop: float, size: int, *, chosen: bool = False) -> _Form:
    trial: Any = SimpleNamespace(drop=Drop(drop, drop, drop), bytes=size)
    entrant: Any = SimpleNamespace()
    return _Form(entrant, trial, ms, False, chosen)


forms = st.lists(
    st.builds(
        form,
        st.floats(0.1, 10).map(lambda ms: round(ms, 1)),
        st.sampled_from([-0.01, 0.0, 0.01, 0.02, 0.5]),
        st.integers(1, 30).map(lambda k: 1000 * k),
    ),
    min_size=1,
    max_size=12,
)


@given(forms, st.integers(0, 11))
def test_nothing_that_another_beats_is_kept_and_nothing_good_is_lost(found: list[_Form], which: int) -> None:
    chosen = which % len(found)
    found[chosen] = form(found[chosen].ms, found[chosen].drop, found[chosen].bytes, chosen=True)
    kept = undominated(found)
    assert found[chosen] in kept, "whatever it is"
    assert not any(dominates(other, one) for one in kept for other in found if not one.chosen)
    for one in found:  # whoever was left out has somebody on the front who is as good, or all but
        assert any(
            k.ms <= 1.02 * one.ms and k.drop <= one.drop and k.bytes <= 1.01 * one.bytes  # type: ignore[operator]
            for k in kept
        )


def test_what_differs_by_less_than_anybody_sees_is_one_point() -> None:
    same = [form(1.0, 0.0, 1000), form(1.01, 0.0, 999), form(2.0, 0.0, 900)]
    assert undominated(same) == [same[0], same[2]]


def test_without_times_drop_and_bytes_decide() -> None:
    found = [form(None, 0.0, 100), form(None, 0.01, 50), form(None, 0.02, 60)]
    assert {f.bytes for f in undominated(found)} == {100, 50}


def test_a_gain_is_nothing_lost_and_no_number_is_the_worst() -> None:
    assert undominated([form(1.0, 0.0, 100), form(2.0, -0.5, 100)])[0].ms == 1.0
    lost = form(0.5, float("nan"), 50)
    assert undominated([form(1.0, 0.0, 40), lost])[0] is lost, "it is the fastest"
    assert undominated([form(0.4, 0.9, 40), lost])[0].drop == 0.9


@pytest.fixture
def drops(monkeypatch: pytest.MonkeyPatch) -> None:
    """What data say is made up; there is no ladder to climb, and no costs are known."""
    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)
    monkeypatch.setattr("deploy.stages.contest.ladder_for", lambda *_: None)
    original = Examiner.examine

    def examine(self: Examiner, runner: Runner) -> Drop:
        original(self, runner)
        drop = DROPS.get(len(self._examined) - 1, 0.0)
        score = self._examined[-1][1]
        self._examined[-1] = (Drop(drop, drop, drop), score)
        return self._examined[-1][0]

    monkeypatch.setattr(Examiner, "examine", examine)


DROPS = {0: 0.03, 1: 0.0, 2: 0.0}
"""By number of the look at the data that choose: all INT8 is over the budget, the next is not."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    takes = {"as given": 3.0, "ort float": 3.0, "ort int8": 2.0}

    def race(contenders: Any, *_: object) -> dict[str, Timing]:
        ms = {name: takes.get(name, 1.0) for name in contenders}
        return {name: Timing(np.full(20, ms[name]), np.full(20, ms[name])) for name in contenders}

    monkeypatch.setattr("deploy.stages.contest.race", race)
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: True)
    monkeypatch.setattr(
        "deploy.stages.baseline.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
    )
    return takes


@pytest.fixture
def make(network: Path, images: dict[str, np.ndarray], tmp_path: Path, drops: None) -> Build:
    def run(**settings: object) -> Bundle:
        given_ = {
            "target": "x86-avx2", "runtime": "ort", "data": images, "out": tmp_path / "dist",
            "cache": tmp_path / "cache", "measure": False, "budget": Budget(max_drop=0.01),
        }  # fmt: skip
        return build(network, **{**given_, **settings})  # type: ignore[arg-type]

    return run


def floats(bundle: Bundle) -> int:
    return sum(block.precision == "float" for block in load_plan(bundle).blocks)


def test_what_the_search_left_behind_is_on_the_front(make: Build) -> None:
    front = make().measurements.front
    assert [(p.number, p.drop, p.chosen) for p in front] == [(1, 0.03, False), (2, 0.0, True)]
    assert front[0].bytes < front[1].bytes and front[0].float_blocks < front[1].float_blocks
    assert all(p.latency_ms is None and p.precision == "auto" and p.runtime == "ort" for p in front)


def test_it_is_timed_with_the_others(make: Build, clock: dict[str, float]) -> None:
    bundle = make(measure=True)
    front = bundle.measurements.front
    assert [(p.drop, p.latency_ms, p.chosen) for p in front] == [
        (0.03, 1.0, False), (0.0, 2.0, True), (0.0, 3.0, False),
    ], "so small a model is smallest as float"  # fmt: skip
    assert front[2].bytes < front[1].bytes
    assert not any(p.predicted for p in front)
    told = {a.name: (a.speed, a.outcome) for a in bundle.measurements.attempts}
    assert told["int8"] == (3.0, "over the budget"), "in its place among the attempts, with its time"


def test_nothing_more_is_timed_where_tune_is_off(make: Build, clock: dict[str, float]) -> None:
    bundle = make(measure=True, tune="off")
    assert all(p.latency_ms is None or p.predicted or p.chosen for p in bundle.measurements.front)


def test_a_runner_up_that_keeps_the_budget_and_is_faster_ships(
    make: Build, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(DROPS, 0, 0.03)
    monkeypatch.setitem(DROPS, 1, 0.02)
    monkeypatch.setitem(DROPS, 2, 0.005)
    monkeypatch.setitem(DROPS, 3, 0.0)
    bundle = make(measure=True, budget=Budget(max_drop=0.004), cache=tmp_path / "other")
    assert bundle.manifest.verdict.status in ("met", "float")
    again = make(
        measure=True,
        budget=Budget(max_drop=0.004),
        lock=bundle.folder / "deploy.lock",
        out=tmp_path / "again",
    )
    assert load_plan(again) == load_plan(bundle)


def test_every_point_is_built_again_and_the_front_stays(make: Build) -> None:
    first = make()
    made = {p.number: p for p in first.measurements.front}
    for number in (1, 2):
        picked = make(pick=number)
        assert tuple(sorted(load_lock(picked).float_blocks)) == made[number].float_blocks
        assert f"point: {number} of 2 (asked for with --pick)" in picked.manifest.verdict.reasons
        after = picked.measurements.front
        assert [p.chosen for p in after] == [p.number == number for p in after]
        assert [p.model_copy(update={"chosen": False}) for p in after] == [
            p.model_copy(update={"chosen": False}) for p in made.values()
        ]
        assert picked.manifest.size_bytes.artifact == made[number].bytes
    assert floats(make(pick=2)) == floats(first)


def test_a_point_is_opened_as_it_was(
    make: Build, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many threads, and floats of the type that it was timed and scored with."""
    monkeypatch.setitem(DROPS, 0, 0.005)
    clock.update({"openvino bf16": 2.5, "openvino float": 2.4})
    settings = {"measure": True, "target": "x86-bf16", "runtime": "openvino"}
    front = make(**settings, threads=2).measurements.front
    assert [(p.form, p.chosen) for p in front] == [("int8 in 3 of 4 blocks", True), ("float", False)]
    picked = make(**settings, pick=2)
    assert picked.manifest.options == front[1].options
    assert (picked.manifest.options["threads"], picked.manifest.options["inference_precision"]) == (2, "f32")


def test_eval_data_that_see_another_point_are_counted(make: Build, images: dict[str, np.ndarray]) -> None:
    held_out = {"x": images["x"][:8]}
    first = make(eval=held_out)
    assert first.manifest.evaluation is not None
    looks = first.manifest.evaluation.looks
    chosen = next(p.number for p in first.measurements.front if p.chosen)
    other = next(p.number for p in first.measurements.front if not p.chosen)
    assert load_lock(make(eval=held_out, pick=chosen)).looks == looks
    assert load_lock(make(eval=held_out, pick=other)).looks == looks + 1


def test_a_lock_of_a_picked_point_makes_the_same_bundle(make: Build, tmp_path: Path) -> None:
    make()
    picked = make(pick=1)
    again = make(lock=picked.folder / "deploy.lock", out=tmp_path / "again")
    assert again.digest == picked.digest


def test_no_bundle_no_point(make: Build, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no bundle to pick point 1 of") as caught:
        make(pick=1)
    assert "build without --pick first" in caught.value.hint
    assert not (tmp_path / "dist" / "x86-avx2").exists()


def test_a_number_that_is_not_there(make: Build) -> None:
    make()
    with pytest.raises(UsageError, match="it has no point 3") as caught:
        make(pick=3)
    assert caught.value.hint == "its points are 1, 2"


def test_another_model(
    make: Build, random_network: Callable[[int], Path], images: Any, tmp_path: Path
) -> None:
    make()
    with pytest.raises(UsageError, match="it was written for another model") as caught:
        build(random_network(3), target="x86-avx2", data=images, out=tmp_path / "dist", pick=1, measure=False)
    assert "without --pick" in caught.value.hint


def test_another_precision(make: Build) -> None:
    make()
    with pytest.raises(UsageError, match="made with precision auto, and int8 is asked for") as caught:
        make(pick=1, precision="int8")
    assert "build without --pick" in caught.value.hint


def test_measurements_without_points(make: Build) -> None:
    path = make().folder / "measurements.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "front": []}))
    with pytest.raises(UsageError, match="hold no points to pick from"):
        make(pick=1)


def test_a_point_of_blocks_that_the_model_does_not_have(make: Build) -> None:
    path = make().folder / "measurements.json"
    path.write_text(path.read_text().replace('"float_blocks": [', '"float_blocks": ["nowhere",', 1))
    with pytest.raises(UsageError):
        make(pick=1)


def test_a_preview_refuses_what_a_build_refuses(
    network: Path, images: dict[str, np.ndarray], tmp_path: Path
) -> None:
    request = Request(source=network, target="x86-avx2", data=images, pick=1, out=tmp_path)
    with pytest.raises(UsageError, match="no bundle to pick"):
        dry_run(request)


def test_a_front_is_carried_over_with_another_point_chosen(make: Build) -> None:
    front = make().measurements.front
    assert [p.chosen for p in carried(front, 1)] == [True, False]
