"""What passes between us and a child process: a JSON object and arrays by name, never a pickle.

A message is two lengths of eight bytes each, the JSON text, and the arrays' bytes one after the other.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from deploy.adapter.protocol import Arrays

_LENGTHS = struct.Struct("<QQ")
_LARGEST_TEXT = 64 * 2**20
_TYPES = frozenset({
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32",
    "float64",
})  # fmt: skip


class Garbled(Exception):  # noqa: N818 (of what came, not of what we did)
    """What came is no message of ours."""


@dataclass(frozen=True)
class Message:
    """``said`` is plain JSON."""

    said: Mapping[str, object]
    arrays: Arrays = field(default_factory=dict)


def send(stream: BinaryIO, message: Message) -> None:
    """Write a message and flush. Raises OSError where nobody reads, Garbled for an array of no plain type."""
    arrays = {name: np.asarray(array, order="C") for name, array in message.arrays.items()}
    for name, array in arrays.items():
        if array.dtype.name not in _TYPES:
            raise Garbled(f"'{name}' is an array of {array.dtype}")
    listed = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({"said": message.said, "arrays": listed}).encode()
    stream.write(_LENGTHS.pack(len(text), sum(array.nbytes for array in arrays.values())))
    stream.write(text)
    for array in arrays.values():
        stream.write(array.reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: BinaryIO, most: int) -> Message | None:
    """The next message with at most ``most`` bytes of arrays; None at the end. Raises Garbled."""
    head = stream.read(_LENGTHS.size)
    if not head:
        return None
    if len(head) != _LENGTHS.size:
        raise Garbled("a message broke off")
    text_bytes, array_bytes = _LENGTHS.unpack(head)
    if text_bytes > _LARGEST_TEXT or array_bytes > most:
        raise Garbled(f"a message of {text_bytes + array_bytes} bytes")
    try:
        whole = json.loads(_exactly(stream, text_bytes))
        said, listed = whole["said"], whole["arrays"]
        kinds = [(str(n), np.dtype(_plain(d)), tuple(int(s) for s in shape)) for n, d, shape in listed]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise Garbled(f"a message that does not say what it holds: {e}") from e
    sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in kinds]
    if not isinstance(said, dict) or min(sizes, default=0) < 0 or sum(sizes) != array_bytes:
        raise Garbled("a message of other lengths than it says")
    arrays = {
        name: np.frombuffer(_exactly(stream, size), dtype).reshape(shape)
        for (name, dtype, shape), size in zip(kinds, sizes, strict=True)
    }
    return Message(said, arrays)


def _plain(name: object) -> str:
    if name not in _TYPES:
        raise ValueError(f"arrays of {name!r}")
    return str(name)


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]  # every buffered stream has it
        if not count:
            raise Garbled("a message broke off")
        done += count
    return content
