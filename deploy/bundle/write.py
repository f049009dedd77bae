"""Writing a bundle: complete beside its place, then swapped in, so that a kill always leaves a whole one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.bundle.read import MANIFEST
from deploy.cache import flush
from deploy.errors import UsageError
from deploy.spec.artifact import Artifact

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NEW, _OLD = ".deploy-new-", ".deploy-old-"
_NOT_WRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG,
    errno.ELOOP,
)  # fmt: skip


@contextlib.contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A scratch folder beside ``destination`` that takes its place when the block ends well.

    Raises UsageError, before any work is done, where the destination is somebody else's folder or cannot be
    written. The scratch folder never survives, whatever ends the block, nor do parent folders made for it.
    """
    scratch = _beside(destination, _NEW)
    with _plain_errors(destination):
        _refuse_foreign(destination)
        made = [folder for folder in destination.parents if not folder.exists()]
    try:
        with _plain_errors(destination):
            _make_folder(destination.parent, destination)
            _sweep(destination)
            _make_folder(scratch, destination, new=True)
            yield scratch
            flush(scratch)
            _swap(scratch, destination)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: another build came to live there
            for folder in made:
                folder.rmdir()
        raise
    shutil.rmtree(scratch, ignore_errors=True)


def copy_artifact(artifact: Artifact, folder: Path) -> None:
    """Its files into a new ``folder``. Not shutil.copytree, which hides why it failed: a full disk, say."""
    for name in artifact.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.folder / name, folder / name)


def _make_folder(folder: Path, destination: Path, *, new: bool = False) -> None:
    """``folder`` and its parents, on the way to ``destination``; a ``new`` one must not be there yet."""
    try:
        folder.mkdir(parents=True, exist_ok=not new)
    except FileNotFoundError as e:  # a file system without folders of one's own, such as /proc
        raise UsageError(
            f"{destination}: cannot be written: no folder can be made there",
            hint="choose another place with --out",
        ) from e


def _refuse_foreign(destination: Path) -> None:
    try:
        str(destination).encode()
    except UnicodeEncodeError as e:
        raise UsageError(
            f"{destination}: the path is not UTF-8 text, and runtimes open no other",
            hint="choose another place with --out",
        ) from e
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise UsageError(f"{destination}: exists and is not a folder", hint="choose another place with --out")
    if destination.is_dir() and any(destination.iterdir()) and not _is_bundle(destination):
        raise UsageError(
            f"{destination}: the folder holds files that no build of ours made, so it is not replaced",
            hint="choose another place with --out, or empty the folder",
        )


def _is_bundle(folder: Path) -> bool:
    """Whether a build made it, of whatever version; other programs write a ``manifest.json`` too."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(manifest, dict) and {"schema", "plan_sha256"} <= manifest.keys()


@contextlib.contextmanager
def _plain_errors(destination: Path) -> Iterator[None]:
    """Disk and permission errors in one clear sentence, which names the file where the system does."""
    try:
        yield
    except OSError as e:
        named = Path(str(e.filename2 or e.filename or destination))
        inside = named == destination or destination.parent in named.parents
        ours = inside or named in destination.parents
        place = destination if inside else named
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UsageError(
                f"{place}: no space left to write to",
                hint="free some space (`deploy cache clear` helps), or choose --out elsewhere",
            ) from e
        if e.errno in _NOT_WRITABLE:
            raise UsageError(
                f"{place}: cannot be {'written' if ours else 'used'}: {e.strerror}",
                hint="choose another place with --out" if ours else "check who may read and write there",
            ) from e
        raise


def _beside(destination: Path, prefix: str) -> Path:
    return destination.with_name(f"{prefix}{destination.name}-{os.getpid()}")


def _sweep(destination: Path) -> None:
    """Finish what a killed build left: put an old bundle back if nothing took its place, drop the rest."""
    for prefix in (_OLD, _NEW):
        name = re.compile(re.escape(prefix + destination.name) + r"-(\d+)")
        for leftover in destination.parent.iterdir():
            match = name.fullmatch(leftover.name)
            if match is None or _alive(int(match[1])):
                continue
            if prefix == _OLD and not destination.exists():
                leftover.rename(destination)
            else:
                shutil.rmtree(leftover)


def _alive(pid: int) -> bool:
    """Whether another process of that number runs; our own number is a dead one's, given again."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _swap(new: Path, destination: Path) -> None:
    """Put ``new`` in the place of ``destination``: in one step where the kernel can, else in two."""
    if not destination.exists():
        new.rename(destination)
        return
    if _exchange(new, destination):
        return  # ``new`` now holds the old bundle, which the caller removes
    old = _beside(destination, _OLD)
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
