"""A measured overlay of an accelerator, to be run where one is.

    python benchmarks/accelerator.py --out profiles/measured/nvidia-h200.json [--profile nvidia-h200]
        [--device cuda] [--quick]

Needs PyTorch with CUDA. Times kernels of every class in float32 (never TF32), float16, bfloat16, and products
in INT8 and FP8 besides, the gain of 2:4 sparsity, memory, launches and transfers; `--quick` a third of that.
What the device cannot do is listed in the overlay with the reason. Leaves clocks and all other settings of
the device alone. `--device cpu` tries it out where there is no accelerator. Not run on CUDA yet (2026-11-21).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np

from deploy.measure.host import this_machine
from deploy.progress import Silent
from deploy.spec.document import render
from deploy.spec.overlay import Overlay
from deploy.survey.torch_device import survey_torch


class Counting(Silent):
    """Tells on the terminal how far it is, and why nothing is measured."""

    def advance(self, done: int, total: int) -> None:
        print(f"\r{done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    warn = note


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure an accelerator by PyTorch and write an overlay.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="nvidia-h200", help="the profile that the device belongs to")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(argv)
    start = time.perf_counter()
    survey = survey_torch(given.device, given.quick, Counting())
    if survey is None or not survey.runtime.cost:
        print("nothing was measured", *(survey.runtime.failures if survey else ()), sep="\n", file=sys.stderr)
        return 10
    words = [f"--{name} {value}" for name, value in vars(given).items() if not isinstance(value, bool)]
    overlay = Overlay(
        profile=given.profile,
        machine=this_machine(survey.device),
        date=date.today(),
        command=" ".join(["python benchmarks/accelerator.py", *words, *(["--quick"] if given.quick else [])]),
        quick=given.quick,
        seconds=round(time.perf_counter() - start, 1),
        noise=round(float(np.median([cost.spread for cost in survey.runtime.cost])), 4),
        facts=survey.facts,
        runtime=(survey.runtime,),
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(render(overlay))
    show(overlay)
    return 0


def show(overlay: Overlay) -> None:
    """The fastest rate of each class and precision, the figures, and what failed."""
    costs = overlay.runtime[0].cost
    print(f"{overlay.machine.device}, {overlay.runtime[0].version}, noise {overlay.noise}")
    for op, precision in dict.fromkeys((cost.op, cost.precision) for cost in costs):
        ours = [cost for cost in costs if (cost.op, cost.precision) == (op, precision) and cost.ms]
        rate = max((2 * cost.macs / cost.ms / 1e9 for cost in ours), default=0.0)
        moved = max((cost.bytes / cost.ms / 1e6 for cost in ours), default=0.0)
        print(f"{op:12} {precision:6} {len(ours):3} points, up to {rate:9.3f} TFLOP/s or {moved:8.1f} GB/s")
    for name, figure in overlay.facts.items():
        print(f"{name}: {figure.value} {figure.unit}")
    for failure in overlay.runtime[0].failures:
        print(f"failed: {failure.op} {failure.precision} {failure.shape}: {failure.reason}")


if __name__ == "__main__":
    sys.exit(main())
