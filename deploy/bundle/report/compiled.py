"""Templates compiled once for an installation, beside their source as Python keeps what it compiles."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import jinja2
from jinja2.bccache import Bucket

_FOLDER = "__pycache__"


def loader(folder: Path) -> tuple[jinja2.FileSystemLoader, jinja2.BytecodeCache]:
    """The templates in ``folder``, and what was compiled of them: for the two arguments of an environment."""
    return jinja2.FileSystemLoader(folder), _Compiled(folder / _FOLDER)


class _Compiled(jinja2.BytecodeCache):
    """One file a template, by its name, Python and Jinja; Jinja itself compares a digest of the source.

    Where nothing may be written, or Python was told to write none, every process compiles its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load_bytecode(self, bucket: Bucket) -> None:
        with contextlib.suppress(OSError), self._path(bucket).open("rb") as file:
            bucket.load_bytecode(file)

    def dump_bytecode(self, bucket: Bucket) -> None:
        if sys.dont_write_bytecode:
            return
        path = self._path(bucket)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            with part.open("wb") as file:
                bucket.write_bytecode(file)
            part.replace(path)

    def _path(self, bucket: Bucket) -> Path:
        return self._folder / f"{bucket.key}.{sys.implementation.cache_tag}.jinja-{jinja2.__version__}"
