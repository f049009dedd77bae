"""The user's own code, named ``python:package.module:function``: a data set or a metric."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.data.source import nearest
from deploy.errors import DeployError, UsageError

PREFIX = "python:"


def load_function(reference: str, root: Path | None) -> Callable[..., object]:
    """The function that ``python:package.module:function`` names; modules are found in ``root`` (the folder
    of deploy.toml, else the working folder) and among installed packages.

    Raises UsageError where the module or function is missing or the module fails while it is imported.
    """
    module_name, _, name = reference.removeprefix(PREFIX).partition(":")
    if not module_name or not name:
        raise UsageError(
            f"'{reference}' does not name a function", hint="write it as python:package.module:function"
        )
    folder = str((root or Path.cwd()).resolve())
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise UsageError(
            f"{reference}: no module '{e.name}' found from {folder}",
            hint="check the spelling; modules are looked up beside deploy.toml and among installed packages",
        ) from e
    except DeployError:
        raise
    except Exception as e:  # the user's module may raise anything
        raise UsageError(
            f"{reference}: importing the module failed: {type(e).__name__}: {e}",
            hint=f"run: python -c 'import {module_name}'",
        ) from e
    finally:
        sys.path.remove(folder)
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UsageError(
            f"{reference}: module '{module_name}' has no function '{name}'",
            hint=f"{nearest(name, known)}it has: {', '.join(known) or 'none'}",
        )
    loaded: Callable[..., object] = function
    return loaded
