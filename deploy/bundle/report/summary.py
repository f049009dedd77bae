"""The result of a build in one sentence, as float against artifact, and what that rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploy.bundle.read import Bundle
from deploy.bundle.report import figures
from deploy.bundle.report.units import staying
from deploy.spec.manifest import Evaluation, Manifest
from deploy.spec.measurement import Comparison

Kind = Literal["", "good", "bad"]


@dataclass(frozen=True)
class Row:
    """One figure of the float model and of the artifact, and how it changed."""

    name: str
    before: str
    after: str
    change: str = ""
    kind: Kind = ""


@dataclass(frozen=True)
class Fact:
    """A name and what is to be said of it."""

    name: str
    value: str
    kind: Kind = ""


_OPENINGS = {"met": "Met", "missed": "Missed", "float": "Float"}


def sentence(bundle: Bundle) -> str:
    """The verdict with the numbers: ``Met: top1 90.40 %, 0.10 points below float; 4.03 × faster; ...``"""
    manifest, comparison = bundle.manifest, bundle.measurements.comparison
    parts = [_score(manifest.evaluation)]
    if comparison is not None:
        parts.append(_faster(comparison.speedup))
    parts.append(_resized(manifest.size_bytes.baseline, manifest.size_bytes.artifact, "the same size"))
    if comparison is None:
        parts.append("not timed here")
    return f"{_OPENINGS[manifest.verdict.status]}: {'; '.join(parts)}."


def _score(scores: Evaluation | None) -> str:
    if scores is None:
        return "not scored, for want of data"
    value, distance = (
        figures.score(scores.artifact, scores.unit),
        figures.difference(abs(scores.drop), scores.unit),
    )
    if scores.drop == 0:
        return f"{scores.metric} {value}, as the float model"
    return f"{scores.metric} {value}, {distance} {'worse' if scores.drop > 0 else 'better'} than float"


def reasons(bundle: Bundle) -> tuple[str, ...]:
    """The verdict's reasons, with the figures that a manifest leaves to the measurements."""
    known = bundle.measurements.missed
    return tuple(known.get(reason, reason) for reason in bundle.manifest.verdict.reasons)


def rows(bundle: Bundle) -> tuple[Row, ...]:
    """Float against artifact: metric, latency, file, weights, peak memory and energy, as far as they are
    known."""
    manifest, comparison = bundle.manifest, bundle.measurements.comparison
    sizes = manifest.size_bytes
    return (
        *_score_rows(manifest.evaluation),
        *_latency_rows(comparison),
        _size_row("file", sizes.baseline, sizes.artifact),
        _size_row("weights", sizes.baseline_weights, sizes.weights),
        *_memory_rows(comparison),
        *_energy_rows(comparison),
    )


def _score_rows(scores: Evaluation | None) -> list[Row]:
    if scores is None:
        return []
    unit = scores.unit
    lost = "lost" if scores.drop > 0 else "gained"
    change = "unchanged" if scores.drop == 0 else f"{figures.difference(abs(scores.drop), unit)} {lost}"
    if any(scores.interval):
        ends = scores.interval if scores.drop >= 0 else tuple(0.0 - e for e in reversed(scores.interval))
        low, high = (figures.difference(end, unit) for end in ends)
        change += f" (95 %: {low.removesuffix(' points')} to {high})"
    before, after = (figures.score(value, unit) for value in (scores.baseline, scores.artifact))
    return [Row(scores.metric, before, after, change, "" if scores.drop > 0 else "good")]


def _latency_rows(comparison: Comparison | None) -> list[Row]:
    if comparison is None:
        return []
    before, after = comparison.baseline.latency_ms, comparison.artifact.latency_ms
    low, high = comparison.interval
    ratio = comparison.speedup
    change = f"{_faster(ratio)} (95 %: {low:.2f} to {high:.2f})"
    ms = figures.milliseconds
    return [
        Row("latency p50", ms(before.p50), ms(after.p50), change, "good" if ratio > 1 else ""),
        Row("latency p95", ms(before.p95), ms(after.p95)),
        Row("latency p99", ms(before.p99), ms(after.p99)),
    ]


def _memory_rows(comparison: Comparison | None) -> list[Row]:
    if comparison is None:
        return []
    before, after = comparison.baseline.peak_memory_bytes, comparison.artifact.peak_memory_bytes
    return [] if before is None or after is None else [_size_row("peak memory", before, after)]


def _energy_rows(comparison: Comparison | None) -> list[Row]:
    if comparison is None or comparison.energy is None:
        return []
    used = comparison.energy
    ratio, (low, high) = used.saving, used.interval
    change = f"{figures.times(ratio)} less" if ratio >= 1 else f"{figures.times(1 / ratio)} more"
    if 1 / _VISIBLE < ratio < _VISIBLE:
        change = "as much"
    change += f" (95 %: {low:.2f} to {high:.2f})"
    before, after = figures.joules(used.baseline), figures.joules(used.artifact)
    return [Row("energy", before, after, change, "good" if low > 1 else "")]


