"""How often the torch executor puts an INT8 graph's samples into another class than ONNX Runtime does.

    python benchmarks/executor_int8.py --cases DIR [--only NAME]

Each case is built for ONNX Runtime with plain INT8 (`--precision int8`); the artifact, which is the Q/DQ
graph, is then run literally in ONNX Runtime and in torch on eval.npz. Scales are general, so sums of floats
are rounded in another order and single codes flip.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from deploy.bundle.read import load_bundle
from deploy.data.dataset import open_dataset
from deploy.execute.module import GraphModule
from deploy.execute.reference import Session
from deploy.frontend.onnx_file import read

DEPLOY = [sys.executable, "-m", "deploy"]
_BATCH = 50


def build(case: Path, scratch: Path) -> Path:
    arguments = [
        "build", str(case / "model.onnx"), "--target", "x86-vnni", "--runtime", "ort", "--precision", "int8",
        "--data", str(case / "calib.npz"), "--no-measure", "--out", str(scratch / case.name), "--quiet",
        "--cache", str(scratch / "cache"),
    ]  # fmt: skip
    done = subprocess.run([*DEPLOY, *arguments], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 9):
        raise SystemExit(f"{case.name}: {done.stderr}")
    return scratch / case.name / "x86-vnni"


def compare(bundle: Path, case: Path) -> tuple[int, int, float]:
    """Samples, how many of them fall into another class, and the largest difference of an output."""
    file = bundle / "artifact" / "model.onnx"
    module = GraphModule(read(file).model)
    apart, count, worst = 0, 0, 0.0
    with Session(file, optimised=False, threads=2) as session, torch.no_grad():
        for batch in open_dataset(case / "eval.npz", load_bundle(bundle).manifest.artifact.inputs).batches(
            _BATCH
        ):
            want = next(iter(session.run(batch.feeds).values()))
            got = module({name: torch.from_numpy(np.array(a)) for name, a in batch.feeds.items()})
            found = next(iter(got.values())).numpy()
            apart += int((want.argmax(1) != found.argmax(1)).sum())
            worst = max(worst, float(np.abs(want - found).max() / np.abs(want).max()))
            count += len(want)
    return count, apart, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only")
    asked = parser.parse_args()
    print("| case | samples | in another class | share | largest difference |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="deploy-int8-") as scratch:
        for case in sorted(p.parent for p in asked.cases.glob("*/model.onnx")):
            if asked.only in (None, case.name):
                count, apart, worst = compare(build(case, Path(scratch)), case)
                print(f"| {case.name} | {count} | {apart} | {apart / count:.2%} | {worst:.2g} |", flush=True)


if __name__ == "__main__":
    main()
