"""An entry is there whole or not at all, is found by everything that made it, and nothing else is touched."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import deploy.cache
from deploy.cache import Cache, code_version, default_root, drop_leftovers, scratch
from deploy.errors import UsageError


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def writes(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "result").write_text(text)

    return write


def never(folder: Path) -> None:
    pytest.fail("computed again")


def everything(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*"))


def test_a_result_is_computed_once(cache: Cache) -> None:
    key = cache.key("stage", n=1)
    folder, cached = cache.fetch(key, writes("one"))
    assert not cached
    again, cached = cache.fetch(key, never)
    assert cached
    assert again == folder == cache.folder(key)
    assert (again / "result").read_text() == "one"
    assert everything(cache.root) == [key[:2], f"{key[:2]}/{key}", f"{key[:2]}/{key}/result"]


@given(st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.text()), max_size=4))
def test_equal_parts_give_equal_keys_whatever_their_order(parts: dict[str, object]) -> None:
    parts.pop("stage", None)
    cache = Cache(Path("nowhere"))
    turned = dict(reversed(list(parts.items())))
    assert cache.key("s", **{f"p{k}": v for k, v in parts.items()}) == cache.key(
        "s", **{f"p{k}": v for k, v in turned.items()}
    )


def test_every_part_counts(cache: Cache) -> None:
    keys = {
        cache.key("a"),
        cache.key("b"),
        cache.key("a", n=1),
        cache.key("a", n="1"),
        cache.key("a", n=None),
        cache.key("a", m=1),
        cache.key("a", n=[1, 2]),
        cache.key("a", n=[2, 1]),
        cache.key("a", n=1.0),
    }
    assert len(keys) == 9


def test_the_package_and_its_libraries_are_part_of_every_key(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, key = code_version(), cache.key("stage")
    code_version.cache_clear()
    try:
        assert code_version() == before
        code_version.cache_clear()
        monkeypatch.setattr(deploy.cache, "version", lambda name: "99.0")
        assert code_version() != before
        assert cache.key("stage") != key
    finally:
        monkeypatch.undo()
        code_version.cache_clear()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_result_leaves_nothing_and_is_computed_again(
    cache: Cache, kind: type[BaseException]
) -> None:
    def failing(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise kind("stop")

    key = cache.key("stage")
    with pytest.raises(kind):
        cache.fetch(key, failing)
    assert everything(cache.root) == [key[:2]]
    assert cache.fetch(key, writes("whole"))[1] is False


def test_who_comes_second_takes_the_first_ones_result(cache: Cache) -> None:
    key = cache.key("stage")

    def write(folder: Path) -> None:
        cache.fetch(key, writes("first"))
        (folder / "result").write_text("second")

    folder, cached = cache.fetch(key, write)
    assert not cached
    assert (folder / "result").read_text() == "first"
    assert cache.info() == {"entries": 1, "bytes": 5}


def test_a_full_disk_names_the_cache_and_how_to_empty_it(cache: Cache) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UsageError, match="cache: no space left") as caught:
        cache.fetch(cache.key("stage"), full)
    assert "deploy cache clear" in caught.value.hint


def test_other_system_errors_pass_through(cache: Cache) -> None:
    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        cache.fetch(cache.key("stage"), broken)


KILLED = """
import os, signal, sys
from pathlib import Path
from deploy.cache import Cache

def write(folder):
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

Cache(Path(sys.argv[1])).fetch("ab" * 32, write)
"""


def test_a_killed_build_leaves_no_entry_and_its_rest_is_swept_a_day_later(cache: Cache) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(cache.root)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (cache.root / "ab").iterdir()
    assert left.name.startswith(".new-")
    assert cache.info()["entries"] == 0
    cache.fetch("ab" + "0" * 62, writes("x"))
    assert left.exists()  # it might still be at work
    os.utime(left, (0, time.time() - 2 * 24 * 3600))
    cache.fetch("ab" + "1" * 62, writes("x"))
    assert not left.exists()


HOLDING = """
import sys, time
from pathlib import Path
from deploy.cache import Cache

cache, key, seconds = Cache(Path(sys.argv[1])), "ab" * 32, float(sys.argv[2])

def work(folder):
    (folder / "result").write_text("whole")

with cache.alone(key, lambda: print("waits", flush=True)) as folder:
    print("found", *sorted(p.name for p in folder.iterdir() if p.name[0] != "."), flush=True)
    (folder / "checkpoint").write_text("half")
    time.sleep(seconds)
    print("cached" if cache.fetch(key, work)[1] else "computed", flush=True)
