"""Which channels must be removed together, derived from the graph alone.

    Conv a -> BatchNormalization -> Relu -> Conv b   one family: rows of a, numbers of the norm, columns of b
    x + f(x) + g(x) ...                              one family for all that write into the sum

An atom is the least that can go: every place (constant, axis, indices) that belongs to one channel, one head
of an attention, one group of a grouped convolution. Atoms that take the same from the same constants are a
family. What cannot go is said with the reason, node by node.

After DepGraph (Fang et al., arXiv:2301.12900), on ONNX operators and shape arithmetic instead of modules;
``kind`` is what Isomorphic Pruning (Fang et al., arXiv:2407.04616) compares across layers.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx_ir as ir

from deploy.errors import UsageError
from deploy.graph.cost import is_parameter, macs_of
from deploy.graph.edit import constant_tensor
from deploy.graph.labels import FIXED, compact, sizes_of, varying
from deploy.graph.legalize import normalisation
from deploy.graph.shapes import batch_axis, free_dimensions, infer, model_inputs, pin
from deploy.graph.tie_rules import RULES
from deploy.graph.tie_sizes import Sizes
from deploy.graph.ties import ENDS, Pin, Role, Ties, turned

__all__ = ["FIXED", "Atom", "Family", "Groups", "Place", "Slot", "copied", "find_groups", "remaining"]

_BATCH = 2
"""What stands for a free batch: 1 would let axes that are squeezed look like channels that are lost."""
_DEPTHWISE = ("Conv", "ConvTranspose")
"""Their weights follow what they read where each channel is convolved by itself."""
_FREE = (32, 64, 128, 224)
"""What stands for other free sizes: the first with which all shapes are known."""


@dataclass(frozen=True, eq=False)
class Place:
    """Indices along one axis of a constant. ``role`` is that of the first node that reads it."""

    tensor: str
    axis: int
    indices: np.ndarray
    role: Role
    node: str


@dataclass(frozen=True, eq=False)
class Atom:
    """What goes together. ``parameters`` and ``macs`` (of one sample) go with it when it goes alone."""

    label: int
    places: tuple[Place, ...]
    parameters: int
    macs: int


@dataclass(frozen=True, eq=False)
class Family:
    """Atoms that take equally much of the same constants and values: any of them may go, not all.

    ``makes`` are the nodes whose outputs they are, in graph order; ``kind`` is equal where families take the
    same part in the same kinds of operations. ``restricted``: a normalisation takes statistics over them, so
    without some it computes what it would over the others alone.
    """

    name: str
    atoms: tuple[Atom, ...]
    makes: tuple[str, ...]
    kind: str
    restricted: bool


@dataclass(frozen=True, eq=False)
class Slot:
    """The labels along one axis of a constant that ``node`` reads, maybe turned, as input ``index``."""

    tensor: str
    axis: int
    labels: np.ndarray
    role: Role
    node: str
    index: int


@dataclass(frozen=True, eq=False)
class Groups:
    """All that was found. Labels are numbers of atoms, or `FIXED`.

    ``values`` has the labels of values by name, along one axis each, and ``sizes`` the sizes that were walked
    with where they are known, those of the inputs being ``inputs``. ``left`` says of nodes that keep their
    channels, why.
    """

    families: tuple[Family, ...]
    left: Mapping[str, str]
    values: Mapping[str, np.ndarray]
    sizes: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, tuple[int, ...]]
    slots: tuple[Slot, ...]
    shapes: Mapping[str, tuple[int, ...]]
    """The sizes of the constants in ``slots`` that count as parameters."""
    loads: tuple[tuple[int, tuple[np.ndarray, ...]], ...]
    """MACs of nodes, and the labels to each of which they are in proportion."""

    statistics: frozenset[str]
    """The nodes of normalisations that are written out: their means are of what is left."""

    @property
    def atoms(self) -> dict[int, Atom]:
        return {atom.label: atom for family in self.families for atom in family.atoms}


def find_groups(model: ir.Model, protected: Collection[str] = ()) -> Groups:
    """The families of a graph whose nodes have unique names. ``protected`` nodes keep all their outputs.

    Raises UsageError for a protected name that no node has.
    """
    small = _sized(model)
    nodes = {node.name or "": node for node in small.graph}
    for name in protected:
        if name not in nodes:
            near = difflib.get_close_matches(name, nodes, n=3, cutoff=0.5)
            raise UsageError(
                f"no node is called {name!r}, so it cannot be protected",
                hint=f"did you mean {', '.join(near)}?" if near else "`deploy inspect` lists the nodes",
            )
    ties = Ties(rules=RULES, written={n for node in small.graph for n in normalisation(node)})
    for value in small.graph.inputs:
        ties.known[value] = np.zeros((1,) * len(sizes_of(value)), np.int64)
    sizes = Sizes(ties)
    for node in small.graph:
        ties.visit(node)
        sizes.pass_on(node)
    ties.at = ""
    for value in small.graph.outputs:
        ties.pin(ties.ids(value), ENDS)
    sizes.keep("their number is an output of the model", small.graph.outputs)
    ties.settle()
    for name in protected:
        ties.at = name
        for value in nodes[name].outputs:
            ties.pin(ties.ids(value), "it is protected")
    return _collect(model, small, ties)


def remaining(groups: Groups, removed: Collection[int]) -> tuple[int, int]:
    """(parameters, MACs of a sample) that are left of those that groups touch, without building the graph.

    What no atom touches does not count in either.
    """
    gone = np.zeros(1 + max((atom for atom in groups.atoms), default=0), bool)
    gone[list(removed)] = True
    kept: dict[tuple[str, int], int] = {
        (s.tensor, s.axis): int((~gone[s.labels]).sum()) for s in groups.slots
    }
    parameters = sum(
        math.prod(kept.get((name, axis), size) for axis, size in enumerate(shape))
        for name, shape in groups.shapes.items()
    )
    macs = sum(macs * math.prod(float((~gone[p]).mean()) for p in parts) for macs, parts in groups.loads)
    return parameters, round(macs)


def copied(model: ir.Model) -> ir.Model:
    """A copy whose values have ranks: shapes are inferred where one has none."""
    copy = model.clone()
    known = all(v.shape is not None for node in copy.graph for v in node.outputs if v.name)
    return copy if known else infer(copy)


def _sized(model: ir.Model) -> ir.Model:
    """A copy all of whose sizes are known where they can be."""
    free = free_dimensions(model)
    batch = batch_axis(model)
    best, fewest = model, -1
    for size in _FREE:
        shapes = {
            v.name or "": [
                d if isinstance(d, int) else _BATCH if d.value == batch else size
                for d in (v.shape.dims if v.shape is not None else ())
            ]
            for v in model_inputs(model)
        }
        copy = pin(model, shapes)
        unknown = sum(
            1 for node in copy.graph for v in node.outputs if v.shape is None or v.shape.is_dynamic()
        )
        if fewest < 0 or unknown < fewest:
            best, fewest = copy, unknown
        if not unknown or set(free) <= {batch}:
            break
    return best


def _collect(model: ir.Model, small: ir.Model, ties: Ties) -> Groups:
    """Final labels, numbered from 1 in the order of the nodes that make them."""
    earlier = [ties.roots(slot.ids) for slot in ties.slots]
    reasons = ties.fixed()
    _say_why(ties, earlier, reasons)
    slots: list[Slot] = []
    numbers: dict[int, int] = {FIXED: FIXED}

    def numbered(ids: np.ndarray) -> np.ndarray:
        unique, inverse = np.unique(ids, return_inverse=True)
        found = np.array([numbers.setdefault(one, len(numbers)) for one in unique.tolist()], np.int64)
        return found[inverse].reshape(ids.shape)

    kinds: list[str] = []
    for slot in ties.slots:
        ids = compact(ties.roots(slot.ids))
        axes = varying(ids)
        if not axes:
            continue
        labels = numbered(ids.reshape(-1))
        slots.append(
            Slot(slot.value.name or "", axes[0], labels, slot.role, slot.node.name or "", slot.index)
        )
        kinds.append(f"{slot.node.op_type}.{slot.index}.{axes[0]}")
    known = set(numbers)  # padding that nobody's weights read is no atom
    values, sizes = {}, {}
    for value, ids in ties.known.items():
        found = compact(ties.roots(ids))
        if value.shape is not None and value.shape.is_static() and turned(value) is None:
            sizes[value.name or ""] = sizes_of(value)
        if (found != FIXED).any() and value.name:
            values[value.name] = numbered(np.where(np.isin(found, list(known)), found, FIXED))
    shapes = {}
    for slot in ties.slots:
        tensor = constant_tensor(slot.value)
        if tensor is not None and is_parameter(slot.node, slot.index, tensor):
            shapes[slot.value.name or ""] = sizes_of(slot.value)
    original = {node.name: node for node in model.graph}
    loads = []
    for load in ties.loads:
        parts = tuple(p for p in (numbered(_kept(ties, p, known)) for p in load.parts) if (p != FIXED).any())
        macs = macs_of(original[load.node.name])
        if macs is None:
            macs = (macs_of(load.node) or 0) // (_BATCH if batch_axis(model) else 1)
        if parts:
            loads.append((round(macs * load.share), parts))
    restricted = {numbers.get(int(i), FIXED) for ids in ties.restricted for i in np.unique(ties.roots(ids))}
    order = {node.name or "": i for i, node in enumerate(small.graph)}
    return Groups(
        families=_families(slots, kinds, values, shapes, loads, restricted, order),
        left=dict(sorted(ties.left.items(), key=lambda item: order[item[0]])),
        values=values,
        sizes=sizes,
        inputs={v.name or "": sizes_of(v) for v in model_inputs(small)},
        slots=tuple(slots),
        shapes=shapes,
        loads=tuple(loads),
        statistics=frozenset(node.name or "" for node in ties.written),
    )


def _kept(ties: Ties, ids: np.ndarray, known: Collection[int]) -> np.ndarray:
    found = ties.roots(ids)
    return np.where(np.isin(found, list(known)), found, FIXED)


def _say_why(ties: Ties, earlier: Sequence[np.ndarray], reasons: Mapping[int, Pin]) -> None:
    """Of every layer all of whose outputs stay, why."""
    for slot, before in zip(ties.slots, earlier, strict=True):
        name = slot.node.name or ""
        depthwise = slot.role == "follows" and slot.index == 1 and slot.node.op_type in _DEPTHWISE
        if (
            not (slot.role == "makes" or depthwise)
            or name in ties.left
            or (ties.roots(slot.ids) != FIXED).any()
        ):
            continue
        pins = [reasons[int(i)] for i in np.unique(before) if int(i) in reasons]
        if not pins:
            ties.left[name] = "it has a single channel"
        else:
            where = f" (at {pins[0].node})" if pins[0].node and pins[0].node != name else ""
            ties.left[name] = f"its channels stay: {pins[0].reason}{where}"


def _families(
    slots: Sequence[Slot],
    kinds: Sequence[str],
    values: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    loads: Sequence[tuple[int, tuple[np.ndarray, ...]]],
    restricted: set[int],
    order: Mapping[str, int],
) -> tuple[Family, ...]:
    by_label = cache(
        lambda found: dict(_by_label(np.frombuffer(found, np.int64)))
    )  # most are many times there
    places: dict[int, dict[tuple[str, int], Place]] = defaultdict(dict)
    used: dict[int, list[str]] = defaultdict(list)
    makers: dict[int, dict[str, None]] = defaultdict(dict)
    for slot, kind in zip(slots, kinds, strict=True):
        for label, indices in by_label(slot.labels.tobytes()).items():
            place = Place(slot.tensor, slot.axis, indices, slot.role, slot.node)
            places[label].setdefault((slot.tensor, slot.axis), place)
            used[label].append(kind)
            if slot.role == "makes":
                makers[label][slot.node] = None
    held: dict[int, list[tuple[int, int]]] = defaultdict(list)
    patterns = dict.fromkeys(ids.tobytes() for ids in (*(slot.labels for slot in slots), *values.values()))
    for number, pattern in enumerate(patterns):
        for label, indices in by_label(pattern).items():
            held[label].append((number, indices.size))
    alike: dict[object, list[int]] = defaultdict(list)
    for label in places:
        alike[tuple(held[label])].append(label)
    macs = _macs(loads)
    families, taken = [], Counter[str]()
    for labels in alike.values():
        first = places[labels[0]].values()
        makes = tuple(sorted(makers[labels[0]], key=order.__getitem__))
        stem = makes[0] if makes else next(iter(first)).node
        taken[stem] += 1
        parameters = _parameters(first, shapes)
        families.append(
            Family(
                name=stem if taken[stem] == 1 else f"{stem}/{taken[stem]}",
                atoms=tuple(
                    Atom(label, tuple(places[label].values()), parameters, round(macs[label]))
                    for label in labels
                ),
                makes=makes,
                kind=_kind(used[labels[0]]),
                restricted=not restricted.isdisjoint(labels),
            )
        )
    return tuple(families)


def _by_label(labels: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """Every label but `FIXED`, and where it stands."""
    order = np.argsort(labels, kind="stable")
    unique, starts = np.unique(labels[order], return_index=True)
    for label, indices in zip(unique.tolist(), np.split(order, starts[1:]), strict=True):
        if label != FIXED:
            yield label, indices


def _macs(loads: Sequence[tuple[int, tuple[np.ndarray, ...]]]) -> dict[int, float]:
    """What goes with each atom alone: several parts of one node are in proportion to their product."""
    total: dict[int, float] = defaultdict(float)
    for macs, parts in loads:
        left: dict[int, float] = defaultdict(lambda: 1.0)
        for part in parts:
            for label, indices in _by_label(part.reshape(-1)):
                left[label] *= 1 - indices.size / part.size
        for label, share in left.items():
            total[label] += macs * (1 - share)
    return total


def _parameters(places: Iterable[Place], shapes: Mapping[str, tuple[int, ...]]) -> int:
    lost: dict[str, dict[int, int]] = defaultdict(dict)
    for place in places:
        lost[place.tensor][place.axis] = place.indices.size
    total = 0
    for name, axes in lost.items():
        if name in shapes:
            shape = shapes[name]
            total += math.prod(shape) - math.prod(n - axes.get(axis, 0) for axis, n in enumerate(shape))
    return total


def _kind(used: Sequence[str]) -> str:
    return " ".join(f"{name}x{count}" if count > 1 else name for name, count in sorted(Counter(used).items()))
