"""In which order the channels of each family go, and what it harms the answers when they do, on samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.compress.channel_budget import Harm
from deploy.compress.channel_order import Feeds, Level, Order, Reader, grams, readers, removal_order
from deploy.compress.prune.choose import ordered, thinned
from deploy.compress.prune.criteria import Scores
from deploy.compress.prune.goal import Choice
from deploy.graph.edit import constant
from deploy.graph.groups import Family, Groups
from deploy.graph.masked import MIXING, NORMS
from deploy.progress import SILENT, Progress

_SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Of what a family may lose: where harm is measured; between them it lies on a line."""
_WIDTHS = 24
"""Widths of a family among which one is chosen, at most."""


@dataclass(frozen=True)
class Ranked:
    """A family's ``labels``, the first to go first, and what keeping fewer of them harms."""

    labels: tuple[int, ...]
    choice: Choice


def by_scores(
    model: ir.Model,
    groups: Groups,
    scores: Scores,
    allowed: Sequence[Sequence[int]],
    harm: Harm,
    progress: Progress = SILENT,
) -> list[Ranked]:
    """Harm by family when its lowest scores go, nothing made up for."""
    nodes = {node.name or "": node for node in model.graph}
    found = []
    for number, (family, own) in enumerate(zip(groups.families, allowed, strict=True)):
        labels = ordered(family, scores)
        counts = [own[0] - kept for kept in looked_at(own)]
        if len(counts) == 1:
            values = [harm.floor]
        elif _read_by_weights(nodes, groups, family):
            levels = [_zeroed(model, family, labels, count) for count in counts[1:]]
            values = [harm.floor, *harm.levels(levels)]
        else:
            values = [harm.floor, *(harm.without(groups, labels[:count]) for count in counts[1:])]
        found.append(Ranked(labels, _choice(own, counts, values, harm.floor)))
        progress.advance(number + 1, len(groups.families))
    return found


def by_obs(
    model: ir.Model,
    groups: Groups,
    fallback: Scores,
    allowed: Sequence[Sequence[int]],
    learn: Feeds,
    harm: Harm,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[Ranked]:
    """Orders by Optimal Brain Surgeon on the batches ``learn``, and harm with what reads the channels making
    up for them. Families that no layer reads go by the scores ``fallback``."""
    widths = {family.name: own for family, own in zip(groups.families, allowed, strict=True)}
    counts = {name: [own[0] - kept for kept in looked_at(own)] for name, own in widths.items()}
    found: dict[str, Ranked] = {}
    for order in obs_orders(model, groups, {n: c[1:] for n, c in counts.items()}, learn, seed):
        name = order.family.name
        values = [harm.floor, *harm.levels(order.levels)]
        found[name] = Ranked(order.labels, _choice(widths[name], counts[name], values, harm.floor))
        progress.advance(len(found), len(groups.families))
    if len(found) < len(groups.families):
        whole = [(len(f.atoms),) if f.name in found else widths[f.name] for f in groups.families]
        others = by_scores(model, groups, fallback, whole, harm)
        found = {f.name: r for f, r in zip(groups.families, others, strict=True)} | found
    return [found[family.name] for family in groups.families]


def obs_scores(model: ir.Model, groups: Groups, fallback: Scores, learn: Feeds, seed: int = 0) -> Scores:
    """What each channel costs when its turn comes, never less than those that went before it. Families that
    no layer reads have the scores ``fallback``, which only compare within a family."""
    scores = dict(fallback)
    counts = {family.name: [len(family.atoms) - 1] for family in groups.families}
    for order in obs_orders(model, groups, counts, learn, seed):
        costs = np.maximum.accumulate(np.maximum(order.losses, 0.0)).tolist()
        scores |= dict(zip(order.labels, costs, strict=True))
    return scores


def obs_orders(
    model: ir.Model, groups: Groups, counts: Mapping[str, Sequence[int]], learn: Feeds, seed: int = 0
) -> Iterator[Order]:
    """The order of every family of which some count is to be known and that layers read, with its levels."""
    found = readers(model, groups)
    waiting = {family.name: family for family in groups.families if any(counts[family.name])}
    reads: dict[str, dict[str, Reader]] = {
        name: {
            weight: reader
            for weight, reader in found.items()
            if np.isin([atom.label for atom in family.atoms], reader.columns).all()
        }
        for name, family in waiting.items()
    }
    forms: dict[str, Tensor] = {}
    for some in grams(model, found, learn, seed):
        forms |= some
        for name in [n for n in waiting if reads[n] and all(w in forms for w in reads[n])]:
            yield removal_order(waiting.pop(name), reads[name], forms, [c for c in counts[name] if c])
        still = {weight for name in waiting for weight in reads[name]}
        forms = {weight: form for weight, form in forms.items() if weight in still}


def looked_at(allowed: Sequence[int]) -> list[int]:
    """The widths of a family at which harm is measured, all of it first."""
    most, least = allowed[0], allowed[-1]
    near = [min(allowed, key=lambda kept: abs(most - share * (most - least) - kept)) for share in _SHARES]
    return sorted(set(near), reverse=True)


def _choice(allowed: Sequence[int], counts: Sequence[int], values: Sequence[float], floor: float) -> Choice:
    """Harm never falls with what goes."""
    harm = np.maximum.accumulate(np.maximum(0.0, np.array(values) - floor))
    kept = thinned(allowed, _WIDTHS)
    return Choice(kept, tuple(np.interp([allowed[0] - k for k in kept], counts, harm).tolist()))


def _read_by_weights(nodes: Mapping[str, ir.Node], groups: Groups, family: Family) -> bool:
    """Whether zeros in the weights that read a family do what its removal does: nothing else adds it up."""
    labels = [atom.label for atom in family.atoms]
    if family.restricted or not any(place.role == "reads" for place in family.atoms[0].places):
        return False
    weighing = {slot.node for slot in groups.slots if np.isin(labels, slot.labels).any()}
    for name, node in nodes.items():
        if node.op_type not in (*MIXING, *NORMS) or name in weighing:
            continue
        for value in node.inputs:
            ids = groups.values.get(value.name or "") if value is not None else None
            if ids is not None and np.isin(labels, ids).any():
                return False
    return True


def _zeroed(model: ir.Model, family: Family, labels: Sequence[int], count: int) -> Level:
    gone = set(labels[:count])
    weights: dict[str, Tensor] = {}
    for atom in family.atoms:
        if atom.label not in gone:
            continue
        for place in atom.places:
            if place.role != "reads":
                continue
            if place.tensor not in weights:
                array = constant(model.graph.initializers[place.tensor])
                weights[place.tensor] = torch.tensor(array)
            weights[place.tensor].index_fill_(place.axis, torch.from_numpy(place.indices), 0)
    return Level(count, weights)