"""


def holder(cache: Cache, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(cache.root), str(seconds)], stdout=subprocess.PIPE, text=True
    )


def test_of_two_builds_at_one_thing_the_second_waits_for_the_first_ones_result(cache: Cache) -> None:
    with holder(cache, 0.7) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "found\n"
        with holder(cache, 0) as second:
            assert second.communicate()[0].split() == ["waits", "found", "cached"]
        assert first.stdout.read() == "computed\n"
    assert everything(cache.root / "unfinished") == []


def test_where_the_first_is_killed_the_second_goes_on(cache: Cache) -> None:
    with holder(cache, 60) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "found\n"
        with holder(cache, 0) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "waits\n"
            assert cache.clear() == 0
            assert (cache.unfinished("ab" * 32) / "checkpoint").exists(), "what a build is at stays"
            first.kill()
            assert second.communicate()[0].split() == ["found", "checkpoint", "computed"]


def test_what_failed_keeps_what_it_has_if_it_has_anything(cache: Cache) -> None:
    for names in ((), ("checkpoint",)):
        with pytest.raises(ValueError, match="stop"), cache.alone("ab" * 32, never_waits) as folder:
            for name in names:
                (folder / name).write_text("half")
            raise ValueError("stop")
        assert [p.name for p in (cache.root / "unfinished").iterdir()] == ["ab" * 32] * len(names)
    cache.clear()
    assert everything(cache.root) == []


def never_waits() -> None:
    pytest.fail("somebody holds it")


SCRATCH = """
import os, signal, sys
from deploy.cache import scratch

with scratch("build") as folder:
    (folder / "weights").mkdir()
    print(folder, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_folders_of_killed_builds_go_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    somebodys = tmp_path / "deploy-build-mine"
    somebodys.mkdir()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", SCRATCH],
        stdin=pipe,
        stdout=pipe,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        folder = Path(child.stdout.readline().strip())
        with scratch("build") as own:
            drop_leftovers()
            assert own.is_dir() and folder.is_dir(), "of those who live"
            child.stdin.close()
            child.wait()
            assert (folder / "weights").is_dir()
            drop_leftovers()
            assert [p for p in tmp_path.iterdir() if p != own] == [somebodys]
    assert list(tmp_path.iterdir()) == [somebodys]


def test_a_file_system_without_locks_does_without(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with cache.alone("ab" * 32, never_waits) as folder:
        assert folder.is_dir()
        cache.clear()
        assert folder.is_dir(), "nobody knows whether a build is at it"


def test_info_counts_whole_entries(cache: Cache) -> None:
    assert cache.info() == {"entries": 0, "bytes": 0}
    for n in range(3):
        cache.fetch(cache.key("stage", n=n), writes("12345"))
    assert cache.info() == {"entries": 3, "bytes": 15}


def test_clear_removes_all_entries_and_rests_of_killed_builds(cache: Cache) -> None:
    for n in range(3):
        cache.fetch(cache.key("stage", n=n), writes("12345"))
    rest = cache.root / "ab" / ".new-1"
    rest.mkdir(parents=True)
    assert cache.clear() == 3
    assert everything(cache.root) == []
    assert cache.clear() == 0


def test_clear_touches_nothing_that_the_cache_did_not_make(tmp_path: Path) -> None:
    """Whoever gives a home folder as --cache keeps what lies in it."""
    home = Cache(tmp_path)
    (tmp_path / "go" / "src").mkdir(parents=True)
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "thesis.tex").write_text("years of work")
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / hashlib.sha256(b"mine").hexdigest()).write_text("a file of that name")
    (tmp_path / "notes").write_text("mine")
    before = everything(tmp_path)
    key = home.key("stage")
    home.fetch(key, writes("x"))
    assert home.clear() == 1
    assert everything(tmp_path) == before


def test_a_cache_that_was_never_used_is_empty(tmp_path: Path) -> None:
    assert Cache(tmp_path / "none").clear() == 0
    assert not (tmp_path / "none").exists()


def test_the_default_folder_is_the_users_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "deploy-compiler"


def test_trim_drops_what_was_unused_for_longest_and_spares_what_is_in_use(cache: Cache) -> None:
    ages = {"old": 90, "older": 120, "new": 0}
    for name, days in ages.items():
        folder, _ = cache.fetch(cache.key(name), writes(name * 1000))
        then = time.time() - days * 24 * 3600
        os.utime(folder, (then, then))
    assert cache.trim(limit=10**9) == 0
    assert cache.trim(limit=7000) == 1
    assert not cache.folder(cache.key("older")).exists()
    assert cache.trim(limit=0) == 1, "what was used today stays, whatever the limit"
    assert cache.folder(cache.key("new")).is_dir()
