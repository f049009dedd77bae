"""ONNX files: read one from anybody, write ours.

Reading trusts nothing: no unpickling, no file outside the model's folder, no memory that the file's size does
not justify, and one clear error for each way in which a file can be bad. Weights stored as external data, and
large ones in the file itself, stay mapped. Writing is deterministic: the same graph gives the same bytes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploy.errors import ModelError
from deploy.frontend import external_data, mapped, normalise, wellformed
from deploy.frontend.mapped import tag
from deploy.frontend.opset import IR_VERSION, upgrade
from deploy.frontend.recognise import MAX_PROTOBUF_BYTES, refuse_beyond_scope, refuse_unless_onnx

if TYPE_CHECKING:
    import onnx

EXTERNAL_BEYOND = 1_900_000_000
"""Bytes from which `write` puts the weights beside the model: one protobuf message ends at 2 GiB."""

_EXTERNAL_TENSOR_BYTES = 1024
_DATA_ALIGNMENT = 64
_PRODUCER = "deploy"


@dataclass(frozen=True)
class Source:
    """A model as it was handed in, and the graph it became.

    ``model`` follows the graph convention: the pinned opset, constants are initializers and initializers are
    no inputs, functions inlined, every node named. ``opset``, ``bytes`` (file and external data) and
    ``sha256`` (over the file, then its external data in the order of their names) describe the file read.
    Where it was captured from something else, ``given_sha256`` is the digest of that, and ``made_by`` says
    what captured it, with versions.
    """

    model: ir.Model
    path: Path | None
    name: str
    sha256: str
    bytes: int
    opset: int
    given_sha256: str = ""
    made_by: Mapping[str, str] = field(default_factory=dict)


def read(path: Path) -> Source:
    """Read an ONNX file of opset 7 or later. It must stay as it is while the graph is used: see `mapped`.

    Raises ModelError where the file is not a sound ONNX model (the message says what and where, the hint what
    to do), UnsupportedError where it needs operations that nothing here knows, listing all of them.
    """
    size = refuse_unless_onnx(path)
    proto, embedded = _parse(path)
    files = external_data.check(proto, path)
    if embedded:
        files.pop(path.parent.resolve() / path.name, None)
    refuse_beyond_scope(path, size + sum(files.values()))
    opset = wellformed.check(proto, path)
    model = _graph(proto, path)
    del proto
    normalise.flatten(model, path)
    wellformed.check_operations(model, path)
    normalise.settle(model)
    wellformed.check_weights(model, path)
    _hold(model, path)
    release(model)
    model = upgrade(model)
    return Source(
        model=model,
        path=path,
        name=path.stem,
        sha256=_digest([path, *files]),
        bytes=size + sum(files.values()),
        opset=opset,
    )


def to_bytes(model: ir.Model, *, inner: bool = True) -> bytes:
    """The graph as one protobuf message, weights included. The same graph gives the same bytes.

    Without ``inner`` the types and sizes of values between ONNX's own operators are left out: whoever runs
    them as they are finds these himself. Raises ModelError where it is more than a message can hold (2 GiB):
    `write` it instead.
    """
    if _stored_bytes(model) > MAX_PROTOBUF_BYTES:
        raise ModelError(
            f"{model.graph.name}: more than 2 GiB of weights do not fit one protobuf message",
            hint="write the model to a file with external data",
        )
    return b"".join(_message(model, [_embedded(v) for v in _initializers(model)], inner=inner))


def to_parts(model: ir.Model) -> tuple[bytes, dict[str, np.ndarray]]:
    """The graph as one protobuf message, and beside it the arrays that the message only refers to, by name.

    For a runtime that takes both: whatever the model's size, no file is written, and nothing is copied but
    what a file keeps at an odd place: runtimes take for granted that numbers are aligned.
    """
    arrays: dict[str, np.ndarray] = {}
    tensors: list[_Tensor] = []
    for value in _initializers(model):
        tensor = _constant(value)
        if tensor.nbytes < _EXTERNAL_TENSOR_BYTES or tensor.dtype.numpy().isbuiltin != 1:
            tensors.append(_embedded(value))
        else:
            tensors.append(_reference(value, "memory", 0))
            arrays[value.name or ""] = _in_place(tensor.numpy())
            _release(tensor)
    return b"".join(_message(model, tensors)), arrays


def digest(model: ir.Model) -> str:
    """SHA-256 (hex) of `to_bytes`, without holding those bytes and whatever the model's size."""
    found = hashlib.sha256()
    for chunk in _message(model, [_embedded(v) for v in _initializers(model)]):
        found.update(chunk)
    return found.hexdigest()


