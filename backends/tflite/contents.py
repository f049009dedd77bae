"""What a .tflite file holds, ours or anybody's: read in a child process, for the file may be made to harm.

Everything read is taken for what it claims only as far as it can be shown: texts and lists are cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from backends.tflite.partitions import partitions
from backends.tflite.sdk import interpreter, quiet, schema, version
from backends.tflite.write import METADATA, read_file
from deploy.spec.contents import Execution, FileContents, OperatorCount, Port, Signature

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as tfl

T = TypeVar("T")

_MOST = 1024
"""Entries shown of any list."""
_LONGEST = 256
"""Characters shown of any text."""
_SCALES = 4


def read_contents(path: Path, size: int) -> FileContents:
    """Parse the file, then open it in LiteRT. Raises BackendError where it is damaged."""
    model = read_file(path)
    graphs = model.subgraphs or []
    codes = [_operator_name(code) for code in model.operatorCodes or []]
    counts = Counter(
        (codes[operator.opcodeIndex], int(model.operatorCodes[operator.opcodeIndex].version))
        for graph in graphs
        for operator in graph.operators or []
    )
    buffers = model.buffers or []
    entries = list(islice(model.metadata or [], _MOST))
    main = graphs[0] if graphs else None
    return FileContents(
        format=f"TensorFlow Lite, schema {int(model.version)}",
        bytes=size,
        description=_text(model.description),
        ours=any(_text(entry.name) == METADATA for entry in entries),
        subgraphs=len(graphs),
        tensors=sum(len(_listed(graph.tensors)) for graph in graphs),
        constant_bytes=sum(len(_listed(buffer.data)) for buffer in buffers),
        inputs=() if main is None else _ports(main, main.inputs),
        outputs=() if main is None else _ports(main, main.outputs),
        operators=_listing(counts),
        signatures=tuple(_signature(s, graphs) for s in islice(model.signatureDefs or [], _MOST)),
        metadata={_text(e.name): len(_listed(buffers[e.buffer].data)) for e in entries},
        execution=_execution(path),
    )


def _operator_name(code: tfl.OperatorCodeT) -> str:
    number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
    names = {value: name for name, value in vars(schema().BuiltinOperator).items() if name.isupper()}
    name = names.get(number, f"operator {number}")
    return f"CUSTOM {_text(code.customCode)}" if name == "CUSTOM" else name


def _ports(graph: tfl.SubGraphT, indices: Iterable[int] | None) -> tuple[Port, ...]:
    tensors = _listed(graph.tensors)
    return tuple(_port(tensors[int(index)]) for index in islice(_listed(indices), _MOST))


def _port(tensor: tfl.TensorT) -> Port:
    types = {value: name for name, value in vars(schema().TensorType).items() if name.isupper()}
    free = _listed(tensor.shapeSignature)
    quantization = tensor.quantization
    scale = [] if quantization is None else [float(s) for s in islice(_listed(quantization.scale), _SCALES)]
    zeros = [] if quantization is None else [int(z) for z in islice(_listed(quantization.zeroPoint), _SCALES)]
    several = quantization is not None and len(_listed(quantization.scale)) > 1
    return Port(
        name=_text(tensor.name),
        dtype=types.get(int(tensor.type), f"type {int(tensor.type)}").lower(),
        shape=tuple(int(size) for size in islice(free if len(free) else _listed(tensor.shape), 64)),
        scale=tuple(scale),
        zero_point=tuple(zeros),
        axis=int(quantization.quantizedDimension) if several else None,
    )


def _signature(signature: tfl.SignatureDefT, graphs: Sequence[tfl.SubGraphT]) -> Signature:
    tensors = _listed(graphs[int(signature.subgraphIndex)].tensors)

    def named(entries: Iterable[tfl.TensorMapT] | None) -> dict[str, str]:
        return {
            _text(entry.name): _text(tensors[int(entry.tensorIndex)].name)
            for entry in islice(entries or [], _MOST)
        }

    return Signature(
        key=_text(signature.signatureKey), inputs=named(signature.inputs), outputs=named(signature.outputs)
    )


def _execution(path: Path) -> Execution:
    runtime = f"LiteRT {version()}"
    try:
        with quiet():
            engine = interpreter().Interpreter(model_path=str(path), num_threads=1)
            engine.allocate_tensors()
    except (RuntimeError, ValueError, NotImplementedError) as e:
        return Execution(runtime=runtime, refusal=_cut(" ".join(str(e).split())))
    count, left = partitions(engine)
    outside = _listing(Counter((name, 0) for _, name in left))
    return Execution(runtime=runtime, delegate="XNNPACK", partitions=count, outside=outside)


def _listing(counts: Mapping[tuple[str, int], int]) -> tuple[OperatorCount, ...]:
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(OperatorCount(op=_cut(op), version=v, count=n) for (op, v), n in most[:_MOST])


def _listed(vector: Iterable[T] | None) -> Sequence[T]:
    """A vector of the file: a list or an array, None where there is none."""
    return [] if vector is None else vector  # type: ignore[return-value]  # what the schema's classes hold


def _text(found: bytes | str | None) -> str:
    if isinstance(found, bytes):
        found = found[: 4 * _LONGEST].decode(errors="replace")
    return _cut(found or "")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
