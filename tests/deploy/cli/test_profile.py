"""deploy profile: what it hands to the survey, shows of it, refuses, and leaves when it is killed."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from deploy.adapter.overlays import Kept, kept_overlays, read_overlay, save, write_overlay
from deploy.adapter.profiles import profile_for
from deploy.adapter.protocol import Availability
from deploy.errors import UsageError
from deploy.measure.host import host, this_machine
from deploy.predict.latency import Costs, Prediction
from deploy.progress import Progress
from deploy.spec.overlay import Cost, Failure, Machine, Overlay, RuntimeCosts
from deploy.spec.profile import Figure
from deploy.stages.request import Request
from deploy.survey.check import Check, Row

Deploy = Callable[..., tuple[int, str, str]]
TODAY = datetime.date(2026, 11, 21)
OTHER = Machine(cpu="Other CPU", arch="x86_64", features=("avx2",), cores=64)


def overlay(
    machine: Machine | None = None, noise: float = 0.02, version: str = "", threads: int = 1
) -> Overlay:
    """What a survey of ONNX Runtime might have found."""
    import onnxruntime

    profile = profile_for(host().arch, host().features)
    costs = [
        Cost(op="conv", precision="float", macs=10**8, bytes=10**6, ms=2, spread=noise, shape="3x3, large"),
        Cost(op="conv", precision="int8", macs=10**8, bytes=10**6, ms=0.5, spread=noise, shape="3x3, large"),
        Cost(op="softmax", precision="float", macs=0, bytes=10**6, ms=1, spread=noise, shape="1000"),
    ]
    runtime = RuntimeCosts(
        name="ort",
        version=version or onnxruntime.__version__,
        threads=threads,
        settings=profile.runtime_named("ort").options,
        cost=tuple(costs),
        failures=(Failure(op="norm", precision="int8", shape="768", reason="no kernel"),),
    )
    return Overlay(
        profile=profile.name,
        machine=machine or this_machine(),
        date=TODAY,
        command="deploy profile",
        seconds=125,
        noise=noise,
        facts={"read_memory": Figure(value=21.5, unit="GB/s", source="measured", date=TODAY)},
        runtime=(runtime,),
    )


class FakeSurvey:
    """Takes what the command hands to the survey and answers with an overlay made up above."""

    def __init__(self) -> None:
        self.asked: list[dict[str, object]] = []
        self.answer = overlay()
        self.fails: BaseException | None = None

    def survey(self, *, progress: Progress, **asked: object) -> Kept:
        self.asked.append(asked)
        progress.start("ort")
        progress.advance(1, 2)
        if self.fails is not None:
            raise self.fails
        progress.finish("ort", 1.5, False, "3 points")
        return Kept(save(self.answer), self.answer)


@pytest.fixture
def survey(monkeypatch: pytest.MonkeyPatch) -> FakeSurvey:
    fake = FakeSurvey()
    module = ModuleType("deploy.survey.run")
    module.survey = fake.survey  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deploy.survey.run", module)
    return fake


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of each test's own."""
    monkeypatch.setenv("DEPLOY_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_a_survey_is_kept_and_shown(deploy: Deploy, survey: FakeSurvey, data: Path) -> None:
    code, out, err = deploy("profile")
    assert code == 0
    assert survey.asked == [{"runtimes": None, "threads": 1, "quick": False, "fresh": False}]
    ((kept,), unreadable) = kept_overlays(data)
    assert kept.overlay == survey.answer and not unreadable
    assert host().cpu in out and str(kept.path) in out and "2 min 05 s" in out
    assert "100 GOP/s" in out and "400 GOP/s" in out and "4.00 ×" in out and "pays" in out
    assert "1.00 GB/s" in out and "float only" in out and "could not be measured" in out
    assert "read_memory" in out and "21.5 GB/s" in out
    assert "warning" not in err and "ort" in err


def test_flags_reach_the_survey(deploy: Deploy, survey: FakeSurvey, tmp_path: Path) -> None:
    words = (
        "--quick",
        "--fresh",
        "--threads",
        2,
        "--runtime",
        "ort",
        "--runtime",
        "tflite",
        "--runtime",
        "ort",
    )
    code, out, err = deploy("profile", *words, "--out", tmp_path / "deep" / "o.json", "-q")
    assert (code, out, err) == (0, "", "")
    assert survey.asked == [{"runtimes": ("ort", "tflite"), "threads": 2, "quick": True, "fresh": True}]
    assert read_overlay(tmp_path / "deep" / "o.json") == survey.answer


def test_json_is_the_overlay_with_its_file(deploy: Deploy, survey: FakeSurvey) -> None:
    survey.answer = overlay(noise=0.3)
    code, out, _ = deploy("profile", "--json")
    found = json.loads(out)
    assert code == 0
    assert Overlay.model_validate(found["overlay"]) == survey.answer
    assert read_overlay(Path(found["file"])) == survey.answer
    assert "busy" in found["warnings"][0]


def test_a_noisy_machine_is_said_with_its_intervals_and_is_no_failure(
    deploy: Deploy, survey: FakeSurvey
) -> None:
    survey.answer = overlay(noise=0.4)
    code, out, err = deploy("profile")
    assert code == 0 and "too busy to be believed" in out
    assert "median spread is 0.40" in err and "--fresh" in err
    assert "\\n" not in err
    assert (
        "ort conv float: spread 0.40; 3x3, large takes 2.00 ms, half of its runs between 1.60 and 2.40 ms"
        in err
    )
    code, _, err = deploy("profile", "--show")
    assert code == 0 and "median spread is 0.40" in err and "between 1.60 and 2.40 ms" in err


def test_an_unknown_runtime_is_refused_with_the_nearest(deploy: Deploy, survey: FakeSurvey) -> None:
    code, out, err = deploy("profile", "--runtime", "openvno")
    assert (code, out) == (2, "")
    assert err.startswith("error: unknown runtime 'openvno'\nhint: did you mean openvino? installed: ")
    assert "ort" in err and "tflite" in err
    assert survey.asked == []
    assert json.loads(deploy("profile", "--runtime", "?", "--json")[1])["error"]["exit_code"] == 2


def test_a_runtime_of_other_machines_is_refused(deploy: Deploy, survey: FakeSurvey) -> None:
    code, _, err = deploy("profile", "--runtime", "tensorrt")
    assert code == 2 and "tensorrt runs nothing on a machine like this one" in err and "one of " in err
    assert survey.asked == []


def test_a_runtime_that_is_not_installed_is_told(
    deploy: Deploy, survey: FakeSurvey, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Availability("openvino", None, missing="pip install 'deploy-compiler[openvino]'")
    monkeypatch.setattr("backends.openvino.backend.OpenVino.available", lambda self: gone)
    code, _, err = deploy("profile", "--runtime", "openvino")
    assert code == 6 and "openvino: pip install" in err and survey.asked == []
    code, _, err = deploy("profile")
    assert code == 0 and "left out: openvino: pip install" in err and len(survey.asked) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--show", "--quick"), "--quick means nothing beside --show"),
        (("--show", "--use", "o.json"), "--show and --use do not go together"),
        (("--check", "m.onnx", "--picture", "p.png"), "--picture means nothing beside --check"),
        (("--data", "x.npz"), "--data means nothing beside measuring"),
        (("--use", "o.json", "--fresh"), "--fresh means nothing beside --use"),
        (("--threads", "0"), "greater than or equal to 1"),
    ],
)
def test_flags_that_contradict_are_refused(
    deploy: Deploy, survey: FakeSurvey, words: Sequence[str], said: str
) -> None:
    code, out, err = deploy("profile", *words)
    assert (code, out) == (2, "") and said in err and "hint: " in err


