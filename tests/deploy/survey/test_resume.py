"""A real survey of a few units, killed midway: it goes on where it stopped, and nothing is measured twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from deploy.adapter.overlays import kept_overlays

CHILD = """
import sys
from pathlib import Path

import deploy.cache
import deploy.survey.run as run
from deploy.cli import main

measure = run.measure_unit
few = [u for u in run.units(quick=True) if u.op in ("overhead", "activation", "hard")]

def logged(unit, precision, place, known, workdir):
    with Path(sys.argv[1]).open("a") as log:
        log.write(f"{place.runtime.name} {unit.op} {unit.shape} {precision}\\n")
    return measure(unit, precision, place, known, workdir)

run._LISTEN_S = 0.1
run.measure_unit, run._CALM = logged, float("inf")  # points that vary are not measured once more
deploy.cache.code_version = lambda: "the same"  # whatever is edited meanwhile
run.units = lambda quick: few
run.machine_facts = lambda quick, threads, pulse: {}
raise SystemExit(main(["profile", "--quick", "--runtime", "ort"]))
"""


def started(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder / "log")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"DEPLOY_DATA": str(folder / "data"), "NO_COLOR": "1"},
    )


def test_a_real_survey_goes_on_after_a_kill(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = started(tmp_path)
    try:
        while not log.is_file() or len(log.read_text().splitlines()) < 3:
            assert first.poll() is None, first.communicate()
            time.sleep(0.002)
    finally:
        first.kill()
        first.communicate()
    assert first.returncode == -signal.SIGKILL
    begun = log.read_text().splitlines()
    assert kept_overlays(tmp_path / "data") == ([], []), "half a survey is no overlay"

    second = started(tmp_path)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert "goes on from a survey that stopped" in err
    again = log.read_text().splitlines()[len(begun) :]
    assert again and not set(begun[:-1]) & set(again)
    assert len({*begun, *again}) >= len(begun) + len(again) - 1
    ((kept,), _) = kept_overlays(tmp_path / "data")
    (runtime,) = kept.overlay.runtime
    measured = {f"ort {cost.op} {cost.shape} {cost.precision}" for cost in runtime.cost}
    assert set(begun[:-1]) & measured, "what was measured before the kill is in the overlay"
    assert {cost.op for cost in runtime.cost} >= {"overhead", "activation"}
    assert "runtime ort" in out
    assert [p.name for p in (tmp_path / "data").rglob("*.jsonl")] == []
