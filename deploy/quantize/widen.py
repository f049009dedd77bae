"""Activations of 16 bits for blocks that lose too much in 8, where a profile has them cheaper than floats.

Eight bits lose what a value has between two steps, wherever it is stored. So a block gains by 16 only with
those that make what it reads: they have 16, too. Behind the last of them the integers are made narrow again,
as a float block's results are rounded for an INT8 block behind it; a float block among INT8 ones would win
little more, since it reads their 8 bits as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log10

from deploy.data.dataset import Dataset
from deploy.data.interval import Drop
from deploy.errors import UsageError
from deploy.progress import Progress
from deploy.quantize.candidate import Subject
from deploy.quantize.choose import UNTRIED, Decision, hold_budget
from deploy.quantize.eligible import mixes, widens
from deploy.quantize.mix import harm_of
from deploy.quantize.noise import network_noise
from deploy.spec.ladder import RungRecord
from deploy.spec.manifest import Choice

WIDE = "16-bit activations"
_NOT_CHEAPER = "they are slower than floats here"
_NO_KERNELS = "no block has its kernels for them"
_NOT_NEEDED = "they save no float block"
_NOT_HELD = "they do not hold the budget"

Score = Callable[[Subject, frozenset[str]], Drop]
"""What a subject loses with these blocks float."""


def able_to_widen(subject: Subject) -> list[str]:
    """Ids of the blocks that can be INT8, and have a kernel for activations of 16 bits as well."""
    if subject.imported or not mixes(subject.runtime):
        return []
    able = set(subject.int8_blocks())
    heads = {c.nodes[0].name for c in subject.chains if all(widens(n, subject.runtime) for n in c.nodes)}
    return [b.id for b in subject.blocks if b.id in able and not heads.isdisjoint(b.nodes)]


def widened(subject: Subject, blocks: Collection[str]) -> Subject:
    """The subject with activations of 16 bits in exactly these blocks, where they are not float.

    Raises UsageError for a block that cannot have them.
    """
    if set(blocks) == subject.refinement.wide:
        return subject
    unknown = sorted(set(blocks).difference(able_to_widen(subject)))
    if unknown:
        raise UsageError(
            f"the lock has {WIDE} in block '{unknown[0]}', which cannot have them here",
            hint="build without --lock and keep the new deploy.lock",
        )
    return replace(subject, refinement=replace(subject.refinement, wide=frozenset(blocks)))


def with_makers(subject: Subject, blocks: Collection[str]) -> frozenset[str]:
    """``blocks`` and those that make what they read, through what only moves it."""
    able, narrow = set(able_to_widen(subject)), set(subject.int8_blocks())
    owner = {name: block for block in subject.blocks for name in block.nodes}
    found = set(blocks)
    waiting = [block for block in subject.blocks if block.id in found]
    seen: set[str] = set()
    while waiting:
        block = waiting.pop()
        for name in block.nodes:
            for value in subject.node(name).inputs:
                maker = None if value is None else value.producer()
                made_by = None if maker is None else owner.get(maker.name or "")
                if made_by is None or made_by.id in seen or made_by.id == block.id:
                    continue
                seen.add(made_by.id)
                if made_by.id in able:
                    found.add(made_by.id)
                elif made_by.id not in narrow:
                    waiting.append(made_by)
    return frozenset(found)


@dataclass(frozen=True)
class Held:
    """The subject with the blocks of 16 bits that were chosen, and which are float. ``asked`` counts those of
    16 bits without their makers."""

    subject: Subject
    decision: Decision
    asked: int = 0


class Widths:
    """Which blocks of a subject gain by activations of 16 bits, found when that is first asked, and the
    record of the last choice. ``noise`` measures blocks in decibels; ``sqnr`` is what they have in INT8."""

    def __init__(
        self,
        subject: Subject,
        sqnr: Mapping[str, float],
        noise: Callable[[Subject], Mapping[str, float]],
        calibration: Dataset,
        threads: int,
    ) -> None:
        self._subject, self._sqnr, self._measured = subject, sqnr, noise
        self._calibration, self._threads = calibration, threads
        self._order: tuple[str, ...] | None = None
        self._worst_first: tuple[str, ...] = ()
        self._given_up = False
        self.record: RungRecord | None = None

    def hold(
        self,
        worst_first: Sequence[str],
        score: Score,
        max_drop: float,
        progress: Progress,
        *,
        start: int = 0,
        least: int = 0,
    ) -> Held:
        """As few float blocks as the budget allows with all others of 16 bits, then as few of these as it
        allows; where these do not come first, or do not hold it, float ones alone, ``worst_first``.

        At least ``start`` blocks are float, and ``least`` of 16 bits.
        """
        subject, order, begun = self._subject, self._gaining(), time.monotonic()
        if order:
            whole, able = self._to(order), self._worst_first
            plain = hold_budget(able, lambda f: score(whole, f), max_drop, progress, start=start)
            if len(plain.float_blocks) < len(able):
                held = self._fewest(
                    order, plain.float_blocks, score, max_drop, progress, min(least, len(order))
                )
                if held.decision.drop is UNTRIED:  # the time was over before any fewer could be tried
                    held = Held(whole, plain, len(order))
                self.record = self._won(held, begun)
                return held
        self._given_up = True
        if subject.runtime.quant16 is not None:
            self.record = self._left(
                _NOT_HELD if order else _NOT_CHEAPER if self._may else _NO_KERNELS, begun
            )
        return Held(
            subject, hold_budget(worst_first, lambda f: score(subject, f), max_drop, progress, start=start)
        )

    def more(self, held: Held) -> int | None:
        """Twice as many of 16 bits as were asked for; None where there are none left to ask for, or not even
        all of them held the budget."""
        order = () if self._given_up else self._gaining()
        return min(len(order), max(held.asked + 1, 2 * held.asked)) if held.asked < len(order) else None

    @property
    def _may(self) -> bool:
        return bool(able_to_widen(self._subject))

    def _gaining(self) -> tuple[str, ...]:
        """The blocks that can have 16 bits, those first that gain most; none where the profile has floats
        cheaper."""
        if self._order is None:
            wide, able = self._subject.runtime.quant16, able_to_widen(self._subject)
            self._order = ()
            if wide is not None and wide.instead_of_float and able:
                eight = harm_of(self._sqnr)
                after = self._measured(widened(self._subject, able))
                sixteen = harm_of(after)
                self._order = tuple(sorted(able, key=lambda b: sixteen.get(b, 0.0) - eight.get(b, 0.0)))
                blocks = self._subject.int8_blocks()
                self._worst_first = tuple(sorted(blocks, key=lambda b: after.get(b, float("inf"))))
        return self._order

    def _to(self, blocks: Collection[str], floats: frozenset[str] = frozenset()) -> Subject:
        """The subject with these and their makers of 16 bits, as far as they are not float."""
        return widened(self._subject, with_makers(self._subject, blocks) - floats)

    def _fewest(
        self,
        order: Sequence[str],
        floats: frozenset[str],
        score: Score,
        max_drop: float,
        progress: Progress,
        least: int,
    ) -> Held:
        found = hold_budget(
            order,
            lambda blocks: score(self._to(blocks, floats), floats),
            max_drop,
            progress,
            start=least,
            form="of 16 bits",
        )
        subject, able = self._to(found.float_blocks, floats), len(self._worst_first)
        wide, reason = len(subject.refinement.wide), found.choices[0].reason
        eight = f"{able - len(floats) - wide} of {able}"
        choices = [Choice(what="INT8 blocks", chosen=eight, reason=reason)]
        if wide:
            choices.append(Choice(what=WIDE, chosen=f"{wide} of {able} blocks", reason="sooner than float"))
        decision = Decision(floats, found.drop, found.within_budget, tuple(choices))
        return Held(subject, decision, len(found.float_blocks))

    def _won(self, held: Held, begun: float) -> RungRecord:
        wide, floats, drop = held.subject.refinement.wide, held.decision.float_blocks, held.decision.drop
        if not wide:
            return self._left(_NOT_NEEDED, begun)
        before, after = (
            network_noise(one, one.graph, self._calibration, floats, threads=self._threads)
            for one in (self._subject, held.subject)
        )
        return RungRecord(
            runtime=self._subject.runtime.name,
            name="wide",
            kept=True,
            places=len(wide),
            gain_db=round(10 * log10(before / after), 2) if before > 0 and after > 0 else 0.0,
            drop=None if drop is None else drop.drop,
            seconds=round(time.monotonic() - begun, 3),
        )

    def _left(self, why: str, begun: float) -> RungRecord:
        seconds = round(time.monotonic() - begun, 3)
        return RungRecord(
            runtime=self._subject.runtime.name, name="wide", kept=False, why=why, seconds=seconds
        )
