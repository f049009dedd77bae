"""Backends by entry point: listed without being loaded, found, and every failure with its remedy."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from deploy.adapter import discover
from deploy.adapter.discover import GROUP, backend_names, find_backend
from deploy.errors import ToolchainError


@pytest.fixture
def installed(monkeypatch):
    def install(**entries: str) -> None:
        points = [EntryPoint(name, value, GROUP) for name, value in entries.items()]
        monkeypatch.setattr(discover, "entry_points", lambda group: points if group == GROUP else [])
        discover._entries.cache_clear()

    yield install
    monkeypatch.undo()
    discover._entries.cache_clear()


def test_ours_come_like_anybodys():
    assert {"ort", "tensorrt"} <= set(backend_names())
    assert find_backend("ort").name == "ort"


def test_names_are_listed_without_loading(installed):
    installed(zeta="nowhere:Nothing", alpha="nowhere:Nothing")
    assert backend_names() == ["alpha", "zeta"]


def test_a_backend_is_made_anew_each_time(installed, monkeypatch):
    installed(toy="fractions:Fraction")  # any class of the standard library will do
    assert find_backend("toy") is not find_backend("toy")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"other": "fractions:Fraction"}, "found: other"),
        ({}, "found: none"),
        ({"toy": "no_such_module_anywhere:Toy"}, "cannot be loaded"),
        ({"toy": "fractions:NoSuchClass"}, "cannot be loaded"),
    ],
)
def test_failures_say_what_to_do(entries, said, installed):
    installed(**entries)
    with pytest.raises(ToolchainError, match=said) as caught:
        find_backend("toy")
    assert "install" in caught.value.hint
