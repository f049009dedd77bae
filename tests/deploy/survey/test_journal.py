"""A survey that was killed goes on where it stopped: nothing twice, nothing lost."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.adapter.overlays import Runs
from deploy.errors import UsageError
from deploy.progress import SILENT, Silent
from deploy.spec.overlay import Cost, Failure, Machine
from deploy.survey.journal import Journal, journal

HERE = Machine(cpu="Some CPU", arch="x86_64", features=("avx2",), cores=2)
RUNS = (Runs("ort", "1.31.1", 1, {}), Runs("openvino", "2026.4.1", 1, {"streams": 1}))
POINTS = tuple(f"conv {size}" for size in range(5))


class Notes(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def opened(
    root: Path,
    notes: Silent = SILENT,
    machine: Machine = HERE,
    runs: tuple[Runs, ...] = RUNS,
    points: tuple[str, ...] = POINTS,
    *,
    quick: bool = False,
    fresh: bool = False,
) -> AbstractContextManager[Journal]:
    return journal(machine, runs, points, quick=quick, data_root=root, progress=notes, fresh=fresh)


def cost(ms: float) -> Cost:
    return Cost(op="conv", precision="int8", macs=10, bytes=20, ms=ms, spread=0.01, shape="3x3")


FAILURE = Failure(op="conv", precision="int8", shape="3x3", reason="no kernel\nfor it")


def interrupted(root: Path) -> None:
    """Three points measured, then Ctrl-C."""
    with pytest.raises(KeyboardInterrupt), opened(root) as lines:
        lines.add("ort", POINTS[0], [cost(1), cost(2)], 0.5)
        lines.add("ort", POINTS[1], [FAILURE], 0.25)
        lines.add("openvino", POINTS[0], [], 0.25)
        raise KeyboardInterrupt


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_survey_that_stopped_goes_on_and_says_so(tmp_path: Path) -> None:
    interrupted(tmp_path)
    notes = Notes()
    with opened(tmp_path, notes) as lines:
        assert dict(lines.done) == {
            ("ort", POINTS[0]): (cost(1), cost(2)),
            ("ort", POINTS[1]): (FAILURE,),
            ("openvino", POINTS[0]): (),
        }
        assert lines.seconds == 1
        lines.add("openvino", POINTS[1], [cost(3)], 1)
        assert lines.seconds == 2 and len(lines.done) == 4
    (said,) = notes.said
    assert "3 of 10 points are measured" in said and "goes on" in said


def test_a_finished_survey_leaves_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with opened(tmp_path) as lines:
        lines.add("ort", POINTS[2], [cost(1)])
    assert files(tmp_path) == []
    notes = Notes()
    with opened(tmp_path, notes) as lines:
        assert not lines.done
    assert notes.said == []


def test_one_that_measured_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), opened(tmp_path):
        raise KeyboardInterrupt
    assert files(tmp_path) == []


def test_fresh_begins_anew(tmp_path: Path) -> None:
    interrupted(tmp_path)
    notes = Notes()
    with opened(tmp_path, notes, fresh=True) as lines:
        assert not lines.done and not notes.said


@pytest.mark.parametrize(
    "other",
    [
        {"quick": True},
        {"points": POINTS[:-1]},
        {"runs": RUNS[:1]},
        {"runs": (Runs("ort", "1.32.0", 1, {}), RUNS[1])},
        {"runs": (Runs("ort", "1.31.1", 2, {}), RUNS[1])},
        {"runs": (RUNS[0], Runs("openvino", "2026.4.1", 1, {"streams": 2}))},
        {"machine": HERE.model_copy(update={"cpu": "Other CPU"})},
        {"machine": HERE.model_copy(update={"features": ("avx2", "avx512_vnni")})},
    ],
)
def test_points_of_another_survey_are_not_taken(tmp_path: Path, other: dict[str, object]) -> None:
    interrupted(tmp_path)
    with opened(tmp_path, **other) as lines:  # type: ignore[arg-type]
        assert not lines.done
    with opened(tmp_path) as lines:
        assert len(lines.done) == 3, "they stay for the survey that they are of"


def test_a_day_later_everything_is_measured_again(tmp_path: Path) -> None:
    interrupted(tmp_path)
    (path,) = tmp_path.rglob("*.jsonl")
    os.utime(path, (time.time() - 90_000,) * 2)
    notes = Notes()
    with opened(tmp_path, notes) as lines:
        assert not lines.done
    assert "begun anew" in notes.said[0]


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 10_000), tail=st.binary(max_size=20))
def test_a_torn_end_is_dropped_and_written_over(
    tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes
) -> None:
    """Wherever the file ends, and whatever a dying disk put there: whole lines before it count."""
    root = tmp_path_factory.mktemp("torn")
    interrupted(root)
    (path,) = root.rglob("*.jsonl")
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    kept = whole[:cut].count(b"\n")
    path.write_bytes(whole[:cut] + tail)
    with pytest.raises(KeyboardInterrupt), opened(root) as lines:
        assert len(lines.done) >= min(kept, 3)
        assert set(lines.done) <= {("ort", POINTS[0]), ("ort", POINTS[1]), ("openvino", POINTS[0])}
        before = len(lines.done)
        lines.add("ort", POINTS[4], [cost(4)])
        raise KeyboardInterrupt
    with opened(root) as lines:
        assert len(lines.done) == before + 1
        assert lines.done["ort", POINTS[4]] == (cost(4),)


CHILD = """
import sys, time
from pathlib import Path
import deploy.cache
sys.path.insert(0, {folder!r})
from test_journal import POINTS, RUNS, cost, opened
deploy.cache.code_version = lambda: "the same"  # whatever is edited meanwhile
with opened(Path(sys.argv[1])) as lines:
    for runtime in RUNS:
        for point in POINTS:
            if (runtime.name, point) not in lines.done:
                print("measuring", runtime.name, point, flush=True)
                time.sleep(float(sys.argv[2]))
                lines.add(runtime.name, point, [cost(1)])
