"""Threads and settings of the winner's runtime, with clocks of our own and a backend that has some to try."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import pytest

from backends.ort import OnnxRuntime
from backends.ort.backend import OrtOptions
from deploy.adapter.profiles import load_profile
from deploy.adapter.protocol import Arrays, Runner, Variant
from deploy.bundle.read import Bundle, load_lock, open_artifact
from deploy.data.interval import Drop
from deploy.errors import BackendError, UsageError
from deploy.measure.latency import Timing
from deploy.quantize.candidate import Candidate, Subject
from deploy.spec.artifact import Artifact, Options
from deploy.spec.measurement import Attempt
from deploy.spec.plan import Plan
from deploy.spec.profile import Profile, Runtime
from deploy.stages import tune
from deploy.stages.baseline import Contender
from deploy.stages.entrants import Entrant, Race
from deploy.stages.heat import heat
from deploy.stages.job import Job
from deploy.stages.threads import thread_counts

Build = Callable[..., Bundle]
KEY = "session.intra_op.allow_spinning"


class Tunable(OnnxRuntime):
    """ONNX Runtime with settings that are said to be worth trying; one of them cannot be opened."""

    offers: tuple[tuple[str, str, Literal["float32", "bfloat16"] | None], ...] = ()

    def variants(self, runtime: Runtime, options: Options) -> list[Variant]:
        assert isinstance(options, OrtOptions)
        return [
            Variant(name, options.model_copy(update={"session": {**options.session, KEY: value}}), around)
            for name, value, around in self.offers
        ]

    def open(self, artifact: Artifact, options: Options) -> Runner:
        if isinstance(options, OrtOptions) and options.session.get(KEY) == "broken":
            raise BackendError("no such setting", hint="none")
        return super().open(artifact, options)


@dataclass
class Clock:
    """Milliseconds by what is opened: the file as given by threads, the artifact by threads and setting.

    ``again`` holds where everything was opened a second time; ``floats`` is how many times that float builds
    take, by threads. ``raced`` says what was asked for.
    """

    given: dict[int, float] = field(default_factory=lambda: {1: 4.0})
    takes: dict[tuple[int, str], float] = field(default_factory=lambda: {(1, ""): 1.0})
    again: dict[tuple[int, str], float] = field(default_factory=dict)
    floats: dict[int, float] = field(default_factory=dict)
    raced: list[list[str]] = field(default_factory=list)

    def ms(self, name: str, who: Contender, *, again: bool) -> float:
        options, key = who.options, who.options.threads
        if not isinstance(options, OrtOptions) or not options.session:
            return self.given[key]
        place = (key, options.session.get(KEY, ""))
        slower = self.floats.get(key, 3.0) if name.endswith((" float", " bf16")) else 1.0
        return slower * (self.again.get(place, self.takes[place]) if again else self.takes[place])

    def race(self, runs: Mapping[str, Contender], feeds: Arrays) -> dict[str, Timing]:
        return self._all(runs, again=True)

    def timed(self, runs: Mapping[str, Contender], feeds: Arrays, seconds: float) -> dict[str, Timing]:
        self.raced.append(list(runs))
        return self._all(runs, again=False)

    def _all(self, runs: Mapping[str, Contender], *, again: bool) -> dict[str, Timing]:
        ms = {name: self.ms(name, who, again=again) for name, who in runs.items()}
        return {name: Timing(np.full(9, t), np.full(9, t)) for name, t in ms.items()}


def one_runtime(name: str) -> Profile:
    profile = load_profile("x86-avx2")
    ort = profile.runtime_named("ort")
    around = "bfloat16" if name == "x86-bf16" else "float32"
    ort = ort.model_copy(update={"around": around, "options": {"session.x": "1"}})
    return profile.model_copy(update={"runtime": (ort,)})


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Tunable:
    found = Tunable()
    monkeypatch.setattr("deploy.stages.costs.measured_machines", list)
    monkeypatch.setattr("deploy.stages.target.load_profile", one_runtime)
    monkeypatch.setattr("deploy.stages.target.backend_names", lambda: ["ort"])
    monkeypatch.setattr("deploy.stages.target.find_backend", lambda name: found)
    monkeypatch.setattr("deploy.stages.target.Target.stands_here", lambda self: True)
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, backend: Tunable) -> Clock:
    clock = Clock()
    monkeypatch.setattr("deploy.stages.contest.race", clock.race)
    monkeypatch.setattr("deploy.stages.tune.race", clock.race)
    for user in ("tune", "threads"):
        monkeypatch.setattr(f"deploy.stages.{user}.heat", clock.timed)
    monkeypatch.setattr("deploy.stages.threads.physical_cores", lambda: 4)
    monkeypatch.setattr("deploy.stages.steps.physical_cores", lambda: 4)
    for user in ("baseline", "weigh"):
        monkeypatch.setattr(
            f"deploy.stages.{user}.peak_memory", lambda asked, feeds, scratch: dict.fromkeys(asked, 1)
        )
    return clock


def tried(bundle: Bundle) -> dict[str, Attempt]:
    """The attempts that are variants of the winner, by what they vary."""
    rows = [a for a in bundle.measurements.attempts if ", " in a.name]
    return {a.name.partition(", ")[2]: a for a in rows}


def setting(bundle: Bundle) -> object:
    session = bundle.manifest.options["session"]
    assert isinstance(session, dict)
    return session.get(KEY, "")


def choices(bundle: Bundle) -> dict[str, str]:
    return {c.what: c.chosen for c in load_lock(bundle).choices}


def test_a_setting_that_is_faster_ships_and_is_told(make: Build, backend: Tunable, clock: Clock) -> None:
    backend.offers = (("asleep", "0", None), ("awake", "1", None), ("odd", "2", None))
    clock.takes |= {(1, "0"): 0.8, (1, "1"): 0.9, (1, "2"): 1.2}
    bundle = make()
    assert setting(bundle) == "0" == load_lock(bundle).options["session"][KEY]  # type: ignore[call-overload, index]
    assert choices(bundle)["settings"] == "asleep"
    rows = tried(bundle)
    assert {name: row.outcome for name, row in rows.items()} == {
        "asleep": "chosen", "awake": "slower than asleep", "odd": "slower than asleep",
    }  # fmt: skip
    assert rows["awake"].speed == pytest.approx(4.0 / 0.9, rel=1e-3)
    comparison = bundle.measurements.comparison
    assert comparison is not None and comparison.artifact.latency_ms.p50 == 0.8
    assert bundle.measurements.attempts[0].name == "as given"
    with open_artifact(bundle) as runner:
        assert runner.outputs


@pytest.mark.parametrize("takes", [1.0, 0.99, 1.3])
def test_ties_keep_what_the_profile_says(make: Build, backend: Tunable, clock: Clock, takes: float) -> None:
    backend.offers = (("asleep", "0", None),)
    clock.takes[1, "0"] = takes
    bundle = make()
    assert setting(bundle) == "" and "settings" not in choices(bundle)
    assert tried(bundle)["asleep"].outcome == "not faster"


def test_who_was_lucky_once_is_not_chosen(make: Build, backend: Tunable, clock: Clock) -> None:
    backend.offers = (("asleep", "0", None),)
    clock.takes[1, "0"], clock.again[1, "0"] = 0.7, 1.0
    bundle = make()
    assert setting(bundle) == ""
    assert tried(bundle)["asleep"].outcome == "not faster when timed again"
    assert bundle.measurements.comparison is not None
    assert bundle.measurements.comparison.artifact.latency_ms.p50 == 1.0


@pytest.mark.parametrize(
    "settings", [{"tune": "off"}, {"measure": False}, {"objective": "memory"}], ids=lambda s: next(iter(s))
)
def test_nothing_is_tried_where_that_is_not_wanted(
    make: Build, backend: Tunable, clock: Clock, settings: dict[str, object]
) -> None:
    backend.offers = (("asleep", "0", None),)
    bundle = make(threads="auto" if "objective" not in settings else 1, **settings)
    assert clock.raced == [] and not tried(bundle) and bundle.manifest.options["threads"] == 1


def test_a_number_of_threads_is_kept(make: Build, backend: Tunable, clock: Clock) -> None:
    clock.given, clock.takes = {2: 4.0}, {(2, ""): 1.0, (2, "0"): 2.0}
    backend.offers = (("asleep", "0", None),)
    bundle = make(threads=2)
    assert clock.raced == [["as before", "asleep"]]
    assert bundle.manifest.options["threads"] == 2
    assert make(threads=2, lock=bundle.folder / "deploy.lock").manifest.options["threads"] == 2


def test_threads_are_chosen_for_both_and_replayed(
    make: Build, backend: Tunable, clock: Clock, tmp_path: Path
) -> None:
    clock.given, clock.takes = {1: 4.0, 4: 2.0}, {(4, ""): 1.0, (1, ""): 0.5}
    bundle = make(threads="auto")
    each = ["4 threads", "1 thread"]
    assert clock.raced == [["1 thread", "4 threads"], each, each, ["as before", "4 threads"]]
    compared = bundle.measurements.comparison
    assert compared is not None
    assert (compared.baseline.conditions.threads, compared.artifact.conditions.threads) == (4, 1)
    assert compared.speedup == pytest.approx(4.0)
    assert bundle.manifest.options["threads"] == 1 and choices(bundle)["threads"] == "1"
    lock = load_lock(bundle)
    assert lock.any_threads and lock.threads == 1 and lock.options["threads"] == 1
    again = make(lock=bundle.folder / "deploy.lock", out=tmp_path / "again")
    assert (again.folder / "manifest.json").read_bytes() == (bundle.folder / "manifest.json").read_bytes()
    assert (again.folder / "deploy.lock").read_bytes() == (bundle.folder / "deploy.lock").read_bytes()
    assert clock.raced[4:] == [["1 thread", "4 threads"]]
    assert again.measurements.comparison is not None
    assert again.measurements.comparison.baseline.conditions.threads == 4


def test_forms_race_with_the_number_of_threads_that_each_likes_best(
    make: Build, backend: Tunable, clock: Clock
) -> None:
    """With four threads, as the file as given likes them, the float build would win."""
    clock.given, clock.takes, clock.floats = {1: 4.0, 4: 2.0}, {(4, ""): 1.0, (1, ""): 0.5}, {1: 3.0, 4: 0.8}
    bundle = make(threads="auto")
    assert {block.precision for block in plan_of(bundle).blocks} == {"int8"}
    assert bundle.manifest.options["threads"] == 1
    assert {b.precision for b in plan_of(make(threads=4)).blocks} == {"float"}


def test_threads_and_settings_together(make: Build, backend: Tunable, clock: Clock) -> None:
    backend.offers = (("asleep", "0", None),)
    clock.given = {1: 2.0, 2: 2.1, 4: 2.2}
    clock.takes = {(t, s): 1.0 for t in (1, 2, 4) for s in ("", "0")} | {(2, "0"): 0.5}
    bundle = make(threads="auto", tune="full")
    assert clock.raced[0] == ["1 thread", "2 threads", "4 threads"]
    names = ["as before", "2 threads", "4 threads", "asleep", "2 threads, asleep", "4 threads, asleep"]
    assert clock.raced[-1] == names
    assert (bundle.manifest.options["threads"], setting(bundle)) == (2, "0")
    assert {"threads": "2", "settings": "asleep"}.items() <= choices(bundle).items()
    assert [c.what for c in load_lock(bundle).choices].count("threads") == 1


def test_what_changes_results_is_judged_and_named_in_the_plan(
    make: Build, backend: Tunable, clock: Clock, tmp_path: Path
) -> None:
    backend.offers = (("floats in float32", "0", "float32"),)
    clock.takes[1, "0"] = 0.5
    first = next(iter(plan_of(make(target="x86-avx2", out=tmp_path / "plain")).blocks)).id
    bundle = make(target="x86-bf16", exclude=first.split("+"), out=tmp_path / "narrow")
    kinds = {block.precision for block in plan_of(bundle).blocks}
    assert kinds == {"int8", "float"} == set(bundle.manifest.precision)
    assert tried(bundle)["floats in float32"].drop is not None
    replayed = make(
        target="x86-bf16",
        exclude=first.split("+"),
        lock=bundle.folder / "deploy.lock",
        out=tmp_path / "again",
    )
    assert (replayed.folder / "plan.json").read_bytes() == (bundle.folder / "plan.json").read_bytes()


def test_what_changes_results_must_hold_the_budget(
    make: Build, backend: Tunable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.offers = (("floats in float32", "0", "float32"),)
    clock.takes[1, "0"] = 0.5
    scores = Job.scores

    def harsh(job: Job, subject: Subject, examiner: object) -> object:
        found = scores(job, subject, examiner)  # type: ignore[arg-type]
        assert isinstance(subject.options, OrtOptions)
        if found is None or KEY not in subject.options.session:
            return found

        def judged(candidate: Candidate) -> Drop:
            found(candidate)
            return Drop(0.5, 0.4, 0.6)

        return judged

    monkeypatch.setattr(Job, "scores", harsh)
    bundle = make(target="x86-bf16")
    assert setting(bundle) == "" and bundle.manifest.verdict.status == "met"
    row = tried(bundle)["floats in float32"]
    assert (row.outcome, row.drop) == ("over the budget", None)
    kept = tried(make(target="x86-bf16", precision="bf16"))
    assert kept == {}  # asked for: nothing else is tried


def plan_of(bundle: Bundle) -> Plan:
    return Plan.model_validate_json((bundle.folder / "plan.json").read_text())


def test_other_threads_than_the_locks_are_refused(make: Build, clock: Clock) -> None:
    clock.given[4], clock.takes[4, ""] = 1.0, 0.5
    bundle = make(threads="auto")
    assert bundle.manifest.options["threads"] == 4
    lock = bundle.folder / "deploy.lock"
    for fits in (1, 4, "auto"):
        assert make(lock=lock, threads=fits).manifest.options["threads"] == 4
    with pytest.raises(UsageError, match="made for 4 threads, 3 are asked for"):
        make(lock=lock, threads=3)
    said = json.loads(lock.read_text())
    del said["options"], said["threads"], said["any_threads"]
    lock.write_text(json.dumps(said))
    clock.given[3], clock.takes[3, ""] = 1.0, 0.5
    assert make(lock=lock, threads=3).manifest.options["threads"] == 3


@pytest.mark.parametrize(
    ("cores", "quick", "full"),
    [(1, (1,), (1,)), (2, (1, 2), (1, 2)), (6, (1, 6), (1, 2, 4, 6)), (8, (1, 8), (1, 2, 4, 8))],
)
def test_numbers_of_threads(
    monkeypatch: pytest.MonkeyPatch, cores: int, quick: tuple[int, ...], full: tuple[int, ...]
) -> None:
    monkeypatch.setattr("deploy.stages.threads.physical_cores", lambda: cores)
    assert thread_counts("off") == (1,)
    assert (thread_counts("quick"), thread_counts("full")) == (quick, full)


def test_what_cannot_be_opened_is_passed_over_and_time_is_kept(built: Bundle) -> None:
    backend, artifact = (
        Tunable(),
        built.manifest.artifact.model_copy(update={"folder": built.folder / "artifact"}),
    )
    runs = {
        name: Contender(backend, artifact, OrtOptions(session={KEY: value}))
        for name, value in (("first", "1"), ("broken", "broken"), ("second", "0"), ("third", "1"))
    }
    feeds = {
        s.name: np.zeros([d if isinstance(d, int) else 1 for d in s.shape], s.dtype) for s in artifact.inputs
    }
    begin = time.perf_counter()
    times = heat(runs, feeds, 0.6)
    assert set(times) == {"first", "second", "third"}
    assert time.perf_counter() - begin < 3.0
    with pytest.raises(BackendError):
        heat({"broken": runs["broken"], **runs}, feeds, 0.6)
    assert set(heat({"first": runs["first"]}, feeds, 0.6)) == set()


@pytest.mark.parametrize("threads", [0, "many", 1.5])
def test_threads_that_are_no_number_are_told(make: Build, threads: object) -> None:
    with pytest.raises(UsageError, match="threads must be a whole number"):
        make(threads=threads)


@pytest.mark.parametrize("ms", [0.2, 1.2])
def test_float32_races_where_the_profile_has_floats_in_bfloat16(
    make: Build, backend: Tunable, clock: Clock, ms: float, tmp_path: Path
) -> None:
    """Float builds take three times as long as the clock says; INT8 takes 1.0."""
    backend.offers = (("floats in float32", "0", "float32"),)
    clock.takes[1, "0"] = ms
    bundle = make(target="x86-bf16")
    timed = {a.name: a.latency_ms.p50 for a in bundle.measurements.attempts if a.latency_ms is not None}
    assert (timed["bf16"], timed["float"]) == (3.0, pytest.approx(3 * ms))
    wins = 3 * ms < 1.0
    assert {b.precision for b in plan_of(bundle).blocks} == ({"float"} if wins else {"int8"})
    assert setting(bundle) == ("0" if wins else "")
    again = make(target="x86-bf16", lock=bundle.folder / "deploy.lock", out=tmp_path / "again")
    assert setting(again) == setting(bundle)
    assert plan_of(again) == plan_of(bundle)


@dataclass
class Named:
    """Stands for an entrant: a name, and what it is opened as."""

    name: str
    opened: str = ""
    decided: Any = None

    def contender(self) -> str:
        return self.opened or self.name


def test_floats_of_another_type_race_and_ship_under_their_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was raced under that name before leaves: one name stands for one form."""
    bf16, earlier, int8 = Named("openvino bf16"), Named("openvino float"), Named("ort int8")
    changed = Named("openvino float", "changed")
    held = cast(Race, Race(entrants=(bf16, int8), floats=(earlier, bf16), times={}))  # type: ignore[arg-type]
    opened: dict[str, str] = {}

    def race(runs: Mapping[str, str], feeds: object) -> dict[str, Timing]:
        opened.update(runs)
        return {
            name: Timing(*2 * [np.full(20, 1.0 if who == "changed" else 2.0)]) for name, who in runs.items()
        }

    monkeypatch.setattr("deploy.stages.tune.race", race)
    monkeypatch.setattr("deploy.stages.tune.contenders", lambda held: (*held.entrants, earlier))
    bf16.decided = SimpleNamespace(candidate=SimpleNamespace(artifact=None))
    job = cast(Job, SimpleNamespace(given=lambda: "file", one_inference=lambda artifact: {}))
    times = tune._raced_again(job, cast(Entrant, bf16), cast(Entrant, changed), held)
    assert times is not None and set(times) == {"as given", "openvino float", "ort int8"}
    assert opened["openvino float"] == "changed"
    after = tune._exchanged(held, cast(Entrant, bf16), cast(Entrant, changed))
    assert [e.name for e in after.entrants] == ["openvino float", "ort int8"]
    assert [cast(Named, e).opened for e in after.floats] == ["changed"]
