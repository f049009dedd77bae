"""What the upper rungs of the accuracy ladder win on real networks, with every block quantized.

    python benchmarks/rounding.py --cases DIR [--only NAME] [--bits 4,8] [--rungs layers,units,qat]

Each folder of DIR holds model.onnx, calib.npz and eval.npz. Ranges come from the calibration samples (by the
observer mse), parameters from the rules of x86-vnni for ONNX Runtime; at 4 bits the scale of each channel of
weights is the one that loses least. ONNX Runtime runs the graph literally; labels serve scoring alone. Each
rung is run for itself, but those behind `layers` begin with what that gave.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import run_samples
from deploy.adapter.profiles import load_profile
from deploy.data.dataset import Dataset, open_dataset
from deploy.execute.compare import prover
from deploy.execute.reference import open_graph
from deploy.frontend import onnx_file
from deploy.graph.blocks import Block, partition
from deploy.graph.clean import clean
from deploy.graph.edit import constant
from deploy.graph.fuse import fuse
from deploy.graph.qdq import data_digest, insert, quantize_array
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.quantize.assign import Assignment, assign
from deploy.quantize.calibrate import calibrate
from deploy.quantize.place import find_chains, observed_values, place
from deploy.quantize.weights import weight_scales
from deploy.train.qat import careful, train_quantized
from deploy.train.round import Rounding, round_weights

_SAMPLES = 256


@dataclass(frozen=True)
class Subject:
    graph: ir.Model
    blocks: tuple[Block, ...]
    calibration: Dataset
    evaluation: Dataset


def opened(case: Path) -> Subject:
    model = infer(onnx_file.read(case / "model.onnx").model)
    specs = tensor_specs(model.graph.inputs)
    data, evaluation = (open_dataset(case / name, specs) for name in ("calib.npz", "eval.npz"))
    prove = prover([next(data.batches(2)).feeds])
    graph = fuse(clean(model, prove).model, prove).model
    return Subject(graph, partition(graph), data, evaluation)


def quantized(subject: Subject, bits: int) -> Assignment:
    runtime = load_profile("x86-vnni").runtime_named("ort")
    assert runtime.quant is not None
    graph, blocks = subject.graph, subject.blocks
    chains = find_chains(graph, blocks, runtime)
    values = observed_values(graph, chains, runtime)
    histograms = calibrate(graph, subject.calibration, values, samples=_SAMPLES)
    unbounded = {name for name, histogram in histograms.items() if not histogram.bounded}
    excluded = {
        node.name or ""
        for node in graph.graph
        if any(v is not None and v.name in unbounded for v in (*node.inputs, *node.outputs))
    }
    placement = place(graph, blocks, {b.id: "int8" for b in blocks}, chains, runtime, excluded)
    found = assign(graph, placement, histograms, runtime.quant, "mse")
    return found if bits == 8 else narrowed(graph, found, 2 ** (bits - 1) - 1)


def narrowed(graph: ir.Model, found: Assignment, largest: int) -> Assignment:
    """The same with codes of weights in ``[-largest, largest]``."""
    tensors, codes = dict(found.tensors), dict(found.codes)
    for name in found.codes:  # weights stand before the biases that follow from them
        plan, array = tensors[name], constant(graph.graph.initializers[name])
        assert array is not None
        limits = {}
        if plan.bias_of is None:
            scale = weight_scales(array, plan.axis, largest, search=True)
            limits = {"low": -largest, "high": largest}
        else:
            given, own = (np.asarray(tensors[part].scale, np.float32) for part in plan.bias_of)
            scale = given * own
        plan = plan.model_copy(update={"scale": tuple(map(float, scale))})
        codes[name] = quantize_array(array, plan, **limits)
        tensors[name] = plan.model_copy(update={"digest": data_digest(codes[name])})
    return Assignment(tensors, codes)


@dataclass(frozen=True)
class Scored:
    top1: float
    outputs: np.ndarray

    def decibels(self, other: np.ndarray) -> float:
        noise = np.square(self.outputs - other).sum()
        return float(10 * np.log10(np.square(self.outputs).sum() / max(noise, 1e-30)))


def score(graph: ir.Model, dataset: Dataset, *, literal: bool = True) -> Scored:
    right, outputs = 0, []
    with open_graph(graph, optimised=not literal) as session:
        for batch in dataset.batches(100):
            found = next(iter(run_samples(session, batch.feeds, 100).values())).reshape(len(batch), -1)
            right += int((found.argmax(1) == batch.targets[""].reshape(-1)).sum())
            outputs.append(found.astype(np.float64))
    return Scored(right / len(dataset), np.concatenate(outputs))


def climb(case: Path, bits: int, rungs: list[str], seconds: float, epochs: int) -> None:
    subject = opened(case)
    plan = quantized(subject, bits)
    largest = 2 ** (bits - 1) - 1
    exact = score(subject.graph, subject.evaluation, literal=False)

    def told(rung: str, graph: ir.Model, cost: float, note: str = "") -> None:
        found = score(graph, subject.evaluation)
        print(
            f"| {case.name} | {bits} | {rung} | {100 * (exact.top1 - found.top1):+.2f} | "
            f"{exact.decibels(found.outputs):.1f} | {cost:.0f} | {note} |",
            flush=True,
        )

    told("nearest", insert(subject.graph, plan.tensors, plan.codes), 0.0)
    for rung in rungs:
        begun = time.process_time()
        if rung == "qat":
            with tempfile.TemporaryDirectory() as scratch:
                trained = train_quantized(
                    subject.graph, plan.tensors, plan.codes, careful(labelled=False, epochs=epochs),
                    train=subject.calibration, largest=largest, workdir=Path(scratch),
                )  # fmt: skip
            graph = insert(trained.model, trained.tensors, trained.codes)
            note = f"epoch {trained.trained.best} of {epochs}"
        else:
            settings = Rounding(largest, _SAMPLES, seconds, layers=rung != "units", units=rung != "layers")
            rounded = round_weights(
                subject.graph, subject.blocks, plan.tensors, plan.codes, subject.calibration, settings
            )
            if rung == "layers":  # what is trained after it begins there
                plan = Assignment(rounded.tensors, rounded.codes)
            graph = insert(subject.graph, rounded.tensors, rounded.codes)
            note = f"{rounded.turned} turned" + ("" if rounded.complete else ", out of time")
        told(rung, graph, time.process_time() - begun, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only")
    parser.add_argument("--bits", default="4,8")
    parser.add_argument(
        "--rungs", default="layers,units,qat", help="in this order; layers stay for those behind"
    )
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    print("| case | weights, bits | rung | drop, points | SQNR, dB | processor s | |")
    print("|---|---|---|---|---|---|---|")
    for case in sorted(path.parent for path in given.cases.glob("*/model.onnx")):
        if given.only in (None, case.name):
            for bits in map(int, given.bits.split(",")):
                climb(case, bits, given.rungs.split(","), given.seconds, given.epochs)


if __name__ == "__main__":
    main()
