"""What was emitted becomes the bytes of a .tflite file, and back into the schema's objects.

Beside the network the file holds one metadata entry of ours, JSON: by tensor the order of its axes, by
planned value the tensor that carries it, by operator the node that it came from.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import flatbuffers
import numpy as np

from backends.tflite.emitter import Emitter
from backends.tflite.layout import Blocks, Order, plain
from backends.tflite.network import Tensor
from backends.tflite.sdk import schema
from deploy.errors import BackendError, UnsupportedError
from deploy.spec.tensors import TensorSpec

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as tfl

METADATA = "deploy"
_SLIDES = ("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "MAX_POOL_2D", "AVERAGE_POOL_2D")
_SIDES = {3: 1024, 4: 224, 5: 32}
"""By rank of an input: of a signal, an image, a volume."""
DTYPES = {
    "float32": "FLOAT32", "int8": "INT8", "uint8": "UINT8", "int32": "INT32", "int64": "INT64",
    "bool": "BOOL", "float16": "FLOAT16", "int16": "INT16", "int4": "INT4",
}  # fmt: skip
REDUCED_PRECISION, _HALF_WHOLLY = b"reduced_precision_support", b"fp16accfp16"
"""By this XNNPACK computes in float16 where the processor can, sums included; else it does not."""
_LARGEST = 2**31 - 2**20
"""Bytes that offsets of 32 bits reach, less some for what is no constant."""
_NAMED = 3
_KEPT_BYTES = 32 * 2**20
"""Of larger files the objects are not kept in memory."""
_LAST: dict[tuple[Path, int, int, int], tfl.ModelT] = {}
"""The file that was written last, and what it was written from."""
_FIRST_NEW_CODE = 127
"""Codes from here on do not fit the field that old readers look at; this number stands there."""


def to_bytes(out: Emitter, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """The file. Raises UnsupportedError for constants of more than 2 GB."""
    return _packed(_model(out, inputs, outputs), _room(out))


def write_file(
    path: Path, out: Emitter, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> bytes:
    """The same, written to ``path``; whoever changes the file next need not read it."""
    model, room = _model(out, inputs, outputs), _room(out)
    content = _packed(model, room)
    path.write_bytes(content)
    _LAST.clear()
    if len(content) <= _KEPT_BYTES:
        _LAST[_identity(path)] = model
    return content


def rewrite_file(path: Path, model: tfl.ModelT) -> None:
    """Write a file anew, from its objects as they were changed."""
    path.write_bytes(_packed(model, path.stat().st_size + 2**16))


def _room(out: Emitter) -> int:
    return sum(tensor.stored_bytes for tensor in out.tensors) + (1 << 20)


def _packed(model: tfl.ModelT, room: int) -> bytes:
    # A builder that is too small doubles, and copies what it holds each time.
    builder = flatbuffers.Builder(room)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


def _model(out: Emitter, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> tfl.ModelT:
    constants = sum(tensor.stored_bytes for tensor in out.tensors)
    if constants > _LARGEST:
        raise UnsupportedError(
            f"the constants take {constants / 2**30:.1f} GB, and a .tflite file holds 2; most take "
            + ", ".join(_largest(out)),
            hint="integer weights take a quarter: give --data or --precision w8; or build for ONNX Runtime",
        )
    tfl = schema()
    model, graph = tfl.ModelT(), tfl.SubGraphT()
    model.version, model.description = 3, b"deploy"
    model.buffers = [tfl.BufferT()]
    graph.name = b"main"
    slides = any(operator.code in _SLIDES for operator in out.operators)
    graph.tensors = [
        _tensor(t, model, _at_rest(t.shape, slides=slides and i in out.inputs))
        for i, t in enumerate(out.tensors)
    ]
    graph.inputs, graph.outputs = out.inputs, out.outputs
    codes: dict[tuple[str, int], int] = {}
    for operator in out.operators:
        codes.setdefault((operator.code, operator.version), len(codes))
    model.operatorCodes = [_code(*key) for key in codes]
    graph.operators = []
    for operator in out.operators:
        made = tfl.OperatorT()
        made.opcodeIndex = codes[operator.code, operator.version]
        made.inputs, made.outputs = list(operator.inputs), list(operator.outputs)
        _set_options(made, *operator.options)
        graph.operators.append(made)
    model.subgraphs = [graph]
    model.signatureDefs = [_signature(out, inputs, outputs)]
    entry = tfl.MetadataT()
    entry.name, entry.buffer = METADATA.encode(), _store(model, _notes(out))
    model.metadata = [entry]
    if any(tensor.dtype == "float16" for tensor in out.tensors):
        allowed = tfl.MetadataT()
        allowed.name, allowed.buffer = REDUCED_PRECISION, _store(model, np.frombuffer(_HALF_WHOLLY, np.uint8))
        model.metadata.append(allowed)
    return model


def _largest(out: Emitter) -> Iterator[str]:
    """The largest constants, each with the node that reads it."""
    sizes = {i: t.stored_bytes for i, t in enumerate(out.tensors) if t.data is not None}
    for index in sorted(sizes, key=lambda i: -sizes[i])[:_NAMED]:
        readers = [o.node for o in out.operators if index in o.inputs and o.node]
        of = f" of node '{readers[0]}'" if readers else ""
        yield f"'{out.tensors[index].name}'{of} ({sizes[index] / 2**30:.2f} GB)"


def read_file(path: Path) -> tfl.ModelT:
    """The objects in a file. Raises BackendError where it is none or damaged."""
    with opened(path) as file:
        return schema().ModelT.InitFromObj(file)


@contextmanager
def opened(path: Path) -> Iterator[tfl.Model]:
    """A file to be asked for some of what it holds; nothing else of it is read.

    Raises BackendError where it is none, and where what is asked for meanwhile turns out to be damaged.
    """
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise BackendError(f"{path.name} is no .tflite file", hint="copy it again from where it was built")
    try:
        yield schema().Model.GetRootAs(content, 0)
    except (struct.error, IndexError, ValueError, TypeError, MemoryError, RecursionError) as e:
        raise BackendError(
            f"{path.name} is damaged: {e}", hint="copy it again from where it was built"
        ) from e


def taken_file(path: Path) -> tfl.ModelT:
    """The objects in a file, to be changed: those that it was written from, where it was written last."""
    model = _LAST.pop(_identity(path), None)
    return read_file(path) if model is None else model


def _identity(path: Path) -> tuple[Path, int, int, int]:
    stat = path.stat()
    return path, stat.st_ino, stat.st_mtime_ns, stat.st_size


def notes(model: tfl.ModelT) -> dict[str, object]:
    """Our metadata entry. Raises BackendError where the file has none."""
    for entry in model.metadata or ():
        if entry.name == METADATA.encode():
            return _said(model.buffers[entry.buffer].data)
    raise _not_ours()


def notes_in(file: tfl.Model) -> dict[str, object]:
    """The same of a file that is only opened."""
    for entry in (file.Metadata(i) for i in range(file.MetadataLength())):
        if entry.Name() == METADATA.encode():
            return _said(file.Buffers(entry.Buffer()).DataAsNumpy())
    raise _not_ours()


def _said(content: np.ndarray) -> dict[str, object]:
    found = json.loads(bytes(content))
    assert isinstance(found, dict)
    return found


def _not_ours() -> BackendError:
    return BackendError(
        "the .tflite file was not written by deploy", hint="copy it again from where it was built"
    )


def orders(found: Mapping[str, object]) -> dict[int, Order]:
    """By tensor, the order of its axes where that is not ONNX's; ``found`` is the metadata entry."""
    given = found["orders"]
    assert isinstance(given, dict)
    return {int(index): tuple(order) for index, order in given.items()}


