"""External data of an ONNX file, checked before a single byte of it is mapped.

An ONNX file may keep weights in other files and names them by a path of its own choosing (onnx.proto,
TensorProto.external_data). A file from a stranger must not reach outside its folder or beyond a file's end.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploy.errors import ModelError
from deploy.frontend.recognise import refuse_beyond_scope

if TYPE_CHECKING:
    import onnx


def check(proto: onnx.ModelProto, path: Path) -> dict[Path, int]:
    """The external data files of the model at ``path`` with their sizes in bytes, sorted by name.

    Raises ModelError naming the tensor where a file is missing, lies outside the model's folder, or is
    shorter than the tensor claims; and where any tensor's data do not fit its shape.
    """
    files: dict[Path, int] = {}
    total = 0
    for tensor in all_tensors(proto):
        expected = _expected_bytes(tensor, path)
        total += expected
        refuse_beyond_scope(path, total)
        if tensor.data_location != tensor.EXTERNAL:
            _check_embedded(tensor, expected, path)
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        file, size = _locate(entries.get("location", ""), tensor.name, path)
        offset = _number(entries.get("offset", "0"), tensor.name, path)
        length = _number(entries.get("length") or str(expected), tensor.name, path)
        if length != expected:
            raise ModelError(
                f"{path}: tensor '{tensor.name}' needs {expected} bytes but claims {length} of {file.name}",
                hint="the model is damaged: export it again",
            )
        if offset + length > size:
            raise ModelError(
                f"{path}: tensor '{tensor.name}' reaches to byte {offset + length} of {file.name}, "
                f"which ends at {size}",
                hint="the external data are truncated or belong to another model: copy them again",
            )
        files[file] = size
    return dict(sorted(files.items()))


def all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model, those in attributes, inner graphs and functions too."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _expected_bytes(tensor: onnx.TensorProto, path: Path) -> int:
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED or any(d < 0 for d in tensor.dims):
        raise ModelError(
            f"{path}: tensor '{tensor.name}' has data type {tensor.data_type} and shape {list(tensor.dims)}",
            hint="the model is damaged, or newer than this version reads: export it again",
        )
    if dtype == ir.DataType.STRING:
        return int(sum(len(text) for text in tensor.string_data))
    elements: int = math.prod(tensor.dims)
    return math.ceil(elements * dtype.bitwidth / 8)


def _check_embedded(tensor: onnx.TensorProto, expected: int, path: Path) -> None:
    dims = [int(d) for d in tensor.dims]
    if tensor.data_type == tensor.STRING:
        fits = len(tensor.string_data) == math.prod(dims)
    elif tensor.HasField("raw_data"):
        fits = len(tensor.raw_data) == expected
    else:
        fits = _typed_elements(tensor, math.prod(dims)) == math.prod(dims)
    if not fits:
        raise ModelError(
            f"{path}: the data of tensor '{tensor.name}' do not fit its shape {dims}",
            hint="the model is truncated or damaged: export or copy it again",
        )


def _typed_elements(tensor: onnx.TensorProto, wanted: int) -> int:
    """How many elements the typed field that onnx.proto prescribes for the data type holds."""
    dtype = ir.DataType(tensor.data_type)
    if dtype in (ir.DataType.FLOAT, ir.DataType.COMPLEX64):
        return len(tensor.float_data) // (2 if dtype == ir.DataType.COMPLEX64 else 1)
    if dtype in (ir.DataType.DOUBLE, ir.DataType.COMPLEX128):
        return len(tensor.double_data) // (2 if dtype == ir.DataType.COMPLEX128 else 1)
    if dtype == ir.DataType.INT64:
        return len(tensor.int64_data)
    if dtype in (ir.DataType.UINT32, ir.DataType.UINT64):
        return len(tensor.uint64_data)
    if dtype.bitwidth < 8:  # several elements share an entry, the last one may be part empty
        per_entry = 8 // dtype.bitwidth if 8 % dtype.bitwidth == 0 else 1
        return wanted if len(tensor.int32_data) == math.ceil(wanted / per_entry) else -1
    return len(tensor.int32_data)


def _locate(location: str, name: str, path: Path) -> tuple[Path, int]:
    folder = path.parent.resolve()
    parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
    anchored = location.startswith(("/", "\\")) or PureWindowsPath(location).anchor
    outside = ModelError(
        f"{path}: tensor '{name}' keeps its data at '{location}', outside the model's folder",
        hint="only files in the model's folder are read: copy the data there, links resolved (cp -L)",
    )
    if not location or "\0" in location or anchored or ".." in parts:
        raise outside
    file = folder / location
    try:
        real = file.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as e:
        raise ModelError(
            f"{path}: the external data file '{location}' of tensor '{name}' is missing",
            hint=f"copy it into {folder}",
        ) from e
    if not real.is_relative_to(folder):
        raise outside
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(
            f"{path}: the external data '{location}' of tensor '{name}' are not a regular file",
            hint="copy the data file beside the model",
        )
    if status.st_nlink > 1:  # a hard link can stand for any file, and onnx_ir refuses to map it
        raise ModelError(
            f"{path}: the external data file '{location}' of tensor '{name}' has several hard links",
            hint="replace it by a copy: cp --reflink=auto FILE FILE.copy && mv FILE.copy FILE",
        )
    return file, status.st_size


def _number(text: str, name: str, path: Path) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(
            f"{path}: tensor '{name}' has the external offset or length '{text[:40]}'",
            hint="the model is damaged: export it again",
        )
    return int(text)
