"""What the installed backends say of ONNX's operations."""

from __future__ import annotations

from pathlib import Path

from deploy.adapter.discover import backend_names, find_backend
from deploy.adapter.protocol import Conforms
from deploy.errors import ToolchainError
from deploy.spec.conformance import Conformance
from deploy.spec.document import parse


def conformances() -> list[Conformance]:
    """Those of all backends that have one, by name."""
    backends: list[object] = [find_backend(name) for name in backend_names()]
    return [backend.conformance() for backend in backends if isinstance(backend, Conforms)]


def read_conformance(path: Path) -> Conformance:
    """The document that a backend brings. Raises ToolchainError where it is missing or is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ToolchainError(f"{path}: {e.strerror}", hint="reinstall the package that it belongs to") from e
    return parse(Conformance, text, origin=path, error=ToolchainError)
