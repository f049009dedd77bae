"""In which order the channels of a family go, and what those that stay make up for (optimal brain surgeon).

    channel c  ->  columns of the weights of every layer that reads it

With H = E[x x'] of the inputs of such a layer and w the columns of c, removing c with the best change of
all other columns costs w (H^-1)_cc^-1 w' of mean squared error (Hassibi and Stork 1993; by structures:
Frantar and Alistarh, "OBC" 2022; Kurtic et al., "ZipLM" 2023). The cheapest channel goes, the others take its
part over, H^-1 loses its rows and columns, and so on. Channels that several layers read, as those of a
residual stream, cost what they cost all readers together, each in units of the power of what it makes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.compress.obs import damped
from deploy.execute.module import GraphModule
from deploy.graph.edit import constant
from deploy.graph.groups import Family, Groups
from deploy.train.gram import PLACES, Layer, layer_of
from deploy.train.loader import number

DAMP = 0.02
"""Of the mean of H's diagonal, added to it: there are often hardly more places than inputs."""
_AT_ONCE = 64
"""A family goes in about so many steps: of large ones several channels go at a time."""
_GRAMS = 3 << 28
"""Bytes of Gram matrices that are gathered in one pass over the samples."""

Feeds = Sequence[Mapping[str, Tensor]]
"""Batches of inputs by name."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over channels that can go. ``columns`` (n,) are the labels of its packed columns."""

    layer: Layer
    columns: np.ndarray

    @property
    def weight(self) -> Tensor:
        """As the graph has it."""
        array = constant(self.layer.node.inputs[1])
        assert array is not None
        return torch.tensor(array, dtype=torch.float32)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of a convolution's window; none for a product."""
        value = self.layer.node.inputs[1]
        assert value is not None and value.shape is not None
        return tuple(value.shape.numpy()[2:]) if self.layer.node.op_type == "Conv" else ()


@dataclass(frozen=True, eq=False)
class Level:
    """A family without the first ``count`` atoms of its order. ``weights`` are those of the readers, zero in
    the columns of the atoms and changed elsewhere, of the shapes they had."""

    count: int
    weights: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Order:
    """``labels`` of a family's atoms, the first to go first; ``losses`` what each adds to the errors of its
    readers, as shares of the power of what they make; ``levels`` those that were asked for."""

    family: Family
    labels: tuple[int, ...]
    losses: tuple[float, ...]
    levels: tuple[Level, ...]


def readers(model: ir.Model, groups: Groups) -> dict[str, Reader]:
    """By the weight's name: Conv, Gemm, MatMul whose columns can be solved for, each weight read once."""
    nodes = {node.name or "": node for node in model.graph}
    found: dict[str, Reader] = {}
    for slot in groups.slots:
        node = nodes.get(slot.node)
        if slot.role != "reads" or slot.index != 1 or node is None:
            continue
        layer, value = layer_of(node, slot.tensor), node.inputs[1]
        if layer is None or layer.groups != 1 or value is None or len(value.uses()) != 1:
            continue
        taps = math.prod(value.shape.numpy()[2:]) if node.op_type == "Conv" and value.shape is not None else 1
        found[slot.tensor] = Reader(layer, np.repeat(slot.labels, taps))
    return found


def grams(
    model: ir.Model, found: Mapping[str, Reader], feeds: Feeds, seed: int = 0
) -> Iterator[dict[str, Tensor]]:
    """H (n, n) of the inputs of every reader, some readers at a time so that memory stays bounded.

    Of many places of an activation some are drawn.
    """
    module = GraphModule(model, trainable=lambda _: False)
    waiting: list[str] = []
    size = 0
    for name, reader in found.items():
        waiting.append(name)
        size += 4 * len(reader.columns) ** 2
        if size > _GRAMS:
            yield _gathered(module, {name: found[name] for name in waiting}, feeds, seed)
            waiting, size = [], 0
    if waiting:
        yield _gathered(module, {name: found[name] for name in waiting}, feeds, seed)


