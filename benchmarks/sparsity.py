"""What 2:4 sparsity, low rank and shared weights cost real networks, most of it without any training.

    python benchmarks/sparsity.py --cases DIR [--only NAME,NAME] [--parts sparse,trained,rank,shared]
        [--test NPZ]

Each folder of DIR holds model.onnx, calib.npz and eval.npz, and maybe train.npz. Weights are changed in the
cleaned graph, as compression gets it, batch norm still in it; ONNX Runtime computes with them as floats, so
nothing here is faster or slower: what is shown is what is lost. Calibration samples (256 at most, a quarter
of them held out) serve the choice of weights, without labels; eval samples serve scoring alone.

sparse    every product whose inputs are whole fours is 2:4 sparse: by magnitude or by optimal brain surgeon,
          with and without a better order of the channels before
trained   the best of these, then trained with the zeros kept to make what the dense network makes, its inner
          values, too (no labels): on train.npz, moved, mirrored and blended for images; on the calibration
          samples alone where there is none; and the best of these again, finetuned on the labels of
          train.npz with the dense network as teacher. ``--test`` are more images (JPEG, see `pictures.py`)
          to judge the CIFAR-10 networks by
rank      products become two or three where that is fewer MACs and weights
shared    all weights of a tensor are one of so many values; the file at rest is codebook and Huffman codes
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
from pictures import pictures

from deploy.adapter.batching import run_samples
from deploy.compress.cluster import cluster
from deploy.compress.codec import decode, encode
from deploy.compress.ground import Ground
from deploy.compress.lowrank import factorize
from deploy.compress.permute import Search, permute
from deploy.compress.sparsify import masks, prove, sparsify, tuned
from deploy.compress.step import Compressed
from deploy.data.dataset import Dataset, open_dataset
from deploy.execute.compare import prover
from deploy.execute.reference import open_graph
from deploy.frontend import onnx_file
from deploy.graph.clean import clean
from deploy.graph.cost import macs
from deploy.graph.edit import weight_bytes
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.spec.compression import Cluster, LowRank, Sparsify
from deploy.spec.finetune import Augment, Distill, Finetune
from deploy.train.finetune import finetune

_BATCH = 100
_DECODED = 5
_STEPS = 200
PICTURED = ("r18_cifar10", "resnet20_cifar10", "mlperf_resnet8_cifar10")
FINETUNING = Finetune(
    epochs=1,
    lr=1e-3,
    batch_norm="keep",
    precision="bf16",
    augment=Augment(crop=4, flip=True),
    distill=Distill(alpha=0.3),
)


@dataclass(frozen=True)
class Subject:
    name: str
    graph: ir.Model
    calibration: Dataset
    evaluation: Dataset
    train: Dataset | None
    test: Dataset | None


@dataclass(frozen=True)
class Scored:
    top1: float
    outputs: np.ndarray


def opened(case: Path, images: Path | None = None) -> Subject:
    model = infer(onnx_file.read(case / "model.onnx").model)
    specs = tensor_specs(model.graph.inputs)
    data, evaluation = (open_dataset(case / name, specs) for name in ("calib.npz", "eval.npz"))
    graph = clean(model, prover([next(data.batches(2)).feeds])).model
    train = open_dataset(case / "train.npz", specs) if (case / "train.npz").exists() else None
    test = None
    if images is not None and case.name in PICTURED:
        x, y = pictures(images, case / "card.json")
        test = open_dataset({specs[0].name: x, "y": y}, specs)
    return Subject(case.name, infer(graph), data, evaluation, train, test)


def score(graph: ir.Model, dataset: Dataset) -> Scored:
    right, outputs = 0, []
    with open_graph(graph) as session:
        for batch in dataset.batches(_BATCH):
            found = next(iter(run_samples(session, batch.feeds, _BATCH).values())).reshape(len(batch), -1)
            right += int((found.argmax(1) == batch.targets[""].reshape(-1)).sum())
            outputs.append(found.astype(np.float64))
    return Scored(right / len(dataset), np.concatenate(outputs))


def lost(exact: Scored, found: Scored) -> str:
    """Points of accuracy, and noise at the output as a share of its power."""
    noise = np.square(found.outputs - exact.outputs).sum() / np.square(exact.outputs).sum()
    return f"{100 * (exact.top1 - found.top1):+.2f} | {100 * noise:.2f}"


def sparse(subject: Subject, exact: Scored) -> None:
    def made(**given: object) -> Callable[[], Compressed]:
        return lambda: sparsify(subject.graph, subject.calibration, Sparsify.model_validate(given))

    half = {"pattern": "unstructured", "sparsity": 0.5}
    ways: dict[str, Callable[[], Compressed]] = {
        "magnitude": made(method="magnitude", permute=False),
        "magnitude, permuted": made(method="magnitude"),
        "OBS": made(permute=False),
        "OBS, permuted": made(),
        "half the weights, no pattern": made(method="magnitude", **half),
        "the same, OBS": made(**half),
    }
    for way, make in ways.items():
        begun = time.process_time()
        found = make()
        seconds = time.process_time() - begun
        count = len(masks(found.graph))
        told = lost(exact, score(found.graph, subject.evaluation))
        print(f"| {subject.name} | {way} | {told} | {count or '-'} | {seconds:.0f} |", flush=True)


def trained(subject: Subject, exact: Scored) -> None:
    """Settings were chosen without eval data; these are looked at once for each row."""
    whole = permute(subject.graph, Search()).graph
    made = sparsify(whole, subject.calibration, Sparsify(permute=False)).graph
    names = sorted(masks(made))
    ways: dict[str, Callable[[], ir.Model]] = {
        "OBS, permuted": lambda: made,
        f"the same, {_STEPS} steps": lambda: tuned(
            Sparsify(tune=_STEPS),
            whole,
            made,
            Ground(samples=subject.calibration, given=whole, workdir=Path(), train=subject.train),
        ),
    }
    if (train := subject.train) is not None:
        ways["the same, finetuned"] = lambda: finetuned(made, whole, train)
    before = None if subject.test is None else score(subject.graph, subject.test)
    for way, make in ways.items():
        begun = time.process_time()
        graph = make()
        seconds = time.process_time() - begun
        prove(graph, names)
        told = lost(exact, score(graph, subject.evaluation))
        if subject.test is not None and before is not None:
            told += f" | {100 * (before.top1 - score(graph, subject.test).top1):+.2f}"
        else:
            told += " | -"
        print(f"| {subject.name} | {way} | {told} | {len(names)} | {seconds:.0f} |", flush=True)


def finetuned(graph: ir.Model, dense: ir.Model, train: Dataset) -> ir.Model:
    with TemporaryDirectory() as folder:
        return finetune(graph, FINETUNING, train=train, teachers=(dense,), workdir=Path(folder)).model


def rank(subject: Subject, exact: Scored) -> None:
    for data in (None, subject.calibration):
        for allowed in (0.003, 0.01):
            begun = time.process_time()
            found = factorize(subject.graph, data, LowRank(lost=allowed)).graph
            seconds = time.process_time() - begun
            told = lost(exact, score(found, subject.evaluation))
            work = (macs(found) or 0) / (macs(subject.graph) or 1)
            size = weight_bytes(found) / weight_bytes(subject.graph)
            by = f"{100 * allowed:g} % by " + ("samples" if data is not None else "squares")
            figures = f"{told} | {work:.2f} | {size:.2f} | {seconds:.0f}"
            print(f"| {subject.name} | {by} | {figures} |", flush=True)


def shared(subject: Subject, exact: Scored) -> None:
    for centres, group in ((4, 16), (16, None), (16, 16), (64, None), (256, None)):
        begun = time.process_time()
        found = cluster(subject.graph, Cluster(centres=centres, group=group))
        seconds = time.process_time() - begun
        coded = encode(found.palettes)
        numbers = sum(palette.indices.size for palette in found.palettes.values())
        fastest = min(_decoding(coded) for _ in range(_DECODED))
        told = lost(exact, score(found.graph, subject.evaluation))
        packed = sum(palette.stored_bytes for palette in found.palettes.values())
        groups = f"for {group} channels" if group else "for a tensor"
        smaller = f"{4 * numbers / packed:.1f} | {4 * numbers / len(coded):.1f}"
        speed = f"{4e-6 * numbers / fastest:.0f} | {seconds:.0f}"
        print(f"| {subject.name} | {centres} {groups} | {told} | {smaller} | {speed} |", flush=True)


def _decoding(coded: bytes) -> float:
    """Processor seconds from bytes to float32 weights."""
    begun = time.process_time()
    for palette in decode(coded).values():
        palette.values()
    return time.process_time() - begun


PARTS: dict[str, tuple[str, Callable[[Subject, Scored], None]]] = {
    "sparse": ("way | drop, points | noise, % | sparse layers | processor s", sparse),
    "trained": (
        "way | drop, points | noise, % | drop on --test | sparse layers | processor s, of training",
        trained,
    ),
    "rank": ("lost at most | drop, points | noise, % | MACs | weights | processor s", rank),
    "shared": (
        "values | drop, points | noise, % | times smaller, packed | at rest | MB/s read | processor s",
        shared,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", default="r18_cifar10,kwt1_speech_commands")
    parser.add_argument("--parts", default="sparse,rank,shared")
    parser.add_argument("--test", type=Path)
    given = parser.parse_args()
    for part in given.parts.split(","):
        columns, measure = PARTS[part]
        print(f"\n| case | {columns} |\n|{'---|' * (2 + columns.count('|'))}", flush=True)
        for name in given.only.split(","):
            subject = opened(given.cases / name, given.test)
            measure(subject, score(subject.graph, subject.evaluation))


if __name__ == "__main__":
    main()
