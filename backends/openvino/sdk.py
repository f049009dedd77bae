"""OpenVINO itself: the one place where it is imported, so that it sends and writes nothing.

``import openvino`` writes an identifier to ``~/intel`` and reports to Google Analytics through the package
``openvino_telemetry``; where that is not installed it does without, which is what it is made to believe here.
So it is with its converter, half of the time that the import takes: it is loaded when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from deploy.errors import broken_package, missing_extra

if TYPE_CHECKING:
    from types import ModuleType

    import openvino

_TELEMETRY = "openvino_telemetry"
_CONVERTER = "openvino.tools.ovc"
_NAMES = ("OpenVINO", "openvino")
"""The package as one speaks of it, and our extra that brings it."""


@cache
def sdk() -> ModuleType:
    """The package. Raises ToolchainError where it is not installed, or its libraries cannot be loaded."""
    try:
        with _hidden(_TELEMETRY), _hidden(_CONVERTER):
            package = import_module("openvino")
    except (ImportError, OSError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name == "openvino":
            raise missing_extra(*_NAMES) from e
        raise broken_package(*_NAMES, e) from e
    if not hasattr(package, "Core"):
        raise broken_package(*_NAMES, "the folder of the package is empty")
    if not hasattr(package, "convert_model"):
        package.convert_model = _convert_model  # type: ignore[attr-defined]  # as the package itself has it
    return package


def _convert_model(*given: object, **named: object) -> object:
    """OpenVINO's own, for whoever shares this process with us."""
    with _hidden(_TELEMETRY):
        converter = import_module(_CONVERTER)
    sdk().convert_model = converter.convert_model  # type: ignore[attr-defined]
    return converter.convert_model(*given, **named)


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """As if a module were not installed that is not loaded yet."""
    hides = name not in sys.modules
    if hides:
        sys.modules[name] = None  # type: ignore[assignment]  # how Python is told that there is none
    try:
        yield
    finally:
        if hides:
            del sys.modules[name]


@cache
def core() -> openvino.Core:
    """The entry to OpenVINO, one for the process. Raises ToolchainError where it is not installed."""
    return sdk().Core()


def version() -> str:
    """OpenVINO's version, without the build that follows it."""
    return str(sdk().__version__).partition("-")[0]


_SURROUNDINGS = (
    *("Exception from", "Check '", "While validating", "FrontEnd API failed", "Model wasn't fully"),
    *("Summary:", "To facilitate", "Conversion is failed"),
)
"""How lines begin in which OpenVINO says where in its own source something happened, not what."""


def reason(error: Exception) -> str:
    """What OpenVINO says, without the places in its own source."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines()]
    said = [line for line in lines if not line.startswith(_SURROUNDINGS) and not line.endswith("message:")]
    return next(filter(None, said), " ".join(lines) or type(error).__name__)[:300]
