"""What pruning costs on real networks: criteria against each other, and finetuned against the dense net.

    python benchmarks/pruning.py criteria --cases DIR [--only NAME] [--macs 0.3] [--validation] [--markdown F]
    python benchmarks/pruning.py finetuned --cases DIR [--only NAME] [--epochs 2] [--images N] [--distil]
        [--bf16] [--markdown F]

DIR/<case> holds model.onnx, calib.npz and card.json, DIR/data the CIFAR-10 images as JPEG bytes. ``criteria``
takes channels away with nothing but the calibration samples, whose labels it does not read; ``finetuned``
trains the dense network and pruned ones in the same way, on the first --images training images, and compares
them; with --distil the network as it came teaches all of them, with --bf16 they are trained in
bfloat16. Scores are those of the first --scored test images, all unless said; with --validation, of the last
2,000 training images, which is what to look at while anything is still being chosen (the networks were
trained on them).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from pictures import pictures

from deploy.compress.ground import Ground
from deploy.compress.prune.step import run
from deploy.data.dataset import Dataset, open_dataset
from deploy.errors import DeployError
from deploy.execute.compare import prover
from deploy.execute.reference import open_graph
from deploy.frontend import onnx_file
from deploy.graph.clean import clean
from deploy.graph.cost import macs
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.spec.compression import Criterion, Prune, Scope
from deploy.spec.finetune import Augment, Distill, Finetune
from deploy.train.batchnorm import normalise
from deploy.train.finetune import finetune

CASES = ("r18_cifar10", "resnet20_cifar10", "mlperf_resnet8_cifar10")
TRAINED, VALIDATED = 20_000, 2_000
WAYS: Sequence[tuple[Criterion, Scope, bool, bool]] = (
    ("random", "layer", False, False),
    ("l1", "layer", False, False),
    ("l1", "global", False, False),
    ("l1", "global", True, False),
    ("l2", "global", False, False),
    ("batch_norm", "global", False, False),
    ("taylor", "global", False, False),
    ("taylor", "global", True, False),
    ("obs", "global", False, False),
    ("random", "measured", False, False),
    ("l1", "measured", False, False),
    ("taylor", "measured", False, False),
    ("obs", "measured", False, False),
    ("random", "layer", False, True),
    ("l1", "layer", False, True),
    ("l1", "global", False, True),
    ("taylor", "global", False, True),
    ("taylor", "global", True, True),
    ("random", "measured", False, True),
    ("l1", "measured", False, True),
    ("taylor", "measured", False, True),
    ("obs", "layer", False, True),
    ("obs", "global", False, True),
    ("obs", "measured", False, True),
)
"""Criterion, scope, isomorphic, compensated."""


@dataclass(frozen=True)
class Case:
    """A network as a build would have it, its calibration samples, and images with labels to score it on."""

    name: str
    model: ir.Model
    samples: Dataset
    images: np.ndarray
    labels: np.ndarray

    def score(self, model: ir.Model) -> float:
        """The share of images that it is right on."""
        name = model.graph.inputs[0].name or ""
        right = 0
        with open_graph(model, optimised=True) as session:
            for start in range(0, len(self.labels), 250):
                there = slice(start, start + 250)
                answer = next(iter(session.run({name: self.images[there]}).values()))
                right += int((answer.argmax(1) == self.labels[there]).sum())
        return right / len(self.labels)

    def left(self, model: ir.Model) -> float:
        """The share of MACs."""
        return (macs(model) or 0) / (macs(self.model) or 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["criteria", "finetuned"])
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--ways", default="", help="of the ways only those whose words are all here")
    parser.add_argument("--macs", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=TRAINED)
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--scored", type=int, default=10_000)
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    lines: list[str] = []
    for name in CASES:
        if options.only in name:
            case = opened(options.cases, name, options.validation, options.scored)
            rows = criteria(case, options) if options.what == "criteria" else finetuned(case, options)
            for row in rows:
                print(row, flush=True)
                lines.append(row)
    if options.markdown:
        head = CRITERIA if options.what == "criteria" else FINETUNED
        options.markdown.write_text("\n".join([head, *lines]) + "\n")


def opened(cases: Path, name: str, validation: bool, scored: int) -> Case:
    model = infer(onnx_file.read(cases / name / "model.onnx").model.clone())
    samples = open_dataset(cases / name / "calib.npz", tensor_specs(model.graph.inputs))
    feeds = next(samples.batches(8)).feeds
    model = clean(model, prover([feeds])).model
    images, labels = images_of(cases, name, "train" if validation else "test")
    if validation:
        images, labels = images[-VALIDATED:], labels[-VALIDATED:]
    return Case(name, model, samples, images[:scored], labels[:scored])


def images_of(cases: Path, name: str, which: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    return pictures(cases / "data" / f"cifar10_{which}_jpeg.npz", cases / name / "card.json", count)


def criteria(case: Case, options: argparse.Namespace) -> Iterator[str]:
    whole = case.score(case.model)
    yield f"| {case.name} | the whole network | | 0% | {whole:.2%} | | |"
    for criterion, scope, isomorphic, compensate in WAYS:
        words = [criterion, "isomorphic" if isomorphic else scope, "fitted" if compensate else "bare"]
        if options.ways and not set(options.ways.split()) >= set(words):
            continue
        step = Prune(
            macs=options.macs,
            criterion=criterion,
            scope=scope,
            isomorphic=isomorphic,
            compensate=compensate,
        )
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            ground = Ground(samples=case.samples, given=case.model, workdir=Path(folder))
            try:
                smaller = run(step, case.model, ground).model
            except DeployError as error:
                yield f"| {case.name} | {' | '.join(words)} | {error} | | | |"
                continue
        taken = time.perf_counter() - begin
        score = case.score(smaller)
        yield (
            f"| {case.name} | {words[0]}, {words[1]} | {words[2]} | {1 - case.left(smaller):.1%} | "
            f"{score:.2%} | {100 * (whole - score):.1f} | {taken:.0f} |"
        )


def finetuned(case: Case, options: argparse.Namespace) -> Iterator[str]:
    """The dense network first; each way prunes in one go and is trained as the dense network was."""
    images, labels = images_of(options.cases, case.name, "train", options.images)
    specs = tensor_specs(case.model.graph.inputs)
    train = open_dataset({specs[0].name: images, "y": labels}, specs)
    normed = any(node.op_type == "BatchNormalization" for node in case.model.graph)
    training = Finetune(
        epochs=options.epochs,
        lr=0.02,
        batch_norm="train" if normed else "insert",
        augment=Augment(crop=4, flip=True),
        precision="bf16" if options.bf16 else "float",
        distill=Distill(alpha=0.3) if options.distil else None,
    )
    teachers = (case.model,) if options.distil else ()
    for words, step in (("dense", None), *FINETUNED_WAYS):
        if options.ways and not set(options.ways.split()) >= set(words.split(", ")):
            continue
        with tempfile.TemporaryDirectory() as folder:
            ground = Ground(samples=case.samples, given=case.model, workdir=Path(folder), train=train)
            model, begin = case.model, time.process_time()
            if step is not None:
                model = run(step.model_copy(update={"macs": options.macs}), model, ground).model
            before = case.score(model)
            trained = trained_on(model, training, train, teachers, Path(folder) / "training")
        yield (
            f"| {case.name} | {words} | {1 - case.left(model):.1%} | {before:.2%} | "
            f"{case.score(trained):.2%} | {time.process_time() - begin:.0f} |"
        )


def trained_on(
    model: ir.Model, training: Finetune, train: Dataset, teachers: Sequence[ir.Model], folder: Path
) -> ir.Model:
    if training.batch_norm == "insert":
        model = normalise(model, train, trainable=training.trainable, threads=1).model
    return finetune(model, training, train=train, teachers=teachers, workdir=folder).model


FINETUNED_WAYS = (
    ("random, layer, bare", Prune(macs=0.5, criterion="random", scope="layer", compensate=False)),
    ("l2, global, bare", Prune(macs=0.5, criterion="l2", scope="global", compensate=False)),
    ("taylor, global, bare", Prune(macs=0.5, criterion="taylor", scope="global", compensate=False)),
    ("obs, measured, fitted", Prune(macs=0.5)),
)
CRITERIA = """| case | criterion, scope | weights | MACs off | top-1 | points lost | s |
|---|---|---|---|---|---|---|"""
FINETUNED = """| case | how | MACs off | top-1 | after training | processor s |
|---|---|---|---|---|---|"""


if __name__ == "__main__":
    main()
