"""Sizes that may be fed: how they are written, and what is wrong with them in one sentence."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from deploy.spec.ends import Ends, shapes_of
from deploy.spec.project import IoSection


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ([1, "5..3"], "from the least over the usual one to the most"),
        ([1, "4..9..8"], "from the least over the usual one to the most"),
        ([1, "3-5"], "no range of sizes"),
        ([1, "0..5"], "no range of sizes"),
        ([0, 3], "0 is no size"),
        ([True, 3], "True is no size"),
        ([1, [3]], "is no size"),
        ([[1, 3], [1]], "as many each"),
        ([[1, 0]], "whole numbers from 1"),
        ([], "sizes are a list"),
        ("1,3", "sizes are a list"),
    ],
)
def test_what_is_no_size_is_said_once(sizes: object, told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        IoSection.model_validate({"sizes": {"x": sizes}})
    (error,) = caught.value.errors()
    assert told in error["msg"]


def test_ranges_and_lists_stay_what_they_are() -> None:
    given = {"sizes": {"x": [1, "4..8", "4..6..8"], "y": [[1, 2], [3, 4]]}, "states": {"a": "b"}}
    section = IoSection.model_validate(given)
    assert IoSection.model_validate_json(section.model_dump_json()) == section
    assert section.ends == Ends.model_validate(given)
    assert shapes_of(section.sizes["x"]) == ((1, 4, 6), (1, 4, 4), (1, 8, 8))
    assert shapes_of(section.sizes["y"]) == ((1, 2), (3, 4))
