"""A bundle is swapped in whole, whatever happens meanwhile; somebody else's files are never touched."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.bundle import write
from deploy.bundle.write import staged
from deploy.errors import UsageError

FILES = ("artifact/model.onnx", "graph.onnx", "plan.json")

FORKING = r"""
import hashlib, json, os, resource, signal, sys
from pathlib import Path
from deploy.bundle import write
from deploy.errors import UsageError

def build(destination, number, stop=None):
    with write.staged(destination) as folder:
        hashes = {}
        for name in ("artifact/model.onnx", "graph.onnx", "plan.json"):
            data = f"{number} {name} ".encode() * 3000
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            hashes[name] = hashlib.sha256(data).hexdigest()
            if stop == "writing":
                die()
        manifest = {"schema": 1, "plan_sha256": "", "number": number, "files": hashes}
        (folder / "manifest.json").write_text(json.dumps(manifest))

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function, before, at_call=1):
    calls = []
    def wrapped(*arguments, **named):
        calls.append(arguments)
        if len(calls) == at_call and before:
            die()
        result = function(*arguments, **named)
        if len(calls) == at_call:
            die()
        return result
    return wrapped

def refused(destination, kind, said):
    with open(said, "w") as out:
        if kind == "nobody" and os.geteuid() == 0:  # root may write everywhere
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        if kind == "file size limit":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            build(destination, 5)
        except UsageError as e:
            out.write(f"{e.message} | {e.hint}")

def work(job):
    if job["place"] in ("nobody", "file size limit"):
        refused(Path(job["destination"]), job["place"], job["moment"])
        return
    destination, place, before = Path(job["destination"]), job["place"], job["moment"] == "before"
    if job["place"] == "random":
        if job["moment"] == "two renames":
            write._exchange = lambda one, other: False
        number = 1
        while True:
            build(destination, number)
            number += 1
    if place in ("first rename", "second rename"):
        write._exchange = lambda one, other: False
        Path.rename = dying(Path.rename, before, 1 if place == "first rename" else 2)
    elif place == "rmtree":
        write.shutil.rmtree = dying(write.shutil.rmtree, before)
    elif place != "writing":
        setattr(write, place, dying(getattr(write, place), before))
    build(destination, 2, stop=place)

for line in sys.stdin:  # one job a line: forking costs a hundredth of starting Python again
    pid = os.fork()
    if not pid:
        work(json.loads(line))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Victims:
    """Processes that write bundles and are killed."""

    server: subprocess.Popen[str]

    def start(self, destination: Path, place: str, moment: str) -> int:
        """Start one; returns its process id."""
        assert self.server.stdin is not None
        job = {"destination": str(destination), "place": place, "moment": moment}
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """The exit status of the one started last."""
        return self._answer()

    def _answer(self) -> int:
        assert self.server.stdout is not None
        return int(self.server.stdout.readline())


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", FORKING], stdin=pipe, stdout=pipe, text=True) as server:
        yield Victims(server)
        assert server.stdin is not None
        server.stdin.close()


