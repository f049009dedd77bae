"""A content-addressed store: the result of a stage, keyed by everything that went into it.

A key is the SHA-256 of the stage's name, the digests of its inputs, its settings and the versions of what
computed it, this package's own source included. So a hit is right by construction, targets share what they
can share, and nothing ever needs to be invalidated by hand.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs

from deploy.errors import UsageError

_TRACKED = ("numpy", "onnx", "onnx_ir", "onnxruntime", "tflite-micro")
_NEW = ".new-"
_UNFINISHED = "unfinished"
_SCRATCH, _GONE, _LOCK = "deploy-", "deploy-gone-", ".deploy-lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_ABANDONED_S = 24 * 3600
_IN_USE_S = 24 * 3600
LIMIT = 10 * 2**30
"""Bytes that a cache holds before what was not used for longest is dropped."""
_PREFIX, _KEY = re.compile("[0-9a-f]{2}"), re.compile("[0-9a-f]{64}")


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

    def unfinished(self, key: str) -> Path:
        """Where a stage that takes hours keeps what it has, for the build that goes on after a kill."""
        return self.root / _UNFINISHED / key

    @contextlib.contextmanager
    def alone(self, key: str, busy: Callable[[], None]) -> Iterator[Path]:
        """The folder ``unfinished(key)``, held by one build at a time, whatever ends that.

        Another one calls ``busy`` and waits: it then finds the first one's result in the cache, or goes on
        where that was killed. The folder is removed when the block ends well, or left nothing in it.
        """
        folder = self.unfinished(key)
        handle = None
        while handle is None:
            with contextlib.suppress(FileNotFoundError):  # its holder was through, and removed it
                folder.mkdir(parents=True, exist_ok=True)
                handle = _lock(folder, busy)
        try:
            try:
                yield folder
            except BaseException:
                if [p.name for p in folder.iterdir()] == [_LOCK]:
                    _remove_held(folder)
                raise
            _remove_held(folder)
        finally:
            os.close(handle)

    def fetch(self, key: str, write: Callable[[Path], None]) -> tuple[Path, bool]:
        """The entry's folder, and whether it was there already. ``write`` fills a new one.

        Raises UsageError where the disk is full; other trouble of ``write`` passes through.
        """
        target = self.folder(key)
        if target.is_dir():
            os.utime(target)
            return target, True
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        scratch = Path(tempfile.mkdtemp(prefix=_NEW, dir=target.parent))
        try:
            write(scratch)
            flush(scratch)
            try:
                scratch.rename(target)
            except OSError:
                if not target.is_dir():  # another build of the same thing may have been first
                    raise
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UsageError(
                f"{e.filename2 or e.filename or self.root}: no space left to keep results for the next build",
                hint="free some space (`deploy cache clear` helps), or choose --cache elsewhere",
            ) from e
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return target, False

    def info(self) -> Mapping[str, int]:
        """Number of entries and their size in bytes."""
        entries = self._entries()
        size = sum(f.stat().st_size for e in entries for f in e.rglob("*") if f.is_file())
        return {"entries": len(entries), "bytes": size}

    def clear(self) -> int:
        """Remove every entry; returns how many there were. Whatever else lies in the folder stays, and what
        builds are at."""
        entries = self._entries()
        leftovers = [p for p in self.root.glob(f"??/{_NEW}*") if _PREFIX.fullmatch(p.parent.name)]
        for folder in self.root.glob(f"{_UNFINISHED}/*"):
            if _KEY.fullmatch(folder.name) or folder.name.startswith(_GONE):
                _remove_unheld(folder)
        for path in (*entries, *leftovers):
            shutil.rmtree(path)
        for folder in {path.parent for path in (*entries, *leftovers)} | {self.root / _UNFINISHED}:
            with contextlib.suppress(OSError):  # not there, or not empty: a build writes, or it is not ours
                folder.rmdir()
        return len(entries)

    def trim(self, limit: int = LIMIT) -> int:
        """Drop the entries unused for longest until the rest fit ``limit`` bytes; returns how many went.

        What was used within the last day stays, whatever it weighs: a build may be reading it.
        """
        used = sorted((e.stat().st_mtime, e) for e in self._entries())
        sizes = {e: sum(f.stat().st_size for f in e.rglob("*") if f.is_file()) for _, e in used}
        total, dropped = sum(sizes.values()), 0
        for when, entry in used:
            if total <= limit or time.time() - when < _IN_USE_S:
                break
            shutil.rmtree(entry, ignore_errors=True)  # another build may trim too
            total, dropped = total - sizes[entry], dropped + 1
        return dropped

    def _entries(self) -> list[Path]:
        return [p for p in self.root.glob("??/*") if _KEY.fullmatch(p.name) and p.name[:2] == p.parent.name]


def _sweep(folder: Path) -> None:
    """Drop what builds that were killed left here."""
    for leftover in folder.glob(f"{_NEW}*"):
        with contextlib.suppress(OSError):  # another build may sweep too
            if time.time() - leftover.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(leftover)


@contextlib.contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """A new folder for temporary files, ``deploy-<kind>-...``. It goes when the block ends; that of a process
    which was killed when another build starts (`drop_leftovers`)."""
    handle = None
    while handle is None:
        folder = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{kind}-"))
        with contextlib.suppress(FileNotFoundError):  # taken for a leftover before it was locked
            handle = _lock(folder, lambda: None)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def drop_leftovers() -> None:
    """Remove the folders of `scratch` whose processes were killed: nobody holds their locks any more."""
    if sys.platform == "win32":
        return
    for lock in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*/{_LOCK}"):
        folder = lock.parent
        with contextlib.suppress(OSError):  # another build may remove it too
            if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
                _remove_unheld(folder)


def _remove_unheld(folder: Path) -> None:
    """Remove a folder unless somebody holds its lock, or none can be had here."""
    with contextlib.suppress(OSError):
        handle = _lock(folder)
        if handle is not None:
            _remove_held(folder)
            os.close(handle)


def _remove_held(folder: Path) -> None:
    """In one step for others, who may wait to make it anew: else they might lock what is half removed."""
    gone = Path(tempfile.mkdtemp(prefix=_GONE, dir=folder.parent))
    with contextlib.suppress(OSError):
        folder = folder.rename(gone)
    for path in {folder, gone}:
        shutil.rmtree(path, ignore_errors=True)


def _lock(folder: Path, busy: Callable[[], None] | None = None) -> int | None:
    """A handle that holds the folder's lock until it is closed, or this process ends in any way.

    Where another holds it: None, or with ``busy`` that is called and the lock waited for. On a file system
    without locks the handle holds nothing, and without ``busy`` that is an OSError. Raises FileNotFoundError
    where the folder is gone.
    """
    path = folder / _LOCK
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            taken = _taken(handle, busy)
            if taken and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if not taken:
            return None


def _taken(handle: int, busy: Callable[[], None] | None) -> bool:
    if sys.platform == "win32":
        return busy is not None
    import fcntl

    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy is None:
                return False
            busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as e:
        if busy is None or e.errno not in _NO_LOCKS:
            raise
    return True


def flush(folder: Path) -> None:
    """Bring the files to the disk before they replace others."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
