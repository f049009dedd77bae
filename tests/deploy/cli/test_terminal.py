"""Stages live on a terminal and as plain lines elsewhere; text is never taken for markup."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli.terminal import stages, write_facts, write_json, write_line, write_table
from deploy.errors import DeployError

STAGES = """
from deploy.cli.terminal import stages
with stages("m.onnx → x86-cpu") as progress:
    progress.start("clean")
    progress.finish("clean", 0.1234, True, "31 nodes")
    progress.start("calibrate")
    progress.advance(1, 4)
    progress.warn("look here")
    progress.finish("calibrate", 1.5, False, "512 samples")
    progress.start("measure")
    raise SystemExit(3)
"""


def test_plain_lines_when_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with stages("m.onnx → x86-cpu") as progress:
        progress.start("clean")
        progress.finish("clean", 0.1234, True, "31 nodes")
        progress.note("good to know")
        progress.warn("do something")
        progress.finish("calibrate", 0.42, False, "512 samples")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "m.onnx → x86-cpu",
        "clean           0.12 s  31 nodes (cached)",
        "note: good to know",
        "warning: do something",
        "calibrate       0.42 s  512 samples",
    ]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stages("m.onnx → x86-cpu", quiet=True) as progress:
        progress.start("clean")
        progress.note("good to know")
        progress.finish("clean", 0.1, False, "")
    assert capsys.readouterr() == ("", "")


def shown_on_a_terminal(code: str, **environment: str) -> tuple[int, str]:
    """Exit code and everything that a child writes to its terminal, 80 columns wide."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=theirs,
        stdout=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80", **environment},
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the child has closed its end
        pass
    os.close(ours)
    return child.wait(), shown.decode()


def test_on_a_terminal_ended_stages_stay_and_the_failed_one_is_marked() -> None:
    code, shown = shown_on_a_terminal(STAGES, NO_COLOR="1")
    assert code == 3
    plain = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", shown)
    lines = [" ".join(line.split()) for line in plain.replace("\r", "\n").split("\n")]
    assert "✓ clean cached 31 nodes" in lines
    assert "warning: look here" in lines
    assert "✓ calibrate 1.50 s 512 samples" in lines
    assert any(line.startswith("✗ measure") for line in lines)


LONG = """
import time
from deploy.cli.terminal import stages
with stages("this machine") as progress:
    progress.start("ort")
    for done in range(20, 60):
        progress.advance(done, 100)
        time.sleep(0.07)
"""


def test_a_long_stage_says_how_long_the_rest_takes() -> None:
    """40 steps in 2.8 s, beginning at 20: what was done before they began does not count."""
    code, text = shown_on_a_terminal(LONG)
    assert code == 0
    told = [int(left) for left in re.findall(r"of 100, (\d+) s left", text)]
    assert told and 2 <= told[-1] <= 8
    assert "19 of 100" not in text and re.search(r"2\d of 100\s*\x1b", text)


def test_no_color_is_respected() -> None:
    assert "\x1b[32m" in shown_on_a_terminal(STAGES)[1]
    assert "\x1b[32m" not in shown_on_a_terminal(STAGES, NO_COLOR="1")[1]


def test_text_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    write_line("[bold]x[/bold] :smile: ", ("[red]", "good"))
    write_facts([("[a]", "[/]")])
    assert capsys.readouterr().out == "[bold]x[/bold] :smile: [red]\n[a]  [/]\n"


def test_a_pipe_gets_whole_lines_without_trailing_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 500
    write_table(("name", "value"), [["a", long], ["bb", "1"]], right=(1,))
    write_facts([("fact", long), ("other", "")], indent=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == f"a      {long}" and lines[4] == f"  fact   {long}"
    assert all(line == line.rstrip() for line in lines)


def test_json_is_written_in_unicode(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"name": "größe"})
    assert capsys.readouterr().out == '{\n  "name": "größe"\n}\n'


def test_only_one_file_imports_rich() -> None:
    folder = Path(__file__).parents[3] / "deploy"
    found = [
        p.name for p in folder.rglob("*.py") if "import rich" in p.read_text() or "from rich" in p.read_text()
    ]
    assert found == ["terminal.py"]


def test_errors_have_a_hint_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    from deploy.cli.terminal import show_error

    show_error(DeployError("bad"))
    assert capsys.readouterr().err == "error: bad\n"
