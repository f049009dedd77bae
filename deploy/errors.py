"""Every error a user can cause or meet, one class for each exit code.

    DeployError
    ├── UsageError          2   wrong option, unknown target, malformed deploy.toml
    ├── ModelError          3   the model file cannot be read or is not a model
    ├── DataError           4   calibration, validation or evaluation data do not fit
    ├── UnsupportedError    5   operations that the target cannot run, all of them listed
    ├── ToolchainError      6   a package or program is missing; the hint is the install line
    ├── BackendError        7   a vendor's toolchain failed
    ├── VerificationError   8   the artifact does not compute what was decided
    ├── BudgetError         9   the accuracy budget was missed (the bundle is written all the same)
    └── DeviceError        10   a device cannot be reached or misbehaves

A bug is not one of these: it stays a traceback.
"""

from __future__ import annotations


class DeployError(Exception):
    """What went wrong and where, with a hint that says what to do next.

    >>> error = DataError("calib.npz: no array 'x'", hint="name it like the model's input")
    >>> error.message, error.hint, error.exit_code
    ("calib.npz: no array 'x'", "name it like the model's input", 4)
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


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
    """The accuracy budget was missed; the bundle is written all the same."""

    exit_code = 9


class DeviceError(DeployError):
    """A device cannot be reached or misbehaves."""

    exit_code = 10


def missing_extra(package: str, extra: str) -> ToolchainError:
    """The error for an optional package that is not installed."""
    return ToolchainError(
        f"{package} is not installed", hint=f"install it with: pip install 'deploy-compiler[{extra}]'"
    )
