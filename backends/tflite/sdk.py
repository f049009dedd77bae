"""LiteRT's modules, imported where they are first needed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed
from types import ModuleType

from deploy.errors import broken_package, missing_extra

_NAMES = ("LiteRT", "tflite")
"""The package as one speaks of it, and our extra that brings it."""


def schema() -> ModuleType:
    """The file format's generated classes. Raises ToolchainError where LiteRT cannot be loaded."""
    return _module("schema_py_generated")


def interpreter() -> ModuleType:
    """The runtime. Raises ToolchainError where LiteRT cannot be loaded."""
    return _module("interpreter")


def version() -> str:
    """The installed LiteRT's version."""
    return installed("ai-edge-litert")


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps LiteRT from writing on standard error that it made its delegate; failures are exceptions anyway.

    It writes from C++ and has no switch for that, so the file descriptor is turned away for as long.
    """
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be written
        yield
        return
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (of no path)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"ai_edge_litert.{name}")
    except (ImportError, OSError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name == "ai_edge_litert":
            raise missing_extra(*_NAMES) from e
        raise broken_package(*_NAMES, e) from e
