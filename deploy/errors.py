"""Every error a user can cause or meet, one class for each exit code.

    DeployError
    ├── UsageError          2   wrong option, unknown target, malformed deploy.toml
    ├── ModelError          3   the model file cannot be read or is not a model
    ├── DataError           4   calibration, validation or evaluation data do not fit
    ├── UnsupportedError    5   operations that the target cannot run, all of them listed
    ├── ToolchainError      6   a package or program is missing; the hint is the install line
    ├── BackendError        7   a vendor's toolchain failed
    ├── VerificationError   8   the artifact does not compute what was decided
    ├── BudgetError         9   accuracy, latency, size or memory missed (the bundle is written all the same)
    └── DeviceError        10   a device cannot be reached or misbehaves

A bug is not one of these: it stays a traceback.
"""

from __future__ import annotations

import unicodedata

_NEXT_LINE = "\n  "
"""How a message goes on in a further line, where it lists something."""


class DeployError(Exception):
    """What went wrong and where, with a hint that says what to do next.

    Names come from files of anybody's: what does not print in them is escaped (see :func:`message_text`).

    >>> error = DataError("calib.npz: no array 'x'", hint="name it like the model's input")
    >>> error.message, error.hint, error.exit_code
    ("calib.npz: no array 'x'", "name it like the model's input", 4)
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message, self.hint = message_text(message), message_text(hint)
        super().__init__(self.message)


class UsageError(DeployError):
    """A wrong option, an unknown target, a malformed deploy.toml."""

    exit_code = 2


class ModelError(DeployError):
    """The model file cannot be read or is not a model."""

    exit_code = 3


class DataError(DeployError):
    """Calibration, validation or evaluation data do not fit."""

    exit_code = 4


class UnsupportedError(DeployError):
    """Operations that the target cannot run, all of them listed."""

    exit_code = 5


class ToolchainError(DeployError):
    """A package or program is missing; the hint is the install line."""

    exit_code = 6


class BackendError(DeployError):
    """A vendor's toolchain failed."""

    exit_code = 7


class VerificationError(DeployError):
    """The artifact does not compute what was decided."""

    exit_code = 8


class BudgetError(DeployError):
    """The budget was missed, of accuracy, latency, size or memory; the bundle is written all the same."""

    exit_code = 9


class DeviceError(DeployError):
    """A device cannot be reached or misbehaves."""

    exit_code = 10


def missing_extra(package: str, extra: str) -> ToolchainError:
    """The error for an optional package that is not installed."""
    return ToolchainError(
        f"{package} is not installed", hint=f"install it with: pip install 'deploy-compiler[{extra}]'"
    )


def broken_package(package: str, extra: str, why: object) -> ToolchainError:
    """The error for a package that is there, but cannot be loaded."""
    first = next(iter(str(why).splitlines()), type(why).__name__)
    return ToolchainError(
        f"{package} is installed, but cannot be loaded: {first}",
        hint=f"reinstall it: pip install --force-reinstall 'deploy-compiler[{extra}]'",
    )


def message_text(text: str) -> str:
    r"""``text`` as it may be shown: a name in it breaks no line, steers no terminal, turns no direction.

    Further lines of a message begin with two blanks.

    >>> print(message_text("no input 'a\x1b[2J'"))
    no input 'a\x1b[2J'
    """
    return _NEXT_LINE.join(printable(line) for line in text.split(_NEXT_LINE))


def printable(text: str, keep: str = "") -> str:
    """``text`` with control, direction and unassigned characters escaped, but for those in ``keep``."""
    return (
        text if text.isprintable() else "".join(c if c in keep or _prints(c) else _escaped(c) for c in text)
    )


def _prints(character: str) -> bool:
    return unicodedata.category(character)[0] not in "C" and character not in "\u2028\u2029"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
