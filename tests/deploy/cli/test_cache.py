"""deploy cache: how much is kept, and removing it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from deploy.cache import Cache

Deploy = Callable[..., tuple[int, str, str]]


def fill(folder: Path) -> None:
    def write(entry: Path) -> None:
        (entry / "data").write_bytes(bytes(500))

    cache = Cache(folder)
    for name in ("a", "b"):
        cache.fetch(cache.key(name), write)


def test_info_and_clear(deploy: Deploy, here: Path) -> None:
    fill(here / "cache")
    (here / "cache" / "mine.txt").write_text("kept")
    code, out, err = deploy("cache", "info")
    assert (code, err) == (0, "")
    assert [line.split(maxsplit=1)[1] for line in out.splitlines()] == [str(here / "cache"), "2", "1.00 kB"]
    assert json.loads(deploy("cache", "info", "--json")[1]) == {
        "folder": str(here / "cache"), "entries": 2, "bytes": 1000,
    }  # fmt: skip
    assert deploy("cache", "clear")[1] == f"removed 2 entries (1.00 kB) from {here / 'cache'}\n"
    assert Cache(here / "cache").info()["entries"] == 0
    assert (here / "cache" / "mine.txt").exists()


def test_the_flag_wins_over_the_environment(deploy: Deploy, here: Path) -> None:
    fill(here / "other")
    assert json.loads(deploy("cache", "info", "--cache", here / "other", "--json")[1])["entries"] == 2
    assert json.loads(deploy("cache", "clear", "--json")[1]) == {
        "folder": str(here / "cache"), "removed": 0, "bytes": 0,
    }  # fmt: skip


def test_a_file_is_no_cache(deploy: Deploy, here: Path) -> None:
    (here / "file").write_text("")
    code, _, err = deploy("cache", "clear", "--cache", here / "file")
    assert code == 2 and "not a folder" in err
