"""Operation by operation: each part of an artifact, fed the values of the reference, against its result.

An end-to-end difference says little of a deep quantized network, whose single steps are amplified from layer
to layer. Fed the right values each operation has to be right: an integer one to one step, for kernels round
what lies half-way between two codes either way; a float one to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.adapter.batching import fixed_batch
from deploy.adapter.protocol import Arrays, Divides, Piece
from deploy.execute.compare import relative_error
from deploy.execute.reference import open_graph
from deploy.quantize.candidate import Candidate, Subject

LARGEST_STEP = 1
"""By how many integer steps an operation may be off."""
LARGEST_ERROR = 1e-4
"""By how much of the largest magnitude a float operation may be off."""
LARGEST_ROUNDED = 2e-2
"""The same of one that rounds what it reads by ranges found while running: of what lies half-way between two
codes it takes either, and a code more or less is worth a 255th of the range times a weight."""
_AT_ONCE = 32
"""Operations whose values are held in memory together."""
_SAMPLES = 4


@dataclass(frozen=True)
class Deviation:
    """How far an operation is off: in integer steps or, of floats, relative to the largest magnitude."""

    node: str
    value: str
    steps: int
    error: float
    allowed: float = LARGEST_ERROR

    @property
    def wrong(self) -> bool:
        return self.steps > LARGEST_STEP or self.error > self.allowed

    def __str__(self) -> str:
        off = f"{self.steps} steps" if self.steps else f"{self.error:.2g} of its magnitude"
        return f"'{self.node}' (value '{self.value}', off by {off} where it is fed the right values)"


def deviations(candidate: Candidate, subject: Subject, samples: Arrays) -> list[Deviation]:
    """What each operation of an artifact is off by, in the order in which they run.

    Empty where the backend cannot run them one by one. Raises BackendError where the runtime fails.
    """
    if not isinstance(subject.backend, Divides):
        return []
    graph = candidate.qdq
    known = {v.name or "" for v in graph.graph.inputs} | {
        o.name or "" for n in graph.graph for o in n.outputs
    }
    pieces = list(subject.backend.pieces(candidate.artifact, subject.options, known))
    size = fixed_batch(candidate.artifact.inputs) or _SAMPLES
    feeds = {name: array[:size] if array.ndim else array for name, array in samples.items()}
    rounding = {n for block in candidate.plan.blocks if block.precision == "dynamic" for n in block.nodes}
    found: list[Deviation] = []
    for start in range(0, len(pieces), _AT_ONCE):
        chunk = pieces[start : start + _AT_ONCE]
        names = sorted({name for piece in chunk for name in (*piece.reads, piece.result)} - feeds.keys())
        with open_graph(graph, optimised=False, expose=names) as literal:
            values = {**feeds, **literal.run(feeds, names)}
        for piece in chunk:
            allowed = LARGEST_ROUNDED if piece.node in rounding else LARGEST_ERROR
            found.append(_deviation(piece, values, allowed))
    return found


def _deviation(piece: Piece, values: Arrays, allowed: float) -> Deviation:
    want, got = values[piece.result], piece.run(values)
    if want.dtype.kind != "i" or want.shape != got.shape:
        return Deviation(piece.node, piece.result, 0, relative_error(want, got), allowed)
    steps = np.abs(want.astype(np.int64) - got.astype(np.int64)).max(initial=0)
    return Deviation(piece.node, piece.result, int(steps), 0.0)