def test_interrupted_it_says_how_to_go_on(deploy: Deploy, survey: FakeSurvey, data: Path) -> None:
    survey.fails = KeyboardInterrupt()
    code, out, err = deploy("profile")
    assert (code, out) == (130, "")
    assert "the same command goes on from there" in err and err.endswith("interrupted\n")
    assert not data.exists()


def test_a_refused_survey_ends_with_its_message(deploy: Deploy, survey: FakeSurvey) -> None:
    survey.fails = UsageError("another survey of this machine is running (process 7)", hint="wait")
    code, _, err = deploy("profile")
    assert code == 2 and "another survey" in err


def test_a_read_only_data_folder_is_told(deploy: Deploy, survey: FakeSurvey, data: Path) -> None:
    data.write_text("in the way")
    code, out, err = deploy("profile")
    assert (code, out) == (2, "")
    assert "cannot be written" in err and "DEPLOY_DATA" in err


def test_nothing_measured_yet(deploy: Deploy) -> None:
    code, out, err = deploy("profile", "--show")
    assert (code, err) == (0, "")
    assert "nothing was measured on this machine yet" in out and "deploy profile" in out
    assert json.loads(deploy("profile", "--show", "--json")[1])["overlay"] is None
    code, _, err = deploy("profile", "--check", "model.onnx")
    assert code == 2 and "nothing was measured on this machine yet" in err and "deploy profile" in err
    assert deploy("profile", "--show", "--out", "o.json")[0] == 2


