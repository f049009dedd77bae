"""The Python package of TensorFlow Lite Micro, imported where it is first needed."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from types import ModuleType


def runtime() -> ModuleType | None:
    """Its interpreter, compiled for this machine; None where it is not installed or does not load."""
    try:
        return importlib.import_module("tflite_micro.python.tflite_micro.runtime")
    except ImportError:
        return None


def version() -> str | None:
    """Of the package, which is built from its sources every few days."""
    try:
        return installed("tflite-micro")
    except PackageNotFoundError:
        return None


def toolchain() -> dict[str, str]:
    """What a manifest says of it: nothing where it is not installed."""
    found = version()
    return {} if found is None else {"tflite-micro": found}
