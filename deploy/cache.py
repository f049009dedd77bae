"""A content-addressed store: the result of a stage, keyed by everything that went into it.

A key is the SHA-256 of the stage's name, the digests of its inputs, its settings and the versions of what
computed it, this package's own source included. So a hit is right by construction, targets share what they
can share, and nothing ever needs to be invalidated by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs

_TRACKED = ("numpy", "onnx", "onnx_ir", "onnxruntime")


@cache
def code_version() -> str:
    """Digest of this package's source and of the libraries that decide results."""
    hasher = hashlib.sha256()
    root = Path(__file__).parent
    for folder in (root, root.parent / "backends"):
        for path in sorted(folder.rglob("*.py")):
            hasher.update(path.name.encode())
            hasher.update(path.read_bytes())
    for name in _TRACKED:
        try:
            hasher.update(f"{name}={version(name)}".encode())
        except PackageNotFoundError:
            hasher.update(f"{name}=none".encode())
    return hasher.hexdigest()


def default_root() -> Path:
    """Where the cache lies unless the caller says otherwise."""
    return Path(platformdirs.user_cache_dir("deploy-compiler"))


@dataclass(frozen=True)
class Cache:
    """Entries are folders ``<root>/<first two digits>/<key>``; each appears whole or not at all."""

    root: Path

    def key(self, stage: str, **parts: object) -> str:
        """The key of ``stage`` for these inputs. Parts must be plain JSON values."""
        text = json.dumps({"stage": stage, "code": code_version(), **parts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def folder(self, key: str) -> Path:
        return self.root / key[:2] / key

    def fetch(self, key: str, write: Callable[[Path], None]) -> tuple[Path, bool]:
        """The entry's folder, and whether it was there already. ``write`` fills a new one.

        A cache that cannot be written (read-only home, full disk) raises OSError from ``write``.
        """
        target = self.folder(key)
        if target.is_dir():
            os.utime(target)
            return target, True
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        try:
            write(scratch)
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():  # another build of the same thing may have been first
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target, False

    def info(self) -> Mapping[str, int]:
        """Number of entries and their size in bytes."""
        entries = [e for e in self.root.glob("??/*") if not e.name.startswith(".")]
        size = sum(f.stat().st_size for e in entries for f in e.rglob("*") if f.is_file())
        return {"entries": len(entries), "bytes": size}

    def clear(self) -> int:
        """Remove every entry; returns how many there were. Only folders that this cache made are touched."""
        folders = [p for p in self.root.glob("??") if p.is_dir()]
        count = sum(1 for f in folders for e in f.iterdir() if not e.name.startswith("."))
        for folder in folders:
            shutil.rmtree(folder)
        return count
