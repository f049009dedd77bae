"""What a network takes against what a device has."""

from __future__ import annotations

from datetime import date

import pytest

from deploy.spec.artifact import Artifact
from deploy.spec.profile import Figure
from deploy.stages.memory import shortages, size_bytes


def figure(value: bool | int | float | str, unit: str) -> Figure:
    return Figure(value=value, unit=unit, source="data sheet", date=date(2026, 11, 21))


@pytest.mark.parametrize(
    ("value", "unit", "size"),
    [
        (264, "KB", 270_336), (2, "MB", 2**21), (1.5, "KiB", 1536), (8, "GB LPDDR5, shared", 2**33),
        (512, "B", 512), ("4 or 8", "GB", None), (True, "KB", None), (7, "", None), (3, "banks", None),
    ],
)  # fmt: skip
def test_a_size_is_a_number_with_a_unit_of_memory(
    value: bool | int | float | str, unit: str, size: int | None
) -> None:
    assert size_bytes(figure(value, unit)) == size


def test_only_what_is_known_on_both_sides_is_compared() -> None:
    artifact = Artifact(
        backend="b",
        files=("f",),
        inputs=(),
        outputs=(),
        memory_bytes={"flash": 5000, "arena": 3000, "tensors": 9},
    )
    assert shortages({}, artifact) == [] == shortages({"flash": "unknown", "l1": figure(1, "B")}, artifact)
    (said,) = shortages({"flash": figure(16, "KB"), "size": figure(2, "KB")}, artifact)
    assert said == "it takes 3,000 bytes of memory, and the device has 2,048"
    assert shortages({"flash": figure(1, "KB")}, artifact.model_copy(update={"memory_bytes": {}})) == []
