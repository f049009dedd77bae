"""Channels in an order in which 2:4 sparsity keeps more (Pool and Yu, NeurIPS 2021).

Of each four neighbouring input channels a 2:4 layer keeps two weights for each output and tap. Which channels
are neighbours is free within a family of `graph/groups`: what may go from everywhere may change places
everywhere. All that make a channel and all that read it are turned together, and the network computes what it
did.

The search starts from the order as it is, exchanges the two channels of different fours that win most until
no exchange wins, then shakes a few fours and goes on, as often as it is allowed; the best order counts. With
a four's other three sorted, r1 >= r2 >= r3, one that joins them with score x keeps r1 + max(r2, x): so what
every exchange wins is known from one table of channels by channels, of which an exchange changes eight rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.compress.step import Compressed, Step
from deploy.graph.edit import constant, replace_everywhere
from deploy.graph.groups import find_groups
from deploy.graph.pattern import FOUR, fits, fours, products

_ROWS = 2048
"""Outputs and taps that a search looks at; of more some are drawn, and the order found is judged by all."""


@dataclass(frozen=True)
class Search:
    """``exchanges``: how many times the number of channels may be exchanged, in all. ``shakes``: how often
    the search goes on from where nothing wins any more."""

    exchanges: float = 4.0
    shakes: int = 8
    seed: int = 0


def permute(
    model: ir.Model, search: Search | None = None, *, scores: Mapping[str, np.ndarray] | None = None
) -> Compressed:
    """A copy whose channels are ordered for 2:4 sparsity, where they are free and something is won.

    Shapes of ``model`` are inferred. ``scores`` say by name what each weight is worth, its magnitude where
    they do not. A step's errors are the share of all scores that 2:4 gives away, before and after.
    """
    search = search or Search()
    free = Free.of(model)
    worth: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    moves: dict[int, int] = {}
    steps = []
    for product in products(model):
        array = constant(product.node.inputs[1])
        assert array is not None
        if not fits(product):
            continue
        name, order = product.node.name or "", free.order(product.weight, product.axis)
        given = (scores or {}).get(product.weight)
        rows = np.moveaxis(np.abs(array) if given is None else given, product.axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        if order is None:
            lost = given_away(rows)
            steps.append(Step(name, "left in order: its input channels are not free", False, lost, lost))
        else:
            worth.setdefault(order, []).append((name, rows))
    for labels, read in worth.items():
        place = read[0][0] + (f" and {len(read) - 1} more" if len(read) > 1 else "")
        rows = np.concatenate([part for _, part in read])
        before = given_away(rows)
        if not moves.keys().isdisjoint(labels):  # another layer reads the same channels, differently laid
            steps.append(Step(place, "left to the order that another layer asked for", False, before, before))
            continue
        best = arrange(rows, search)
        after = given_away(rows[:, best])
        won = after < before
        what = f"{rows.shape[1]} channels reordered" if won else "left in order: no exchange wins"
        steps.append(Step(place, what, won, before, min(before, after)))
        if won:
            moves |= {labels[i]: labels[j] for i, j in enumerate(best)}
    return Compressed(turned(model, free, moves), tuple(steps))


def given_away(rows: np.ndarray) -> float:
    """The share of all scores in ``rows`` (any, channels) that 2:4 along the channels gives away."""
    cut = np.sort(fours(rows, -1), axis=-1)
    total = float(cut.sum(dtype=np.float64))
    return float(cut[..., :2].sum(dtype=np.float64)) / total if total else 0.0


@dataclass(frozen=True)
class Free:
    """``slots`` are labels of channels along an axis of a constant; ``family`` says of which channels that
    may change places with one another a label is."""

    slots: Mapping[tuple[str, int], np.ndarray]
    family: Mapping[int, int]

    @classmethod
    def of(cls, model: ir.Model) -> Free:
        """Channels that lie more than once along an axis are free only if all of a family lie alike."""
        groups = find_groups(model)
        slots: dict[tuple[str, int], np.ndarray] = {}
        for slot in groups.slots:
            slots.setdefault((slot.tensor, slot.axis), slot.labels)
        found: dict[int, int] = {}
        places = [_places(labels) for labels in slots.values()]
        for number, family in enumerate(groups.families):
            labels = [atom.label for atom in family.atoms]
            if len(labels) > 1 and all(_alike([p[one] for one in labels if one in p]) for p in places):
                found |= dict.fromkeys(labels, number)
        return cls(slots, found)

    def order(self, tensor: str, axis: int) -> tuple[int, ...] | None:
        """The labels along an axis, of one family and each once; None where they are not so."""
        labels = self.slots.get((tensor, axis))
        if labels is None or len(np.unique(labels)) < len(labels):
            return None
        families = {self.family.get(int(one)) for one in labels}
        return tuple(map(int, labels)) if len(families) == 1 and None not in families else None


def _places(labels: np.ndarray) -> dict[int, np.ndarray]:
    return {int(one): np.flatnonzero(labels == one) for one in np.unique(labels)}


def _alike(places: Sequence[np.ndarray]) -> bool:
    """Whether all lie at the same distances."""
    return len({(one - one[0]).tobytes() for one in places}) <= 1


def turned(model: ir.Model, free: Free, moves: Mapping[int, int]) -> ir.Model:
    """A copy in which the channel of label i is where that of label ``moves[i]`` was, a permutation within
    families. The function stays what it was, but for the order in which sums are taken."""
    copy = model.clone()
    arrays: dict[str, np.ndarray] = {}
    for (name, axis), labels in free.slots.items():
        if any(int(one) in moves for one in labels):
            places = _places(labels)
            order = np.arange(len(labels))
            for one, there in places.items():
                order[there] = places[moves.get(one, one)]
            array = arrays.get(name)
            array = constant(copy.graph.initializers[name]) if array is None else array
            assert array is not None
            arrays[name] = np.take(array, order, axis)
    for name, array in arrays.items():
        replace_everywhere(copy, copy.graph.initializers[name], array)
    return copy


def arrange(scores: np.ndarray, search: Search) -> np.ndarray:
    """The order of the columns of ``scores`` (rows, channels), none negative, in which each four's two
    largest of every row come to most. Fours may come in any order, as may the channels of a four."""
    draw = np.random.default_rng(search.seed)
    count = scores.shape[1]
    if count <= FOUR:
        return np.arange(count)
    if len(scores) > _ROWS:
        scores = scores[np.sort(draw.choice(len(scores), _ROWS, replace=False))]
    state = _Fours(np.ascontiguousarray(scores.T, dtype=np.float32))
    best, most = state.order(), -1.0
    left = int(search.exchanges * count)
    for shake in range(search.shakes + 1):
        if shake:
            for four in draw.choice(count // FOUR, min(4, count // FOUR), replace=False):
                state.exchange(int(state.members[four, draw.integers(FOUR)]), int(draw.integers(count)))
        while left > 0 and state.improve():
            left -= 1
        if state.kept() > most:
            best, most = state.order(), state.kept()
        else:
            state.reset(best)
        if left <= 0:
            break
    return best


@dataclass
class _Fours:
    """An order in the making. ``table[p, x]``: what p's four keeps if x takes p's place."""

    columns: np.ndarray
    members: np.ndarray = field(init=False)
    four: np.ndarray = field(init=False)
    table: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.columns)
        self.table = np.empty((count, count))
        self.four = np.empty(count, np.int64)
        self.members = np.full((count // FOUR, FOUR), -1)
        self._room = np.empty_like(self.columns)
        self.reset(np.arange(count))

    def reset(self, order: np.ndarray) -> None:
        members = order.reshape(-1, FOUR)
        moved = [i for i, row in enumerate(members) if set(row) != set(self.members[i])]
        self.members = members.copy()
        for one in moved:
            self._count(one)

    def order(self) -> np.ndarray:
        return self.members.reshape(-1).copy()

    def kept(self) -> float:
        """What all fours keep."""
        return float(np.diagonal(self.table)[self.members[:, 0]].sum())

    def improve(self) -> bool:
        """Make the exchange that wins most; False where none wins."""
        now = np.diagonal(self.table)
        gain = self.table + self.table.T - now[:, None] - now[None, :]
        gain[self.four[:, None] == self.four[None, :]] = -np.inf
        place = int(gain.argmax())
        one, other = divmod(place, len(now))
        if not gain[one, other] > 1e-6 * now[one]:
            return False
        self.exchange(one, other)
        return True

    def exchange(self, one: int, other: int) -> None:
        a, b = self.four[one], self.four[other]
        if a == b:
            return
        self.members[a, self.members[a] == one] = other
        self.members[b, self.members[b] == other] = one
        self._count(int(a))
        self._count(int(b))

    def _count(self, four: int) -> None:
        members = self.members[four]
        self.four[members] = four
        for one in members:
            rest = np.sort(self.columns[members[members != one]], axis=0)
            np.maximum(rest[1], self.columns, out=self._room)
            self.table[one] = self._room.sum(axis=1) + rest[2].sum()
