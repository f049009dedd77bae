"""Operation by operation: each part of an artifact, fed the values of the reference, against its result.

An end-to-end difference says little of a deep quantized network, whose single steps are amplified from layer
to layer. Fed the right values each operation has to be right: an integer one to one step, for kernels round
what lies half-way between two codes either way; a float one to rounding.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch
from deploy.adapter.protocol import Arrays, Divides, Piece
from deploy.execute.compare import relative_error
from deploy.execute.reference import open_graph
from deploy.quantize.candidate import Candidate, Subject
from deploy.spec.tensors import TensorSpec

LARGEST_STEP = 1
"""By how many integer steps an operation may be off."""
LARGEST_ERROR = 1e-4
"""By how much of the largest magnitude a float operation may be off."""
LARGEST_ROUNDED = 2e-2
"""The same of one that rounds what it reads by ranges found while running: of what lies half-way between two
codes it takes either, and a code more or less is worth a 255th of the range times a weight."""
_HALF_RANGE = 128
"""Steps of the largest magnitude that a value of 8 bits has."""
_AT_ONCE = 32
"""Operations whose values are held in memory together."""
SAMPLES = 4
"""So many samples are looked at."""


@dataclass(frozen=True)
class Deviation:
    """How far an operation is off: in integer steps or, of floats, relative to the largest magnitude.

    Of integers ``counts`` says how many are right, off by one step, and by more, of which ``most`` are
    allowed. ``expected`` and ``got`` are the numbers that are furthest apart.
    """

    node: str
    value: str
    steps: int
    error: float
    allowed: float = LARGEST_ERROR
    op: str = ""
    counts: tuple[int, int, int] = (0, 0, 0)
    expected: float = 0.0
    got: float = 0.0
    most: int = LARGEST_STEP

    @property
    def wrong(self) -> bool:
        return self.steps > self.most or self.error > self.allowed

    def joined(self, other: Deviation) -> Deviation:
        """The same operation on other samples, too."""
        worst = max(self, other, key=lambda one: (one.steps, one.error))
        right, one, more = (a + b for a, b in zip(self.counts, other.counts, strict=True))
        return replace(worst, counts=(right, one, more))

    def __str__(self) -> str:
        off = f"{self.steps} steps" if self.steps else f"{self.error:.2g} of its magnitude"
        return f"'{self.node}' (value '{self.value}', off by {off} where it is fed the right values)"


def deviations(candidate: Candidate, subject: Subject, samples: Arrays) -> list[Deviation]:
    """What each operation of an artifact is off by, in the order in which they run.

    Empty where the backend cannot run them one by one. Raises BackendError where the runtime fails.
    """
    if not isinstance(subject.backend, Divides):
        return []
    known = values_of(candidate.qdq)
    pieces = list(subject.backend.pieces(candidate.artifact, subject.options, known))
    rounding = {n for block in candidate.plan.blocks if block.precision == "dynamic" for n in block.nodes}
    return list(checked(candidate.qdq, pieces, candidate.artifact.inputs, samples, rounding))


def values_of(graph: ir.Model) -> set[str]:
    """Names of all values that a graph can be asked for."""
    values = (*graph.graph.inputs, *(out for node in graph.graph for out in node.outputs))
    return {value.name for value in values if value.name}


def checked(
    graph: ir.Model,
    pieces: Sequence[Piece],
    inputs: Sequence[TensorSpec],
    samples: Arrays,
    rounding: Collection[str] = (),
    allowed: float = LARGEST_ERROR,
    until: float = float("inf"),
    floats: Collection[str] = (),
) -> Iterator[Deviation]:
    """What each piece is off by from the ``graph``'s values on the first ``samples``.

    ``rounding`` are nodes that round what they read while running, ``allowed`` is what other float operations
    may be off by, ``floats`` those among whose results integers are made that may be off as far. Nothing is
    begun after ``until`` (time.monotonic). Raises BackendError where a runtime fails.
    """
    size = fixed_batch(inputs) or SAMPLES
    feeds = {name: array[:size] if array.ndim else array for name, array in samples.items()}
    codes = {out.name for node in graph.graph if node.op_type == "QuantizeLinear" for out in node.outputs}
    nodes = {node.name or "": node for node in graph.graph}
    makers = {out.name or "": node for node in graph.graph for out in node.outputs}
    for start in range(0, len(pieces), _AT_ONCE):
        chunk = pieces[start : start + _AT_ONCE]
        names = sorted({name for piece in chunk for name in (*piece.reads, piece.result)} - feeds.keys())
        with open_graph(graph, optimised=False, expose=names) as literal:
            values = {**feeds, **literal.run(feeds, names)}
        for piece in chunk:
            if time.monotonic() > until:
                return
            most = LARGEST_ROUNDED if piece.node in rounding else allowed
            maker = _maker(makers, piece)
            maker = nodes.get(piece.node, maker)
            name, op = (piece.node, "") if maker is None else (maker.name or "", maker.op_type)
            found = _deviation(piece, name, op, values, most, steps=piece.result in codes)
            yield replace(found, most=LARGEST_STEP + int(most * _HALF_RANGE)) if name in floats else found


def uncovered(graph: ir.Model, pieces: Iterable[tuple[Collection[str], str]]) -> list[str]:
    """The nodes, but for changes of type, that lie in no piece: from what it reads to its result."""
    makers = {out.name or "": node for node in graph.graph for out in node.outputs}
    seen: set[ir.Node] = set()
    for reads, result in pieces:
        waiting, inside = [result], set[ir.Node]()
        while waiting:
            node = makers.get(waiting.pop())
            if node is None or node in inside:
                continue
            inside.add(node)
            waiting += [v.name for v in node.inputs if v is not None and v.name and v.name not in reads]
        seen |= inside
    changes = ("QuantizeLinear", "DequantizeLinear")
    return [n.name or "" for n in graph.graph if n not in seen and n.op_type not in changes]


def _maker(makers: dict[str, ir.Node], piece: Piece) -> ir.Node | None:
    """The node whose result a piece makes: of what it also quantizes, the one that made it."""
    node = makers.get(piece.result)
    while node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        source = node.inputs[0].name if node.inputs[0] is not None else None
        if source is None or source in piece.reads or source not in makers:
            break
        node = makers[source]
    return node


def _deviation(piece: Piece, node: str, op: str, values: Arrays, allowed: float, *, steps: bool) -> Deviation:
    want, got = values[piece.result], piece.run(values)
    if want.shape != got.shape:
        return Deviation(node, piece.result, 0, float("inf"), allowed, op)
    if not steps and not (want.dtype.kind == "i" and got.dtype.kind == "i"):
        error = relative_error(want, got)
        apart = np.abs(want.astype(np.float64) - got.astype(np.float64)) if want.size else np.zeros(0)
        expected, found = _furthest(want, got, np.nan_to_num(apart, nan=np.inf))
        return Deviation(node, piece.result, 0, error, allowed, op, (0, 0, 0), expected, found)
    by = np.abs(want.astype(np.int64) - got.astype(np.int64))
    counts = (int((by == 0).sum()), int((by == 1).sum()), int((by > 1).sum()))
    expected, found = _furthest(want, got, by)
    return Deviation(node, piece.result, int(by.max(initial=0)), 0.0, allowed, op, counts, expected, found)


def _furthest(want: np.ndarray, got: np.ndarray, apart: np.ndarray) -> tuple[float, float]:
    if not apart.size:
        return 0.0, 0.0
    at = int(np.argmax(apart))
    return float(want.reshape(-1)[at]), float(got.reshape(-1)[at])