def _gathered(module: GraphModule, found: Mapping[str, Reader], feeds: Feeds, seed: int) -> dict[str, Tensor]:
    totals = {name: torch.zeros(len(r.columns), len(r.columns)) for name, r in found.items()}
    counts = dict.fromkeys(found, 0)
    sources = list(dict.fromkeys(reader.layer.source for reader in found.values()))
    for place, batch in enumerate(feeds):
        with torch.no_grad():
            values = dict(batch) | module(batch, want=sources)
        for name, reader in found.items():
            x = reader.layer.columns(values[reader.layer.source], reader.kernel)[0]
            share = -(-max(PLACES, 4 * len(x)) // len(feeds))
            if x.shape[1] > share:
                generator = torch.Generator().manual_seed(number(seed, place))
                x = x[:, torch.randperm(x.shape[1], generator=generator)[:share]]
            totals[name].addmm_(x, x.T)
            counts[name] += x.shape[1]
    return {name: total / counts[name] for name, total in totals.items()}


def removal_order(
    family: Family,
    found: Mapping[str, Reader],
    forms: Mapping[str, Tensor],
    levels: Sequence[int],
    damp: float = DAMP,
) -> Order:
    """The order in which the atoms of ``family`` go, up to the highest of ``levels`` (numbers of atoms).

    ``forms`` are the Gram matrices of its readers, whose errors count in units of the power of what they
    make. Behind the highest level the order is that of what each would cost next. Where no reader is known,
    labels stay in the order of the atoms, losses are nan, and there are no levels.
    """
    labels = [atom.label for atom in family.atoms]
    parts = [
        _Part(reader, forms[name], labels, damp)
        for name, reader in found.items()
        if name in forms and np.isin(labels, reader.columns).all()
    ]
    if not parts:
        return Order(family, tuple(labels), (math.nan,) * len(labels), ())
    left = np.ones(len(labels), bool)
    gone: list[int] = []
    losses: list[float] = []
    levels_made: list[Level] = []
    step = max(1, len(labels) // _AT_ONCE)
    for target in sorted(set(levels)):
        while len(gone) < target:
            costs = torch.stack([part.costs() for part in parts]).sum(0).numpy()
            costs[~left] = np.inf
            chosen = np.argsort(costs, kind="stable")[: min(step, target - len(gone))]
            for part in parts:
                part.remove(torch.from_numpy(chosen))
            left[chosen] = False
            gone += chosen.tolist()
            losses += costs[chosen].tolist()
        weights = {part.reader.layer.weight: part.weights() for part in parts}
        levels_made.append(Level(target, weights))
    costs = torch.stack([part.costs() for part in parts]).sum(0).numpy()
    rest = [i for i in np.argsort(costs, kind="stable").tolist() if left[i]]
    return Order(
        family,
        tuple(labels[i] for i in (*gone, *rest)),
        (*losses, *costs[rest].tolist()),
        tuple(levels_made),
    )


class _Part:
    """One reader while channels go."""

    def __init__(self, reader: Reader, form: Tensor, labels: Sequence[int], damp: float) -> None:
        self.reader = reader
        self._dense = reader.weight
        packed = reader.layer.packed(self._dense)[0]
        self._scale = ((packed @ form) * packed).sum().clamp_min(1e-30).rsqrt()
        self._weights = packed * self._scale
        solid = damped(form, damp).double()
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(solid)).float()
        del solid
        self._at = torch.from_numpy(np.stack([np.flatnonzero(reader.columns == label) for label in labels]))
        self._left = torch.ones(len(labels), dtype=torch.bool)

    def costs(self) -> Tensor:
        """What each channel would cost next, (atoms,); 0 for those that are gone."""
        at = self._at[self._left]
        blocks = self._inverse[at[:, :, None], at[:, None, :]]
        own = self._weights[:, at].permute(1, 2, 0)
        found = torch.zeros(len(self._left))
        found[self._left] = (own * torch.linalg.solve(blocks, own)).sum((1, 2)).clamp_min(0)
        return found

    def remove(self, chosen: Tensor) -> None:
        """These channels go; what is left makes up for them."""
        at = self._at[chosen].reshape(-1)
        rows = self._inverse[at]
        block = torch.linalg.inv(rows[:, at].double()).float()
        self._weights -= self._weights[:, at] @ block @ rows
        self._inverse -= rows.T @ (block @ rows)
        self._weights[:, at] = 0
        self._inverse[at] = 0
        self._inverse[:, at] = 0
        self._left[chosen] = False

    def weights(self) -> Tensor:
        """Of the shape the weight had."""
        return self.reader.layer.unpacked((self._weights / self._scale)[None], self._dense).clone()
