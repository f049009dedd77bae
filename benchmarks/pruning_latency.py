"""Pruned for a target's predicted latency: what was predicted of the smaller network, and what it takes.

    python benchmarks/pruning_latency.py --cases DIR [--only CASE,CASE] [--latency 0.3] [--keep DIR]
        [--cache DIR]

Each folder of DIR holds model.onnx and calib.npz. The share --latency of what this machine's measured kernels
say of the fastest runtime is taken away by the step `prune` in one round, without training. Then the whole
network and the smaller one are built in INT8 throughout for every measured runtime and timed in turn, all in
one process, one thread, batch 1. Measured is what one run of twenty stays below: the machine undisturbed.
Pruned graphs are kept in --keep and found there again. No labels are read.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.adapter.profiles import profile_for
from deploy.cache import Cache, scratch
from deploy.compress.prune.step import run
from deploy.graph.cost import macs
from deploy.measure.host import host
from deploy.measure.latency import TimingPlan
from deploy.predict.latency import predict
from deploy.progress import SILENT
from deploy.quantize.candidate import build_candidate
from deploy.spec.compression import Prune
from deploy.stages import steps
from deploy.stages.baseline import Contender, race
from deploy.stages.costs import Foresight, costs_of
from deploy.stages.ground import ground_for
from deploy.stages.job import Ingredients, Job, open_job
from deploy.stages.legalize import legalize
from deploy.stages.record import Record, open_cache
from deploy.stages.request import Request
from deploy.stages.target import Target, find_target
from deploy.stages.yardstick import Yardstick

CASES = "mlperf_resnet8_cifar10,resnet20_cifar10"
HEADER = """\
| case | INT8 by | MACs off | predicted, ms | measured, ms | predicted off | measured off |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Here:
    """This machine as a target, and what is known of it."""

    target: Target
    foresight: Foresight
    cache: Cache
    record: Record

    def request(self, model: Path, case: Path) -> Request:
        return Request(source=model, target=self.target.name, data=case / "calib.npz", precision="int8")

    def yardstick(self, case: Path) -> Yardstick:
        request = self.request(case / "model.onnx", case)
        prepared = steps.clean(
            steps.read_source(request, self.cache, self.record), request, self.cache, self.record
        )
        roles = steps.open_data(prepared, request, self.record)
        return Yardstick(prepared, roles, request, self.target, self.foresight)

    def job(self, model: Path, case: Path, work: Path) -> Job:
        """Calibrated for every runtime."""
        request, cache, record = self.request(model, case), self.cache, self.record
        source = steps.read_source(request, cache, record)
        prepared = steps.clean(source, request, cache, record)
        baseline = steps.baseline(source, prepared)
        roles = steps.open_data(prepared, request, record)
        prepared = legalize(self.target, prepared, request.threads, cache, record)
        able = steps.check(self.target, prepared, request, record)
        made_of = Ingredients(able, prepared, roles, request)
        calibrated = steps.calibrate(made_of, cache, record)
        return open_job(made_of, baseline.artifact, calibrated, None, work, SILENT)


def pruned(here: Here, case: Path, latency: float, kept: Path) -> float:
    """The share of MACs that went; the graph lies in the file ``kept``."""
    yard = here.yardstick(case)
    whole = yard.before.clean
    if not kept.exists():
        with scratch("prune") as work:
            thin = run(Prune(latency=latency, per_round=0.5), whole, ground_for(yard, None, work)).model
        ir.save(thin, kept)
    return 1 - (macs(ir.load(kept)) or 0) / (macs(whole) or 1)


def rows(here: Here, case: Path, smaller: Path, off: float) -> list[str]:
    contenders: dict[str, Contender] = {}
    predicted: dict[str, float] = {}
    with ExitStack() as stack:
        for which, model in (("whole", case / "model.onnx"), ("pruned", smaller)):
            job = here.job(model, case, stack.enter_context(scratch(which)))
            for subject in job.subjects:
                name = subject.runtime.name
                if name not in here.foresight.runtimes:
                    continue
                made = build_candidate(subject, frozenset(), job.work / name)
                costs = here.foresight.runtimes[name].costs
                key = f"{name} {which}"
                predicted[key] = predict(subject.graph, made.plan.tensors, subject.runtime, costs).ms
                contenders[key] = Contender(subject.backend, made.artifact, subject.options)
                feeds = job.one_inference(made.artifact)
        times = race(contenders, feeds, TimingPlan(seconds=1.0))
    measured = {key: float(np.percentile(timing.runs, 5)) for key, timing in times.items()}
    names = sorted({key.split()[0] for key in predicted}, key=lambda name: predicted[f"{name} pruned"])

    def both(ms: dict[str, float], name: str) -> tuple[str, str]:
        whole, left = ms[f"{name} whole"], ms[f"{name} pruned"]
        return f"{whole:.3f} to {left:.3f}", f"{100 * (1 - left / whole):.0f} %"

    found = []
    for name in names:
        (said, said_off), (taken, taken_off) = both(predicted, name), both(measured, name)
        found.append(
            f"| {case.name} | {name} | {100 * off:.0f} % | {said} | {taken} | {said_off} | {taken_off} |"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", default=CASES)
    parser.add_argument("--latency", type=float, default=0.3)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    target = find_target(profile_for(host().arch, host().features).name)
    foresight = costs_of(target, 1)
    if not any(known.measured for known in foresight.runtimes.values()):
        raise SystemExit("nothing was measured on this machine yet: deploy profile")
    print(HEADER)
    with open_cache(asked.cache, SILENT) as cache, scratch("pruned") as work:
        here = Here(target, foresight, cache, Record(SILENT))
        for name in asked.only.split(","):
            smaller = (asked.keep or work) / f"{name}-{asked.latency:g}.onnx"
            off = pruned(here, asked.cases / name, asked.latency, smaller)
            for row in rows(here, asked.cases / name, smaller, off):
                print(row, flush=True)


if __name__ == "__main__":
    main()
