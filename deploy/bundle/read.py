"""Reading a bundle: its manifest, its measurements, and its artifact opened in the runtime."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from deploy.adapter.discover import find_backend
from deploy.adapter.protocol import Runner
from deploy.errors import UsageError
from deploy.spec.document import DocumentT, digest, parse
from deploy.spec.manifest import Lock, Manifest, Measurements
from deploy.spec.plan import Plan
from deploy.spec.profile import Profile

MANIFEST, MEASUREMENTS, SELFTEST = "manifest.json", "measurements.json", "selftest.npz"
ARTIFACT, GRAPH, PLAN, LOCK, LOG = "artifact", "graph.onnx", "plan.json", "deploy.lock", "build.log"
_LARGEST_DOCUMENT = 256 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A build's folder. ``digest`` is the manifest's, which holds the hash of every file that source, data,
    recipe, profile, seed, versions and recorded choices decide."""

    folder: Path
    manifest: Manifest
    measurements: Measurements
    digest: str

    def __str__(self) -> str:
        return f"{self.folder} ({self.manifest.verdict.status})"


def load_bundle(path: Path | str) -> Bundle:
    """Read the documents of a bundle. Raises UsageError where it is not one, or names a file outside."""
    folder = Path(path)
    manifest_path = folder / MANIFEST
    if not manifest_path.is_file():
        what = "no such folder" if not folder.exists() else "not a bundle: it has no manifest.json"
        raise UsageError(
            f"{folder}: {what}", hint="give the folder that `deploy build` wrote, such as dist/x86-cpu"
        )
    manifest = _document(folder, MANIFEST, Manifest)
    for name in manifest.files:
        require_inside(folder, name)
    for name in manifest.artifact.files:
        require_inside(folder / ARTIFACT, name)
    require_inside(folder, ARTIFACT)
    measurements = (
        _document(folder, MEASUREMENTS, Measurements)
        if (folder / MEASUREMENTS).is_file()
        else Measurements(comparison=None, why_not="the bundle holds no measurements")
    )
    return Bundle(folder, manifest, measurements, file_digest(manifest_path))


def load_plan(bundle: Bundle) -> Plan:
    """The quantization plan of a bundle. Raises UsageError where there is none."""
    return _document(bundle.folder, PLAN, Plan)


def load_lock(bundle: Bundle) -> Lock:
    """The recorded choices of a bundle. Raises UsageError where there are none."""
    return _document(bundle.folder, LOCK, Lock)


def caveat_of(profile: Profile, lock: Lock) -> str:
    """Why what a profile says may not be what a bundle was built by; empty where it is."""
    same = digest(profile) == lock.profile_sha256
    return "" if same else "the profile has changed since this was built"


def open_bundle(path: Path | str) -> Runner:
    """Open the artifact of a bundle; a context manager. Raises UsageError, ToolchainError, BackendError."""
    return open_artifact(load_bundle(path))


def open_artifact(bundle: Bundle) -> Runner:
    """The runner over the bundle's artifact, opened as it was measured."""
    here = {"folder": bundle.folder / ARTIFACT, "foreign": True}
    artifact = bundle.manifest.artifact.model_copy(update=here)
    backend = find_backend(artifact.backend)
    try:
        options = backend.options_type.model_validate(bundle.manifest.options)
    except ValidationError as e:
        raise UsageError(
            f"{bundle.folder}: {backend.name} does not know the manifest's options: {e.errors()[0]['msg']}",
            hint="build the bundle again",
        ) from e
    return backend.open(artifact, options)


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file, streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _document(folder: Path, name: str, kind: type[DocumentT]) -> DocumentT:
    path = folder / name
    require_inside(folder, name)
    return parse(kind, _text(path), origin=path)


def _text(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"{path}: no such file", hint="build the bundle again, or copy the whole of it")
    try:
        size = path.stat().st_size
        if size > _LARGEST_DOCUMENT:
            raise UsageError(f"{path}: {size} bytes is no document of ours", hint="build the bundle again")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: not text", hint="build the bundle again") from e
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror}", hint="check who may read it") from e


def require_inside(folder: Path, name: str) -> None:
    """A bundle may come from anywhere: no file that it names may lie elsewhere."""
    root = folder.resolve()
    if "\0" in name or not (root / name).resolve().is_relative_to(root):
        raise UsageError(
            f"{folder}: the manifest names {name!r}, outside the bundle", hint="do not use this bundle"
        )
