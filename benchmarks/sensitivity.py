"""Does one backward pass rank blocks as measuring them one by one does, and what does it cost?

    python benchmarks/sensitivity.py CASES_DIR [--only NAME] [--samples 64] [--bits 8,4] [--target x86-vnni]

Each folder of CASES_DIR holds model.onnx and calib.npz. For each case and width: Spearman's rank correlation
of the score with the KL divergence measured when one block alone is rounded, the processor seconds of both,
and what the pass takes next to a calibration pass over the same samples (taken in turns, median of the
ratios). One thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import spearmanr

from deploy.adapter.profiles import load_profile
from deploy.cache import Cache
from deploy.data.dataset import Dataset
from deploy.graph.blocks import partition
from deploy.progress import SILENT
from deploy.quantize.calibrate import calibrate
from deploy.quantize.fisher import scores
from deploy.quantize.one_block import measure
from deploy.quantize.perturb import PLAIN, Setting, values_to_observe
from deploy.spec.sensitivity import Treatment
from deploy.stages import steps
from deploy.stages.record import Record
from deploy.stages.request import Request

TREATMENTS: dict[str, Treatment] = {"8": "int8", "4": "int4"}
HEADER = """\
| case | treatment | blocks | Spearman | score over measured, median | scores, s | measured, s \
| scores / calibration pass |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Timed:
    """What a case gave: both tables, the seconds of each, and the cost of the pass in calibration passes."""

    predicted: dict[tuple[str, Treatment], float]
    measured: dict[tuple[str, Treatment], float]
    seconds: tuple[float, float]
    ratio: float


def opened(case: Path, scratch: Path, rules: str | None) -> tuple[Setting, Dataset]:
    """The case's graph as a build would quantize it, its ranges from all samples, and its samples."""
    request = Request(source=case / "model.onnx", target="", data=case / "calib.npz")
    cache, record = Cache(scratch), Record(SILENT)
    prepared = steps.clean(steps.read_source(request, cache, record), request, cache, record)
    dataset = steps.open_data(prepared, request, record).calibration
    assert dataset is not None
    graph = prepared.fused
    runtime = PLAIN if rules is None else load_profile(rules).runtime[0]
    bare = Setting(graph, partition(graph), runtime)
    histograms = calibrate(graph, dataset, values_to_observe(bare), samples=512)
    return Setting(graph, bare.blocks, runtime, histograms), dataset


def compare(
    setting: Setting, dataset: Dataset, treatments: tuple[Treatment, ...], samples: int, rounds: int
) -> Timed:
    """Both ways over the same samples; the pass and calibration in turns."""
    values, ratios, took = values_to_observe(setting), [], []
    predicted = scores(setting, dataset, treatments, samples=min(samples, 4))  # what loads once
    for _ in range(rounds):
        begin = time.process_time()
        calibrate(setting.graph, dataset, values, samples=samples)
        middle = time.process_time()
        predicted = scores(setting, dataset, treatments, samples=samples)
        took.append(time.process_time() - middle)
        ratios.append(took[-1] / (middle - begin))
    begin = time.process_time()
    found = measure(setting, dataset, treatments, samples=samples)
    seconds = time.process_time() - begin
    harms = {key: effect.harm or 0.0 for key, effect in found.items()}
    return Timed(predicted, harms, (statistics.median(took), seconds), statistics.median(ratios))


def rows(case: str, timed: Timed, treatments: tuple[Treatment, ...]) -> list[str]:
    """A line for each treatment."""
    lines = []
    for treatment in treatments:
        keys = [key for key in timed.measured if key[1] == treatment]
        pairs = [(timed.predicted[key], timed.measured[key]) for key in keys]
        rank = spearmanr(*zip(*pairs, strict=True)).statistic if len(pairs) > 2 else float("nan")
        over = statistics.median(a / b for a, b in pairs if b) if any(b for _, b in pairs) else float("nan")
        lines.append(
            f"| {case} | {treatment} | {len(keys)} | {rank:.3f} | {over:.2g} | {timed.seconds[0]:.2f} "
            f"| {timed.seconds[1]:.2f} | {timed.ratio:.2f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path, help="folder of case folders")
    parser.add_argument("--only", action="append", help="only this case; may be repeated")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--bits", default="8,4", help="widths, or the names of treatments")
    parser.add_argument("--target", help="round by this profile's first runtime instead of plain rules")
    parser.add_argument("--rounds", type=int, default=3, help="passes timed")
    parser.add_argument("--list", action="store_true", help="print every block, too")
    asked = parser.parse_args()
    treatments = tuple(TREATMENTS.get(word, word) for word in asked.bits.split(","))
    print(HEADER)
    with tempfile.TemporaryDirectory(prefix="deploy-sensitivity-") as scratch:
        for case in sorted(path.parent for path in asked.cases.glob("*/model.onnx")):
            if asked.only and case.name not in asked.only:
                continue
            setting, dataset = opened(case, Path(scratch), asked.target)
            timed = compare(setting, dataset, treatments, asked.samples, asked.rounds)
            print("\n".join(rows(case.name, timed, treatments)), flush=True)
            for key in sorted(timed.measured, key=lambda k: (k[1], -timed.measured[k])) if asked.list else ():
                print(f"    {key[1]:6} {timed.measured[key]:.3e} {timed.predicted[key]:.3e}  {key[0]}")


if __name__ == "__main__":
    main()
