"""Which values share one set of parameters, since nodes between them only move data, and which have a second
set, where blocks of 8 and of 16 bits stand side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from deploy.graph.edit import is_constant
from deploy.quantize.eligible import widens
from deploy.spec.profile import Runtime

TURNED = "\0"
"""Behind a value's name it stands for that value in the other width."""


@dataclass(frozen=True)
class Move:
    """A node that moves integers, what it moves, and as what."""

    node: ir.Node
    sources: list[ir.Value]
    results: list[ir.Value]


def moves_of(
    model: ir.Model,
    int8: Collection[str],
    needed: dict[str, ir.Value],
    prescribed: Collection[str | None],
    runtime: Runtime,
    wide: set[str],
) -> list[Move]:
    """The data movers, the last one first. ``int8`` are nodes that may be in integers, ``prescribed`` values
    whose parameters the runtime prescribes.

    Backwards through the graph: where the result of a mover is needed, so is what it moves, which joins
    ``needed``; where somebody reads it in 16 bits that its source has, the mover joins ``wide``.
    """
    rules = runtime.quant
    assert rules is not None
    found: list[Move] = []
    for node in reversed(list(model.graph)):
        if node.op_type not in (*rules.forward, *rules.unify) or node.name not in int8:
            continue
        results = [o for o in node.outputs if o.name in needed]
        sources = moved(node, runtime)
        if not results or len(results) < len(node.outputs) or any(is_constant(v) for v in sources):
            continue
        if len(sources) > 1 and any(v.name in prescribed for v in sources):
            continue  # what the runtime prescribes for one operand need not cover the others
        found.append(Move(node, sources, results))
        needed.update((value.name or "", value) for value in sources)
        read = any(user.name in wide for o in results for user, _ in o.uses())
        if read and widens(node, runtime) and any(_has_more(v, int8, wide, runtime) for v in sources):
            wide.add(node.name or "")
    return found


def _has_more(value: ir.Value, int8: Collection[str], wide: Collection[str], runtime: Runtime) -> bool:
    """Whether a value comes with more than 8 bits: from a kernel of 16, or as floats."""
    node, rules = value.producer(), runtime.quant
    if node is None or rules is None or node.name not in int8 or node.name in wide:
        return True
    moves = node.op_type in (*rules.forward, *rules.unify)
    return moves and any(_has_more(v, int8, wide, runtime) for v in moved(node, runtime))


@dataclass(frozen=True)
class Shared:
    """As in `Placement`: ``groups`` of the values as they are stored, ``turned`` ones, who reads these, and
    which groups are ``wide``."""

    groups: dict[str, str]
    turned: dict[str, str]
    turned_readers: dict[str, tuple[str, ...]]
    wide: set[str]


def share(
    moves: Iterable[Move],
    needed: Mapping[str, ir.Value],
    integer: Collection[str | None],
    wide: Collection[str],
) -> Shared:
    """Let what data movers read and write share one set of parameters, by union-find; a mover of another
    width than its source has that turned."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    readers = {
        name: {user.name or "" for user, _ in value.uses() if user.name in integer}
        for name, value in needed.items()
    }
    stored: set[str] = set()  # in 16 bits
    for name, value in needed.items():
        maker = value.producer()
        deciding = readers[name] if maker is None or maker.name not in integer else {maker.name}
        if not deciding.isdisjoint(wide):
            stored.add(name)

    def form(name: str, node: str) -> str:
        return name if (name in stored) == (node in wide) else name + TURNED

    for move in moves:
        node = move.node.name or ""
        first = find(form(move.sources[0].name or "", node))
        for other in [*move.sources[1:], *move.results]:
            leader[find(form(other.name or "", node))] = first
    others = {
        name: tuple(sorted(reader for reader in those if (reader in wide) != (name in stored)))
        for name, those in readers.items()
    }
    turned_readers = {name: those for name, those in others.items() if those}
    turned = {name: find(name + TURNED) for name in turned_readers}
    groups = {find(name) for name in stored} | {g for name, g in turned.items() if name not in stored}
    return Shared({name: find(name) for name in needed}, turned, turned_readers, groups)


def moved(node: ir.Node, runtime: Runtime) -> list[ir.Value]:
    """The inputs whose data a mover passes on: all where it unifies them, the first of everything else."""
    values = [v for v in node.inputs if v is not None]
    return values if runtime.quant is not None and node.op_type in runtime.quant.unify else values[:1]
