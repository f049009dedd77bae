"""Candidates on the way to a decision: built, scored, and remembered by what they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.data.interval import Drop
from deploy.quantize.candidate import Candidate, Subject, lowered, proven
from deploy.quantize.choose import UNTRIED
from deploy.quantize.patience import Patience
from deploy.spec.ladder import RungName
from deploy.spec.plan import Plan

Judge = Callable[[Candidate], Drop]
"""Scores an artifact against the float baseline."""

_KEPT_BYTES = 4 << 20
"""Of candidates that are kept: one that held is mostly asked for again after others did not."""
_NOT_MEASURED: Mapping[str, float] = {}


@dataclass(frozen=True)
class Trial:
    """One candidate that was scored: what it was, its plan, and the bytes of its model files."""

    plan: Plan
    bytes: int
    drop: Drop | None
    float_blocks: frozenset[str] = frozenset()
    rungs: tuple[RungName, ...] = ()
    sparse_blocks: frozenset[str] = frozenset()
    wide_blocks: frozenset[str] = frozenset()


def trial_of(
    candidate: Candidate, subject: Subject, float_blocks: frozenset[str], drop: Drop | None
) -> Trial:
    """A candidate without its weights."""
    size, refined = candidate.artifact.size_bytes(), subject.refinement
    return Trial(candidate.plan, size, drop, float_blocks, refined.rungs, refined.sparse, refined.wide)


class Search:
    """Builds candidates in ``folder``, has each judged once, and keeps the trials in their order.

    Of the candidates themselves small ones are kept, and of larger ones the last: each holds its own copy of
    the weights. One is proven when it is asked for, which those are not that were scored and left behind.
    ``why_float`` is the reason that plans give for blocks which are float though they need not be; accuracy
    if empty. Without ``patience`` left candidates with integers stay untried.
    """

    def __init__(
        self, judge: Judge | None, folder: Path, why_float: str = "", patience: Patience | None = None
    ) -> None:
        self._judge, self._folder, self._why_float = judge, folder, why_float
        self._patience = patience or Patience()
        self._drops: dict[object, Drop] = {}
        self._trials: dict[object, Trial] = {}
        self._kept: dict[object, Candidate] = {}
        self._proven: set[Path] = set()

    def score(
        self,
        subject: Subject,
        float_blocks: frozenset[str],
        sqnr: Mapping[str, float] = _NOT_MEASURED,
        *,
        late: bool = False,
    ) -> Drop:
        """What ``judge`` says of the candidate with these blocks float; UNTRIED where time is over, unless
        it may be ``late``."""
        assert self._judge is not None
        key = _key(subject, float_blocks)
        if key not in self._drops:
            whole = float_blocks.issuperset(subject.int8_blocks())
            if not whole and not late and self._patience.over():
                return UNTRIED
            built = self._built(subject, float_blocks, sqnr)
            self._drops[key] = self._judge(built)
            self._trials[key] = trial_of(built, subject, float_blocks, self._drops[key])
        return self._drops[key]

    def candidate(
        self, subject: Subject, float_blocks: frozenset[str], sqnr: Mapping[str, float]
    ) -> Candidate:
        """The candidate, with what is known of its blocks' noise written into the plan.

        Raises VerificationError where its file carries another plan.
        """
        built = self._built(subject, float_blocks, sqnr)
        if built.artifact.folder not in self._proven:
            self._proven.add(proven(subject, built).artifact.folder)
        return built

    def _built(self, subject: Subject, float_blocks: frozenset[str], sqnr: Mapping[str, float]) -> Candidate:
        key = (_key(subject, float_blocks), bool(sqnr))
        if key not in self._kept:
            if sum(kept.artifact.size_bytes() for kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.clear()
                self._proven.clear()
                shutil.rmtree(self._folder)
            reasons = dict.fromkeys(float_blocks, self._why_float)
            folder = self._folder / str(len(self._kept))
            shutil.rmtree(folder, ignore_errors=True)  # of one that could not be lowered
            self._kept[key] = lowered(subject, float_blocks, folder, sqnr=sqnr, reasons=reasons)
        return self._kept[key]

    def ending_with(
        self, chosen: Candidate, subject: Subject, float_blocks: frozenset[str], drop: Drop | None
    ) -> tuple[Trial, ...]:
        """All trials, that of the chosen candidate last; with ``drop`` if it was never scored here."""
        key = _key(subject, float_blocks)
        known = self._drops.get(key, drop)
        others = (trial for k, trial in self._trials.items() if k != key)
        return (*others, trial_of(chosen, subject, float_blocks, known))


def _key(subject: Subject, float_blocks: frozenset[str]) -> object:
    return subject.graph_sha256, subject.refinement.rungs, subject.refinement.wide, float_blocks
