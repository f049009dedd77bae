"""Large weights inside an ONNX file, found without parsing them, so that they can be mapped where they lie.

A protobuf message is parsed into copies: a file of 400 MB would be in memory three times before the first
check. But its wire format says the length of every field ahead of the field, so the weights can be skipped
(Protocol Buffers, "Encoding"). `reduced` walks ModelProto.graph.initializer, leaves the raw data out of the
message and refers to them as external data that lie in the file itself. Everything that checks external data
then checks these too, and the graph maps them.

What is written in any way that is not the usual one is left to the parser, which decides what it means or
that it is damaged: nothing here ever refuses a file.

As with all external data, the file must stay as it is while the graph is used. One that is replaced by
another (renamed over) does no harm, as the mapping keeps the old one; one that is written to in place changes
the weights, and one that is cut short ends the process (SIGBUS). On Windows it cannot be replaced until then.
"""

from __future__ import annotations

import heapq
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

LEAST = 16 * 2**20
"""Bytes of raw data from which mapping pays; smaller models are parsed whole."""

_LEAST_TENSOR = 1024
_MOST_TENSORS = 256
"""A mapping keeps a file descriptor, of which a process commonly has 1024. The largest tensors are mapped."""

_MOST_FIELDS = 1_000_000
"""A file with more fields than this at the levels that are walked is no model of large weights."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _GRAPH_INITIALIZER = (7, _BYTES), (5, _BYTES)
_DATA_TYPE, _RAW_DATA, _DATA_LOCATION = (2, _VARINT), (9, _BYTES), (14, _VARINT)
# Besides these: dims (packed or not), name, doc_string, metadata_props. One with anything else is parsed.
_USUAL = frozenset(
    {
        (1, _VARINT),
        (1, _BYTES),
        (8, _BYTES),
        (12, _BYTES),
        (16, _BYTES),
        _DATA_TYPE,
        _RAW_DATA,
        _DATA_LOCATION,
    }
)


class _UnusualError(Exception):
    """Not what exporters write: for the parser to judge."""


class _Field(NamedTuple):
    """One field of a message: where it starts, where its content starts and ends, and a varint's value."""

    key: tuple[int, int]
    start: int
    content: int
    end: int
    value: int


@dataclass(frozen=True)
class _Weights:
    """An initializer of the file: the field that holds it, and its raw data, key and length included."""

    field: _Field
    raw: _Field

    @property
    def nbytes(self) -> int:
        return self.raw.end - self.raw.content


def reduced(path: Path, *, least: int = LEAST) -> bytes | None:
    """The model's message with its large weights as external data of the file itself.

    None where they are fewer than ``least`` bytes or the file is to be parsed as it is. Raises OSError where
    the file cannot be read.
    """
    folder, real = path.parent.resolve(), path.resolve()
    status = real.stat()
    # Nothing outside the folder is mapped, and no hard link: the rules of external data hold here as well.
    if status.st_size < least or not real.is_relative_to(folder) or status.st_nlink > 1:
        return None
    if not path.name.isprintable():
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            graph, found = _walk(content)
        except _UnusualError:
            return None
        largest = heapq.nlargest(_MOST_TENSORS, found, key=lambda weights: weights.nbytes)
        if sum(weights.nbytes for weights in largest) < least:
            return None
        return _without(content, graph, sorted(largest, key=lambda w: w.raw.start), path.name)


def lies_in(tensor: ir.TensorProtocol | None, path: Path) -> bool:
    """Whether the tensor is mapped from the model's own file."""
    return isinstance(tensor, ir.ExternalTensor) and tensor.location == path.name


# ------------------------------------------------------------------------------------------------ wire format


def _walk(content: mmap.mmap) -> tuple[_Field, list[_Weights]]:
    """The graph's field and the weights in it that can be mapped."""
    left = iter(range(_MOST_FIELDS))
    graphs = [field for field in _fields(content, 0, len(content), left) if field.key == _MODEL_GRAPH]
    if len(graphs) != 1:  # several would be merged
        raise _UnusualError
    found: list[_Weights] = []
    for field in _fields(content, graphs[0].content, graphs[0].end, left):
        if field.key == _GRAPH_INITIALIZER and field.end - field.content > _LEAST_TENSOR:
            found += _weights(content, field, left)
    return graphs[0], found


def _weights(content: mmap.mmap, tensor: _Field, left: Iterator[int]) -> list[_Weights]:
    """The tensor, unless it is small, of a type with no whole bytes, or has its data elsewhere as well."""
    raw: list[_Field] = []
    data_type = 0
    for field in _fields(content, tensor.content, tensor.end, left):
        if field.key not in _USUAL or (field.key == _DATA_LOCATION and field.value):
            return []
        if field.key == _RAW_DATA:
            raw.append(field)
        elif field.key == _DATA_TYPE:
            data_type = field.value
    if len(raw) != 1 or raw[0].end - raw[0].content <= _LEAST_TENSOR or not _whole_bytes(data_type):
        return []
    return [_Weights(tensor, raw[0])]


def _whole_bytes(data_type: int) -> bool:
    try:
        dtype = ir.DataType(data_type)
    except ValueError:
        return False
    return dtype not in (ir.DataType.UNDEFINED, ir.DataType.STRING) and dtype.bitwidth % 8 == 0


def _fields(content: mmap.mmap, at: int, end: int, left: Iterator[int]) -> Iterator[_Field]:
    """The fields of the message between two places. Takes one of ``left`` for each."""
    while at < end:
        if next(left, None) is None:
            raise _UnusualError
        start = at
        key, at = _varint(content, at, end, 5)
        number, wire = key >> 3, key & 7
        value = 0
        if not 0 < number < 1 << 29:
            raise _UnusualError
        inner = at
        if wire == _VARINT:
            value, at = _varint(content, at, end, 10)
        elif wire == _BYTES:
            length, inner = _varint(content, at, end, 5)
            at = inner + length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:  # groups, which nothing has written since 2008
            raise _UnusualError
        if at > end:
            raise _UnusualError
        yield _Field((number, wire), start, inner, at, value)


def _varint(content: mmap.mmap, at: int, end: int, longest: int) -> tuple[int, int]:
    """A number of seven bits to the byte, least significant first, and where it ends."""
    value = 0
    for index, byte in enumerate(content[at : min(end, at + longest)]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise _UnusualError


# ------------------------------------------------------------------------------------------------ the message


def _without(content: mmap.mmap, graph: _Field, found: list[_Weights], location: str) -> bytes:
    """The message in which ``found``, in the order of the file, have their data at ``location``."""
    pieces: list[bytes] = []
    at = graph.content
    for weights in found:
        tensor = content[weights.field.content : weights.raw.start]
        tensor += content[weights.raw.end : weights.field.end]
        tensor += _external(location, weights.raw.content, weights.nbytes)
        pieces += [content[at : weights.field.start], tag(5, len(tensor)), tensor]
        at = weights.field.end
    pieces.append(content[at : graph.end])
    head, tail = content[: graph.start], content[graph.end :]
    return b"".join([head, tag(7, sum(map(len, pieces))), *pieces, tail])


def _external(location: str, offset: int, length: int) -> bytes:
    """TensorProto.external_data and data_location."""
    import onnx

    proto = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=key, value=text)
    message: bytes = proto.SerializeToString(deterministic=True)
    return message


def tag(field: int, length: int) -> bytes:
    """Key and length of a length-delimited field (Protocol Buffers encoding, wire type 2).

    >>> tag(9, 300).hex()
    '4aac02'
    """
    out = bytearray([field << 3 | _BYTES])
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)
