"""The accuracy ladder: cures of a quantized graph that misses its budget, the cheapest first.

    ranges     the observer of each tensor by the error of what reads it     (observers.py)
    equalize   scales moved between layers, high biases absorbed             (equalize.py, absorb.py)
    smooth     outlying channels moved into the weights of products          (smooth.py)
    correct    biases corrected layer by layer                               (correct.py)
    split      values that share a scale and should not                      (split.py)
    round      weights rounded to what they do, not to the nearest           (train/round.py)
    train      quantization-aware training                                   (train/qat.py)

Every block that can be is INT8 while climbing. A rung is kept if the noise at the network's outputs falls by
half a decibel over the calibration samples, whatever its places won by themselves. Behind the ladder stands
mixed precision: activations of 16 bits (`widen.py`), and blocks that go back to float (`choose.py`,
`mix.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from deploy.data.dataset import Dataset
from deploy.data.interval import Drop
from deploy.errors import DeployError
from deploy.frontend.onnx_file import digest
from deploy.graph.blocks import partition
from deploy.progress import SILENT, Progress
from deploy.quantize import correct, equalize, observers, smooth, split
from deploy.quantize.assign import Assignment
from deploy.quantize.calibrate import calibrate
from deploy.quantize.candidate import Subject
from deploy.quantize.correct import Corrected
from deploy.quantize.noise import network_noise
from deploy.quantize.patience import Patience
from deploy.quantize.place import find_chains, observed_values
from deploy.quantize.refine import remembered
from deploy.quantize.retrain import PLANNED, Retraining, retrained, rounded
from deploy.spec.ladder import RungName, RungRecord
from deploy.spec.profile import QuantRules
from deploy.spec.tensors import Precision

NO_TIME = "the time for choosing was over"
"""Why a rung was not begun."""
_KEPT = 0.9
"""What a rung must leave of the noise at the outputs at most: half a decibel."""
_FEW, _MANY = 8, 64
"""Samples for what runs many candidates, and for statistics of channels."""


@dataclass(frozen=True)
class Ladder:
    """What rungs work with: ``rungs`` in their order, the calibration ``dataset`` and how many samples of it,
    and what training needs where it is among the rungs. Without ``patience`` left no rung is begun."""

    rungs: tuple[RungName, ...]
    dataset: Dataset
    samples: int
    threads: int = 1
    training: Retraining = PLANNED
    progress: Progress = SILENT
    patience: Patience = field(default_factory=Patience)

    def above(self, climbed: Sequence[RungName]) -> Ladder:
        """The ladder without the rungs that were tried before."""
        return replace(self, rungs=tuple(name for name in self.rungs if name not in climbed))


@dataclass(frozen=True)
class Found:
    """What a rung made of a subject: ``places`` changed, or ``why`` none."""

    subject: Subject
    places: int
    why: str = ""


@dataclass(frozen=True)
class Stand:
    """How far the climb is: the subject as it is kept, and what the rung tried last won and cost."""

    subject: Subject
    record: RungRecord


def climb(
    ladder: Ladder, subject: Subject, refused: Callable[[Subject], str] | None = None
) -> Iterator[Stand]:
    """Rung by rung; a rung that fails or wins nothing leaves the subject as it is, and so does one of which
    ``refused`` says why.

    The float graph of ``subject`` is what all of them are compared with.
    """
    exact, noise = subject.graph, math.nan

    def lost(one: Subject) -> float:
        return network_noise(one, exact, ladder.dataset, samples=ladder.samples, threads=ladder.threads)

    ladder.patience.begin()
    for name in ladder.rungs:
        begun = time.monotonic()
        record = RungRecord(runtime=subject.runtime.name, name=name, kept=False)
        if ladder.patience.over():
            yield Stand(subject, record.model_copy(update={"why": NO_TIME}))
            continue
        try:
            found = _RUNGS[name](ladder, subject)
            if found.places:
                noise = lost(subject) if math.isnan(noise) else noise
                after = lost(found.subject)
                gain = 10 * math.log10(noise / after) if noise > 0 and after > 0 else 0.0
                higher = _with_name(found.subject, name)
                won = after < _KEPT * noise
                why = refused(higher) if won and refused is not None else ""
                kept = won and not why
                record = record.model_copy(
                    update={"kept": kept, "places": found.places, "gain_db": round(gain, 2), "why": why}
                )
                if kept:
                    subject, noise = higher, after
            else:
                record = record.model_copy(update={"why": found.why or "there is nothing that it could mend"})
        except DeployError as e:  # one rung less: what went wrong stands in the report
            record = record.model_copy(update={"why": f"it failed: {e.message}"})
        seconds = round(time.monotonic() - begun, 3)
        yield Stand(subject, record.model_copy(update={"seconds": seconds}))


def climb_again(ladder: Ladder, subject: Subject, names: Sequence[RungName]) -> Subject:
    """The subject with exactly these rungs, as an earlier build kept them. Raises what they raise."""
    for name in names:
        subject = _with_name(_RUNGS[name](ladder, subject).subject, name)
    return subject


def climb_until(
    ladder: Ladder, subject: Subject, score: Callable[[Subject], Drop], max_drop: float
) -> tuple[Subject, tuple[RungRecord, ...]]:
    """As far up as is needed for ``score``, of every block INT8, to be within ``max_drop``. A rung by which
    the score gets worse by more than chance is left out: outputs may lose less as a whole, and more where it
    matters."""
    drop = score(subject)
    records: list[RungRecord] = []
    if drop.within(max_drop):
        return subject, ()

    def refused(higher: Subject) -> str:
        nonlocal drop
        found = score(higher)
        if found.low > drop.drop:
            return f"the score is worse by it, drop {found.drop:+.4f}"
        drop = found
        return ""

    for stand in climb(ladder, subject, refused):
        record, subject = stand.record, stand.subject
        if record.kept:
            record = record.model_copy(update={"drop": drop.drop})
            ladder.progress.note(
                f"{record.runtime}: {record.name} wins {record.gain_db:.1f} dB, drop {drop.drop:+.4f}"
            )
        records.append(record)
        if drop.within(max_drop):
            break
    return subject, tuple(records)


def _with_name(subject: Subject, name: RungName) -> Subject:
    refinement = subject.refinement
    return replace(subject, refinement=replace(refinement, rungs=(*refinement.rungs, name)))


def _rules(subject: Subject) -> QuantRules:
    assert subject.runtime.quant is not None
    return subject.runtime.quant


def _ranges(ladder: Ladder, subject: Subject) -> Found:
    rung = observers.apply(
        subject.graph,
        subject.placement(()),
        subject.histograms,
        _rules(subject),
        ladder.dataset,
        observer=subject.observer,
        samples=_FEW,
        threads=ladder.threads,
    )
    refinement = replace(subject.refinement, ranges=rung.result)
    return Found(replace(subject, refinement=refinement), len(rung.steps))


def _equalize(ladder: Ladder, subject: Subject) -> Found:
    rung = equalize.apply(
        subject.graph,
        subject.placement(()),
        _rules(subject),
        ladder.dataset,
        observer=subject.observer,
        samples=ladder.samples,
        threads=ladder.threads,
    )
    return _regraphed(ladder, subject, rung.result, rung.changed, len(rung.steps))


def _smooth(ladder: Ladder, subject: Subject) -> Found:
    rung = smooth.apply(
        subject.graph,
        subject.placement(()),
        _rules(subject),
        ladder.dataset,
        observer=subject.observer,
        samples=_MANY,
        threads=ladder.threads,
    )
    return _regraphed(ladder, subject, rung.result, rung.changed, len(rung.steps))


def _regraphed(ladder: Ladder, subject: Subject, graph: ir.Model, changed: bool, places: int) -> Found:
    """The subject with another graph that computes the same, its ranges found anew."""
    if not changed:
        return Found(subject, 0)
    blocks = partition(graph)
    chains = find_chains(graph, blocks, subject.runtime)
    values = observed_values(graph, chains, subject.runtime)
    histograms = calibrate(graph, ladder.dataset, values, samples=ladder.samples, threads=ladder.threads)
    again = replace(
        subject,
        graph=graph,
        graph_sha256=digest(graph),
        blocks=blocks,
        chains=chains,
        histograms=histograms,
        refinement=replace(subject.refinement, ranges={}),
    )
    return Found(_ranges(ladder, again).subject if subject.refinement.ranges else again, places)


def _correct(ladder: Ladder, subject: Subject) -> Found:
    found: list[int] = []

    def correction(assignment: Assignment) -> Corrected:
        rung = correct.apply(
            subject.graph,
            assignment,
            _rules(subject),
            ladder.dataset,
            samples=ladder.samples,
            threads=ladder.threads,
        )
        found.append(sum(step.gain != 0 for step in rung.steps))
        return rung.result

    kept = remembered(correction)
    kept(subject.assignment(()))
    return Found(replace(subject, refinement=replace(subject.refinement, correction=kept)), found[0])


def _split(ladder: Ladder, subject: Subject) -> Found:
    precision: dict[str, Precision] = dict.fromkeys(
        (block.id for block in subject.blocks), subject.integer_precision
    )
    rung = split.apply(
        subject.graph,
        subject.blocks,
        precision,
        subject.chains,
        subject.runtime,
        subject.histograms,
        ladder.dataset,
        observer=subject.observer,
        samples=_MANY,
        threads=ladder.threads,
        excluded=subject.kept_float,
    )
    apart = subject.refinement.apart | rung.result
    return Found(replace(subject, refinement=replace(subject.refinement, apart=apart)), len(rung.result))


def _round(ladder: Ladder, subject: Subject) -> Found:
    plain = subject.assignment(())
    found = rounded(subject.graph, subject.blocks, plain, _rules(subject), ladder.dataset, ladder.training)
    return Found(replace(subject, refinement=replace(subject.refinement, rounded=found.result)), found.places)


def _train(ladder: Ladder, subject: Subject) -> Found:
    begin = subject.quantization(())
    found = retrained(begin.graph, begin.assignment, _rules(subject), ladder.dataset, ladder.training)
    if found.result is None:
        return Found(subject, 0, found.why)
    refinement = replace(
        subject.refinement, trained=found.result.assignment, correction=None, rounded=None, ranges={}
    )
    graph = found.result.graph
    return Found(
        replace(subject, graph=graph, graph_sha256=digest(graph), refinement=refinement), found.places
    )


_RUNGS: dict[RungName, Callable[[Ladder, Subject], Found]] = {
    "ranges": _ranges,
    "equalize": _equalize,
    "smooth": _smooth,
    "correct": _correct,
    "split": _split,
    "round": _round,
    "train": _train,
}
