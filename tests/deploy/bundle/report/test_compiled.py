"""Templates that were compiled before: the same text, and compiled again only where it has to be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from deploy.bundle.report.compiled import loader


@pytest.fixture(autouse=True)
def writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """The names of templates, each time when one is compiled."""
    names: list[str | None] = []
    own = jinja2.Environment._parse

    def parse(
        self: jinja2.Environment, source: str, name: str | None, filename: str | None
    ) -> jinja2.nodes.Template:
        names.append(name)
        return own(self, source, name, filename)

    monkeypatch.setattr(jinja2.Environment, "_parse", parse)
    yield names


def rendered(folder: Path, text: str) -> str:
    (folder / "a.j2").write_text(text)
    templates, kept = loader(folder)
    return jinja2.Environment(loader=templates, bytecode_cache=kept).get_template("a.j2").render(x=3)


def test_a_template_is_compiled_once_and_again_when_it_changed(tmp_path: Path, compiled: list[str]) -> None:
    assert rendered(tmp_path, "{{ x }} of 5") == rendered(tmp_path, "{{ x }} of 5") == "3 of 5"
    assert compiled == ["a.j2"]
    assert rendered(tmp_path, "{{ x }} of 6") == "3 of 6"
    assert compiled == ["a.j2"] * 2
    assert len(list((tmp_path / "__pycache__").iterdir())) == 1


def test_where_nothing_can_be_kept_it_is_compiled_every_time(tmp_path: Path, compiled: list[str]) -> None:
    (tmp_path / "__pycache__").write_text("a file in the folder's place")
    assert rendered(tmp_path, "{{ x }}") == rendered(tmp_path, "{{ x }}") == "3"
    assert compiled == ["a.j2"] * 2


def test_what_is_damaged_is_compiled_anew(tmp_path: Path, compiled: list[str]) -> None:
    rendered(tmp_path, "{{ x }}")
    next((tmp_path / "__pycache__").iterdir()).write_bytes(b"\0" * 9)
    assert rendered(tmp_path, "{{ x }}") == "3" and compiled == ["a.j2"] * 2


def test_python_s_own_switch_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert rendered(tmp_path, "{{ x }}") == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["a.j2"]