def fill(folder: Path, number: int) -> None:
    hashes = {}
    for name in FILES:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number} {name} ")
        hashes[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = {"schema": 1, "plan_sha256": "", "number": number, "files": hashes}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def number_of(destination: Path) -> int:
    """The number of the bundle that stands there, complete and with right hashes."""
    manifest = json.loads((destination / "manifest.json").read_text())
    assert set(manifest["files"]) == set(FILES)
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((destination / name).read_bytes()).hexdigest() == digest
    return int(manifest["number"])


def build(destination: Path, number: int) -> None:
    with staged(destination) as folder:
        fill(folder, number)


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_first_and_a_second_bundle_leave_nothing_beside_them(tmp_path: Path) -> None:
    destination = tmp_path / "dist" / "x86-cpu"
    for number in (1, 2):
        build(destination, number)
        assert number_of(destination) == number
        assert left_in(destination.parent) == ["x86-cpu"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x86-cpu").mkdir()
    build(tmp_path / "x86-cpu", 1)
    assert number_of(tmp_path / "x86-cpu") == 1


def test_readers_never_meet_a_gap_while_bundles_are_swapped(tmp_path: Path, victims: Victims) -> None:
    destination = tmp_path / "x86-cpu"
    build(destination, 0)
    pid = victims.start(destination, "random", "exchange")
    until = time.monotonic() + 0.3
    seen = set()
    while time.monotonic() < until:
        seen.add((destination / "manifest.json").stat().st_mtime_ns)
    os.kill(pid, signal.SIGKILL)
    assert victims.wait() == -signal.SIGKILL
    assert len(seen) > 3


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_kill_at_any_moment_leaves_a_whole_bundle(tmp_path: Path, victims: Victims, way: str) -> None:
    """By two renames there may be a gap, which the next build closes before it does anything else."""
    destination = tmp_path / "x86-cpu"
    build(destination, 0)
    generator = random.Random(0)
    for _ in range(25):
        pid = victims.start(destination, "random", way)
        time.sleep(generator.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        assert victims.wait() == -signal.SIGKILL
        if way == "exchange":
            assert number_of(destination) >= 0
        with contextlib.suppress(RuntimeError), staged(destination):
            assert number_of(destination) >= 0
            raise RuntimeError
        assert left_in(tmp_path) == ["x86-cpu"]


REPLACED = {
    ("_exchange", "after"), ("_swap", "after"), ("rmtree", "before"), ("rmtree", "after"),
    ("second rename", "after"),
}  # fmt: skip
GAP = {("first rename", "after"), ("second rename", "before")}


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    "place", ["writing", "flush", "_exchange", "_swap", "rmtree", "first rename", "second rename"]
)
def test_a_kill_at_a_planted_point(tmp_path: Path, victims: Victims, place: str, moment: str) -> None:
    destination = tmp_path / "x86-cpu"
    build(destination, 1)
    victims.start(destination, place, moment)
    assert victims.wait() == -signal.SIGKILL
    if (place, moment) not in GAP:
        assert number_of(destination) == (2 if (place, moment) in REPLACED else 1)
    with contextlib.suppress(RuntimeError), staged(destination):
        assert number_of(destination) in (1, 2)  # whole again before anything else is done
        raise RuntimeError
    assert left_in(tmp_path) == ["x86-cpu"]
    build(destination, 3)
    assert number_of(destination) == 3
    assert left_in(tmp_path) == ["x86-cpu"]


def test_without_exchange_two_renames_do_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_exchange", lambda one, other: False)
    destination = tmp_path / "x86-cpu"
    build(destination, 1)
    build(destination, 2)
    assert number_of(destination) == 2
    assert left_in(tmp_path) == ["x86-cpu"]


def test_a_failing_second_rename_puts_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "_exchange", lambda one, other: False)
    destination = tmp_path / "x86-cpu"
    build(destination, 1)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.startswith(".deploy-new-"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UsageError, match="no space left"):
        build(destination, 2)
    assert number_of(destination) == 1
    assert left_in(tmp_path) == ["x86-cpu"]


def dead_process() -> int:
    with subprocess.Popen(["true"]) as child:
        return child.pid


def test_leftovers_of_other_targets_and_of_running_builds_stay(tmp_path: Path) -> None:
    """``jetson`` is a name of its own and the beginning of another."""
    dead = dead_process()
    mine = [f".deploy-new-jetson-{dead}", f".deploy-old-jetson-{dead}"]
    others = [
        f".deploy-new-jetson-agx-orin-{dead}",
        f".deploy-old-jetson-agx-orin-{dead}",
        f".deploy-new-jetson-{os.getppid()}",
        f".deploy-old-jetson-{os.getppid()}",
    ]
    for name in mine + others:
        (tmp_path / name).mkdir()
        fill(tmp_path / name, 7)
    build(tmp_path / "jetson", 1)
    assert number_of(tmp_path / "jetson") == 1
    assert left_in(tmp_path) == sorted([*others, "jetson"])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, UsageError, ValueError, SystemExit])
def test_whatever_ends_the_work_nothing_is_left(tmp_path: Path, kind: type[BaseException]) -> None:
    with pytest.raises(kind), staged(tmp_path / "a" / "dist" / "x86-cpu") as folder:
        fill(folder, 1)
        raise kind("stop")
    assert left_in(tmp_path) == []


def test_an_interrupted_build_leaves_the_old_bundle(tmp_path: Path) -> None:
    build(tmp_path / "x86-cpu", 1)
    with pytest.raises(KeyboardInterrupt), staged(tmp_path / "x86-cpu") as folder:
        (folder / "manifest.json").write_text("half")
        raise KeyboardInterrupt
    assert number_of(tmp_path / "x86-cpu") == 1
    assert left_in(tmp_path) == ["x86-cpu"]