def energy_note(comparison: Comparison | None) -> str:
    """What the joules are made of; empty where there are none."""
    if comparison is None or comparison.energy is None:
        return ""
    return (
        f"one inference, by {', '.join(comparison.energy.counters)}: all that these use, idle power included"
    )


def _size_row(name: str, before: int, after: int) -> Row:
    kind: Kind = "good" if after and before / after >= _VISIBLE else ""
    return Row(name, figures.size(before), figures.size(after), _resized(before, after, ""), kind)


_VISIBLE = 1.005
"""Ratios nearer to 1 than this read as 1.00."""


def _faster(ratio: float) -> str:
    if 1 / _VISIBLE < ratio < _VISIBLE:
        return "as fast"
    return f"{figures.times(ratio)} faster" if ratio >= 1 else f"{figures.times(1 / ratio)} slower"


def _resized(before: int, after: int, same: str) -> str:
    ratio = before / after if after and before else 1.0
    if ratio >= _VISIBLE:
        return f"{figures.times(ratio)} smaller"
    return f"{figures.times(1 / ratio)} larger" if ratio <= 1 / _VISIBLE else same


def context(bundle: Bundle) -> tuple[Fact, ...]:
    """What the figures rest on: precision, data, machine, proof."""
    manifest, measured = bundle.manifest, bundle.measurements
    facts = [Fact("precision", precisions(manifest))]
    if manifest.calibration is not None:
        samples = figures.plural(manifest.calibration.samples, "sample")
        noise = " of random noise" if manifest.calibration.random else ""
        facts.append(Fact("calibrated on", f"{samples}{noise}, {manifest.calibration.observer} ranges"))
    if manifest.evaluation is not None:
        scores = manifest.evaluation
        looks = "once" if scores.looks == 1 else f"{scores.looks} times"
        samples = figures.plural(scores.samples, "sample")
        facts.append(Fact("judged on", f"{samples} of {scores.role} data, looked at {looks}"))
    taken = manifest.artifact.memory_bytes
    if "arena" in taken:
        flash = f"{taken['flash']:,} bytes of flash, " if "flash" in taken else ""
        facts.append(Fact("takes", f"{flash}{taken['arena']:,} bytes of memory as arena, by estimate"))
    if measured.comparison is not None:
        where = measured.comparison.artifact.conditions
        threads = figures.plural(where.threads, "thread")
        float_ = measured.comparison.baseline.conditions.threads
        other = "" if float_ == where.threads else f" with {figures.plural(float_, 'thread')}"
        facts.append(
            Fact("measured on", f"{where.device}, {threads}, batch {where.batch}, in turn with float{other}")
        )
        note = energy_note(measured.comparison)
        facts += [Fact("energy of", note)] if note else []
    elif measured.why_not:
        facts.append(Fact("not measured", measured.why_not))
    facts += [Fact("in doubt", doubt) for doubt in measured.doubts]
    facts += [Fact(f"on the {told.unit}", staying(told)) for told in manifest.residency]
    proof = manifest.verification
    if proof.passed:
        samples = figures.plural(proof.samples, "sample")
        allowed = f"error {proof.error:.2g}, {proof.tolerance:.2g} allowed"
        if proof.operations:
            allowed = (
                f"each of {proof.operations} operations right by itself, the whole off by {proof.error:.2g}"
            )
        also = f"; also {'; '.join(proof.beyond)}" if proof.beyond else ""
        facts.append(Fact("verified", f"by {proof.executed_by} on {samples}: {allowed}{also}"))
        if proof.skipped:
            facts.append(Fact("not run", f"{'; '.join(proof.skipped)}: too large for a check"))
    else:
        facts.append(Fact("not verified", proof.first_divergence or f"error {proof.error:.2g}", "bad"))
    if (zeros := proof.sparsity) is not None:
        told = (
            f"{zeros.proved} of {figures.plural(zeros.products, 'product')}, by their {zeros.by} in the file"
        )
        facts.append(
            Fact(
                "2:4 sparse",
                "; ".join((told, *zeros.broken)),
                "bad" if zeros.broken and zeros.by == "weights" else "",
            )
        )
    if stored := manifest.artifact.stored:
        forms = (f"{figures.plural(count, 'weight')} {form}" for form, count in stored.items())
        facts.append(Fact("stored smaller", ", ".join(forms)))
    if manifest.deferred:
        facts.append(Fact("deferred", f"finished on the device: {', '.join(manifest.artifact.files)}"))
    return tuple(facts)


def precisions(manifest: Manifest) -> str:
    """``1 float block, 21 int8 blocks``"""
    counts = [figures.plural(n, f"{p} block") for p, n in manifest.precision.items() if n]
    return ", ".join(counts) or "no blocks"
