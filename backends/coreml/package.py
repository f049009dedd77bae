"""Opening a package (.mlpackage): a folder with a manifest, a specification and weights.

It may come from anybody. Nothing outside the folder is read, whatever it names; files are plain ones, of
sizes that are checked before they are read; what is read of them is bounded (`wire.py`, `storage.py`).
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import numpy as np

from backends.coreml.features import Interface, NoProgram, Specification, specification_of
from backends.coreml.program import Function, TensorType, Value, functions_of, sizes_of
from backends.coreml.storage import Storage
from backends.coreml.wire import Damaged, Wire
from deploy.errors import BackendError

_MOST_MANIFEST = 2**20
_MOST_SPECIFICATION = 256 * 2**20
_MOST_STORAGES = 64
_MODEL_PATH = "@model_path"
_HINT = "get the package again from where it comes from"


@dataclass
class Package:
    """An open package; close it after use. Blobs are read when they are asked for."""

    folder: Path
    specification: Specification
    functions: Mapping[str, Function]
    _model: Path
    _storages: dict[str, Storage]

    def function(self, name: str = "") -> tuple[Function, Interface]:
        """A function and what it takes, the default one without a name. Raises BackendError."""
        name = name or self.specification.default
        if name not in self.functions or name not in self.specification.interfaces:
            known = ", ".join(sorted(self.functions)) or "none"
            raise BackendError(f"{self.folder.name} has no function '{name}'", hint=f"it has: {known}")
        return self.functions[name], self.specification.interfaces[name]

    def constant(self, value: Value) -> np.ndarray:
        """A constant's numbers. Raises Damaged where they are not there."""
        if value.blob is None:
            items = value.items()
            return value.tensor() if items is None else items
        if not isinstance(value.type, TensorType):
            raise Damaged("a blob that is no tensor")
        shape = sizes_of(value.type)
        count = 1
        for size in shape:
            count *= size
        file, offset = value.blob
        return self._storage(file).blob(offset, value.type.dtype, count).reshape(shape)

    def weight_bytes(self) -> int:
        """Bytes of the files that hold weights."""
        folder = self._model.parent / "weights"
        if not folder.is_dir() or folder.is_symlink():
            return 0
        return sum(p.stat().st_size for p in folder.iterdir() if p.is_file() and not p.is_symlink())

    def _storage(self, name: str) -> Storage:
        if name not in self._storages:
            first, _, rest = name.partition("/")
            if first != _MODEL_PATH or len(self._storages) >= _MOST_STORAGES:
                raise Damaged(f"weights at '{name}', which is not below {_MODEL_PATH}")
            self._storages[name] = Storage(_inside(self._model.parent, rest))
        return self._storages[name]

    def close(self) -> None:
        """Arrays that were read stay valid."""
        for storage in self._storages.values():
            storage.close()
        self._storages.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def judged(path: Path) -> Iterator[None]:
    """What is wrong with a package becomes one BackendError that names it."""
    try:
        yield
    except NoProgram as e:
        raise BackendError(f"{path.name}: {e}", hint=e.hint) from e
    except Damaged as e:
        raise BackendError(f"{path.name} cannot be read: {e}", hint=_HINT) from e
    except OSError as e:
        raise BackendError(f"{path.name} cannot be read: {e.strerror or e}", hint=_HINT) from e


def open_package(path: Path) -> Package:
    """Read manifest and program. Raises BackendError for what is no package, damaged, or holds no program."""
    if not path.is_dir():
        raise BackendError(
            f"{path}: no such package", hint="a .mlpackage is a folder; a .mlmodel or .mlmodelc is not read"
        )
    with judged(path):
        model = _inside(path / "Data", _listed(path))
        data = _content(model, _MOST_SPECIFICATION)
        specification = specification_of(Wire(data).whole())
        functions = functions_of(specification.program)
        return Package(path, specification, functions, model, {})


def _listed(path: Path) -> str:
    """The path of the specification below Data, as the manifest has it."""
    content = _content(_inside(path, "Manifest.json"), _MOST_MANIFEST)
    try:
        manifest = json.loads(content)
        root = manifest["rootModelIdentifier"]
        entry = manifest["itemInfoEntries"][root]["path"]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise Damaged("its Manifest.json does not say where the model lies") from e
    if not isinstance(entry, str):
        raise Damaged("its Manifest.json does not say where the model lies")
    return entry


def _inside(folder: Path, name: str) -> Path:
    """A plain file below ``folder``, reached through plain folders only. Raises Damaged."""
    pure = PurePosixPath(name)
    unsafe = pure.is_absolute() or ".." in pure.parts or not pure.parts
    if unsafe or "\\" in name or "\0" in name or len(name) > 1024:
        raise Damaged(f"it names a file outside its folder: '{name[:200]}'")
    place = folder
    for part in pure.parts:
        place = place / part
        if place.is_symlink():
            raise Damaged(f"'{name[:200]}' is a link")
    if not place.exists():
        raise Damaged(f"'{name[:200]}' is missing")
    if not stat.S_ISREG(place.lstat().st_mode):
        raise Damaged(f"'{name[:200]}' is no plain file")
    return place


def _content(path: Path, most: int) -> bytes:
    size = path.stat().st_size
    if size > most:
        raise Damaged(f"{path.name} has {size / 2**20:.0f} MiB, and {most / 2**20:.0f} are read at most")
    return path.read_bytes()
