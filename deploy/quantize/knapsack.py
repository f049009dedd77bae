"""The fastest choice of precisions within a budget of harm, solved exactly.

A multiple-choice knapsack with borders: each block takes one of its choices; a value that is made in one form
and read in another costs a change of form, once however many read it. Solved as a mixed-integer linear
program. Without a budget it is a least cut (Greig, Porteous and Seheult 1989), and of few blocks every choice
is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from deploy.errors import BackendError
from deploy.milp import Rows, least_cost
from deploy.quantize.flow import SINK, SOURCE, WITHOUT_END, Network
from deploy.spec.tensors import INTEGER, Precision

_SECONDS = 20.0
"""What solving may take at most; a good choice is there long before, if not proved to be the best."""
_INSTEAD = "give --precision int8 or float"
_UNIT = 1e3
"""What a typical option costs in the program: the solver stops where 1e-6 is left to win."""
_TIES = 1e-6
"""Of a typical option's time, what the most harmful option costs extra: it decides between equals."""
_EXACT = 1e12
"""Parts of a typical option's time that a cut tells apart."""
_FEW = 4096
"""So many choices are all looked at, sooner than the solver is imported."""
_TOLERANCE = 1e-6
"""By how much the solver may overstep a row."""
_ROUNDING = 1e-9
"""Relative, what sums of harm may stray when they are added up in another order."""


@dataclass(frozen=True)
class Option:
    """One way to compute a block: its milliseconds, and how much it harms the result in whatever unit."""

    precision: Precision
    ms: float
    harm: float = 0.0
    sparsity: Literal["2:4"] | None = None

    @property
    def integer(self) -> bool:
        """Whether what it reads and makes are integers."""
        return self.precision in INTEGER


Choice = Precision | Option
"""What was chosen for a block: an option, or the first of its options that has a precision."""


@dataclass(frozen=True)
class Border:
    """A value that leaves its block. ``ms`` is what a change of its form costs.

    ``free``: a maker in integers writes it as floats at no cost where nobody reads integers.
    """

    maker: str
    readers: tuple[str, ...]
    ms: float
    free: bool = False


@dataclass(frozen=True)
class Problem:
    """``options`` by block. A block that borders name and ``options`` lack reads and makes floats.

    ``follows``: these are in integers if, and only if, one of the blocks is that stand behind their name.
    """

    options: Mapping[str, tuple[Option, ...]]
    borders: tuple[Border, ...]
    follows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def ms(self, chosen: Mapping[str, Choice]) -> float:
        """What a choice takes, without what no choice changes."""
        blocks = sum(self._option(block, chosen).ms for block in self.options)
        return blocks + sum(border.ms for border in self.borders if self._changes(border, chosen))

    def harm(self, chosen: Mapping[str, Choice]) -> float:
        """What a choice harms."""
        return sum(self._option(block, chosen).harm for block in self.options)

    def changes(self, chosen: Mapping[str, Choice], block: str) -> list[Border]:
        """The borders at which ``block`` meets another form than its own."""
        own = _integer(chosen.get(block))
        return [
            border
            for border in self.borders
            if self._changes(border, chosen)
            and (
                border.maker == block
                or (block in border.readers and _integer(chosen.get(border.maker)) != own)
            )
        ]

    def _option(self, block: str, chosen: Mapping[str, Choice]) -> Option:
        taken = chosen[block]
        if isinstance(taken, Option):
            return taken
        return next(o for o in self.options[block] if o.precision == taken)

    def _changes(self, border: Border, chosen: Mapping[str, Choice]) -> bool:
        made = _integer(chosen.get(border.maker))
        read = {_integer(chosen.get(reader)) for reader in border.readers}
        return read != {made} and not (border.free and read == {False})


def _integer(choice: Choice | None) -> bool:
    return (choice.precision if isinstance(choice, Option) else choice) in INTEGER