def flattened(found: Mapping[str, object]) -> dict[int, tuple[tuple[int, ...], Order]]:
    """By tensor, of which sizes in which order its last axis was made."""
    given = found["flattened"]
    assert isinstance(given, dict)
    return {int(index): (tuple(sizes), tuple(order)) for index, (sizes, order) in given.items()}


def blocks(found: Mapping[str, object]) -> dict[int, Blocks]:
    """By tensor, for which kernel and strides it was cut into small filters."""
    given = found.get("blocks", {})
    assert isinstance(given, dict)
    return {int(index): Blocks(tuple(kernel), tuple(strides)) for index, (kernel, strides) in given.items()}


def _notes(out: Emitter) -> np.ndarray:
    orders = {str(i): t.order for i, t in enumerate(out.tensors) if t.order != plain(len(t.order))}
    planned = [
        (*p, (params := out.tensors[p.tensor].params) is not None and params.axis is not None)
        for p in out.planned
    ]
    flattened = {
        str(i): [f.sizes, f.order] for i, t in enumerate(out.tensors) if (f := t.flattened) is not None
    }
    said = {
        "orders": orders,
        "flattened": flattened,
        "blocks": {
            str(i): [b.kernel, b.strides] for i, t in enumerate(out.tensors) if (b := t.blocks) is not None
        },
        "planned": planned,
        "nodes": [o.node for o in out.operators],
    }
    return np.frombuffer(json.dumps(said, separators=(",", ":")).encode(), np.uint8)


