"""A graph that is run part by part, over all samples each, with what is alive in between kept.

What a later part reads of an earlier one can be shifted in between, as by a new bias; nothing is run twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.cache import scratch
from deploy.execute.reference import open_graph
from deploy.graph.blocks import bodies, reads

_IN_MEMORY = 64 * 2**20
"""Bytes of what is alive that are held in memory; the rest lies in files."""


@dataclass(frozen=True)
class Target:
    """A layer with a place for a correction: ``node`` has the weights, ``output`` is what its bias is in.

    ``gate`` is the value whose sign says where that matters: what a Relu reads behind the layer.
    """

    node: str
    output: str
    axis: int
    gate: str | None = None


class Store:
    """Arrays by name and batch, in memory up to a limit and then in files, which go when it is closed."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], np.ndarray | Path] = {}
        self._files = ExitStack()
        self._folder: Path | None = None
        self._bytes = self._written = 0

    def put(self, name: str, batch: int, array: np.ndarray) -> None:
        if self._bytes + array.nbytes <= _IN_MEMORY:
            self._bytes += array.nbytes
            self._held[name, batch] = array
            return
        if self._folder is None:
            self._folder = self._files.enter_context(scratch("correct"))
        self._written += 1
        path = self._folder / f"{self._written}.npy"
        np.save(path, array)
        self._held[name, batch] = path

    def get(self, name: str, batch: int) -> np.ndarray:
        held = self._held[name, batch]
        return np.load(held) if isinstance(held, Path) else held

    def keep_only(self, names: Collection[str | None], batch: int) -> None:
        """Let go of everything else of that batch."""
        for key in [key for key in self._held if key[1] == batch and key[0] not in names]:
            held = self._held.pop(key)
            if isinstance(held, Path):
                held.unlink()
            else:
                self._bytes -= held.nbytes

    def close(self) -> None:
        self._held.clear()
        self._files.close()


@dataclass
class Prefix:
    """The quantized graph, run up to one target after the other, and what is alive there for all samples."""

    model: ir.Model
    targets: Sequence[Target]
    threads: int
    store: Store = field(default_factory=Store)
    shifts: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    batches: int = 0

    def __post_init__(self) -> None:
        nodes = list(self.model.graph)
        made = {value.name: node for node in nodes for value in node.outputs if value.name}
        # A quantized output of the graph has passed its name on.
        outputs = {t.output: made.get(f"{t.output}/raw", made.get(t.output)) for t in self.targets}
        self.output = {
            name: f"{name}/raw" if f"{name}/raw" in made else name for name, node in outputs.items() if node
        }
        before: set[ir.Node] = set()
        self.parts: list[tuple[Target, list[ir.Node]]] = []
        for target in self.targets:
            last = outputs[target.output]
            new = _ancestors(last, before) if last is not None else None
            if new is not None:
                self.parts.append((target, [n for n in nodes if n in new]))
                before |= new
        self.reachable = [target for target, _ in self.parts]
        self.next = 0

    def __enter__(self) -> Prefix:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def feed(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Hold the inputs of one more batch."""
        for name, array in feeds.items():
            self.store.put(name, self.batches, array)
        self.batches += 1

    def advance(self, target: Target) -> Iterator[np.ndarray]:
        """Run on to ``target``, and give its output batch by batch."""
        found, nodes = self.parts[self.next]
        assert found is target
        self.next += 1
        later = {v for _, part in self.parts[self.next :] for node in part for v in reads(node)}
        made = {value for node in nodes for value in node.outputs}
        output = self.output[target.output]
        kept = [v.name or "" for v in made if v in later or v.name == output]
        piece = _piece(self.model, nodes, sorted(kept))
        needed = {v.name for v in later}
        with open_graph(piece, threads=self.threads) as session:
            for batch in range(self.batches):
                feeds = {spec.name: self._take(spec.name, batch) for spec in session.inputs}
                results = session.run(feeds)
                self.store.keep_only(needed, batch)
                for name, array in results.items():
                    if name in needed:
                        self.store.put(name, batch, array)
                yield results[output]

    def shift(self, target: Target, by: np.ndarray) -> None:
        """From now on the output of ``target`` is read with ``by`` added to its channels."""
        self.shifts[self.output[target.output]] = (by, target.axis)

    def _take(self, name: str, batch: int) -> np.ndarray:
        array = self.store.get(name, batch)
        if name not in self.shifts:
            return array
        by, axis = self.shifts[name]
        shape = [1] * array.ndim
        shape[axis] = -1
        return np.asarray(array + by.reshape(shape), array.dtype)


def _ancestors(last: ir.Node, known: set[ir.Node]) -> set[ir.Node] | None:
    """``last`` and all that it needs that is not known yet; None where a node with bodies is among them."""
    found, waiting = {last}, [last]
    while waiting:
        node = waiting.pop()
        if bodies(node):
            return None
        for value in reads(node):
            producer = value.producer()
            if producer is not None and producer not in known and producer not in found:
                found.add(producer)
                waiting.append(producer)
    return found


def _piece(model: ir.Model, nodes: Sequence[ir.Node], outputs: Sequence[str]) -> ir.Model:
    """These nodes, in graph order, as a model that reads what they read and returns ``outputs``."""
    values: dict[ir.Value, ir.Value] = {}
    inputs, constants, copies = [], [], []
    for node in nodes:
        for value in (v for v in node.inputs if v is not None and v not in values):
            if value.is_initializer():
                new = ir.Value(
                    name=value.name, type=value.type, shape=value.shape, const_value=value.const_value
                )
                constants.append(new)
            else:
                new = ir.Value(name=value.name, type=value.type, shape=value.shape)
                inputs.append(new)
            values[value] = new
        made = [ir.Value(name=v.name, type=v.type, shape=v.shape) for v in node.outputs]
        values.update(zip(node.outputs, made, strict=True))
        copies.append(
            ir.Node(
                node.domain,
                node.op_type,
                [None if v is None else values[v] for v in node.inputs],
                list(node.attributes.values()),
                outputs=made,
                name=node.name,
            )
        )
    by_name = {v.name: v for v in values.values()}
    graph = ir.Graph(
        inputs,
        [by_name[name] for name in outputs],
        nodes=copies,
        initializers=constants,
        opset_imports=dict(model.graph.opset_imports),
        name="piece",
    )
    return ir.Model(graph, ir_version=model.ir_version)