def write(model: ir.Model, path: Path, *, embed: int | None = None) -> str:
    """Write the graph to ``path``; more weights than ``embed`` bytes (1.9 GB) go to ``<name>.data`` beside.

    The file appears whole or not at all. Returns the graph's `digest`, which is the file's where nothing lies
    beside it.
    """
    if _stored_bytes(model) <= (EXTERNAL_BEYOND if embed is None else embed):
        found = hashlib.sha256()
        _replace(path, _hashed(_message(model, [_embedded(v) for v in _initializers(model)]), found))
        return found.hexdigest()
    data_path = path.with_name(path.name + ".data")
    tensors: list[_Tensor] = []
    stored: list[ir.TensorProtocol] = []
    offset = 0
    for value in _initializers(model):
        tensor = _constant(value)
        if tensor.nbytes < _EXTERNAL_TENSOR_BYTES or tensor.dtype == ir.DataType.STRING:
            tensors.append(_embedded(value))
            continue
        offset = -(-offset // _DATA_ALIGNMENT) * _DATA_ALIGNMENT
        tensors.append(_reference(value, data_path.name, offset))
        stored.append(tensor)
        offset += tensor.nbytes
    _replace(data_path, _aligned(stored))
    _replace(path, _message(model, tensors))
    whole = digest(model)
    release(model)
    return whole


def release(model: ir.Model) -> None:
    """Give back the memory that weights mapped from files take up; they stay readable."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                _release(value.const_value)


def _in_place(array: np.ndarray) -> np.ndarray:
    """The array, aligned and contiguous. A copy has pages of its own: those go back to the system with it."""
    if array.flags.aligned:
        return np.ascontiguousarray(array)
    copy = np.frombuffer(mmap.mmap(-1, array.nbytes), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _release(tensor: ir.TensorProtocol) -> None:
    pages = tensor.raw if isinstance(tensor, ir.ExternalTensor) else None
    if isinstance(pages, mmap.mmap) and sys.platform != "win32":
        pages.madvise(mmap.MADV_DONTNEED)


def _stored_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of the graph, as stored."""
    return sum(_constant(value).nbytes for value in _initializers(model))


# ---------------------------------------------------------------------------------------------------- reading


def _parse(path: Path) -> tuple[onnx.ModelProto, bool]:
    """The message, and whether it refers to large weights in the file instead of holding them."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    hint = "the file is truncated or damaged: export or copy it again"
    try:
        message = mapped.reduced(path)
        proto = onnx.load_model_from_string(path.read_bytes() if message is None else message)
    except DecodeError as e:
        raise ModelError(f"{path}: not a readable ONNX model", hint=hint) from e
    except OSError as e:
        raise ModelError(f"{path}: cannot be read: {e}", hint="check the file's permissions") from e
    if not proto.HasField("graph") or not (proto.ir_version or proto.opset_import):
        raise ModelError(f"{path}: holds no ONNX graph", hint=hint)
    return proto, message is not None


def _graph(proto: onnx.ModelProto, path: Path) -> ir.Model:
    try:
        return ir.serde.deserialize_model(proto)
    except Exception as e:  # whatever onnx_ir makes of a message that the checks before let pass
        reason = str(e.__cause__ or e).splitlines()[0]
        raise ModelError(f"{path}: not a sound ONNX model: {reason}", hint="export the model again") from e


def _hold(model: ir.Model, path: Path) -> None:
    """Map the file's own weights now, so that a file renamed over it later does not become their source."""
    for value in _initializers(model):
        if mapped.lies_in(value.const_value, path):
            _constant(value).numpy()


def _digest(paths: list[Path]) -> str:
    found = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
    return found.hexdigest()


# ---------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _Tensor:
    """An initializer on its way out: its message without the data, and the data."""

    header: bytes
    data: ir.TensorProtocol | None

    def __len__(self) -> int:
        if self.data is None:
            return len(self.header)
        nbytes = self.data.nbytes
        return len(self.header) + len(tag(9, nbytes)) + nbytes

    def chunks(self) -> Iterator[bytes]:
        yield self.header
        if self.data is not None:
            yield tag(9, self.data.nbytes)  # TensorProto.raw_data
            yield self.data.tobytes()


def _hashed(chunks: Iterator[bytes], into: hashlib._Hash) -> Iterator[bytes]:
    for chunk in chunks:
        into.update(chunk)
        yield chunk


def _message(model: ir.Model, tensors: list[_Tensor], *, inner: bool = True) -> Iterator[bytes]:
    """The ModelProto in pieces. Only one tensor is in memory at a time, which is why the two outer messages
    are framed here by hand: protobuf would hold the whole model twice."""
    head, graph = _without_weights(model, inner=inner)
    length = len(graph) + sum(len(tag(5, len(t))) + len(t) for t in tensors)
    yield head
    yield tag(7, length)  # ModelProto.graph
    yield graph
    for tensor in tensors:
        yield tag(5, len(tensor))  # GraphProto.initializer
        yield from tensor.chunks()


def _without_weights(model: ir.Model, *, inner: bool = True) -> tuple[bytes, bytes]:
    """The model without its graph, and the graph without its initializers, both serialized canonically."""
    import onnx

    head = onnx.ModelProto(ir_version=model.ir_version or IR_VERSION, producer_name=_PRODUCER)
    for domain, version in sorted(model.opset_imports.items()):
        head.opset_import.add(domain=domain, version=version)
    for key, text in sorted(model.metadata_props.items()):
        head.metadata_props.add(key=key, value=text)
    graph = onnx.GraphProto(name=model.graph.name or "graph")
    graph.node.extend(ir.serde.serialize_node(node) for node in model.graph)
    graph.input.extend(ir.serde.serialize_value(value) for value in model.graph.inputs)
    graph.output.extend(ir.serde.serialize_value(value) for value in model.graph.outputs)
    told = (node for node in model.graph if inner or node.domain)  # types are read back where sizes are open
    known = [v for node in told for v in node.outputs if not v.is_graph_output()]
    known = [v for v in known if v.name and v.type is not None]
    graph.value_info.extend(ir.serde.serialize_value(value) for value in known)
    _canonical(graph)
    return head.SerializeToString(deterministic=True), graph.SerializeToString(deterministic=True)


def _canonical(graph: onnx.GraphProto) -> None:
    """Drop prose and put in order whatever has no order of its own, in inner graphs too."""
    graph.ClearField("doc_string")
    graph.ClearField("quantization_annotation")
    graph.value_info.sort(key=lambda info: info.name)
    graph.initializer.sort(key=lambda tensor: tensor.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("doc_string")
        if value.metadata_props:
            value.metadata_props.sort(key=lambda prop: prop.key)
    for node in graph.node:
        node.ClearField("doc_string")
        if node.metadata_props:
            node.metadata_props.sort(key=lambda prop: prop.key)
        if not node.attribute:
            continue
        node.attribute.sort(key=lambda attribute: attribute.name)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _canonical(inner)


def _initializers(model: ir.Model) -> list[ir.Value]:
    return [value for _, value in sorted(model.graph.initializers.items())]


def _constant(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise ValueError(f"initializer {value.name} has no data")
    return value.const_value


def _embedded(value: ir.Value) -> _Tensor:
    import onnx

    tensor = _constant(value)
    if tensor.dtype == ir.DataType.STRING:
        proto = onnx.TensorProto(
            name=value.name,
            data_type=tensor.dtype.value,
            dims=tensor.shape.numpy(),
            string_data=tensor.numpy().flat,
        )
        return _Tensor(proto.SerializeToString(deterministic=True), None)
    proto = onnx.TensorProto(name=value.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    return _Tensor(proto.SerializeToString(deterministic=True), tensor)


def _reference(value: ir.Value, location: str, offset: int) -> _Tensor:
    import onnx

    tensor = _constant(value)
    proto = onnx.TensorProto(
        name=value.name,
        data_type=tensor.dtype.value,
        dims=tensor.shape.numpy(),
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(tensor.nbytes))):
        proto.external_data.add(key=key, value=text)
    return _Tensor(proto.SerializeToString(deterministic=True), None)


def _aligned(tensors: list[ir.TensorProtocol]) -> Iterator[bytes]:
    offset = 0
    for tensor in tensors:
        yield bytes(-offset % _DATA_ALIGNMENT)
        offset += -offset % _DATA_ALIGNMENT + tensor.nbytes
        yield tensor.tobytes()


def _replace(path: Path, chunks: Iterator[bytes]) -> None:
    """Write to a temporary neighbour, then rename over ``path``: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.writelines(chunks)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
