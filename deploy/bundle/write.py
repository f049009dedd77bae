"""Writing a bundle: complete beside its place, then swapped in, so that a kill always leaves a whole one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.bundle.read import MANIFEST
from deploy.errors import UsageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_PREFIX = ".deploy-new-"
_OLD = ".deploy-old-"


@contextlib.contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A scratch folder beside ``destination`` that takes its place when the block ends well.

    Raises UsageError, before any work is done, where the destination is somebody else's folder or cannot be
    written; the scratch folder never survives, whatever ends the block.
    """
    _refuse_foreign(destination)
    parent = destination.parent
    with _plain_errors(destination):
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent, destination.name)
        scratch = parent / f"{_PREFIX}{destination.name}-{os.getpid()}"
        scratch.mkdir()
    try:
        with _plain_errors(destination):
            yield scratch
            _flush(scratch)
            _swap(scratch, destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refuse_foreign(destination: Path) -> None:
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise UsageError(f"{destination}: exists and is not a folder", hint="choose another place with --out")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / MANIFEST).is_file():
        raise UsageError(
            f"{destination}: the folder holds files that no build of ours made, so it is not replaced",
            hint="choose another place with --out, or empty the folder",
        )


@contextlib.contextmanager
def _plain_errors(destination: Path) -> Iterator[None]:
    """Disk and permission errors in one clear sentence."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UsageError(
                f"{destination}: no space left to write the bundle",
                hint="free some space, or choose --out elsewhere",
            ) from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise UsageError(
                f"{destination}: cannot be written: {e.strerror}", hint="choose another place with --out"
            ) from e
        raise


def _sweep(parent: Path, name: str) -> None:
    """Finish what a killed build left: put an old bundle back if nothing took its place, drop the rest."""
    for leftover in parent.glob(f"{_OLD}{name}-*"):
        if not (parent / name).exists():
            leftover.rename(parent / name)
        else:
            shutil.rmtree(leftover)
    for leftover in parent.glob(f"{_PREFIX}{name}-*"):
        if not _alive(leftover.name.rpartition("-")[2]):
            shutil.rmtree(leftover)


def _alive(pid: str) -> bool:
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(folder: Path) -> None:
    """Bring the files to the disk before they replace others."""
    for path in (*folder.rglob("*"), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap(new: Path, destination: Path) -> None:
    """Put ``new`` in the place of ``destination``: in one step where the kernel can, else in two."""
    if not destination.exists():
        new.rename(destination)
        return
    if _exchange(new, destination):
        return  # ``new`` now holds the old bundle, which the caller removes
    old = destination.with_name(f"{_OLD}{destination.name}-{os.getpid()}")
    destination.rename(old)
    try:
        new.rename(destination)
    except OSError:
        old.rename(destination)
        raise
    shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where the platform or the file system has no such thing."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    failed = libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return not failed
