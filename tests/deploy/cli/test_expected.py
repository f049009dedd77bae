"""deploy inspect --target: latency before anything is built, what it is made of, and what is not known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.predict.elsewhere import Roof, Sheet
from deploy.predict.latency import Costs
from deploy.spec.overlay import Cost
from deploy.stages.costs import Foresight, Known

Deploy = Callable[..., tuple[int, str, str]]


def knows(monkeypatch: pytest.MonkeyPatch, *notes: str, **runtimes: Known) -> None:
    monkeypatch.setattr("deploy.stages.expected.costs_of", lambda target, threads: Foresight(runtimes, notes))


def measured(stem: float) -> Known:
    """A convolution of an image takes ``stem`` ms in integers, 1 as float, all else 1 and 0.5."""
    points = [
        Cost(op=op, precision=p, macs=10**5, bytes=10**4, ms=ms, spread=0.01)  # type: ignore[arg-type]
        for op, p, ms in (
            ("stem", "float", 1.0), ("stem", "int8", stem), ("conv", "float", 1.0), ("conv", "int8", 0.5),
            ("elementwise", "float", 0.01), ("elementwise", "int8", 0.005), ("convert", "int8", 0.001),
        )
    ]  # fmt: skip
    return Known(Costs(tuple(points)), "measured here, 2026-11-21", True, "key")


@pytest.fixture
def rows(deploy: Deploy, network: Path, tmp_path: Path) -> Callable[..., dict]:
    def ask(*more: object, model: Path = network) -> dict:
        code, out, err = deploy(
            "inspect", model, "--target", "x86-avx2", "--cache", tmp_path / "cache", "--json", *more
        )
        assert (code, err) == (0, "")
        return json.loads(out)["latency"]

    return ask


def test_rows_for_float_integers_and_the_mixture(rows, monkeypatch) -> None:
    knows(monkeypatch, ort=measured(stem=5.0))
    found = rows()
    by_form = {row["form"]: row for row in found["rows"] if row["runtime"] == "ort"}
    assert list(by_form) == ["float", "int8", "mixed"]
    assert by_form["mixed"]["ms"] < min(by_form["float"]["ms"], by_form["int8"]["ms"])
    counts = [row["integer_blocks"] for row in by_form.values()]
    assert counts[0] == 0 < counts[2] < counts[1] <= by_form["int8"]["blocks"]
    for row in by_form.values():
        low, high = row["interval_ms"]
        assert low <= row["ms"] <= high
        assert (row["least"], row["basis"]) == (False, "measured here, 2026-11-21")


def test_a_mixture_that_is_all_integers_has_no_row(rows, monkeypatch) -> None:
    knows(monkeypatch, ort=measured(stem=0.1))
    assert [row["form"] for row in rows()["rows"]] == ["float", "int8"]


def test_what_is_not_known_stands_in_the_notes(rows, monkeypatch) -> None:
    knows(monkeypatch, "an overlay is stale", ort=Known(Costs(()), "nothing", False, ""))
    found = rows()
    assert found["rows"] == []
    assert found["notes"][0] == "an overlay is stale"
    assert any(note.startswith("ort: nothing like ") for note in found["notes"])
    knows(monkeypatch)
    assert any("ort: nothing is known of what kernels take on" in note for note in rows()["notes"])


def test_a_data_sheet_gives_a_least(deploy: Deploy, rows, network, tmp_path, monkeypatch) -> None:
    sheet = Sheet(Roof({"float": 1e6, "int8": 4e6}, None))
    knows(monkeypatch, ort=Known(sheet, sheet.basis, False, "key", least=True))
    row = rows()["rows"][0]
    assert (row["least"], row["interval_ms"]) == (True, None)
    code, out, _ = deploy("inspect", network, "--target", "x86-avx2", "--cache", tmp_path / "cache")
    assert code == 0
    line = " ".join(next(line for line in out.splitlines() if line.startswith("ort float")).split())
    assert line.startswith("ort float at least ") and " ms unknown 0 of " in line
    assert "multiply-accumulates alone, the least that is possible" in " ".join(out.split())


def test_free_sizes_are_to_be_fixed(rows, save, tmp_path, monkeypatch) -> None:
    knows(monkeypatch, ort=measured(stem=5.0))
    text = "g (float[n, 3, h, w] x) => (float[n, 8, h2, w2] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w1) }"
    model = save(tmp_path / "free.onnx", text, {"w1": np.ones((8, 3, 3, 3), np.float32)})
    free = rows(model=model)
    assert free["rows"] == []
    assert any(note.startswith("ort: a size at '") and "--shape" in note for note in free["notes"])
    assert rows("--shape", "x=1,3,8,8", model=model)["rows"]
