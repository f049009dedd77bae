"""Builds real networks as a user would, in whole processes, and prints what came out as ratios.

    python benchmarks/cases.py --cases DIR [--targets x86-cpu,jetson] [--only NAME] [--markdown FILE]

Each folder of DIR holds model.onnx, calib.npz and eval.npz. Every build starts from an empty cache; latency
is measured interleaved with the float model inside the build, one thread, batch 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEPLOY = [sys.executable, "-m", "deploy"]


@dataclass(frozen=True)
class Built:
    """One build: what it reported, how long the process took, and what `run` and `verify` said of it."""

    case: str
    target: str
    report: dict[str, Any]
    seconds: float
    again: float
    verified: bool


def timed(arguments: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    begin = time.perf_counter()
    done = subprocess.run([*DEPLOY, *arguments], capture_output=True, text=True, check=False)
    return time.perf_counter() - begin, done


def build(case: Path, target: str, scratch: Path) -> Built:
    """Build twice with one cache, then verify and run the bundle."""
    arguments = [
        "build", str(case / "model.onnx"), "--target", target, "--data", str(case / "calib.npz"),
        "--eval", str(case / "eval.npz"), "--max-drop", "0.01", "--out", str(scratch / case.name),
        "--cache", str(scratch / f"cache-{case.name}-{target}"), "--json",
    ]  # fmt: skip
    seconds, done = timed(arguments)
    if done.returncode not in (0, 9):
        raise SystemExit(f"{case.name} for {target}: exit code {done.returncode}\n{done.stderr}")
    again, repeated = timed(arguments)
    if repeated.returncode != done.returncode:
        raise SystemExit(f"{case.name} for {target}: the second build ended otherwise\n{repeated.stderr}")
    bundle = scratch / case.name / target
    _, verified = timed(["verify", str(bundle)])
    output = scratch / "out.npz"
    _, ran = timed(["run", str(bundle), str(case / "eval.npz"), "-o", str(output)])
    if ran.returncode:
        raise SystemExit(f"{case.name} for {target}: run failed\n{ran.stderr}")
    kept = agrees(output, case / "eval.npz", json.loads(done.stdout))
    return Built(
        case.name, target, json.loads(done.stdout), seconds, again, verified.returncode == 0 and kept
    )


def agrees(outputs: Path, data: Path, report: dict[str, Any]) -> bool:
    """Whether `deploy run` on the evaluation data gives the accuracy that the build reported."""
    import numpy as np

    with np.load(outputs) as made, np.load(data) as given:
        logits, labels = made[made.files[0]], given["y"]
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return abs(accuracy - report["metric"]["artifact"]) < 1e-9


def row(built: Built) -> str:
    """One line of the table."""
    r = built.report
    size, latency, metric = r["size_bytes"], r["latency_ms"], r["metric"]
    speed = f"{latency['speedup']:.2f}" if latency and "speedup" in latency else "deferred"
    low, high = metric["interval"]
    weights = size["baseline_weights"] / size["weights"] if "baseline_weights" in size else float("nan")
    return (
        f"| {built.case} | {built.target} | {r['verdict']['status']} "
        f"| {metric['baseline']:.4f} | {metric['drop'] * 100:+.2f} [{low * 100:+.2f}, {high * 100:+.2f}] "
        f"| {size['ratio']:.2f} | {weights:.2f} | {speed} | {built.seconds:.1f} | {built.again:.2f} "
        f"| {'yes' if built.verified else 'NO'} |"
    )


HEADER = """\
| case | target | verdict | float top-1 | drop, points [95 %] | file times smaller | weights times smaller \
| times float speed | build, s | again, s | run and verify agree |
|---|---|---|---|---|---|---|---|---|---|---|"""


def cases_of(folder: Path, only: list[str] | None) -> list[Path]:
    """The folders of cases in a folder, those that are named or all. Ends the program where there is none."""
    found = sorted(p.parent for p in folder.glob("*/model.onnx"))
    chosen = [c for c in found if not only or c.name in only]
    if not chosen:
        raise SystemExit(f"no case with a model.onnx under {folder}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of case folders")
    parser.add_argument("--targets", default="x86-cpu,jetson")
    parser.add_argument("--only", action="append", help="only this case; may be repeated")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    arguments = parser.parse_args()
    chosen = cases_of(arguments.cases, arguments.only)
    lines = [HEADER]
    print(HEADER)
    with tempfile.TemporaryDirectory() as scratch:
        for case in chosen:
            for target in arguments.targets.split(","):
                lines.append(row(build(case, target, Path(scratch))))
                print(lines[-1], flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
