"""Whether an artifact fits the device's memory, as far as both are known."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.spec.artifact import Artifact
from deploy.spec.profile import Fact, Figure

_UNITS = {"B": 1, "KB": 2**10, "KIB": 2**10, "MB": 2**20, "MIB": 2**20, "GB": 2**30, "GIB": 2**30}
"""Memory chips are sold in powers of two, whatever their unit is called."""
_PLACES = {"flash": ("flash", "flash"), "arena": ("size", "memory")}
"""What an artifact says that it takes -> the profile's key, and the word for it."""


def shortages(memory: Mapping[str, Fact], artifact: Artifact) -> list[str]:
    """What does not fit, in words. The program around the network takes memory too, which is not counted.

    >>> from datetime import date
    >>> board = {"flash": Figure(value=32, unit="KB", source="data sheet", date=date(2026, 11, 21))}
    >>> network = Artifact(backend="b", files=("f",), inputs=(), outputs=(), memory_bytes={"flash": 40_000})
    >>> shortages(board, network)
    ['it takes 40,000 bytes of flash, and the device has 32,768']
    """
    found = []
    for need, taken in artifact.memory_bytes.items():
        key, word = _PLACES.get(need, ("", ""))
        have = size_bytes(memory.get(key, "unknown"))
        if have is not None and taken > have:
            found.append(f"it takes {taken:,} bytes of {word}, and the device has {have:,}")
    return found


def size_bytes(fact: Fact) -> int | None:
    """The bytes that a figure means; None where it is unknown, or no number with a unit of memory first."""
    if not isinstance(fact, Figure) or isinstance(fact.value, (bool, str)) or not fact.unit:
        return None
    unit = _UNITS.get(fact.unit.split()[0].strip(",;").upper())
    return None if unit is None else int(fact.value * unit)
