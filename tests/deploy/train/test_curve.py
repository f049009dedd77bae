"""The curve as picture and tables."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from deploy.errors import ToolchainError, UsageError
from deploy.train.curve import Epoch, History, Point, load_json, save_csv, save_json, save_picture

HISTORY = History(
    points=tuple(Point(i, 2.0 / i, 0.01 * i) for i in range(1, 9)),
    epochs=(Epoch(0, 0, None, 0.1), Epoch(1, 4, 1.1, 0.5), Epoch(2, 8, 0.3, 0.75)),
    metric="top1",
)


def test_json_comes_back(tmp_path: Path) -> None:
    save_json(HISTORY, tmp_path / "h.json")
    assert load_json(tmp_path / "h.json") == HISTORY
    (tmp_path / "h.json").write_text("{}")
    with pytest.raises(UsageError, match="no history"):
        load_json(tmp_path / "h.json")


def test_csv_has_points_and_epochs_in_order(tmp_path: Path) -> None:
    save_csv(HISTORY, tmp_path / "h.csv")
    rows = list(csv.DictReader((tmp_path / "h.csv").read_text().splitlines()))
    assert [int(row["batch"]) for row in rows] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert [row["top1"] for row in rows if row["top1"]] == ["0.1", "0.5", "0.75"]
    assert [float(row["lr"]) for row in rows if row["lr"]] == [p.lr for p in HISTORY.points]


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ToolchainError, match="matplotlib is not installed") as caught:
        save_picture(HISTORY, tmp_path / "h.svg")
    assert "deploy-compiler[plots]" in caught.value.hint


@pytest.mark.parametrize("history", [HISTORY, History()], ids=["some", "nothing"])
def test_pictures(tmp_path: Path, history: History) -> None:
    for name in ("one.svg", "two.svg", "three.png"):
        save_picture(history, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([], ""),
        ([1.0] * 40, ""),
        ([1.0, *[0.5] * 39], ""),
        ([1.0] * 20 + [1.9] * 20, ""),
        ([1.0] * 20 + [2.1] * 20, "from 1 to 2.1"),
        ([0.2, *[1.0] * 39], ""),  # one lucky batch
        ([0.05, *[5.0] * 39], "from 0.05 to 5"),  # ruined by the first step
        ([1.0] * 39 + [30.0], "from 1 to 15.5"),
        ([0.0, 1.0], ""),
        ([-1.0, -0.5], ""),
    ],
)
def test_a_loss_that_grew_is_more_than_one_that_fluctuates(losses: list[float], said: str) -> None:
    history = History(tuple(Point(i, loss, 0.1) for i, loss in enumerate(losses, 1)))
    assert history.grown == (f"the training loss grew {said}" if said else "")
