"""Whether a target with several runtimes is as fast as the best of them alone: builds each case for every
runtime by itself and for all together, then times the artifacts in turn in one process.

    python benchmarks/runtimes.py --cases DIR [--target x86-cpu] [--only NAME] [--markdown FILE]

Each folder of DIR holds model.onnx, calib.npz and eval.npz. One thread, batch 1. Speeds are multiples of the
file as given, in ONNX Runtime. `drop` is that of the artifact for all runtimes together, on eval.npz.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.read import load_bundle, open_bundle
from deploy.data.dataset import open_dataset
from deploy.execute.reference import Session
from deploy.measure.latency import Timing, TimingPlan, measure, speedup
from deploy.stages.target import find_target

DEPLOY = [sys.executable, "-m", "deploy"]
_GIVEN, _ALL = "given", "all"
_PLAN = TimingPlan(seconds=4.0)


@dataclass(frozen=True)
class Result:
    """What was chosen for all runtimes together, and the times of every artifact."""

    case: str
    chosen: str
    drop: float
    times: dict[str, Timing]

    def speed(self, name: str) -> float:
        return speedup(self.times[_GIVEN], self.times[name])[0]

    def against_best(self) -> tuple[float, tuple[float, float]]:
        """All together in multiples of the faster of those alone."""
        alone = [name for name in self.times if name not in (_GIVEN, _ALL)]
        best = min(alone, key=lambda name: self.times[name].summary().p50)
        return speedup(self.times[best], self.times[_ALL])


def build(case: Path, target: str, runtime: str | None, scratch: Path) -> Path:
    out = scratch / (runtime or _ALL) / case.name
    arguments = [
        "build", str(case / "model.onnx"), "--target", target, "--data", str(case / "calib.npz"),
        "--eval", str(case / "eval.npz"), "--out", str(out), "--cache", str(scratch / "cache"), "--quiet",
    ]  # fmt: skip
    if runtime:
        arguments += ["--runtime", runtime]
    done = subprocess.run([*DEPLOY, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 9):
        raise SystemExit(f"{case.name} with {runtime or 'all runtimes'}: {done.stderr}")
    return out / target


def run(case: Path, target: str, runtimes: list[str], scratch: Path) -> Result:
    bundles = {name: build(case, target, name, scratch) for name in runtimes}
    bundles[_ALL] = build(case, target, None, scratch)
    bundle = load_bundle(bundles[_ALL])
    manifest = bundle.manifest
    (feeds,) = (b.feeds for b in [next(open_dataset(case / "eval.npz", manifest.artifact.inputs).batches(1))])
    with ExitStack() as stack:
        runners = {name: stack.enter_context(open_bundle(path)) for name, path in bundles.items()}
        given = stack.enter_context(Session(case / "model.onnx"))
        times = measure({_GIVEN: given, **runners}, feeds, _PLAN)
    precision = "int8" if manifest.precision.get("int8") else next(iter(manifest.precision))
    assert manifest.evaluation is not None
    return Result(case.name, f"{manifest.runtime} {precision}", manifest.evaluation.drop, times)


def table(results: list[Result], runtimes: list[str]) -> str:
    head = [
        "case",
        *(f"{name} alone" for name in runtimes),
        "together",
        "chosen",
        "together / best alone",
        "drop",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for result in results:
        ratio, (low, high) = result.against_best()
        cells = [
            result.case,
            *(f"{result.speed(name):.2f}" for name in runtimes),
            f"{result.speed(_ALL):.2f}",
            result.chosen,
            f"{ratio:.2f} ({low:.2f} to {high:.2f})",
            f"{100 * result.drop:+.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--target", default="x86-cpu")
    parser.add_argument("--only")
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    runtimes = [route.runtime.name for route in find_target(asked.target).routes]
    cases = sorted(p.parent for p in asked.cases.glob("*/model.onnx") if asked.only in (None, p.parent.name))
    results = []
    with tempfile.TemporaryDirectory(prefix="deploy-runtimes-") as scratch:
        for case in cases:
            results.append(run(case, asked.target, runtimes, Path(scratch)))
            print(table(results[-1:], runtimes), flush=True)
    if asked.markdown:
        asked.markdown.write_text(table(results, runtimes) + "\n")


if __name__ == "__main__":
    main()
