"""coremltools itself: the one place where it is imported, so that it says nothing on the user's terminal.

It logs that this machine cannot run Core ML and draws bars of progress. Where they are installed it imports
torch and scikit-learn for converters that are not used here, which takes ten times as long as all the rest:
unless they are loaded already it is made to believe that there are none.
"""

from __future__ import annotations

import io
import logging
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from importlib import import_module
from types import ModuleType

from deploy.errors import ToolchainError, broken_package, missing_extra

_UNUSED = ("torch", "sklearn", "tensorflow", "xgboost", "libsvm")
_NAMES = ("coremltools", "coreml")
"""The package as one speaks of it, and our extra that brings it."""


@cache
def sdk() -> ModuleType:
    """The package. Raises ToolchainError where it is not installed or cannot be loaded."""
    logging.getLogger("coremltools").setLevel(logging.CRITICAL)
    unused = [name for name in _UNUSED if name not in sys.modules and "coremltools" not in sys.modules]
    try:
        sys.modules.update(dict.fromkeys(unused))  # type: ignore[arg-type]  # how Python is told of none
        with quiet():
            return import_module("coremltools")
    except (ImportError, OSError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name == "coremltools":
            raise _missing() from e
        raise broken_package(*_NAMES, e) from e
    finally:
        for name in unused:
            del sys.modules[name]


def _missing() -> ToolchainError:
    if sys.platform == "darwin" or (sys.platform == "linux" and platform.machine() in ("x86_64", "amd64")):
        return missing_extra(*_NAMES)
    return ToolchainError(
        "coremltools is not installed, and there is none for this machine",
        hint="it is made for macOS and for Linux on x86-64: write packages there; "
        "here they are run and inspected without it",
    )


@cache
def builder() -> ModuleType:
    """The functions that append operations to a MIL program."""
    sdk()
    with quiet():
        found = import_module("coremltools.converters.mil").Builder
    assert found is not None
    return found  # type: ignore[no-any-return]  # a class of static methods, used like a module


@cache
def mil() -> ModuleType:
    """Programs, functions, variables and their types."""
    sdk()
    return import_module("coremltools.converters.mil.mil")


def version() -> str:
    """The version of coremltools."""
    return str(sdk().__version__)


@contextmanager
def quiet() -> Iterator[None]:
    """No bars of progress and no warnings of coremltools' own."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
