"""A bundle in words and as JSON: the verdict first, then what was won and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploy.bundle.report import figures
from deploy.cli.terminal import Cell, write_facts, write_line, write_table

if TYPE_CHECKING:
    from deploy.bundle.read import Bundle
    from deploy.spec.manifest import Evaluation, Manifest
    from deploy.spec.measurement import Comparison, Latency

_VERDICTS: dict[str, Cell] = {
    "met": ("✓ met", "good"),
    "missed": ("✗ missed", "bad"),
    "float": ("• float", "middling"),
}


def as_json(bundle: Bundle) -> dict[str, object]:
    """The object ``deploy build --json`` writes for one target. ``why`` says why nothing was measured."""
    manifest, measured = bundle.manifest, bundle.measurements
    sizes, scores, comparison = manifest.size_bytes, manifest.evaluation, measured.comparison
    found: dict[str, object] = {
        "target": manifest.target,
        "backend": manifest.artifact.backend,
        "bundle": str(bundle.folder),
        "verdict": {"status": manifest.verdict.status, "reasons": list(manifest.verdict.reasons)},
        "metric": None
        if scores is None
        else {
            "name": scores.metric,
            "baseline": scores.baseline,
            "artifact": scores.artifact,
            "drop": scores.drop,
            "interval": list(scores.interval),
        },
        "size_bytes": {
            "baseline": sizes.baseline,
            "artifact": sizes.artifact,
            "weights": sizes.weights,
            "baseline_weights": sizes.baseline_weights,
            "ratio": sizes.baseline / sizes.artifact,
        },
        "latency_ms": None,
        "peak_memory_bytes": None,
    }
    if comparison is None:
        found["why"] = measured.why_not
    else:
        baseline, artifact = comparison.baseline, comparison.artifact
        found["latency_ms"] = {
            "baseline": _percentiles(baseline.latency_ms),
            "artifact": _percentiles(artifact.latency_ms),
            "speedup": comparison.speedup,
        }
        found["peak_memory_bytes"] = {
            "baseline": baseline.peak_memory_bytes,
            "artifact": artifact.peak_memory_bytes,
        }
    found["stages"] = [{"name": s.name, "seconds": s.seconds, "cached": s.cached} for s in measured.stages]
    return found


def show_result(bundle: Bundle, more: Sequence[tuple[str, Cell]] = ()) -> None:
    """The result of a build: the verdict, float against artifact, what that rests on, and ``more``."""
    manifest, comparison = bundle.manifest, bundle.measurements.comparison
    write_line(
        _VERDICTS[manifest.verdict.status], "  ", (manifest.target, "strong"), (f"  {bundle.folder}", "quiet")
    )
    for reason in manifest.verdict.reasons:
        write_line(f"  {reason}")
    write_line()
    rows = _score_rows(manifest.evaluation) + _latency_rows(comparison)
    rows += _size_rows(manifest) + _memory_rows(comparison)
    write_table(("", "float", "artifact", ""), rows, right=(1, 2))
    write_line()
    write_facts([*_context(bundle), *more])


def _score_rows(scores: Evaluation | None) -> list[list[Cell]]:
    if scores is None:
        return []
    unit = scores.unit
    low, high = (figures.difference(end, unit) for end in scores.interval)
    kind = "" if scores.drop > 0 else "good"
    lost = "lost" if scores.drop > 0 else "gained"
    change = "unchanged" if scores.drop == 0 else f"{figures.difference(abs(scores.drop), unit)} {lost}"
    if any(scores.interval):
        change += f" (95 %: {low.removesuffix(' points')} to {high})"
    return [
        [
            scores.metric,
            figures.score(scores.baseline, unit),
            figures.score(scores.artifact, unit),
            (change, kind),
        ]
    ]


def _latency_rows(comparison: Comparison | None) -> list[list[Cell]]:
    if comparison is None:
        return []
    before, after = comparison.baseline.latency_ms, comparison.artifact.latency_ms
    low, high = comparison.interval
    ratio = comparison.speedup
    faster = f"{figures.times(ratio)} faster" if ratio >= 1 else f"{figures.times(1 / ratio)} slower"
    return [
        [
            "latency p50",
            figures.milliseconds(before.p50),
            figures.milliseconds(after.p50),
            (f"{faster} (95 %: {low:.2f} to {high:.2f})", "good" if ratio > 1 else ""),
        ],
        ["latency p95", figures.milliseconds(before.p95), figures.milliseconds(after.p95), ""],
        ["latency p99", figures.milliseconds(before.p99), figures.milliseconds(after.p99), ""],
    ]


def _size_rows(manifest: Manifest) -> list[list[Cell]]:
    sizes = manifest.size_bytes
    return [
        _smaller("file", sizes.baseline, sizes.artifact),
        _smaller("weights", sizes.baseline_weights, sizes.weights),
    ]


def _memory_rows(comparison: Comparison | None) -> list[list[Cell]]:
    if comparison is None:
        return []
    before, after = comparison.baseline.peak_memory_bytes, comparison.artifact.peak_memory_bytes
    return [] if before is None or after is None else [_smaller("peak memory", before, after)]


def _smaller(name: str, before: int, after: int) -> list[Cell]:
    ratio = before / after if after else 1.0
    change: Cell = ""
    if ratio >= 1.005:
        change = (f"{figures.times(ratio)} smaller", "good")
    elif ratio <= 0.995:
        change = f"{figures.times(1 / ratio)} larger"
    return [name, figures.size(before), figures.size(after), change]


def _context(bundle: Bundle) -> list[tuple[str, Cell]]:
    """What the figures rest on."""
    manifest, measured = bundle.manifest, bundle.measurements
    counts = [figures.plural(n, f"{p} block") for p, n in manifest.precision.items() if n]
    facts: list[tuple[str, Cell]] = [("precision", ", ".join(counts) or "no blocks")]
    if manifest.calibration is not None:
        noise = " of random noise" if manifest.calibration.random else ""
        facts.append((
            "calibrated on",
            f"{figures.plural(manifest.calibration.samples, 'sample')}{noise}, "
            f"{manifest.calibration.observer} ranges",
        ))  # fmt: skip
    if manifest.evaluation is not None:
        scores = manifest.evaluation
        facts.append((
            "judged on",
            f"{figures.plural(scores.samples, 'sample')} of {scores.role} data, "
            f"looked at {'once' if scores.looks == 1 else f'{scores.looks} times'}",
        ))  # fmt: skip
    if measured.comparison is not None:
        where = measured.comparison.artifact.conditions
        facts.append((
            "measured on",
            f"{where.device}, {figures.plural(where.threads, 'thread')}, batch {where.batch}, "
            "in turn with float",
        ))  # fmt: skip
    elif measured.why_not:
        facts.append(("not measured", measured.why_not))
    proof = manifest.verification
    if proof.passed:
        facts.append((
            "verified",
            f"by {proof.executed_by} on {figures.plural(proof.samples, 'sample')}: "
            f"error {proof.error:.2g}, {proof.tolerance:.2g} allowed",
        ))  # fmt: skip
    else:
        facts.append(("not verified", (proof.first_divergence or f"error {proof.error:.2g}", "bad")))
    if manifest.deferred:
        facts.append(("deferred", f"finished on the device: {', '.join(manifest.artifact.files)}"))
    return facts


def show_contents(bundle: Bundle) -> None:
    """What a bundle holds: the result of its build, and the files with their sizes."""
    manifest = bundle.manifest
    source = manifest.source
    macs = "" if source.macs is None else f", {figures.count(source.macs)} MACs"
    facts: list[tuple[str, Cell]] = [
        ("runtime", f"{manifest.runtime}, as {manifest.profile}"),
        ("made with", ", ".join(f"{name} {number}" for name, number in manifest.toolchain.items())),
        ("from", f"{source.name}: opset {source.opset}, {figures.count(source.parameters)} parameters{macs}"),
        ("digest", bundle.digest),
    ]
    facts += [("input", str(spec)) for spec in manifest.artifact.inputs]
    facts += [("output", str(spec)) for spec in manifest.artifact.outputs]
    show_result(bundle, facts)
    write_line()
    rows: list[list[Cell]] = []
    for name, sha256 in sorted(manifest.files.items()):
        path = bundle.folder / name
        held: Cell = figures.size(path.stat().st_size) if path.is_file() else ("missing", "bad")
        rows.append([name, held, (sha256[:16], "quiet")])
    write_table(("file", "size", "SHA-256"), rows, right=(1,))


def contents_json(bundle: Bundle) -> dict[str, object]:
    """Manifest and measurements as they lie on disk, with the digest."""
    return {
        "bundle": str(bundle.folder),
        "digest": bundle.digest,
        "manifest": bundle.manifest.model_dump(mode="json", by_alias=True),
        "measurements": bundle.measurements.model_dump(mode="json", by_alias=True),
    }


def _percentiles(latency: Latency) -> dict[str, float]:
    return {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99}
