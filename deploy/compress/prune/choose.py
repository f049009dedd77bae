"""What each family may keep, and how much it keeps when channels are ranked.

Ranked channels go from the lowest score up until the goal is met, the same share of every pool: a family by
itself ("layer"), all families together ("global"), or those of equal structure together ("isomorphic", Fang
et al., arXiv:2407.04616). Scores of different layers are compared in units of the layer's mean (Molchanov et
al. 2017; DepGraph, arXiv:2301.12900), those of equal structure as they are.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from deploy.compress.prune.amount import SLACK, Amount
from deploy.errors import UsageError
from deploy.graph.groups import Family, Groups
from deploy.spec.compression import Scope

_WIDTHS = 4
"""An alignment that is not insisted on is halved until so many widths are left to choose from."""


def matching(model: ir.Model, patterns: Iterable[str], where: str = "prune: protect") -> list[str]:
    """The nodes that ``patterns`` name (``layer4.*``). Raises UsageError for one that fits none."""
    names = [node.name or "" for node in model.graph]
    found: dict[str, None] = {}
    for pattern in patterns:
        here = fnmatch.filter(names, pattern)
        if not here:
            word = pattern.strip("*?")
            near = [name for name in names if word and word.lower() in name.lower()]
            near = near or difflib.get_close_matches(word, names, n=3, cutoff=0.5)
            raise UsageError(
                f"{where} = '{pattern}' is the name of no node",
                hint=f"did you mean {' or '.join(near[:3])}?" if near else "`deploy inspect` lists the nodes",
            )
        found |= dict.fromkeys(here)
    return list(found)


def step_of(family: Family, align: int, *, strict: bool) -> int:
    """Atoms by which the family's width changes, so that channels stay a multiple of ``align``.

    An atom may be several channels (a head). A family too narrow for that keeps its width if ``strict``; else
    the alignment is halved until there are a few widths: what a narrow layer wastes is little.
    """
    places = [p for p in family.atoms[0].places if p.role == "makes"] or list(family.atoms[0].places)
    unit = math.gcd(*(p.indices.size for p in places))
    step = align // math.gcd(align, unit)
    while not strict and step > 1 and len(family.atoms) < _WIDTHS * step:
        step = -(-step // 2)
    return step


def widths(whole: int, step: int, least: int) -> tuple[int, ...]:
    """What a family of ``whole`` atoms may keep, from all of them down: multiples of ``step``, at least
    ``least`` and one.

    >>> widths(10, step=4, least=3)
    (10, 8, 4)
    """
    fewest = max(least, 1)
    multiples = range((whole - 1) // step * step, 0, -step)
    return (whole, *(kept for kept in multiples if kept >= fewest))


def thinned(allowed: Sequence[int], most: int) -> tuple[int, ...]:
    """About ``most`` of the allowed widths, the first and the last among them."""
    if len(allowed) <= most:
        return tuple(allowed)
    at = np.unique(np.linspace(0, len(allowed) - 1, most).round().astype(int))
    return tuple(allowed[i] for i in at)


def rankings(
    groups: Groups, scores: Mapping[int, float], scope: Scope, isomorphic: bool = False
) -> list[np.ndarray]:
    """Pools of channels that are ranked against each other: the numbers of the families that they belong to,
    the first to go first. Equal scores are taken from all families alike."""
    by: dict[str, list[int]] = defaultdict(list)
    for index, family in enumerate(groups.families):
        by[family.kind if isomorphic else "" if scope == "global" else str(index)].append(index)
    found = []
    for members in by.values():
        values, places, owners = [], [], []
        for index in members:
            own = np.array([scores[label] for label in ordered(groups.families[index], scores)], np.float64)
            mean = float(own.mean())
            values.append(own / mean if mean > 0 and not isomorphic else own)
            places.append((np.arange(own.size) + 0.5) / own.size)
            owners.append(np.full(own.size, index))
        order = np.lexsort((np.concatenate(places), np.concatenate(values)))
        found.append(np.concatenate(owners)[order])
    return found


def ordered(family: Family, scores: Mapping[int, float]) -> tuple[int, ...]:
    """The labels of its atoms, the lowest score first."""
    return tuple(sorted((atom.label for atom in family.atoms), key=lambda label: (scores[label], label)))


def by_rank(
    ranked: Sequence[np.ndarray], allowed: Sequence[Sequence[int]], amount: Amount, goal: float
) -> np.ndarray:
    """How many atoms each family keeps, (families,): the smallest share of every pool that meets ``goal``,
    with widths rounded to what is ``allowed``; then what can be given back, most kept first.

    The least that is allowed must suffice (`goal.require_reachable`).
    """
    options = [np.array(sorted(a, reverse=True)) for a in allowed]
    sizes = np.array([own[0] for own in options])

    def kept(share: float) -> np.ndarray:
        raw = sizes.copy()
        for pool in ranked:
            raw -= np.bincount(pool[: round(share * len(pool))], minlength=len(sizes))
        return np.array([own[np.argmin(np.abs(own - n))] for own, n in zip(options, raw, strict=True)])

    def meets(counts: np.ndarray) -> bool:
        return bool(amount(counts[None].astype(float))[0] <= goal * (1 + SLACK))

    shares = np.unique(np.concatenate([np.arange(len(pool) + 1) / len(pool) for pool in ranked]))
    low, high = 0, len(shares) - 1
    while low < high:
        middle = (low + high) // 2
        if meets(kept(shares[middle])):
            high = middle
        else:
            low = middle + 1
    chosen = kept(shares[high])
    waiting = [i for i in range(len(sizes)) if chosen[i] < sizes[i]]
    while waiting:
        index = max(waiting, key=lambda i: chosen[i] / sizes[i])
        wider = chosen.copy()
        wider[index] = options[index][options[index] > chosen[index]].min()
        if meets(wider):
            chosen = wider
        if not np.array_equal(chosen, wider) or chosen[index] == sizes[index]:
            waiting.remove(index)
    return chosen
