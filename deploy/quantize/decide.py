"""The decision for one runtime: which blocks are INT8, judged on validation and accepted on eval data."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from deploy.data.dataset import Dataset
from deploy.data.interval import Drop
from deploy.errors import UsageError
from deploy.predict.latency import CostSource
from deploy.progress import Progress
from deploy.quantize.candidate import Candidate, Subject, build_candidate
from deploy.quantize.choose import Decision, hold_budget
from deploy.quantize.ladder import Ladder, climb_again, climb_until
from deploy.quantize.mix import harm_of, mixture
from deploy.quantize.noise import block_noise
from deploy.quantize.patience import Patience
from deploy.quantize.pays import problem_of
from deploy.quantize.sparse import NO_SPARSE_WEIGHTS, SparseWeights, sparse_weights, with_sparse
from deploy.quantize.trial import Judge, Search, Trial, trial_of
from deploy.quantize.widen import WIDE, Held, Widths, widened
from deploy.spec.ladder import RungName, RungRecord
from deploy.spec.manifest import Choice
from deploy.spec.project import WITHOUT_RANGES, PrecisionRequest

SLOWER_SO = "faster as float, its borders counted"
BY_COSTS = "the fastest by the costs of kernels, of those within the budget"
"""The reason for a mixture, by which a replay knows one."""
SPARSE = "2:4 sparse blocks"
_NOT_MEASURED: Mapping[str, float] = {}


@dataclass(frozen=True)
class Decided:
    """The chosen candidate, its measured drop (None where nothing could be scored) and how it came about.

    ``subject`` is what it was built from, as the rungs left it that were climbed. ``trials`` are the
    candidates on the way, in order, the chosen one last.
    """

    subject: Subject
    candidate: Candidate
    float_blocks: frozenset[str]
    drop: Drop | None
    within_budget: bool
    choices: tuple[Choice, ...]
    sqnr: Mapping[str, float] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    rungs: tuple[RungRecord, ...] = ()


def decide(
    subject: Subject,
    *,
    precision: PrecisionRequest,
    max_drop: float,
    allowance: float | None = None,
    calibration: Dataset | None,
    judge: Judge | None,
    accept: Judge | None,
    locked: frozenset[str] | None,
    locked_rungs: Sequence[RungName] = (),
    locked_sparse: Collection[str] = (),
    locked_wide: Collection[str] = (),
    ladder: Ladder | None = None,
    start: int = 0,
    why_float: str = "",
    sqnr: Mapping[str, float] | None = None,
    workdir: Path,
    seed: int = 0,
    threads: int,
    progress: Progress,
    patience: Patience | None = None,
) -> Decided:
    """The artifact with as much INT8 as the budget allows.

    ``judge`` scores on validation data while searching; ``accept`` on eval data, once if all goes well.
    Where the budget is missed with every block INT8, the ``ladder`` is climbed first; after that blocks have
    activations of 16 bits, if the profile has them cheaper than floats, and then become float. If eval data
    refuse what validation data allowed, twice as many blocks go back and they are looked at again; at
    least ``start`` blocks are float. ``precision`` "int8" and "w8a16" keep every block so whatever it
    costs; the forms that need no ranges ("float", "fp16", "w8" ...) are a single candidate. ``locked``
    names the float blocks of an earlier build, ``locked_rungs`` what it climbed, ``locked_sparse`` the
    blocks that got 2:4 zeros and ``locked_wide`` those of 16 bits, which are then taken as they are; the
    plan is the same as that build's, given ``why_float`` where they ended so for another reason than
    accuracy. ``sqnr`` is the subject's `block_noise` where it is known already. ``allowance`` is what may be
    lost while searching, ``max_drop`` where that is not given. A search without ``patience`` left takes the
    best that it has, floats if nothing.
    """
    able = subject.int8_blocks()
    if subject.imported and able and precision not in WITHOUT_RANGES:
        return _decide_fixed(subject, frozenset(), judge, accept, max_drop, workdir)
    if precision in WITHOUT_RANGES or not able or calibration is None:
        return decide_float(subject, judge, accept, max_drop, workdir)
    if locked is not None:
        if ladder is not None:
            subject = climb_again(ladder, subject, locked_rungs)
        _require_known(locked, subject)
        sqnr = block_noise(subject, calibration, threads)
        if locked_sparse:
            zeros = sparse_weights(subject, calibration, seed=seed, threads=threads, progress=progress)
            subject = with_sparse(subject, zeros, locked_sparse)
        subject = widened(subject, locked_wide)
        return _decide_fixed(subject, locked, judge, accept, max_drop, workdir, sqnr, why_float)

    subject = widened(subject, ())
    limit = max_drop if allowance is None else allowance
    guarded = precision in ("auto", "mixed")
    patience = patience if patience is not None and guarded else Patience()
    search = Search(judge, workdir / "candidate", patience=patience)
    patience.begin()
    rungs: tuple[RungRecord, ...] = ()
    if ladder is not None and judge is not None and start == 0:
        subject, rungs = climb_until(
            ladder, subject, lambda s: search.score(s, frozenset(), late=True), limit
        )
        patience.begin()
    if sqnr is None or rungs:
        sqnr = block_noise(subject, calibration, threads)
    able = subject.int8_blocks()
    worst_first = sorted(able, key=lambda block: sqnr.get(block, math.inf))

    def scored(one: Subject, float_blocks: frozenset[str]) -> Drop:
        return search.score(one, float_blocks, sqnr)

    allowed = limit if guarded else math.inf
    start, wide = min(start, len(worst_first)), 0
    choices = list(_climbed(subject))
    widths = Widths(
        subject, sqnr, partial(block_noise, calibration=calibration, threads=threads), calibration, threads
    )
    while True:
        if judge is None:
            held = Held(subject, Decision(frozenset(worst_first[:start]), None, True, ()))
        elif guarded and (wide or not scored(subject, frozenset(worst_first[:start])).within(allowed)):
            held = widths.hold(worst_first, scored, allowed, progress, start=start, least=wide)
        else:
            decision = hold_budget(worst_first, lambda f: scored(subject, f), allowed, progress, start=start)
            held = Held(subject, decision)
        decision = held.decision
        choices += decision.choices
        chosen = search.candidate(held.subject, decision.float_blocks, sqnr)
        final = decision.drop
        if accept is not None:
            final = accept(chosen)
        refused = guarded and accept is not None and final is not None and not final.within(limit)
        if not refused or len(decision.float_blocks) == len(worst_first):
            break
        assert final is not None
        more = None if judge is None else widths.more(held)  # nobody tells which would be worth it
        start, wide, choice = _further(held, more, len(worst_first), final)
        choices.append(choice)
        progress.note(f"eval data: drop {final.drop:+.4f}, over budget; trying {choice.chosen}")
    within = final is None or final.within(max_drop)
    trials = search.ending_with(chosen, held.subject, decision.float_blocks, final)
    return Decided(
        held.subject,
        chosen,
        decision.float_blocks,
        final,
        within,
        tuple(choices),
        sqnr,
        trials,
        rungs if widths.record is None else (*rungs, widths.record),
    )


def _further(held: Held, more: int | None, able: int, refused: Drop) -> tuple[int, int, Choice]:
    """How many blocks must be float next, how many of 16 bits at least, and what is said of it: ``more`` of
    16 bits where there are more to be had, then twice as many float ones."""
    floats, wide = len(held.decision.float_blocks), len(held.subject.refinement.wide)
    eight = able - floats - wide
    if more is not None:
        chosen = f"at least {more} blocks of 16 bits"
        why = f"eval data refused {wide}: drop {refused.drop:.4f}"
        return floats, more, Choice(what=WIDE, chosen=chosen, reason=why)
    start = min(able, max(floats + 1, 2 * floats))
    chosen = f"at most {able - start} of {able}"
    why = f"eval data refused {eight + wide}: drop {refused.drop:.4f}"
    return start, wide, Choice(what="INT8 blocks", chosen=chosen, reason=why)


def decide_mixed(
    subject: Subject,
    costs: CostSource,
    sqnr: Mapping[str, float],
    *,
    judge: Judge | None,
    max_drop: float,
    allowance: float | None = None,
    workdir: Path,
    progress: Progress,
    given: Decided | None = None,
    sparse: SparseWeights = NO_SPARSE_WEIGHTS,
    enough: float = 1.0,
    patience: Patience | None = None,
) -> Decided | None:
    """The fastest mixture of float and integer blocks by the ``costs`` of kernels; None where there is none
    within the ``allowance`` (``max_drop`` where that is not given), or it is what was decided by accuracy
    alone (``given``). One is fast ``enough`` where any faster one would take that share of its time at least.

    ``sqnr``: see `block_noise`; ``patience``: see `decide`. Blocks may have the 2:4 zeros of ``sparse``, too,
    where there is a ``judge``. Raises LookupError and UnknownSizeError where costs are not known.
    """
    able = frozenset(subject.int8_blocks())
    problem = problem_of(subject, costs, harm_of(sqnr), sparse={} if judge is None else sparse.harm)
    patience = patience or Patience()
    search = Search(judge, workdir / "mixed", SLOWER_SO, patience)
    patience.begin()
    with_zeros: dict[frozenset[str], Subject] = {}

    def thinned(blocks: frozenset[str]) -> Subject:
        if blocks not in with_zeros:
            with_zeros[blocks] = with_sparse(subject, sparse, blocks)
        return with_zeros[blocks]

    def scored(float_blocks: frozenset[str], sparse_blocks: frozenset[str]) -> Drop:
        known = given.trials[-1].drop if given is not None and given.trials else None
        same = given is not None and not sparse_blocks and float_blocks == given.float_blocks
        if known is not None and same:
            return known
        return search.score(thinned(sparse_blocks), float_blocks, sqnr)

    limit = max_drop if allowance is None else allowance
    score = scored if judge is not None else None
    found = mixture(problem, able, score, limit, progress, enough=enough)
    if found is None:
        return None
    if given is not None and found.float_blocks == given.float_blocks and not found.sparse_blocks:
        return None
    subject = thinned(found.sparse_blocks)
    chosen = search.candidate(subject, found.float_blocks, sqnr)
    count = len(able) - len(found.float_blocks)
    choices = [*_climbed(subject)]
    choices.append(Choice(what="INT8 blocks", chosen=f"{count} of {len(able)}", reason=BY_COSTS))
    if found.sparse_blocks:
        many = f"{len(found.sparse_blocks)} of {len(sparse.harm)}"
        gain = f"{subject.runtime.name} computes them {subject.runtime.sparsity_gain:g} times as fast"
        choices.append(Choice(what=SPARSE, chosen=many, reason=gain))
    trials = search.ending_with(chosen, subject, found.float_blocks, found.drop)
    within = found.drop is None or found.drop.within(max_drop)
    return Decided(subject, chosen, found.float_blocks, found.drop, within, tuple(choices), sqnr, trials)


def _climbed(subject: Subject) -> tuple[Choice, ...]:
    rungs = subject.refinement.rungs
    if not rungs:
        return ()
    return (Choice(what="accuracy", chosen=", ".join(rungs), reason="it holds more blocks INT8"),)


def _require_known(locked: frozenset[str], subject: Subject) -> None:
    unknown = sorted(locked - {block.id for block in subject.blocks})
    if unknown:
        raise UsageError(
            f"the lock keeps block '{unknown[0]}' float, which this model does not have",
            hint="build without --lock and keep the new deploy.lock",
        )


def _decide_fixed(
    subject: Subject,
    float_blocks: frozenset[str],
    judge: Judge | None,
    accept: Judge | None,
    max_drop: float,
    workdir: Path,
    sqnr: Mapping[str, float] = _NOT_MEASURED,
    why_float: str = "",
) -> Decided:
    """The artifact for float blocks decided elsewhere: by a lock, or by who quantized the source."""
    if float_blocks >= set(subject.int8_blocks()):
        return decide_float(subject, judge, accept, max_drop, workdir, sqnr, why_float)
    reasons = dict.fromkeys(float_blocks, why_float)
    chosen = build_candidate(subject, float_blocks, workdir / "fixed", sqnr=sqnr, reasons=reasons)
    return _alone(subject, chosen, float_blocks, accept or judge, max_drop, sqnr)


def decide_float(
    subject: Subject,
    judge: Judge | None,
    accept: Judge | None,
    max_drop: float,
    workdir: Path,
    sqnr: Mapping[str, float] = _NOT_MEASURED,
    why: str = "",
) -> Decided:
    """The artifact without any INT8. For the plan: ``sqnr`` is what its blocks would have had, ``why`` the
    reason for those that might have been INT8, accuracy if empty."""
    able = frozenset(subject.int8_blocks())
    everything = frozenset(b.id for b in subject.blocks)
    reasons = dict.fromkeys(able, why)
    plain = build_candidate(subject, everything, workdir / "float", sqnr=sqnr, reasons=reasons)
    return _alone(subject, plain, able, accept or judge, max_drop, sqnr)


def _alone(
    subject: Subject,
    candidate: Candidate,
    float_blocks: frozenset[str],
    judge: Judge | None,
    max_drop: float,
    sqnr: Mapping[str, float],
) -> Decided:
    """What was decided where there is one candidate, judged once."""
    drop = None if judge is None else judge(candidate)
    within = drop is None or drop.within(max_drop)
    trial = trial_of(candidate, subject, float_blocks, drop)
    return Decided(subject, candidate, float_blocks, drop, within, (), sqnr, (trial,))
