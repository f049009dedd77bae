"""deploy report: in the terminal, as Markdown and as a page, of a bundle from anybody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Deploy = Callable[..., tuple[int, str, str]]


def test_the_terminal_shows_every_part(deploy: Deploy, real_bundle: Path) -> None:
    code, out, err = deploy("report", real_bundle)
    assert (code, err) == (0, "")
    parts = (
        "✓ met",
        "blocks",
        "hazards",
        "hardware facts used",
        "how to run it",
        "origin",
        "deploy verify .",
    )
    places = [out.index(part) for part in parts]
    assert places == sorted(places)
    assert "import onnxruntime as ort" in out and "#include <onnxruntime_cxx_api.h>" in out


def test_a_block_that_stayed_float_says_why(deploy: Deploy, here: Path, real_bundle: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(real_bundle, here / "copy"))
    plan = json.loads((copy / "plan.json").read_text())
    for block in plan["blocks"]:
        block |= {"precision": "float", "reason": "", "sqnr_db": None}
    plan["blocks"][-1]["reason"] = "too few weights"
    (copy / "plan.json").write_text(json.dumps(plan))
    out = deploy("report", copy)[1]
    (line,) = (line for line in out.splitlines() if "too few weights" in line)
    assert line.startswith(plan["blocks"][-1]["id"]) and "signal/noise" not in out


def test_the_forms(deploy: Deploy, here: Path, real_bundle: Path) -> None:
    assert deploy("report", real_bundle, "--format", "markdown")[1].startswith("# digits for x86")
    page = deploy("report", real_bundle, "--format", "html")[1]
    assert page == (real_bundle / "report.html").read_text()
    assert deploy("report", real_bundle, "-o", "r.html")[0] == 0
    assert Path("r.html").read_text() == page
    assert deploy("report", real_bundle, "-o", "r.md")[0] == 0
    assert deploy("report", real_bundle, "-o", "text", "--format", "markdown")[0] == 0
    assert Path("r.md").read_text() == Path("text").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--format", "pdf"), "pdf"),
        (("-o", "report.pdf"), "markdown or html"),
        (("-o", "missing/r.html"), "cannot be written"),
    ],
)
def test_wrong_wishes_are_told(
    deploy: Deploy, here: Path, real_bundle: Path, words: tuple[str, ...], said: str
) -> None:
    code, _, err = deploy("report", real_bundle, *words)
    assert code == 2 and said in err


def test_what_is_no_bundle_is_told(deploy: Deploy, here: Path) -> None:
    code, _, err = deploy("report", here)
    assert code == 2 and "not a bundle" in err


def test_control_characters_of_a_bundle_do_not_reach_the_terminal(
    deploy: Deploy, here: Path, real_bundle: Path
) -> None:
    import shutil

    copy = Path(shutil.copytree(real_bundle, here / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["target"] = manifest["verdict"]["reasons"][0] = manifest["artifact"]["outputs"][0]["name"] = (
        "\x1b]0;x\x07\x9b2J"
    )
    (copy / "manifest.json").write_text(json.dumps(manifest))
    plan = json.loads((copy / "plan.json").read_text())
    plan["blocks"][0]["id"] = "\x1b[2Jgone"
    (copy / "plan.json").write_text(json.dumps(plan))
    for words in (("report", copy), ("inspect", copy), ("report", copy, "--format", "markdown")):
        code, out, _ = deploy(*words)
        assert code == 0
        assert not {c for c in out if not c.isprintable()} - {"\n"}
        assert "\\x1b" in out
