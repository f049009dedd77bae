"""Messages show names of anybody's files, and stay messages."""

from __future__ import annotations

import pytest

from deploy.errors import DataError, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\x1b[2J", r"a\r\x1b[2J"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\u2028b", r"a\u2028b"),
        ("\udcff", r"\udcff"),
        ("größe 大小 é", "größe 大小 é"),
    ],
)
def test_a_name_never_steers_what_shows_it(name: str, shown: str) -> None:
    error = DataError(f"no input '{name}':\n  first\n  second", hint=f"call it '{name}'")
    assert error.message == str(error) == f"no input '{shown}':\n  first\n  second"
    assert error.hint == f"call it '{shown}'"


def test_what_is_kept_is_kept() -> None:
    assert printable("a\n\tb", keep="\n") == "a\n\\tb"