def _at_rest(shape: Sequence[int], *, slides: bool) -> list[int]:
    """Sizes that stand in the file for free ones until somebody resizes the input.

    1, but for sides that windows slide over: a window must fit, or the file does not open.
    """
    side = _SIDES.get(len(shape), 1) if slides else 1
    return [size if size >= 0 else side if axis > 1 else 1 for axis, size in enumerate(shape)]


def _tensor(tensor: Tensor, model: tfl.ModelT, shape: list[int]) -> tfl.TensorT:
    tfl = schema()
    made = tfl.TensorT()
    made.name = tensor.name.encode()
    made.shape = shape
    if -1 in tensor.shape:
        made.shapeSignature = list(tensor.shape)
    made.type = getattr(tfl.TensorType, DTYPES[tensor.dtype])
    made.hasRank = True
    made.isVariable = tensor.variable
    data = tensor.data
    made.buffer = 0 if data is None else _store(model, packed(data) if tensor.dtype == "int4" else data)
    if tensor.params is not None:
        made.quantization = tfl.QuantizationParametersT()
        made.quantization.scale = np.array(tensor.params.scale, np.float32)
        made.quantization.zeroPoint = np.array(tensor.params.zero_point, np.int64)
        made.quantization.quantizedDimension = tensor.params.axis or 0
    return made


def packed(codes: np.ndarray) -> np.ndarray:
    """Codes of 4 bits as bytes, the first in the lower half.

    >>> packed(np.array([1, -1, 7], np.int8)).tolist()
    [241, 7]
    """
    halves = np.append(codes.ravel(), np.zeros(codes.size % 2, np.int8)).astype(np.uint8) & 15
    return np.asarray(halves[0::2] | halves[1::2] << 4, np.uint8)


def unpacked(content: np.ndarray, count: int) -> np.ndarray:
    """The ``count`` codes that `packed` made bytes of.

    >>> unpacked(np.array([241, 7], np.uint8), 3).tolist()
    [1, -1, 7]
    """
    halves = np.stack([content & 15, content >> 4], axis=1).ravel()[:count].astype(np.int8)
    return np.asarray(np.where(halves > 7, halves - 16, halves), np.int8)


def _store(model: tfl.ModelT, array: np.ndarray) -> int:
    model.buffers.append(aligned_buffer(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data))
    return len(model.buffers) - 1


def aligned_buffer(content: bytes | memoryview) -> tfl.BufferT:
    """A buffer at a multiple of 16 bytes, as the schema demands and its Python code does not see to."""
    tfl = schema()
    buffer = tfl.BufferT()

    def pack(builder: flatbuffers.Builder) -> int:
        builder.StartVector(1, len(content), 16)
        builder.head = builder.head - len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        data = builder.EndVector()
        tfl.BufferStart(builder)
        tfl.BufferAddData(builder, data)
        return int(tfl.BufferEnd(builder))

    buffer.Pack = pack
    return buffer


def _code(name: str, version: int) -> tfl.OperatorCodeT:
    tfl = schema()
    made = tfl.OperatorCodeT()
    made.builtinCode = getattr(tfl.BuiltinOperator, name)
    made.deprecatedBuiltinCode = min(made.builtinCode, _FIRST_NEW_CODE)
    made.version = version
    return made


def _set_options(operator: tfl.OperatorT, table: str, fields: dict[str, int | float | bool | str]) -> None:
    if not table:
        return
    tfl = schema()
    options = getattr(tfl, f"{table}T")()
    for name, value in fields.items():
        if name == "padding":
            value = getattr(tfl.Padding, str(value))
        elif name == "fusedActivationFunction":
            value = getattr(tfl.ActivationFunctionType, str(value))
        elif isinstance(value, str):
            value = getattr(tfl.TensorType, value)
        setattr(options, name, [value] if name == "squeezeDims" else value)
    operator.builtinOptionsType = getattr(tfl.BuiltinOptions, table)
    operator.builtinOptions = options


def _signature(
    out: Emitter, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tfl.SignatureDefT:
    tfl = schema()

    def named(specs: Sequence[TensorSpec], indices: Sequence[int]) -> list[object]:
        maps = []
        for spec, index in zip(specs, indices, strict=True):
            entry = tfl.TensorMapT()
            entry.name, entry.tensorIndex = spec.name.encode(), index
            maps.append(entry)
        return maps

    made = tfl.SignatureDefT()
    made.inputs, made.outputs = named(inputs, out.inputs), named(outputs, out.outputs)
    made.signatureKey = b"serving_default"
    return made
