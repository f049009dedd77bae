"""The tables of peers.py: who is within a point, who is the fastest of them, and geometric means."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

POINT = 0.01
BASELINE = "ONNX Runtime float"


@dataclass
class Entrant:
    """A tool's file. ``kind`` is what it is opened with: ort, openvino, tflite or bundle.

    ``threads``: that it runs with. ``seconds``: of the whole process that made it, ``processor_seconds`` what
    it took of the processors. ``said``: what there is to know of it. ``right``: of every sample whether it
    was. ``speed``: in multiples of the float file's in ONNX Runtime. ``slower_than_ours``: its time in
    multiples of ours, with the ends of the 95 % interval.
    """

    name: str
    kind: str
    path: str
    settings: dict[str, str] = field(default_factory=dict)
    failed: str = ""
    said: str = ""
    threads: int = 1
    seconds: float = 0.0
    processor_seconds: float = 0.0
    right: list[bool] = field(default_factory=list)
    p50_ms: float = math.nan
    spread: float = math.nan
    speed: float = math.nan
    slower_than_ours: tuple[float, float, float] = (math.nan, math.nan, math.nan)


@dataclass
class Result:
    """Everything of one case with one number of threads, or where that is left to us."""

    case: str
    threads: str
    entrants: list[Entrant]

    def one(self, name: str) -> Entrant:
        return next(e for e in self.entrants if e.name == name)

    def drop(self, entrant: Entrant) -> tuple[float, float, float]:
        """Against the float file in ONNX Runtime, with the paired bootstrap's 95 % interval."""
        difference = np.array(self.one(BASELINE).right, float) - np.array(entrant.right, float)
        picked = np.random.default_rng(0).integers(len(difference), size=(1000, len(difference)))
        low, high = np.percentile(difference[picked].mean(axis=1), [2.5, 97.5])
        return float(difference.mean()), float(low), float(high)

    @property
    def most(self) -> int:
        """The greatest number of threads."""
        return max(e.threads for e in self.entrants)

    def best(self, ours: str, kinds: Sequence[str], least: int = 1) -> Entrant:
        """The fastest of the others of these kinds that lose no more than a point, with so many threads."""
        others = [e for e in self.entrants if e.name != ours and e.kind in kinds and not e.failed]
        within = [e for e in others if e.threads >= least and self.drop(e)[0] <= POINT + 1e-9]
        return min(within, key=lambda e: e.slower_than_ours[0])


HEADER = """\
| case | tool | ms | times float speed | our speed / its [95 %] | drop, points [95 %] \
| made in, s (of processors) | |
|---|---|---|---|---|---|---|---|"""


def rows(result: Result, ours: str) -> Iterator[str]:
    for e in result.entrants:
        if e.failed:
            yield f"| {result.case} | {e.name} | fails | | | | {_made(e)} | {e.failed.replace('|', '/')} |"
            continue
        drop, *ends = (100 * x for x in result.drop(e))
        middle, low, high = e.slower_than_ours
        against = "" if e.name == ours else f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        yield (
            f"| {result.case} | {e.name} | {e.p50_ms:.4f} | {e.speed:.2f} | {against} "
            f"| {drop:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}] | {_made(e)} | {e.said} |"
        )


def _made(e: Entrant) -> str:
    return f"{e.seconds:.1f} ({e.processor_seconds:.1f})" if e.seconds else ""


GROUPS = {
    "ONNX Runtime or OpenVINO peer": ("ort", "openvino"),
    "of all peers": ("ort", "openvino", "tflite"),
}


def summary(results: Sequence[Result], ours: str) -> list[str]:
    """The table, then per case the best of the others, then geometric means."""
    if not results:
        return []
    lines = ["", f"## Threads: {results[0].threads}", "", HEADER]
    for result in results:
        lines += rows(result, ours)
    done = [result for result in results if not result.one(ours).failed]
    lines += [
        "",
        "| case | ours | " + " | ".join(f"best {g} within 1 point | our speed / its" for g in GROUPS) + " |",
    ]
    lines += ["|---" * (2 + 2 * len(GROUPS)) + "|"]
    ratios: dict[str, list[float]] = {group: [] for group in GROUPS}
    for result in done:
        cells = [result.case, result.one(ours).said]
        for group, kinds in GROUPS.items():
            best = result.best(ours, kinds)
            ratios[group].append(best.slower_than_ours[0])
            cells += [best.name, f"{best.slower_than_ours[0]:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for group, found in ratios.items():
        lines.append(
            f"- our speed / that of the best {group} within 1 point, geometric mean of {len(found)} cases: "
            f"{_mean_and_least(found)}"
        )
    if any(e.threads < result.most for result in done for e in result.entrants if e.name != ours):
        for group, kinds in GROUPS.items():
            found = [result.best(ours, kinds, result.most).slower_than_ours[0] for result in done]
            lines.append(f"- the same of those with all threads: {_mean_and_least(found)} (best {group})")
    return lines


def _mean_and_least(ratios: Sequence[float]) -> str:
    mean = math.exp(float(np.mean(np.log(ratios)))) if ratios else math.nan
    return f"{mean:.3f}, least {min(ratios, default=math.nan):.2f}"
