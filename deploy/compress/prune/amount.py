"""How much a graph would have with fewer channels, exactly and without building it.

MACs, parameters and bytes are sums of products of widths, and a width is a sum of what families keep:

    MACs of a convolution  =  pixels * kernel * (channels read) * (channels made)

Latency is what somebody predicts for the smaller graph, which is built for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from deploy.errors import UsageError
from deploy.graph import cost
from deploy.graph.edit import weight_bytes
from deploy.graph.groups import Groups
from deploy.graph.shapes import batch_axis, pin
from deploy.graph.shrink import shrink
from deploy.spec.compression import Goal

NAMES: Mapping[Goal, str] = {
    "macs": "MACs",
    "parameters": "parameters",
    "size": "bytes of weights",
    "latency": "latency",
}
"""As they are called in messages."""
SLACK = 1e-9
"""Relative, what amounts may stray when they are added up in another order."""


class Amount(Protocol):
    """What is left of a resource when families keep so many atoms."""

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """``kept`` is (n, families), in the order of `Groups.families`; the result is (n,)."""


@dataclass(frozen=True, eq=False)
class Widths:
    """A sum of products: term t is ``factors[t]`` times the widths numbered in ``terms[t]``; width w is
    ``constants[w]`` plus what each kept atom of each family adds to it. ``rest`` never changes."""

    rest: float
    factors: np.ndarray
    terms: tuple[tuple[int, ...], ...]
    constants: np.ndarray
    slopes: np.ndarray
    """(widths, families)."""

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """Fractions of atoms are allowed."""
        widths = self.constants + np.asarray(kept, np.float64) @ self.slopes.T
        total = np.full(len(widths), self.rest)
        for factor, term in zip(self.factors, self.terms, strict=True):
            total += factor * widths[:, list(term)].prod(1)
        return total


def counted(model: ir.Model, groups: Groups, resource: Goal) -> Widths:
    """MACs of a sample, parameters, or bytes of all constants of ``model``, whose groups are ``groups``.

    MACs of nodes that cannot be counted are left out. Bytes may stray by those of a few shapes.
    """
    found = _Terms(groups)
    if resource == "macs":
        for macs, parts in groups.loads:
            found.add(float(macs), [(part.reshape(-1), float(part.size)) for part in parts])
        return found.widths(macs_of_sample(model, groups))
    sizes: dict[str, tuple[int, ...]] = dict(groups.shapes)
    each = dict.fromkeys(sizes, 1.0)
    if resource == "size":
        stored = {name: value for name, value in model.graph.initializers.items() if value.const_value}
        tensors = {slot.tensor: stored[slot.tensor].const_value for slot in groups.slots}
        sizes = {n: tuple(t.shape.numpy()) for n, t in tensors.items() if t is not None}
        each = {n: t.nbytes / max(t.size, 1) for n, t in tensors.items() if t is not None}
    axes: dict[str, dict[int, np.ndarray]] = {name: {} for name in sizes}
    for slot in groups.slots:
        if slot.tensor in axes:
            axes[slot.tensor][slot.axis] = slot.labels
    for name, along in axes.items():
        whole = math.prod(size for axis, size in enumerate(sizes[name]) if axis not in along)
        found.add(whole * each[name], [(labels, 1.0) for labels in along.values()])
    total = weight_bytes(model) if resource == "size" else cost.parameters(model)
    return found.widths(float(total))


class _Terms:
    """Widths and terms in the making."""

    def __init__(self, groups: Groups) -> None:
        self._sizes = np.array([len(family.atoms) for family in groups.families], np.int64)
        self._family = np.full(1 + max(groups.atoms, default=0), -1, np.int64)
        for index, family in enumerate(groups.families):
            self._family[[atom.label for atom in family.atoms]] = index
        self._widths: dict[tuple[float, ...], int] = {}
        self._terms: list[tuple[int, ...]] = []
        self._factors: list[float] = []

    def add(self, factor: float, parts: Sequence[tuple[np.ndarray, float]]) -> None:
        """A term: the number of labels left of each part, divided by a number of its own."""
        numbers = []
        for labels, by in parts:
            owner = self._family[labels]
            each = np.bincount(owner[owner >= 0], minlength=len(self._sizes)) / self._sizes
            row = (float((owner < 0).sum()) / by, *(each / by).tolist())
            numbers.append(self._widths.setdefault(row, len(self._widths)))
        self._terms.append(tuple(numbers))
        self._factors.append(factor)

    def widths(self, total: float) -> Widths:
        """All of it, made up to ``total`` for the graph as it is."""
        table = np.array([*self._widths], np.float64).reshape(len(self._widths), 1 + len(self._sizes))
        found = Widths(0.0, np.array(self._factors), tuple(self._terms), table[:, 0], table[:, 1:])
        touched = float(found(self._sizes[None].astype(np.float64))[0])
        return Widths(max(0.0, total - touched), found.factors, found.terms, found.constants, found.slopes)


def macs_of_sample(model: ir.Model, groups: Groups) -> float:
    """MACs of one sample; where sizes are free, at those that groups were found with."""
    known = cost.macs(model)
    if known is None:
        samples = next(iter(groups.inputs.values()))[0] if batch_axis(model) is not None else 1
        pinned = cost.node_costs(pin(model, groups.inputs))
        known = sum(one.macs or 0 for one in pinned) // samples
    return float(known)


class Predicted:
    """The latency of the graph with fewer channels, as ``latency`` predicts it; every width is asked once."""

    def __init__(self, model: ir.Model, groups: Groups, latency: Callable[[ir.Model], float | None]) -> None:
        self._model, self._groups, self._latency = model, groups, latency
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """Fractions are rounded. Raises UsageError where nothing is predicted."""
        return np.array([self._of(tuple(row)) for row in np.rint(kept).astype(int).tolist()])

    def _of(self, kept: tuple[int, ...]) -> float:
        if kept not in self._known:
            pairs = zip(self._groups.families, kept, strict=True)
            gone = [atom.label for family, count in pairs for atom in family.atoms[count:]]
            found = self._latency(shrink(self._model, self._groups, gone))
            if found is None:
                raise UsageError(
                    "nothing predicts the latency on this target, so it cannot be a goal",
                    hint="aim at macs, or measure the target's kernels first: deploy profile",
                )
            self._known[kept] = found
        return self._known[kept]
