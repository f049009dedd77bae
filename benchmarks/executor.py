"""The torch executor against a network written by hand, and against ONNX Runtime.

    python benchmarks/executor.py --cases DIR [--batch 32] [--pairs 20] [--threads 2]

DIR/r18_cifar10/model.onnx as a GraphModule and the same ResNet-18 in plain torch with the same weights:
results, time of a forward pass and of a training step, taken in turns (median of the ratio of a pair, 95 %
interval by bootstrap over the pairs), peak memory of a process of its own for each. Then every
DIR/<case>/model.onnx against ONNX Runtime without optimisations.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deploy.execute.module import GraphModule
from deploy.frontend.onnx_file import read

Step = Callable[[Tensor, Tensor], None]


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.b1 = nn.BatchNorm2d(outputs)
        self.c2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.b2 = nn.BatchNorm2d(outputs)
        self.d = None
        if stride != 1:
            self.d = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b2(self.c2(functional.relu(self.b1(self.c1(x)))))
        return functional.relu(y + (x if self.d is None else self.d(x)))


class ByHand(nn.Module):
    """ResNet-18 for pictures of 32 by 32, its names those of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        self.layers = nn.Sequential(*[Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)])
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.stem(x)).mean((2, 3)))


def by_hand(path: Path) -> ByHand:
    """With the weights of the file; those that it shares between two layers stand behind an Identity."""
    graph = read(path).model.graph
    arrays = {name: value.const_value.numpy() for name, value in graph.initializers.items()}
    for node in graph:
        if node.op_type == "Identity" and node.inputs[0].name in arrays:
            arrays[node.outputs[0].name] = arrays[node.inputs[0].name]
    model = ByHand()
    state = {name: torch.tensor(arrays[name]) for name in model.state_dict() if name in arrays}
    missing, _ = model.load_state_dict(state, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return model


def steps(path: Path, which: str, train: bool) -> Step:
    module = GraphModule(read(path).model) if which == "executor" else by_hand(path)
    module.train(train)
    forward = (lambda x: module({"x": x})["logits"]) if which == "executor" else module

    def run(x: Tensor, y: Tensor) -> None:
        if train:
            module.zero_grad()
            functional.cross_entropy(forward(x), y).backward()
        else:
            with torch.no_grad():
                forward(x)

    return run


def seconds(step: Step, x: Tensor, y: Tensor) -> tuple[float, float]:
    """On the clock, and of the processor, which other processes slow down less."""
    begin, used = time.perf_counter(), time.process_time()
    step(x, y)
    return time.perf_counter() - begin, time.process_time() - used


def compare_time(path: Path, train: bool, x: Tensor, y: Tensor, pairs: int) -> None:
    executor, hand = steps(path, "executor", train), steps(path, "hand", train)
    for step in (executor, hand, executor, hand):
        step(x, y)
    taken = np.empty((pairs, 2, 2))
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 else (1, 0):  # who begins takes turns
            taken[pair, which] = seconds((executor, hand)[which], x, y)
    for kind, name in enumerate(("clock", "processor")):
        mine, other = np.median(taken[:, :, kind], 0) * 1000
        ratios = taken[:, 0, kind] / taken[:, 1, kind]  # both of a pair meet the same load of the machine
        drawn = ratios[np.random.default_rng(0).integers(0, pairs, (2000, pairs))]
        low, high = np.quantile(np.median(drawn, 1), [0.025, 0.975])
        said = (
            f"{'forward and backward' if train else 'forward'}, {name}: {mine:.0f} ms, by hand {other:.0f} ms"
        )
        print(f"{said}, ratio {np.median(ratios):.3f} [{low:.3f}, {high:.3f}]", flush=True)


def compare_results(path: Path, x: Tensor, y: Tensor) -> None:
    module, hand = GraphModule(read(path).model), by_hand(path)
    for train in (False, True):
        mine, other = module.train(train)({"x": x})["logits"], hand.train(train)(x)
        print(f"{'training' if train else 'evaluating'}: outputs differ by {(mine - other).abs().max():.1e}")
    functional.cross_entropy(mine, y).backward()
    functional.cross_entropy(other, y).backward()
    named = module.named_weights()
    parameters = dict(hand.named_parameters())
    shared = [
        n for n in named if n in parameters and not n.endswith("b2.bias")
    ]  # one of those stands for two
    worst = max(float((named[n].grad - parameters[n].grad).abs().max()) for n in shared)
    print(f"gradients of {len(shared)} weights differ by {worst:.1e}", flush=True)


def peak_mib() -> float:
    """Peak resident memory of this process; getrusage's is inherited from the parent through exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def compare_memory(arguments: list[str]) -> None:
    found = {}
    for which in ("executor", "hand"):
        command = [sys.executable, __file__, *arguments, "--memory", which]
        found[which] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ratio = found["executor"] / found["hand"]
    said = f"peak memory of training: {found['executor']:.0f} MiB, by hand {found['hand']:.0f} MiB"
    print(f"{said}, ratio {ratio:.3f}", flush=True)


def compare_runtime(folder: Path, threads: int) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    module, data = GraphModule(read(folder / "model.onnx").model), np.load(folder / "eval.npz")
    one = isinstance(session.get_inputs()[0].shape[0], int)
    count, worst, same, size = 100, 0.0, 0, 0.0
    step = 1 if one else 20
    for begin in range(0, count, step):
        feeds = {value.name: data[value.name][begin : begin + step] for value in session.get_inputs()}
        with torch.no_grad():
            found = next(iter(module({k: torch.from_numpy(v) for k, v in feeds.items()}).values())).numpy()
        wanted = session.run(None, feeds)[0]
        worst, size = max(worst, np.abs(wanted - found).max()), max(size, np.abs(wanted).max())
        same += int((wanted.argmax(-1) == found.argmax(-1)).sum())
    print(
        f"{folder.name}: largest difference {worst:.1e} of {size:.3g}, same class {same}/{count}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=("executor", "hand"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    path = given.cases / "r18_cifar10" / "model.onnx"
    x, y = torch.randn(given.batch, 3, 32, 32), torch.randint(10, (given.batch,))
    if given.memory:
        step = steps(path, given.memory, train=True)
        for _ in range(3):
            step(x, y)
        print(peak_mib())
        return
    compare_results(path, x, y)
    compare_memory(sys.argv[1:])
    for train in (False, True):
        compare_time(path, train, x, y, given.pairs)
    for folder in sorted(given.cases.iterdir()):
        if (folder / "model.onnx").exists():
            compare_runtime(folder, given.threads)


if __name__ == "__main__":
    main()
