"""The metadata that other programs read: TFLITE_METADATA, and the names of classes as a file behind it.

The format is tflite-support's metadata_schema.fbs, version 1.5.0; what is written, 1.0.0 knows.
Associated files are a zip archive appended to the model; readers of the model do not see it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import flatbuffers
import numpy as np

from backends.tflite.sdk import schema
from backends.tflite.write import aligned_buffer, rewrite_file, taken_file
from deploy.spec.artifact import Description
from deploy.spec.tensors import TensorSpec

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as tfl

ENTRY, LABELS = b"TFLITE_METADATA", "labels.txt"
_PARSER = "1.0.0"
"""The oldest reader that knows every field written here."""
_IDENTIFIER = b"M001"
_FEATURE, _IMAGE = 1, 2
"""Kinds of content."""
_RGB, _GRAYSCALE = 1, 2
_NORMALISATION = 1
"""A kind of process unit."""
_AXIS_LABELS = 2
"""A kind of associated file."""
_TIME = (1980, 1, 1, 0, 0, 0)
"""The same content gives the same file."""

Table = Mapping[int, object]
"""A table of the format by field number: an int is an enumerator, an array a vector of float32."""


def add(path: Path, description: Description) -> None:
    """Describe the model in its file, replacing what was said before; the network stays as it is."""
    model = taken_file(path)
    graph = model.subgraphs[0]
    model.buffers = [_kept(buffer) for buffer in model.buffers]
    labelled = _labelled(description)
    entry = next((entry for entry in model.metadata if entry.name == ENTRY), None)
    if entry is None:
        entry = schema().MetadataT()
        entry.name, entry.buffer = ENTRY, len(model.buffers)
        model.metadata.append(entry)
        model.buffers.append(None)
    model.buffers[entry.buffer] = aligned_buffer(_metadata(description, labelled))
    assert len(graph.inputs) == len(description.inputs) and len(graph.outputs) == len(description.outputs)
    rewrite_file(path, model)
    if labelled is not None:
        lines = "".join(f"{' '.join(name.split())}\n" for name in description.classes)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(zipfile.ZipInfo(LABELS, _TIME), lines)


def _kept(buffer: tfl.BufferT) -> tfl.BufferT:
    return buffer if buffer.data is None or not len(buffer.data) else aligned_buffer(buffer.data.tobytes())


def _labelled(description: Description) -> int | None:
    """The output that has one number for each class name."""
    for index, spec in enumerate(description.outputs):
        if description.classes and spec.shape and spec.shape[-1] == len(description.classes):
            return index
    return None


def _metadata(description: Description, labelled: int | None) -> bytes:
    inputs: list[Table] = [_tensor(spec) for spec in description.inputs]
    outputs: list[Table] = [_tensor(spec) for spec in description.outputs]
    if labelled is not None:
        file = {0: LABELS, 1: "Names of the classes, in the order of their numbers.", 2: _AXIS_LABELS}
        outputs[labelled] = {**outputs[labelled], 6: [file]}
    model: Table = {
        0: description.name,
        1: description.text,
        2: description.version,
        3: [{0: "main", 2: inputs, 3: outputs}],
        **{number: text for number, text in ((4, description.author), (5, description.license)) if text},
        7: _PARSER,
    }
    builder = flatbuffers.Builder(1024)
    builder.Finish(_put_table(builder, model), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _tensor(spec: TensorSpec) -> Table:
    colours = _colours(spec)
    content = {0: _IMAGE, 1: {0: colours}} if colours else {0: _FEATURE, 1: {}}
    table: dict[int, object] = {0: spec.name, 3: content}
    given = spec.normalisation
    if given is not None and spec.dtype.startswith("float"):
        # Theirs has no scale: (x * scale - mean) / std = (x - mean / scale) / (std / scale)
        scale = 1.0 if given.folded else given.scale
        mean, std = ((0.0,), (1.0,)) if given.folded else (given.mean, given.std)
        numbers = {index: np.array(n, np.float32) / np.float32(scale) for index, n in enumerate((mean, std))}
        table[4] = [{0: _NORMALISATION, 1: numbers}]
    return table


def _colours(spec: TensorSpec) -> int:
    """The colours of an input that takes images; 0 for others."""
    if spec.layout == "any" or len(spec.shape) != 4 or spec.normalisation is None or spec.colours != "RGB":
        return 0  # theirs knows no BGR
    channels = spec.shape[1 if spec.layout == "NCHW" else 3]
    return {3: _RGB, 1: _GRAYSCALE}.get(channels, 0) if isinstance(channels, int) else 0


def _put_table(builder: flatbuffers.Builder, table: Table) -> int:
    offsets = {slot: _put(builder, value) for slot, value in table.items() if not isinstance(value, int)}
    builder.StartObject(max(table, default=-1) + 1)
    for slot, value in table.items():
        if isinstance(value, int):
            builder.PrependInt8Slot(slot, value, 0)
        else:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
    return int(builder.EndObject())


def _put(builder: flatbuffers.Builder, value: object) -> int:
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, np.ndarray):
        return int(builder.CreateNumpyVector(np.asarray(value, np.float32)))
    if isinstance(value, Mapping):
        return _put_table(builder, value)
    assert isinstance(value, Sequence)
    offsets = [_put(builder, part) for part in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