def fastest(problem: Problem, budget: float = math.inf) -> dict[str, Precision]:
    """The precision of each block of ``problem.options`` such that the whole is fastest within ``budget``.

    Raises as `fastest_options` does.

    >>> blocks = {"a": (Option("float", 2.0), Option("int8", 1.0, 5.0))}
    >>> fastest(Problem(blocks, ())), fastest(Problem(blocks, ()), budget=4.0)
    ({'a': 'int8'}, {'a': 'float'})
    """
    return {block: option.precision for block, option in fastest_options(problem, budget).items()}


def fastest_options(problem: Problem, budget: float = math.inf) -> dict[str, Option]:
    """The option of each block of ``problem.options`` such that the whole is fastest within ``budget``.

    Of equally fast choices the less harmful one, as far as a thousandth of the largest harm tells them apart.
    Raises ValueError where even the least harmful options are over the budget, BackendError where the solver
    fails.

    >>> blocks = {"a": (Option("int8", 2.0, 1.0), Option("int8", 1.5, 3.0, "2:4"))}
    >>> fastest_options(Problem(blocks, ()), budget=3.0)["a"].sparsity
    '2:4'
    """
    least = sum(min(o.harm for o in options) for options in problem.options.values())
    if least > budget:
        raise ValueError(f"the least harm is {least:.3g}, over the budget of {budget:.3g}")
    picks = [
        (block, option)
        for block, options in problem.options.items()
        for option in options
        if option.harm <= budget
    ]
    if not picks:
        return {}
    if math.isinf(budget) and (chosen := _by_cut(problem, picks)) is not None:
        return chosen
    if math.prod(len(options) for options in problem.options.values()) <= _FEW:
        return _best_of_all(problem, picks, budget)
    costs, rows = _program(problem, picks)
    harms = {i: option.harm / budget for i, (_, option) in enumerate(picks) if option.harm}
    if math.isinf(budget) or not harms:
        return _solved(costs, rows, picks)
    chosen = _solved(costs, rows.with_row(harms, 1.0), picks)
    if problem.harm(chosen) <= budget * (1 + _ROUNDING):
        return chosen
    return _solved(costs, rows.with_row(harms, 1.0 - _TOLERANCE * (len(picks) + 1)), picks)


def _best_of_all(problem: Problem, picks: Sequence[tuple[str, Option]], budget: float) -> dict[str, Option]:
    """The fastest choice of all there are."""
    typical, costs = _scaled(picks)
    options = [
        [(o, c) for (b, o), c in zip(picks, costs, strict=True) if b == block] for block in problem.options
    ]
    places = np.indices([len(each) for each in options]).reshape(len(options), -1)
    total, harm = np.zeros(places.shape[1]), np.zeros(places.shape[1])
    integer: dict[str, np.ndarray] = {}
    for block, each, place in zip(problem.options, options, places, strict=True):
        total += np.array([cost for _, cost in each])[place]
        harm += np.array([option.harm for option, _ in each])[place]
        integer[block] = np.array([option.integer for option, _ in each])[place]
    floats = np.zeros(places.shape[1], bool)
    for border in problem.borders:
        made, read = integer.get(border.maker, floats), [integer.get(r, floats) for r in border.readers]
        changed = np.any([codes != made for codes in read], axis=0)
        total += border.ms / typical * (changed & np.any(read, axis=0) if border.free else changed)
    total[harm > budget * (1 + _ROUNDING)] = np.inf
    for block, readers in problem.follows.items():
        some = np.any([integer.get(reader, floats) for reader in readers], axis=0)
        total[integer.get(block, floats) != some] = np.inf
    if np.isinf(total).all():
        raise BackendError("choosing precisions failed: no choice does what is asked", hint=_INSTEAD)
    best = places[:, int(np.argmin(total))]
    return {block: each[at][0] for block, each, at in zip(problem.options, options, best, strict=True)}


