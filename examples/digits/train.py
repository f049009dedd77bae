"""Trains the example network on scikit-learn's handwritten digits and writes what the example commits.

    pip install 'deploy-compiler[dev]' torch==2.13.0
    python examples/digits/train.py

About a minute on two cores. Writes ``digits.onnx``, ``calib.npz`` and ``eval.npz`` beside this file. The
example itself needs none of this: its files are committed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

HERE = Path(__file__).parent
SEED = 0
EPOCHS = 40
BATCH = 50
CALIBRATION_SAMPLES = 256
EVAL_SAMPLES = 597


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes (He et al. 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            norm = nn.BatchNorm2d(channels_out)
            norm.bias.requires_grad_(False)  # the sum has one already, the last of `body`
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def network() -> nn.Module:
    """x [n, 1, 16, 16] in [0, 1] -> logits [n, 10]."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(1, 32, 3, 1, 1, bias=False),
            stem_norm=nn.BatchNorm2d(32),
            stem_relu=nn.ReLU(),
            block1=Residual(32, 32),
            block2=Residual(32, 64, stride=2),
            block3=Residual(64, 128, stride=2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classify=nn.Linear(128, 10),
        )
    )


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 1, 16, 16] in [0, 1], every pixel of the originals doubled both ways; labels [1797]."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32).repeat(2, axis=1).repeat(2, axis=2)
    return images[:, None], digits.target.astype(np.int64)


def batches(x: Tensor, y: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, every batch moved by up to two pixels."""
    for rows in torch.split(torch.randperm(len(x), generator=generator), BATCH):
        down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
        yield torch.roll(x[rows], (down, right), dims=(2, 3)), y[rows]


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    generator = torch.Generator().manual_seed(SEED)
    steps = EPOCHS * -(-len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for images, labels in batches(x, y, generator):
            loss = nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares it so
            optimizer.step()
            schedule.step()
            total += loss.item() * len(images)
        print(f"epoch {epoch + 1:2d}  loss {total / len(x):.4f}", flush=True)
    model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the network as ONNX with its batch norms kept as nodes, the batch size free."""
    torch.onnx.export(
        model,
        (torch.zeros(1, 1, 16, 16),),
        path,
        input_names=["x"],
        output_names=["logits"],
        dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}},
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,  # the mode for inference would fold them
        do_constant_folding=False,
        dynamo=False,
    )


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(2)  # gradients depend on it
    torch.use_deterministic_algorithms(True)
    images, labels = load()
    x_train, x_eval, y_train, y_eval = train_test_split(
        images, labels, test_size=EVAL_SAMPLES, random_state=SEED, stratify=labels
    )
    model = network()
    train(model, torch.from_numpy(x_train), torch.from_numpy(y_train))
    with torch.no_grad():
        right = model(torch.from_numpy(x_eval)).argmax(1).numpy() == y_eval
    print(f"accuracy {right.mean():.4f} on {len(y_eval)} images that training has not seen")

    export(model, HERE / "digits.onnx")
    np.savez_compressed(HERE / "calib.npz", x=x_train[:CALIBRATION_SAMPLES], y=y_train[:CALIBRATION_SAMPLES])
    np.savez_compressed(HERE / "eval.npz", x=x_eval, y=y_eval)


if __name__ == "__main__":
    main()
