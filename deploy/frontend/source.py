"""What kind of thing a model is named by: a file, or a function that makes it."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

Kind = Literal["onnx", "pt2", "factory"]
"""An ONNX file (or one refused as such), a ``torch.export`` program, ``package.module:function``."""

_PREFIX = "python:"
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def factory_name(source: str | Path) -> str | None:
    """``package.module:function`` where ``source`` says that, with ``python:`` before it or not; else None.

    A file of that name is a file.

    >>> factory_name("nets.small:make")
    'nets.small:make'
    >>> factory_name("model.onnx") is None
    True
    """
    text = str(source)
    bare = text.removeprefix(_PREFIX)
    if not _FACTORY.fullmatch(bare) or (text == bare and Path(text).exists()):
        return None
    return bare


def is_exported_program(path: Path) -> bool:
    """Whether a file is what ``torch.export.save`` writes: a zip archive that says so, whatever its name."""
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return False
        with zipfile.ZipFile(path) as archive:
            inner = {name.rpartition("/")[2] for name in archive.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return path.suffix == ".pt2" and path.is_file()
    program = {"archive_format", "serialized_exported_program.json"} & inner
    return bool(program) or (path.suffix == ".pt2" and "data.pkl" not in inner)


def kind_of(source: str | Path) -> Kind:
    """What ``source`` names; whatever is neither a function nor an exported program is taken for ONNX."""
    if factory_name(source) is not None:
        return "factory"
    return "pt2" if is_exported_program(Path(source)) else "onnx"