def test_what_does_not_fit_is_said(deploy: Deploy, data: Path) -> None:
    path = save(overlay(version="1.0.0"))
    (data / "measured" / "broken.json").write_text('{"schema": 1,\n"nose": 0.1}')
    code, out, err = deploy("profile", "--show")
    assert code == 0 and "nothing fits this machine" in out
    assert f"{path}: ort is not used: measured with version 1.0.0, installed is " in err
    assert "broken.json:2: unknown key 'nose'" in err
    found = json.loads(deploy("profile", "--show", "--json")[1])
    assert found["overlay"] is None and len(found["reasons"]) == 2
    code, _, err = deploy("profile", "--check", "model.onnx")
    assert code == 2 and "version 1.0.0" in err


def test_another_number_of_threads_is_another_measurement(deploy: Deploy) -> None:
    save(overlay(threads=2))
    assert "measured with threads = 2, wanted are 1" in deploy("profile", "--show")[2]
    code, out, err = deploy("profile", "--show", "--threads", 2)
    assert (code, err) == (0, "") and "2 threads" in out


def test_measurements_travel_between_machines(deploy: Deploy, tmp_path: Path) -> None:
    save(overlay())
    assert deploy("profile", "--show", "--out", tmp_path / "here.json")[0] == 0
    assert read_overlay(tmp_path / "here.json") == overlay()
    write_overlay(overlay(OTHER), tmp_path / "there.json")
    code, out, err = deploy("profile", "--use", tmp_path / "there.json")
    assert code == 0 and "✓" in out
    assert "not used for this one: measured on Other CPU" in err
    out = deploy("profile", "--show")[1]
    assert "also kept" in out and "Other CPU" in out
    out = deploy("profile", "--show", "--of", "other")[1]
    assert out.startswith("Other CPU") and "64 cores" in out
    code, _, err = deploy("profile", "--show", "--of", "unheard-of")
    assert code == 2 and "no measurements of a machine called 'unheard-of'" in err
    found = json.loads(deploy("profile", "--use", tmp_path / "here.json", "--json")[1])
    assert found["this_machine"] is True


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Invalid JSON"),
        ('{"schema": 1,\n"profile": 7}', "o.json:2: 'profile'"),
        ('{"schema": 0}', "o.json:1: 'schema'"),
    ],
)
def test_a_malformed_file_is_not_kept(
    deploy: Deploy, tmp_path: Path, data: Path, text: str, said: str
) -> None:
    (tmp_path / "o.json").write_text(text)
    code, out, err = deploy("profile", "--use", tmp_path / "o.json")
    assert (code, out) == (2, "") and said in err
    assert not data.exists()
    code, _, err = deploy("profile", "--use", tmp_path / "absent.json")
    assert code == 2 and "no such file" in err


def test_texts_of_a_file_steer_no_terminal(deploy: Deploy, survey: FakeSurvey) -> None:
    survey.answer = overlay(OTHER.model_copy(update={"cpu": "CPU\x1b[2J", "device": "GPU\u202e"}))
    out = deploy("profile")[1]
    assert "\x1b" not in out and "\u202e" not in out and "CPU\\x1b[2J" in out


def test_a_picture_is_drawn(deploy: Deploy, survey: FakeSurvey, tmp_path: Path) -> None:
    assert deploy("profile", "-q", "--picture", tmp_path / "one.png")[0] == 0
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert deploy("profile", "--show", "--picture", tmp_path / "two.svg", "-q") == (0, "", "")
    assert b"<svg" in (tmp_path / "two.svg").read_bytes()
    assert deploy("profile", "--show", "--picture", tmp_path / "two.gif")[0] == 2