def _program(problem: Problem, picks: Sequence[tuple[str, Option]]) -> tuple[np.ndarray, Rows]:
    """What each pick and each border costs, and the rows that bind them."""
    count = len(picks)
    integers: dict[str, list[int]] = {}
    for index, (block, option) in enumerate(picks):
        if option.integer:
            integers.setdefault(block, []).append(index)
    rows = Rows()
    for block in problem.options:  # one option each
        rows.add({i: 1.0 for i, (b, _) in enumerate(picks) if b == block}, 1.0, 1.0)

    def sum_of(blocks: Sequence[tuple[str, float]]) -> dict[int, float]:
        row: dict[int, float] = {}
        for block, factor in blocks:
            for pick in integers.get(block, ()):
                row[pick] = row.get(pick, 0.0) + factor
        return row

    for index, border in enumerate(problem.borders):
        for made, read in _unlike(border):  # changed >= made in integers - read in integers
            rows.add({count + index: 1.0, **sum_of([(made, -1.0), (read, 1.0)])}, 0.0, np.inf)
    for block, readers in problem.follows.items():
        rows.add(sum_of([(block, -1.0), *((reader, 1.0) for reader in readers)]), 0.0, np.inf)
        for reader in readers:
            rows.add(sum_of([(block, 1.0), (reader, -1.0)]), 0.0, np.inf)
    typical, options = _scaled(picks)
    return _UNIT * np.array([*options, *(border.ms / typical for border in problem.borders)]), rows


def _scaled(picks: Sequence[tuple[str, Option]]) -> tuple[float, list[float]]:
    """The milliseconds of a typical pick; what each costs in such, its harm included."""
    worst = max((option.harm for _, option in picks), default=0.0) or 1.0
    typical = float(np.mean([option.ms for _, option in picks])) or 1.0
    return typical, [option.ms / typical + _TIES * option.harm / worst for _, option in picks]


def _by_cut(problem: Problem, picks: Sequence[tuple[str, Option]]) -> dict[str, Option] | None:
    """The fastest choice without a budget as a least cut: what is in integers lies on the source's side.

    None where a block that follows several would be in integers although none of these is: no cut can forbid
    that, and the solver has to.
    """
    network = Network()
    nodes = {block: network.node() for block in problem.options}
    typical, costs = _scaled(picks)
    best: dict[tuple[str, bool], tuple[float, Option]] = {}
    for (block, option), cost in zip(picks, costs, strict=True):
        if (block, option.integer) not in best or cost < best[block, option.integer][0]:
            best[block, option.integer] = cost, option
    for block, node in nodes.items():
        for integer, tail, head in ((False, SOURCE, node), (True, node, SINK)):
            known = best.get((block, integer))
            network.join(tail, head, WITHOUT_END if known is None else round(_EXACT * known[0]))
    for border in problem.borders:
        made, read = nodes.get(border.maker, SINK), [nodes.get(reader, SINK) for reader in border.readers]
        some, all_ = network.node(), network.node()  # of them are in integers
        network.join(some, all_, round(_EXACT * border.ms / typical))
        for node in read if border.free else (made, *read):
            network.join(node, some, WITHOUT_END)
        for node in (made, *read):
            network.join(all_, node, WITHOUT_END)
    for block, readers in problem.follows.items():
        for reader in readers:
            network.join(nodes.get(reader, SINK), nodes.get(block, SINK), WITHOUT_END)
        if len(readers) == 1:
            network.join(nodes.get(block, SINK), nodes.get(readers[0], SINK), WITHOUT_END)
    side = network.source_side()
    integers = {block for block, node in nodes.items() if node in side}
    if any(b in integers and integers.isdisjoint(readers) for b, readers in problem.follows.items()):
        return None
    return {block: best[block, block in integers][1] for block in problem.options}


def _unlike(border: Border) -> Iterator[tuple[str, str]]:
    """Pairs of blocks of which the first in integers and the second not make a change."""
    for reader in border.readers:
        yield reader, border.maker
        if border.free:
            yield from ((reader, other) for other in border.readers if other != reader)
        else:
            yield border.maker, reader


def _solved(costs: np.ndarray, rows: Rows, picks: Sequence[tuple[str, Option]]) -> dict[str, Option]:
    found = least_cost(
        costs, rows, whole=len(picks), seconds=_SECONDS, finding="choosing precisions", hint=_INSTEAD
    )
    return {block: option for (block, option), taken in zip(picks, found, strict=False) if taken > 0.5}
