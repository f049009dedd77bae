"""A bundle in words and as JSON: the verdict first, then what was won and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deploy.bundle.report.ablation import HEADER, RIGHT, ablation
from deploy.bundle.report.content import cleaned
from deploy.bundle.report.front import rows as points
from deploy.bundle.report.origin import File, origin
from deploy.bundle.report.summary import Fact, Row, context, reasons, rows
from deploy.cli.terminal import Cell, write_facts, write_line, write_table

if TYPE_CHECKING:
    from deploy.bundle.read import Bundle
    from deploy.spec.measurement import Latency

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
        "verdict": {"status": manifest.verdict.status, "reasons": list(reasons(bundle))},
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
        "memory_bytes": dict(manifest.artifact.memory_bytes) or None,
        "latency_ms": None,
        "peak_memory_bytes": None,
        "energy": None,
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
        if comparison.energy is not None:
            found["energy"] = comparison.energy.model_dump(mode="json")
    found["compression"] = (
        None if measured.compression is None else measured.compression.model_dump(mode="json")
    )
    rebuilt = {"precision", "float_blocks", "rungs", "sparse_blocks", "wide_blocks", "mixed"}
    found["front"] = [point.model_dump(mode="json", exclude=rebuilt) for point in measured.front]
    found["stages"] = [{"name": s.name, "seconds": s.seconds, "cached": s.cached} for s in measured.stages]
    return found


def show_result(bundle: Bundle, more: Sequence[Fact] = ()) -> None:
    """The result of a build: the verdict, float against artifact, what that rests on, and ``more``."""
    manifest = bundle.manifest
    write_line(
        _VERDICTS[manifest.verdict.status],
        "  ",
        (cleaned(manifest.target), "strong"),
        (f"  {bundle.folder}", "quiet"),
    )
    for reason in cleaned(reasons(bundle)):
        write_line(f"  {reason}")
    write_line()
    write_rows(cleaned(rows(bundle)))
    write_line()
    write_all([*cleaned(context(bundle)), *more])
    show_ablation(bundle)
    if len(bundle.measurements.front) > 1:
        write_line()
        _write_points(bundle)


def show_ablation(bundle: Bundle) -> None:
    """What each step of the recipe won and cost; nothing where there was none."""
    found = cleaned(ablation(bundle.measurements.compression, bundle.manifest.recipe.notes))
    if not found.rows and not found.notes:
        return
    write_line()
    if found.rows:
        lines: list[list[Cell]] = [
            [
                (row.name, "" if row.kept else "quiet"),
                *row.cells[1:-2],
                (row.outcome, "" if row.kept else "bad"),
            ]
            for row in found.rows
        ]
        write_table((*HEADER[:-2], HEADER[-1]), lines, right=tuple(RIGHT)[:-1])
    for text in found.legend:
        write_line((f"  {text}", "quiet"))


def _write_points(bundle: Bundle) -> None:
    """What could be had instead."""
    scores = bundle.manifest.evaluation
    lines: list[list[Cell]] = [
        [
            *(point.number, (point.name, "strong" if point.chosen else ""), point.runtime),
            *(point.score, point.drop, point.size, point.latency),
            ("chosen", "good") if point.chosen else (f"--pick {point.number}", "quiet"),
        ]
        for point in cleaned(points(bundle.measurements.front, "" if scores is None else scores.unit))
    ]
    header = ("point", "form", "runtime", "score", "change", "file", "p50", "")
    write_table(header, lines, right=(3, 4, 5, 6))


def write_rows(found: Sequence[Row]) -> None:
    """Float against artifact."""
    lines: list[list[Cell]] = [[row.name, row.before, row.after, (row.change, row.kind)] for row in found]
    write_table(("", "float", "artifact", ""), lines, right=(1, 2))


def write_all(facts: Sequence[Fact]) -> None:
    """Names and values in two columns."""
    write_facts([(fact.name, (fact.value, fact.kind)) for fact in facts])


def show_contents(bundle: Bundle) -> None:
    """What a bundle holds: the result of its build, and the files with their sizes."""
    manifest = bundle.manifest
    found = cleaned(origin(bundle))
    facts = [*found.facts, Fact("made with", ", ".join(f"{f.name} {f.value}" for f in found.toolchain))]
    facts += [Fact("digest", found.digest)]
    facts += [Fact("input", cleaned(str(spec))) for spec in manifest.artifact.inputs]
    facts += [Fact("output", cleaned(str(spec))) for spec in manifest.artifact.outputs]
    show_result(bundle, facts)
    write_line()
    write_files(found.files)


def write_files(files: Sequence[File]) -> None:
    """The files that a manifest vouches for."""
    lines: list[list[Cell]] = [
        [file.name, file.size or ("missing", "bad"), (file.sha256[:16], "quiet")] for file in files
    ]
    write_table(("file", "size", "SHA-256"), lines, right=(1,))


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
