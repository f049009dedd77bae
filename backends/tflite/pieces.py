"""A .tflite file cut where the graph's values lie, so that each of its operations can be run alone.

Between two tensors that carry values of the graph stand one or a few operators. Fed the reference's values,
they must give the reference's result to the last step: what several thousand of them make of one step more or
less is another question.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import flatbuffers
import numpy as np

from backends.tflite.layout import Order, plain, reflattened, restored, stored, stored_sizes, unflattened
from backends.tflite.runner import TFLiteOptions, of_own_type, open_interpreter
from backends.tflite.write import aligned_buffer, flattened, notes, read_file
from deploy.adapter.protocol import Arrays

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as tfl


@dataclass(frozen=True)
class OperatorPiece:
    """The operators between the values ``reads`` and the value ``result``. Implements the Piece protocol."""

    node: str
    reads: tuple[str, ...]
    result: str
    content: bytes
    orders: tuple[Order, ...]
    result_order: Order
    flattened: Mapping[str, tuple[Sequence[int], Order]]
    """Of values whose last axis was several in another order: their sizes, and that order."""
    options: TFLiteOptions

    def run(self, feeds: Arrays) -> np.ndarray:
        """The result for values in ONNX's order, integers where the file has integers."""
        # The sizes that stand in the file need not fit to each other where it is cut.
        engine = open_interpreter(self.options, content=self.content, ready=False)
        ports = engine.get_input_details()
        for port, name, order in zip(ports, self.reads, self.orders, strict=True):
            shape = stored_sizes(feeds[name].shape, order)
            if tuple(port["shape"]) != shape:
                engine.resize_tensor_input(port["index"], list(shape))
        engine.allocate_tensors()
        for port, name, order in zip(ports, self.reads, self.orders, strict=True):
            given = feeds[name]
            if name in self.flattened:
                given = reflattened(given, *self.flattened[name])
            engine.set_tensor(port["index"], of_own_type(stored(given, order)))
        engine.invoke()
        made = np.asarray(engine.get_tensor(engine.get_output_details()[0]["index"]))
        if self.result in self.flattened:
            made = unflattened(made, *self.flattened[self.result])
        return restored(made, self.result_order)


def pieces(path: Path, known: Collection[str], options: TFLiteOptions) -> Iterator[OperatorPiece]:
    """The pieces of a file in its own order; ``known`` are the values that can be fed.

    Raises BackendError for a file that is damaged or not ours.
    """
    model = read_file(path)
    said = notes(model)
    orders, nodes = said["orders"], said["nodes"]
    assert isinstance(orders, dict) and isinstance(nodes, list)
    rows = flattened(said)
    graph = model.subgraphs[0]
    maker = {int(i): number for number, op in enumerate(graph.operators) for i in op.outputs}
    names = [bytes(tensor.name).decode() for tensor in graph.tensors]
    given = set(map(int, graph.inputs))
    fed = {i for i, name in enumerate(names) if name in known and (i in given or i in maker)}
    for number, operator in enumerate(graph.operators):
        for index in map(int, operator.outputs):
            if index not in fed:
                continue
            inside, reads = _between(graph, index, maker, fed)
            if not reads:
                continue
            yield OperatorPiece(
                node=str(nodes[number]),
                reads=tuple(names[i] for i in reads),
                result=names[index],
                content=_cut(model, inside, reads, index),
                orders=tuple(_order(orders, i, graph) for i in reads),
                result_order=_order(orders, index, graph),
                flattened={names[i]: rows[i] for i in (index, *reads) if i in rows},
                options=options,
            )


def _order(orders: dict[str, list[int]], index: int, graph: tfl.SubGraphT) -> Order:
    shape = graph.tensors[index].shape
    return tuple(orders.get(str(index), plain(0 if shape is None else len(shape))))


def _between(
    graph: tfl.SubGraphT, result: int, maker: dict[int, int], fed: Collection[int]
) -> tuple[list[int], list[int]]:
    """Operators that lead to a tensor from others that are known, and these, both in the file's order."""
    inside: set[int] = set()
    reads: set[int] = set()
    waiting = [maker[result]]
    while waiting:
        number = waiting.pop()
        if number in inside:
            continue
        inside.add(number)
        for index in map(int, graph.operators[number].inputs):
            if index in fed:
                reads.add(index)
            elif index in maker:
                waiting.append(maker[index])
    return sorted(inside), sorted(reads)


def _cut(model: tfl.ModelT, inside: Sequence[int], reads: Sequence[int], result: int) -> bytes:
    """A file of those operators alone, with the tensors and buffers that they touch."""
    graph = model.subgraphs[0]
    operators = [copy.copy(graph.operators[number]) for number in inside]
    touched = sorted({int(i) for op in operators for i in (*op.inputs, *op.outputs) if i >= 0})
    place = {old: new for new, old in enumerate(touched)} | {-1: -1}
    made, part = copy.copy(model), copy.copy(graph)
    made.buffers, made.metadata, made.signatureDefs = [model.buffers[0]], None, None
    part.tensors = []
    for index in touched:
        tensor = copy.copy(graph.tensors[index])
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            made.buffers.append(aligned_buffer(bytes(data)))
            tensor.buffer = len(made.buffers) - 1
        else:
            tensor.buffer = 0
        part.tensors.append(tensor)
    for operator in operators:
        operator.inputs = [place[int(i)] for i in operator.inputs]
        operator.outputs = [place[int(i)] for i in operator.outputs]
    part.operators = operators
    part.inputs, part.outputs = [place[i] for i in reads], [place[result]]
    made.subgraphs = [part]
    builder = flatbuffers.Builder(1 << 12)
    builder.Finish(made.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