def test_a_check_is_drawn_with_its_blocks(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Request, dict[str, Costs]]] = []

    def check(request: Request, costs: dict[str, Costs], progress: Progress) -> Check:
        asked.append((request, costs))
        row = Row(
            "ort", "float", Prediction((), 1.25), 1.0, (0.9, 1.1), (("conv1", 1.0, 0.8), ("tail", 0.25, None))
        )
        return Check("net", (row,), ("tflite was not measured on this machine",))

    monkeypatch.setattr("deploy.survey.check.check", check)
    monkeypatch.setattr(Prediction, "interval", (1.0, 1.5))
    save(overlay())
    code, out, err = deploy("profile", "--check", "net.onnx", "--data", "calib.npz")
    assert code == 0
    request, costs = asked[0]
    assert (request.source, request.data, request.random_calibration) == (
        Path("net.onnx"),
        "calib.npz",
        False,
    )
    assert list(costs) == ["ort"]
    assert "1.25 ms" in out and "1.00 ms" in out and "+25 %" in out and "conv1" in out and "tail" in out
    assert "tflite was not measured" in err
    found = json.loads(deploy("profile", "--check", "net.onnx", "--json")[1])
    assert found["rows"][0]["error"] == pytest.approx(0.25)
    assert asked[1][0].random_calibration


def test_the_command_loads_nothing_heavy_before_it_knows_what_to_do() -> None:
    program = "import sys, deploy.cli.profile; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {
        "numpy",
        "pydantic",
        "onnx_ir",
        "onnxruntime",
        "matplotlib",
        "platformdirs",
        "torch",
        "rich.live",
    }
    assert not heavy & loaded
    ours = {name for name in loaded if name.startswith("deploy")}
    light = {"adapter", "adapter.later", "cli", "cli.options", "cli.profile", "errors"}
    assert ours == {"deploy", *(f"deploy.{name}" for name in light)}


CHILD = """
import datetime, sys, time
from pathlib import Path
from types import ModuleType
import deploy.cache
sys.path.insert(0, {folder!r})
from test_profile import overlay
deploy.cache.code_version = lambda: "the same"  # whatever is edited meanwhile
from deploy.adapter.overlays import Kept, Runs, data_root, save
from deploy.cli import main
from deploy.measure.host import this_machine
from deploy.spec.overlay import Cost
from deploy.survey.journal import journal

def survey(*, runtimes, threads, quick, fresh, progress):
    points = [f"conv {{i}}" for i in range(6)]
    runs = (Runs("ort", "1", threads, {{}}),)
    progress.start("ort")
    where = dict(quick=quick, data_root=data_root(), progress=progress, fresh=fresh)
    with journal(this_machine(), runs, points, **where) as lines:
        for point in points:
            if ("ort", point) not in lines.done:
                with Path(sys.argv[1]).open("a") as log:
                    log.write(point + "\\n")
                time.sleep(float(sys.argv[2]))
                lines.add("ort", point, [Cost(op="conv", precision="float", macs=9, bytes=9, ms=1, spread=0)])
        return Kept(save(overlay()), overlay())

module = ModuleType("deploy.survey.run")
module.survey = survey
sys.modules["deploy.survey.run"] = module
raise SystemExit(main(["profile", *sys.argv[3:]]))
"""


def started(log: Path, seconds: float, *words: str) -> subprocess.Popen[str]:
    program = CHILD.format(folder=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", program, str(log), str(seconds), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"NO_COLOR": "1"},
    )


def test_killed_midway_it_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = started(log, 0.2)
    try:
        while not log.is_file() or len(log.read_text().splitlines()) < 3:
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    begun = log.read_text().splitlines()
    second = started(log, 0)
    out, err = second.communicate(timeout=30)
    assert second.returncode == 0, err
    assert "goes on from a survey that stopped" in err and "of 6 points are measured" in err
    assert "GOP/s" in out
    measured = log.read_text().splitlines()
    again = measured[len(begun) :]
    assert set(again) & set(begun[:-1]) == set(), "what was measured is not measured again"
    assert set(measured) == {f"conv {i}" for i in range(6)}
