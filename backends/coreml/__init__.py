"""Core ML: packages for iPhone, iPad and Mac, written and evaluated on any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.coreml.backend import CoreML

__all__ = ["CoreML"]


def __getattr__(name: str) -> object:
    """The backend once it is asked for: the child that evaluates packages needs none of it."""
    if name != "CoreML":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from backends.coreml.backend import CoreML

    return CoreML
