"""What each rung won and cost, in words."""

from __future__ import annotations

from typing import get_args

from deploy.bundle.report.ladder import SPOKEN, rungs
from deploy.spec.ladder import RungName, RungRecord


def test_rows_say_what_was_won_and_why_not() -> None:
    kept = RungRecord(
        runtime="ort", name="smooth", kept=True, places=12, gain_db=4.25, drop=0.004, seconds=3.04
    )
    weak = RungRecord(runtime="ort", name="split", kept=False, places=2, gain_db=-0.31, seconds=0.5)
    none = RungRecord(runtime="ort", name="train", kept=False, why="no epoch was better", seconds=20.0)
    assert [row.cells for row in rungs([kept, weak, none], "fraction")] == [
        ("ort", "outliers moved into weights", "12", "+4.2 dB", "0.40 points", "3.0 s", "kept"),
        ("ort", "shared scales split", "2", "−0.3 dB", "", "0.5 s", "left out: under 0.5 dB"),
        ("ort", "trained while quantized", "", "", "", "20.0 s", "no epoch was better"),
    ]


def test_every_rung_has_its_words() -> None:
    assert set(SPOKEN) == set(get_args(RungName))
