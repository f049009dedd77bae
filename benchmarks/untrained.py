"""Channels removed from real networks with nothing but their files and calibration samples, no labels.

    python benchmarks/untrained.py --cases DIR [--only CASE,CASE] [--tune 400] [--test NPZ]

Each folder of DIR holds model.onnx, calib.npz (at most 256 samples are taken, their labels not read) and
eval.npz, which is looked at once, at the end, by ONNX Runtime. Channels go in the order of Optimal Brain
Surgeon, measured divergence of the answers shares out the budget, least squares makes up for what went, and
some steps of training follow in which the whole graph teaches. ``--test`` are images as JPEG (``jpeg``,
``offsets``, ``y``), on which r18_cifar10 is judged, too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import onnx_ir as ir
from pictures import pictures

from deploy.compress.ground import Ground
from deploy.compress.prune.step import run
from deploy.data.dataset import Dataset, open_dataset
from deploy.data.interval import paired_drop
from deploy.data.metrics import make_metric
from deploy.data.scores import Metric
from deploy.execute.compare import prover
from deploy.execute.reference import open_graph
from deploy.frontend import onnx_file
from deploy.graph.clean import clean
from deploy.graph.cost import macs, parameters
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.measure.accuracy import evaluate
from deploy.spec.compression import Prune

GOALS = {"mlperf_resnet8_cifar10": 0.15, "resnet20_cifar10": 0.30, "r18_cifar10": 0.30}
"""The share of MACs to take away."""
TESTED = "r18_cifar10"


def scored(graph: ir.Model, dataset: Dataset) -> Metric:
    metric = make_metric("top1")
    with open_graph(graph) as session:
        evaluate(session, dataset, metric)
    return metric


def pruned(case: Path, goal: float, tune: int, test: Path | None, save: Path | None) -> None:
    model = infer(onnx_file.read(case / "model.onnx").model)
    specs = tensor_specs(model.graph.inputs)
    samples, evaluation = (open_dataset(case / name, specs) for name in ("calib.npz", "eval.npz"))
    graph = infer(clean(model, prover([next(samples.batches(2)).feeds])).model)
    begun, worked = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        ground = Ground(samples=samples, given=graph, workdir=Path(scratch))
        thin = run(Prune(macs=goal, per_round=0.5, tune=tune), graph, ground).model
    seconds, processor = time.perf_counter() - begun, time.process_time() - worked
    if save is not None:
        ir.save(thin, save / f"{case.name}.onnx")
    judges: dict[str, Dataset] = {"eval.npz": evaluation}
    if test is not None and case.name == TESTED:
        x, y = pictures(test, case / "card.json")
        judges["test images"] = open_dataset({specs[0].name: x, "y": y}, specs)
    for name, dataset in judges.items():
        whole, left = scored(graph, dataset), scored(thin, dataset)
        drop = paired_drop(whole, left)
        off = 1 - (macs(thin) or 0) / (macs(graph) or 1)
        print(
            f"| {case.name} | {name}, {len(dataset)} | {100 * off:.1f} "
            f"| {100 * (1 - parameters(thin) / parameters(graph)):.1f} | {whole.result().value:.4f} "
            f"| {100 * drop.drop:+.2f} [{100 * drop.low:+.2f}, {100 * drop.high:+.2f}] "
            f"| {processor:.0f} | {seconds:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", default=",".join(GOALS))
    parser.add_argument("--tune", type=int, default=400)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--save", type=Path, help="a folder for the graphs")
    given = parser.parse_args()
    columns = "case | judged on | MACs off, % | parameters off, % | float top-1 | drop, points [95 %]"
    print(f"| {columns} | processor s | s |\n|{'---|' * 8}", flush=True)
    for name in given.only.split(","):
        pruned(given.cases / name, GOALS[name], given.tune, given.test, given.save)


if __name__ == "__main__":
    main()
