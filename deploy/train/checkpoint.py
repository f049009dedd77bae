"""Checkpoints: everything a run needs to go on, in a file that is whole or not there.

The file holds plain numbers and no pickle: eight bytes of magic, the length of a JSON header, the header
(facts, and type, shape and position of each tensor), then the tensors' bytes. It is written beside the old
one, brought to the disk and renamed over it, so that a run that is killed at any moment finds one of the two.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deploy.errors import UsageError
from deploy.train.loader import FULL

FILE = "checkpoint.bin"
_MAGIC = b"deploy\x00\x01"
_HEADER_LIMIT = 1 << 28
_TYPES = {
    str(kind): kind
    for kind in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip

Facts = dict[str, object]
"""Plain JSON values; floats come back bit for bit."""


@dataclass(frozen=True)
class Checkpoint:
    """``key`` says what the run is made of (digests of graph, step and data, the seed), word by word."""

    key: dict[str, str]
    facts: Facts
    tensors: dict[str, Tensor]


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Replace the checkpoint in ``folder``. Raises UsageError, and leaves the old one, on a full disk."""
    path = folder / FILE
    scratch = path.with_name(f"{FILE}.new")
    try:
        try:
            _write(checkpoint, scratch)
            scratch.replace(path)
            _to_disk(folder)
        except OSError:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise
    except OSError as e:
        if e.errno not in FULL:
            raise
        old = "the last one is kept" if path.exists() else "there is none yet"
        raise UsageError(
            f"{path}: no space left for a checkpoint of the training; {old}",
            hint="free some space and start again: training goes on at the last checkpoint",
        ) from e


def _write(checkpoint: Checkpoint, path: Path) -> None:
    table: dict[str, object] = {}
    position = 0
    for name, tensor in checkpoint.tensors.items():
        size = tensor.numel() * tensor.element_size()
        table[name] = [str(tensor.dtype), list(tensor.shape), position]
        position += size
    header = json.dumps(
        {"key": checkpoint.key, "facts": checkpoint.facts, "tensors": table, "bytes": position}
    ).encode()
    with path.open("wb") as file:
        file.write(_MAGIC + struct.pack("<Q", len(header)) + header)
        for tensor in checkpoint.tensors.values():
            file.write(_bytes(tensor))
        file.flush()
        os.fsync(file.fileno())


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _to_disk(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(folder: Path, key: Mapping[str, str]) -> Checkpoint | None:
    """The checkpoint in ``folder``, None where there is none.

    Raises UsageError where it is damaged, or belongs to a run with another ``key``, saying what differs.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found = _read(path)
    except (KeyError, TypeError, ValueError, struct.error) as e:
        raise UsageError(
            f"{path}: is damaged, or no checkpoint: {e}", hint="remove the file to start anew"
        ) from e
    differing = [word for word in {**found.key, **key} if found.key.get(word) != key.get(word)]
    if differing:
        raise UsageError(
            f"{path}: belongs to another training, with another {', another '.join(differing)}",
            hint="remove the file to start anew, or choose another folder",
        )
    return found


def _read(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it does not begin like one")
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_HEADER_LIMIT, path.stat().st_size):
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
        size = path.stat().st_size - file.tell()
        if size != header["bytes"]:
            raise ValueError(f"{header['bytes']} bytes of tensors promised, {size} there")
        data = np.fromfile(file, np.uint8)
    tensors: dict[str, Tensor] = {}
    for name, (kind, shape, position) in header["tensors"].items():
        count = math.prod(shape) * _TYPES[kind].itemsize
        if position < 0 or position + count > len(data):
            raise ValueError(f"'{name}' lies outside")
        raw = torch.from_numpy(data[position : position + count].copy())
        tensors[name] = (
            raw.view(_TYPES[kind]).reshape(shape) if count else torch.empty(shape, dtype=_TYPES[kind])
        )
    return Checkpoint(header["key"], header["facts"], tensors)
