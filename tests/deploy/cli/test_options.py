"""Words that several commands take."""

from __future__ import annotations

import pytest

from deploy.adapter.profiles import all_profiles
from deploy.cli.options import complete_target, parse_shapes, parse_threads, target_names
from deploy.errors import UsageError


def test_shapes_by_input() -> None:
    assert parse_shapes(["x=1,3,224,224", "a=b=7"]) == {"x": (1, 3, 224, 224), "a=b": (7,)}
    assert parse_shapes(None) == {}


@pytest.mark.parametrize("word", ["", "x", "x=", "=1,2", "x=1,-3", "x=1,,2", "x=1x3", "x=1.5"])
def test_a_malformed_shape_is_named(word: str) -> None:
    with pytest.raises(UsageError, match="is not NAME=SIZES"):
        parse_shapes([word])


def test_an_input_has_one_shape() -> None:
    with pytest.raises(UsageError, match="twice for input 'x'"):
        parse_shapes(["x=1", "x=2"])


@pytest.mark.parametrize("word", ["0", "-1", "1.5", "many", "", "1025", "AUTO"])
def test_threads_are_a_number_or_auto(word: str) -> None:
    assert (parse_threads("1"), parse_threads("1024"), parse_threads("auto")) == (1, 1024, "auto")
    with pytest.raises(UsageError, match=f"'{word}' is no number of threads"):
        parse_threads(word)


def test_what_is_completed_is_what_there_is() -> None:
    known = {word for profile in all_profiles() for word in (profile.name, *profile.aliases)}
    assert set(target_names()) == known
    assert "jetson" in complete_target("jet")
    assert complete_target("zzz") == []
