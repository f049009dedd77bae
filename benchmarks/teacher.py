"""A better ResNet-18 for the headline, to be trained where a GPU is.

    python benchmarks/teacher.py --cases DIR --out DIR [--epochs 80] [--images 48000]

Trains DIR/r18_cifar10/model.onnx on, from its own weights at a rate that forgets most of them, on the
training images in DIR/data but for the 2,000 that the headline chooses by; judged once on the test images.
--out is then what headline.py takes as --cases: the same network with other weights, its card and the images.
On a CPU an epoch takes half an hour; a run that was killed goes on at its last checkpoint. Not run on CUDA
yet (2026-11-21).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
from headline import Told, top1, unpack

from deploy.data.dataset import open_dataset
from deploy.execute.compare import prover
from deploy.frontend import onnx_file
from deploy.graph.clean import clean
from deploy.graph.shapes import infer
from deploy.graph.summary import tensor_specs
from deploy.spec.finetune import Augment, Finetune
from deploy.train.finetune import finetune

NETWORK = "r18_cifar10"
WANTED = 0.94


def training(epochs: int) -> Finetune:
    """What ResNets for CIFAR-10 are usually trained by, with cutmix on every batch."""
    return Finetune(
        epochs=epochs,
        batch=128,
        lr=0.1,
        weight_decay=5e-4,
        clip=4,
        precision="bf16",
        label_smoothing=0.1,
        augment=Augment(crop=4, flip=True, cutmix=1.0),
    )


def trained(source: Path, out: Path, step: Finetune, images: int | None) -> ir.Model:
    """The last epoch's weights: the network knows the validation images, which would choose it as it came."""
    model = infer(onnx_file.read(source).model)
    specs = tensor_specs(model.graph.inputs)
    with np.load(out / "fit.npz") as found:
        fit = open_dataset({specs[0].name: found["x"][:images], "y": found["y"][:images]}, specs)
    graph = infer(clean(model, prover([next(fit.batches(2)).feeds])).model)
    return finetune(graph, step, train=fit, workdir=out / "training", progress=Told()).model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of r18_cifar10 and data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--images", type=int)
    given = parser.parse_args()
    case, out = given.cases / NETWORK, given.out
    (out / NETWORK).mkdir(parents=True, exist_ok=True)
    if not (out / "test.npz").is_file():
        unpack(given.cases / "data", case / "card.json", out)
    if not (out / "data").exists():
        (out / "data").symlink_to((given.cases / "data").resolve())
    shutil.copy(case / "card.json", out / NETWORK / "card.json")
    better = trained(case / "model.onnx", out, training(given.epochs), given.images)
    ir.save(better, out / NETWORK / "model.onnx")
    before, after = (
        top1(m, out / "test.npz") for m in (infer(onnx_file.read(case / "model.onnx").model), better)
    )
    print(f"{before:.4f} became {after:.4f} on the test images, {WANTED} wanted")


if __name__ == "__main__":
    main()