@pytest.mark.parametrize("held", ["notes.txt", "manifest.json"])
def test_somebody_elses_folder_is_refused_before_any_work(tmp_path: Path, held: str) -> None:
    """A web application has a manifest.json too."""
    folder = tmp_path / "x86-cpu"
    folder.mkdir()
    (folder / held).write_text('{"name": "a web application"}')
    with pytest.raises(UsageError, match="no build of ours made") as caught, staged(folder):
        pytest.fail("work began")
    assert "x86-cpu" in caught.value.message
    assert "--out" in caught.value.hint
    assert left_in(tmp_path) == ["x86-cpu"]
    assert left_in(folder) == [held]


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink", "symlink loop"])
def test_what_is_not_a_folder_is_refused(tmp_path: Path, kind: str) -> None:
    destination = tmp_path / "x86-cpu"
    if kind == "file":
        destination.write_text("mine")
    elif kind == "symlink":
        (tmp_path / "elsewhere").mkdir()
        destination.symlink_to(tmp_path / "elsewhere")
    else:
        destination.symlink_to("x86-cpu" if kind == "symlink loop" else "nowhere")
    before = left_in(tmp_path)
    with pytest.raises(UsageError, match="exists and is not a folder"), staged(destination):
        pytest.fail("work began")
    assert left_in(tmp_path) == before


def test_a_file_where_the_parent_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dist").write_text("mine")
    with pytest.raises(UsageError, match="dist"), staged(tmp_path / "dist" / "x86-cpu"):
        pytest.fail("work began")
    assert (tmp_path / "dist").read_text() == "mine"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a file system without folders of one's own")
@pytest.mark.parametrize("place", ["/proc/no-such-place/x86-cpu", "/proc/x86-cpu"])
def test_a_place_where_no_folder_can_be_made_is_told(place: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"), staged(Path(place)):
        raise AssertionError("no work is done")


def test_a_name_too_long_for_the_file_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"), staged(tmp_path / "d" / ("x" * 300)):
        pytest.fail("work began")
    assert left_in(tmp_path) == []


def test_an_error_about_another_file_names_that_file(tmp_path: Path) -> None:
    """A cache on a full disk is not the fault of --out."""
    with pytest.raises(UsageError, match=r"^/elsewhere/cache: no space left"), staged(tmp_path / "x86-cpu"):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere/cache")


def test_an_unknown_system_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"), staged(tmp_path / "x86-cpu"):
        raise OSError(errno.EIO, "Input/output error")
    assert left_in(tmp_path) == []


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Path]:
    """A folder that another user can reach, unlike pytest's own."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    folder = Path("/tmp") / f"deploy-test-{os.getpid()}"
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("existing", [False, True])
def test_a_read_only_parent_is_one_clear_error(public: Path, victims: Victims, existing: bool) -> None:
    parent = public / "dist"
    parent.mkdir()
    if existing:
        build(parent / "x86-cpu", 1)
    parent.chmod(0o555)
    try:
        victims.start(parent / "x86-cpu", "nobody", str(public / "said"))
        assert victims.wait() == 0
    finally:
        parent.chmod(0o755)
    said = (public / "said").read_text()
    assert said == f"{parent}/x86-cpu: cannot be written: Permission denied | choose another place with --out"
    assert left_in(parent) == (["x86-cpu"] if existing else [])


def test_a_file_beyond_the_size_limit_is_one_clear_error(tmp_path: Path, victims: Victims) -> None:
    victims.start(tmp_path / "dist" / "x86-cpu", "file size limit", str(tmp_path / "said"))
    assert victims.wait() == 0
    assert "x86-cpu: no space left to write to | free some space" in (tmp_path / "said").read_text()
    assert left_in(tmp_path) == ["said"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small file system here")
    try:
        build(disk / "x86-cpu", 1)
        with pytest.raises(UsageError, match="x86-cpu: no space left"), staged(disk / "x86-cpu") as folder:
            (folder / "graph.onnx").write_bytes(bytes(4_000_000))
        assert number_of(disk / "x86-cpu") == 1
        assert left_in(disk) == ["x86-cpu"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)
