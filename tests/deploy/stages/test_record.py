"""Stages are timed and told in order; a cache that cannot be written is replaced for one build."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.progress import Silent
from deploy.stages.record import Record, open_cache


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, stage: str) -> None:
        self.lines.append(f"start {stage}")

    def finish(self, stage: str, seconds: float, cached: bool, outcome: str) -> None:
        assert seconds >= 0
        self.lines.append(f"finish {stage} {cached} {outcome}")

    def warn(self, text: str) -> None:
        self.lines.append(f"warn {text}")


def test_stages_are_kept_in_order_with_what_came_out() -> None:
    told = Told()
    record = Record(told)
    with record.stage("read") as stage:
        stage.outcome = "a model"
    with record.stage("clean") as stage:
        stage.cached = True
    assert told.lines == ["start read", "finish read False a model", "start clean", "finish clean True "]
    assert [(t.name, t.cached) for t in record.times] == [("read", False), ("clean", True)]
    first, second = record.log().splitlines()
    assert first.split() == ["read", "0.00", "s", "a", "model"]
    assert second.split() == ["clean", "0.00", "s", "cached"]


def test_a_stage_that_fails_is_not_finished() -> None:
    told = Told()
    record = Record(told)
    with pytest.raises(ValueError, match="stop"), record.stage("read"):
        raise ValueError("stop")
    assert told.lines == ["start read"]
    assert record.times == []


def test_the_cache_is_made_where_it_is_wanted(tmp_path: Path) -> None:
    told = Told()
    with open_cache(tmp_path / "a" / "cache", told) as cache:
        assert cache.root == tmp_path / "a" / "cache"
    assert list(cache.root.iterdir()) == []
    assert told.lines == []


def test_without_a_wish_it_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with open_cache(None, Told()) as cache:
        assert cache.root == tmp_path / "deploy-compiler"


@pytest.mark.parametrize("way", ["a file", "below a file"])
def test_a_cache_that_cannot_be_written_is_replaced_for_this_build_alone(tmp_path: Path, way: str) -> None:
    (tmp_path / "file").write_text("mine")
    wanted = tmp_path / "file" if way == "a file" else tmp_path / "file" / "cache"
    told = Told()
    with open_cache(wanted, told) as cache:
        folder, cached = cache.fetch(cache.key("stage"), lambda new: (new / "x").write_text("x"))  # type: ignore[arg-type, return-value]
        assert (folder / "x").read_text() == "x"
        assert not cached
    assert not cache.root.exists()
    assert len(told.lines) == 1
    assert "cannot be written" in told.lines[0]
    assert (tmp_path / "file").read_text() == "mine"
