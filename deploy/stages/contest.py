"""The race: what may ship is decided for each runtime, and all of it timed.

All that may win are timed in turn with the file as given and with our own float builds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from deploy.errors import BackendError, DataError, UnsupportedError, VerificationError
from deploy.predict.kernels import UnknownSizeError
from deploy.quantize.candidate import Subject, build_candidate
from deploy.quantize.decide import Decided, decide, decide_float, decide_mixed
from deploy.quantize.mix import float_at_least
from deploy.quantize.noise import block_noise
from deploy.quantize.sparse import NO_SPARSE_WEIGHTS, SparseWeights, sparse_weights, why_dense
from deploy.spec.measurement import Comparison
from deploy.stages.baseline import compare, race
from deploy.stages.by_form import weights_alone
from deploy.stages.by_table import (
    bound,
    chosen_freely,
    entered,
    in_floats,
    integers_pay,
    may_win,
    or_never,
)
from deploy.stages.energy import energy_of
from deploy.stages.entrants import GIVEN, Entrant, Race, under
from deploy.stages.job import Job
from deploy.stages.ladder import ladder_for
from deploy.stages.limits import allowed, expected
from deploy.stages.pick import loses, why_float
from deploy.stages.settings import in_float32, reopened
from deploy.stages.threads import each_at_its_best

_AS_GOOD = 0.97
"""Of the time of a mixture what a faster one must take less than to be worth a try where no clock tells the
two apart: the costs of kernels are less sure than that."""


def enter(job: Job, left_out: Collection[str] = ()) -> tuple[Entrant, ...]:
    """What is decided for each runtime but those ``left_out``: by accuracy alone, beside that the mixture
    which is fastest by what is known of its kernels' costs, and forms of weights alone where these may pay.

    A runtime whose toolchain fails, or writes another plan, is left out with a warning, unless it is the last
    one. Where neither the clock chooses nor bytes or points do, the runtime enters alone that is fastest by
    what is known.
    """
    subjects = [subject for subject in job.subjects if subject.runtime.name not in left_out]
    if not job.races and not job.by_weight:
        return entered(job, subjects, partial(_forms, job))
    quick = job.request.tune == "quick" and job.lock is None and job.request.objective == "latency"
    if quick:
        subjects = _promising(job, subjects)
    found: dict[str, tuple[Entrant, ...]] = {}
    for subject in sorted(subjects, key=lambda s: or_never(bound(job, s))):  # preferred first where alike
        last = len(found) == len(subjects) - 1 and not any(found.values())
        climbs = not (quick and any(_all_integer(job, entrants) for entrants in found.values()))
        found[subject.runtime.name] = _forms(job, subject, last, climbs)
    return tuple(entrant for subject in subjects for entrant in found[subject.runtime.name])


def _promising(job: Job, subjects: Sequence[Subject]) -> list[Subject]:
    kept = may_win(job, subjects)
    for name in (s.runtime.name for s in subjects if all(s is not k for k in kept)):
        job.progress.note(f"{name} does not race: its kernels are known to be too slow for this network")
    return kept


def _all_integer(job: Job, entrants: Sequence[Entrant]) -> bool:
    """Whether a runtime holds the budget with every block INT8: slower ones need not be cured, then."""
    return any(e.integer and allowed(job, e.decided) and not e.decided.float_blocks for e in entrants)


def _forms(job: Job, subject: Subject, last: bool, climbs: bool = True) -> tuple[Entrant, ...]:
    """What is decided for one runtime; nothing where it fails, unless it is the ``last`` one."""
    ask = job.waits_for_no_race and not job.by_weight and not _mixes(job, subject)
    try:
        mixed = _by_costs(job, subject)
        if not mixed and (exact := _exact_enough(job, subject)) is not subject:
            subject, mixed = exact, _by_costs(job, exact)
        if mixed and _conclusive(job, mixed[0]):
            return mixed
        if mixed == () and _settled(job, subject):
            return (in_floats(job, subject, _noise(job, subject)),)
        start = _refused(job, mixed[0]) if mixed else 0
        decided = decided_for(job, subject, ask=ask, start=start, climbs=climbs)
    except (BackendError, UnsupportedError, VerificationError) as e:
        if last:
            raise
        job.progress.warn(f"{subject.runtime.name} is left out: {e.message}")
        return ()
    untried = mixed is None or decided.subject.refinement != subject.refinement
    hopeless = not decided.integer and subject.runtime.sparsity_gain <= 1  # any one block in integers
    if not mixed and untried and not hopeless:
        mixed = _mixed(job, decided.subject, decided.decided.sqnr, decided.decided)
    return (decided, *(mixed or ()), *weights_alone(job, subject))


def _by_costs(job: Job, subject: Subject) -> tuple[Entrant, ...] | None:
    """The mixture that is fastest by the table, where the table alone chooses: it is tried before anything
    else, and nothing else where that cannot do better. Empty where none that would win anything holds the
    budget; None, and nothing tried, elsewhere and where limits may need something else."""
    alone = not job.races and job.request.objective == "latency" and job.request.budget.max_size_bytes is None
    if not alone or job.roles.calibration is None or not _mixes(job, subject):
        return None
    return _mixed(job, subject, _noise(job, subject))


def _settled(job: Job, subject: Subject) -> bool:
    """Whether floats it is where no mixture holds the budget: all that accuracy alone finds is slower."""
    climbs = ladder_for(job, subject) is not None
    return job.request.precision == "auto" and not climbs and integers_pay(job, subject)


def _exact_enough(job: Job, subject: Subject) -> Subject:
    """The subject with its floats in float32, where these alone miss the budget in a narrower type: no block
    that becomes float would ever help."""
    wide, judge = in_float32(subject), job.scores(subject, job.judge)
    if wide is None or judge is None or not chosen_freely(job, subject):
        return subject
    workdir = job.work / subject.runtime.name / "narrow"
    narrow = decide_float(subject, judge, None, job.allowance, workdir)
    if narrow.within_budget:
        return subject
    assert narrow.drop is not None
    lost = f"in {subject.runtime.around} they alone lose {narrow.drop.drop:.4f}"
    job.progress.note(f"{subject.runtime.name} computes floats in float32: {lost}")
    return reopened(subject, wide)


def _conclusive(job: Job, mixture: Entrant) -> bool:
    """Whether by the table nothing that accuracy alone would decide is faster than a mixture.

    That is all integers where the first mixture held the budget; where it did not, what harms more would
    hardly, and the noisiest block is float.
    """
    decided, subject = mixture.decided, mixture.subject
    if not decided.float_blocks:
        return True
    noisiest = min(subject.int8_blocks(), key=lambda block: decided.sqnr.get(block, math.inf))
    other = expected(job, subject, frozenset() if len(decided.trials) == 1 else frozenset([noisiest]))
    took = expected(job, subject, decided.float_blocks)
    return took is not None and other is not None and took.ms <= other.ms


def _refused(job: Job, mixture: Entrant) -> int:
    """How many blocks accuracy alone leaves float at least, by what was refused on the way to a mixture."""
    able, decided = set(mixture.subject.int8_blocks()), mixture.decided
    dense = (trial for trial in decided.trials if trial.drop is not None and not trial.sparse_blocks)
    over = [t.float_blocks for t in dense if t.drop is not None and not t.drop.within(job.allowance)]
    return float_at_least({b: db for b, db in decided.sqnr.items() if b in able}, over)


def _noise(job: Job, subject: Subject) -> Mapping[str, float]:
    """The noise of its blocks, found once."""
    calibration = job.roles.calibration
    assert calibration is not None
    if id(subject) not in job.noise:
        job.noise[id(subject)] = subject, block_noise(subject, calibration, job.request.threads)
    return job.noise[id(subject)][1]


def _mixes(job: Job, subject: Subject) -> bool:
    """Whether costs may choose a mixture: not where a precision or a lock was asked for. Without a race they
    must be those of such a device."""
    known = job.foresight.runtimes.get(subject.runtime.name)
    return known is not None and (job.races or known.alike) and chosen_freely(job, subject)


def _mixed(
    job: Job, subject: Subject, sqnr: Mapping[str, float], given: Decided | None = None
) -> tuple[Entrant, ...] | None:
    """The mixture to race with what accuracy alone decided (``given``), if there is one; None where costs
    cannot tell."""
    if not _mixes(job, subject):
        return None
    try:
        decided = decide_mixed(
            subject,
            job.foresight.runtimes[subject.runtime.name].costs,
            sqnr,
            judge=job.scores(subject, job.judge),
            max_drop=job.request.budget.max_drop,
            allowance=job.allowance,
            workdir=job.work / subject.runtime.name,
            progress=job.progress,
            given=given,
            sparse=_sparse(job, subject),
            enough=1.0 if job.races else _AS_GOOD,
            patience=job.patience(subject),
        )
    except (LookupError, UnknownSizeError, BackendError, VerificationError) as e:
        job.progress.note(f"{subject.runtime.name}: no mixture by cost: {e}")
        return None
    if decided is None:
        return ()
    return (Entrant(decided, mixed=bool(decided.float_blocks or decided.subject.refinement.sparse)),)


def _sparse(job: Job, subject: Subject) -> SparseWeights:
    """The 2:4 zeros that its blocks may have, found once; none where the runtime does not gain by them, or
    nothing tells what they cost."""
    if why := why_dense(subject):
        job.progress.note(why)
    calibration = job.roles.calibration
    if subject.runtime.sparsity_gain <= 1 or calibration is None or job.roles.random or job.judge is None:
        return NO_SPARSE_WEIGHTS
    if id(subject) not in job.sparse:
        request = job.request
        try:
            found = sparse_weights(
                subject, calibration, seed=request.seed, threads=request.threads, progress=job.progress
            )
        except (DataError, UnsupportedError) as e:
            job.progress.note(f"2:4 zeros are not chosen for {subject.runtime.name}: {e.message}")
            found = NO_SPARSE_WEIGHTS
        job.sparse[id(subject)] = subject, found
    return job.sparse[id(subject)][1]


def decided_for(job: Job, subject: Subject, *, ask: bool, start: int = 0, climbs: bool = True) -> Entrant:
    """What accuracy decides for a runtime, at least ``start`` blocks float; ``ask`` eval data, too. It
    ``climbs`` the accuracy ladder where that is needed."""
    decided = decide(
        subject,
        precision=job.request.precision,
        max_drop=job.request.budget.max_drop,
        allowance=job.allowance,
        calibration=job.roles.calibration,
        judge=job.scores(subject, job.judge),
        accept=job.scores(subject, job.accept) if ask else None,
        ladder=ladder_for(job, subject) if climbs else None,
        start=start,
        locked=None if job.lock is None else frozenset(job.lock.float_blocks),
        locked_rungs=() if job.lock is None else job.lock.rungs,
        locked_sparse=() if job.lock is None else job.lock.sparse_blocks,
        locked_wide=() if job.lock is None else job.lock.wide_blocks,
        why_float=why_float(job.lock),
        sqnr=job.noise[id(subject)][1] if id(subject) in job.noise else None,
        workdir=job.work / subject.runtime.name,
        seed=job.request.seed,
        threads=job.request.threads,
        progress=job.progress,
        patience=job.patience(subject),
    )
    if job.lock is not None:
        decided = replace(decided, choices=job.lock.choices)
    return Entrant(decided, accepted=ask)


def hold_race(job: Job, entrants: Sequence[Entrant]) -> Race:
    """Time them all, the baseline and where INT8 has to pay our float builds too; again where INT8 loses.

    A precision or a lock that was asked for is not overruled, nor is a model that came quantized. No times
    are taken where the clock does not choose.
    """
    if not job.races:
        return Race(tuple(entrants), _floats(job, entrants) if job.by_weight else ())
    entrants = each_at_its_best(job, entrants)
    floats = _floats(job, entrants)
    contenders = {
        GIVEN: job.given(),
        **{e.name: e.contender() for e in (*entrants, *floats)},
    }
    feeds = job.one_inference(entrants[0].decided.candidate.artifact)
    held = Race(tuple(entrants), floats, race(contenders, feeds))
    if loses(job, held):  # one session in a few is unlucky with its memory: who loses once may run again
        held = replace(held, times=race(contenders, feeds))
    return held


def _floats(job: Job, entrants: Sequence[Entrant]) -> tuple[Entrant, ...]:
    """Our float builds, where INT8 has to do better than these."""
    free = job.request.precision == "auto" and job.lock is None
    if not free or not any(e.integer and not e.subject.imported for e in entrants):
        return ()
    floats = tuple(_float_build(job, e) for e in entrants if e.first)
    if job.races:  # an entrant that is float throughout has its number of threads already
        floats = tuple(e for e in floats if any(e is one for one in entrants)) + each_at_its_best(
            job, [e for e in floats if all(e is not one for one in entrants)]
        )
    # In small kernels and depthwise ones a narrower type costs more than it wins on one CPU or another.
    return floats + tuple(under(e, wide) for e in floats if (wide := in_float32(e.subject)) is not None)


def _float_build(job: Job, entrant: Entrant) -> Entrant:
    """The same runtime without INT8. It is not scored: whether it may ship is asked when it wins."""
    if not entrant.integer:
        return entrant
    subject = next(s for s in job.subjects if s.runtime.name == entrant.runtime)
    everything = frozenset(block.id for block in subject.blocks)
    plain = build_candidate(subject, everything, job.work / subject.runtime.name / "plain")
    decided = Decided(subject, plain, frozenset(subject.int8_blocks()), None, True, (), entrant.decided.sqnr)
    return Entrant(decided)


def figures(job: Job, winner: Entrant, held: Race) -> Comparison:
    """The winner against the file as given: times of the race, and peak memory in a child process each, which
    takes longer than all else in a build without tuning; joules where these are the objective."""
    weighs = job.request.tune != "off" or job.request.objective == "memory"
    assert held.times is not None
    found = compare(
        (job.given(), held.times[GIVEN]),
        (winner.contender(), held.times[winner.name]),
        job.one_inference(winner.decided.candidate.artifact),
        scratch=job.work / "memory" if weighs else None,
    )
    return found.model_copy(update={"energy": energy_of(job, winner, held)})
