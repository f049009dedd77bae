"""Finds backends through the entry-point group ``deploy.backends``; ours come the same way as anybody's."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from deploy.adapter.protocol import Backend, Inspects
from deploy.errors import ToolchainError

GROUP = "deploy.backends"


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def backend_names() -> list[str]:
    """Names of the installed backends, without loading any."""
    return sorted(_entries())


def find_backend(name: str) -> Backend:
    """The backend of that name. Raises ToolchainError where none is installed or it cannot be loaded."""
    entry = _entries().get(name)
    if entry is None:
        known = ", ".join(backend_names()) or "none"
        raise ToolchainError(
            f"no backend named '{name}' is installed (found: {known})",
            hint="install the package that provides it, or reinstall: pip install deploy-compiler",
        )
    try:
        factory = entry.load()
    except (ImportError, AttributeError) as e:
        raise ToolchainError(
            f"backend '{name}' cannot be loaded: {e}",
            hint=f"reinstall the package that provides it ({entry.value})",
        ) from e
    return cast(Backend, factory())


def find_inspector(suffix: str) -> Inspects | None:
    """The backend that knows files of such a name; None where no installed one does."""
    for name in backend_names():
        backend: object = find_backend(name)
        if isinstance(backend, Inspects) and suffix.lower() in backend.suffixes:
            return backend
    return None


def provider(name: str) -> str:
    """Name and version of the distribution that provides a backend, for cache keys; empty where unknown."""
    entry = _entries().get(name)
    return "" if entry is None or entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