print("through", len(lines.done), flush=True)
"""


@pytest.fixture
def child(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(root: Path, seconds: float) -> subprocess.Popen[str]:
    program = CHILD.format(folder=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", program, str(root), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_midway_no_point_is_measured_twice(tmp_path: Path, child: list[subprocess.Popen[str]]) -> None:
    first = start(tmp_path, 0.05)
    child.append(first)
    assert first.stdout is not None
    seen = [first.stdout.readline() for _ in range(4)]
    first.send_signal(signal.SIGKILL)
    rest, _ = first.communicate(timeout=20)
    assert first.returncode == -signal.SIGKILL
    begun = [line.strip() for line in (*seen, *rest.splitlines())]
    assert 4 <= len(begun) < 10

    second = start(tmp_path, 0)
    child.append(second)
    out, err = second.communicate(timeout=20)
    assert second.returncode == 0, err
    again = out.splitlines()
    assert again[-1] == "through 10"
    assert set(begun[:-1]).isdisjoint(again), "what was measured is not measured again"
    everything = [f"measuring {runtime.name} {point}" for runtime in RUNS for point in POINTS]
    assert [line for line in everything if line in begun[:-1] or line in again] == everything
    assert len(begun[:-1]) + len(again) - 1 in (10, 9), "but the one that was torn"
    assert files(tmp_path) == []


def test_another_survey_at_the_same_time_is_refused(
    tmp_path: Path, child: list[subprocess.Popen[str]]
) -> None:
    running = start(tmp_path, 5)
    child.append(running)
    assert running.stdout is not None
    assert running.stdout.readline().startswith("measuring")
    for quick in (False, True):
        with pytest.raises(UsageError, match=rf"another survey .*process {running.pid}\)") as caught:
            opened(tmp_path, quick=quick).__enter__()
        assert "wait" in caught.value.hint
    other = HERE.model_copy(update={"cpu": "Other CPU"})
    with opened(tmp_path, machine=other) as lines:
        assert not lines.done, "a home folder may be shared by machines"
    running.send_signal(signal.SIGKILL)
    running.communicate()
    with opened(tmp_path) as lines:
        assert not lines.done, "the lock went with the process"


def test_a_place_that_cannot_be_written_is_an_error_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written") as caught:
        opened(tmp_path / "file").__enter__()
    assert "DEPLOY_DATA" in caught.value.hint


def test_a_read_only_file_system_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(UsageError, match="cannot be written"):
        opened(tmp_path).__enter__()


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match="No space left"), opened(tmp_path) as lines:
        monkeypatch.setattr("os.fsync", full)
        lines.add("ort", POINTS[0], [cost(1)])
