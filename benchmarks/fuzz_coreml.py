"""Damaged .mlpackage folders, against the promise that none of them harms the process that asks about it.

    python benchmarks/fuzz_coreml.py --minutes 10 --seed 0 [--keep DIR] [package.mlpackage ...]

Without packages a small one is written: convolutions, weights of four bits, a loop, a recurrent layer. Bytes
of its specification, weights and manifest are changed, many changes a message's structure. Each mutant is
opened and run in a child that is reused. Allowed are an answer and an error of ours that says what is wrong;
an exception that our reader did not foresee breaks the promise, even where the child turns it into an error.
Ends with exit code 1 where anything else came.
"""

from __future__ import annotations

import re
import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzzing import ANSWERED, Asked, Change, Outcome, arguments, changed, flip, fuzz, in_turn

from backends.coreml.child import READING
from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import builder, quiet, sdk
from deploy.adapter.child import Allowance
from deploy.adapter.message import Message
from deploy.adapter.protocol import Arrays

ALLOWED = Allowance(memory=2**30, cpu_s=8, clock_s=20)
BYTES = (0, 1, 2, 3, 7, 8, 0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x7F, 0x80, 0xFF)
WORDS = (0, 1, 4, 64, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**62, 2**63, 2**64 - 1)


def written(path: Path) -> Path:
    """A package of many kinds of operations and values."""
    ct, mb = sdk(), builder()
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4, 8, 8))], opset_version=ct.target.iOS18)
    def program(x):
        y = mb.relu(
            x=mb.conv(x=x, weight=normal(8, 4, 3, 3), bias=normal(8), pad_type="same", strides=[2, 2])
        )
        y = mb.conv(x=y, weight=normal(8, 1, 3, 3), groups=8, pad_type="valid")
        y = mb.max_pool(x=y, kernel_sizes=[2, 2], pad_type="valid")
        codes = mb.quantize(input=y, scale=np.float32(0.05), zero_point=np.int8(3), output_dtype="int8")
        y = mb.dequantize(input=codes, scale=np.float32(0.05), zero_point=np.int8(3))
        y = mb.linear(x=mb.reshape(x=y, shape=[1, -1]), weight=normal(64, 8 * y.shape[2] * y.shape[3]))
        _, y = mb.while_loop(
            _cond=lambda i, _: mb.less(x=i, y=3),
            _body=lambda i, y: (mb.add(x=i, y=1), mb.mul(x=y, y=1.5)),
            loop_vars=(0, y),
        )
        y = mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=y), y=0.0),
            _true_fn=lambda: mb.tanh(x=y),
            _false_fn=lambda: mb.identity(x=y),
        )
        steps = mb.reshape(x=y, shape=[4, 1, 16])
        made, *_ = mb.rnn(
            x=steps, initial_h=np.zeros((1, 4), np.float32), weight_ih=normal(4, 16), weight_hh=normal(4, 4)
        )
        rows = mb.gather(
            x=mb.transpose(x=steps, perm=[1, 0, 2]), indices=[0, 2], axis=1, validate_indices=False
        )
        rows = mb.slice_by_index(x=rows, begin=[0, 0, 2], end=[1, 2, 14], stride=[1, 1, 3])
        return mb.softmax(x=mb.reshape(x=made, shape=[1, 4])), mb.tile(x=rows, reps=[1, 2, 1])

    with quiet():
        model = ct.convert(
            program, source="milinternal", convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32, skip_model_load=True,
        )  # fmt: skip
        how = ct.optimize.coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric",
            dtype="int4",
            granularity="per_block",
            block_size=16,
            weight_threshold=256,
        )
        ct.optimize.coreml.linear_quantize_weights(model, ct.optimize.coreml.OptimizationConfig(how)).save(
            str(path)
        )
    return path


def byte(data: bytearray, rng: np.random.Generator) -> None:
    """Keys, lengths and small numbers are single bytes."""
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] = int(rng.choice(BYTES))


def nudge(data: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(data)))
    data[at] = (data[at] + int(rng.choice([-2, -1, 1, 2]))) % 256


def word(data: bytearray, rng: np.random.Generator) -> None:
    at = 8 * int(rng.integers(max(1, len(data) // 8 - 1)))
    data[at : at + 8] = struct.pack("<Q", int(WORDS[int(rng.integers(len(WORDS)))]))


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(1, len(data))) :]


def splice(data: bytearray, rng: np.random.Generator) -> None:
    size = int(rng.integers(1, min(256, len(data))))
    source, target = (int(rng.integers(max(1, len(data) - size))) for _ in range(2))
    data[target : target + size] = data[source : source + size]


def text(data: bytearray, rng: np.random.Generator) -> None:
    """One name or word in the place of another of the same length: operations and values are exchanged."""
    words = list(re.finditer(rb"[a-z_0-9]{3,40}", bytes(data)))
    if words:
        first = words[int(rng.integers(len(words)))]
        like = [m for m in words if len(m.group()) == len(first.group())]
        second = like[int(rng.integers(len(like)))]
        data[first.start() : first.end()] = second.group()


CHANGES: tuple[Change, ...] = (
    flip, byte, byte, nudge, nudge, word, truncate, splice, text, text,
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A damaged package, and what the sound one took."""

    package: Path
    feeds: Arrays


def mutants(package: Path, place: Path, seed: int) -> Iterator[Mutant]:
    """The same folder over and over, with other damage."""
    with CoreMLRunner(package, CoreMLOptions()) as runner:
        normal = np.random.default_rng(0)
        sizes = {s.name: runner.usual.get(s.name, s.shape) for s in runner.inputs}
        feeds = {s.name: normal.normal(0, 1, sizes[s.name]).astype(s.dtype) for s in runner.inputs}
        runner.run(feeds)
    rng = np.random.default_rng(seed)
    files = [p.relative_to(package) for p in sorted(package.rglob("*")) if p.is_file()]
    contents = {file: (package / file).read_bytes() for file in files}
    likely = np.array([8.0 if file.suffix == ".mlmodel" else 1.0 for file in files])
    shutil.copytree(package, place)
    while True:
        file = files[int(rng.choice(len(files), p=likely / likely.sum()))]
        (place / file).write_bytes(changed(contents[file], CHANGES, rng, least=1))
        yield Mutant(place, feeds)
        (place / file).write_bytes(contents[file])


def tried(child: Asked, mutant: Mutant) -> list[Outcome]:
    """Opened and, where that went well, run."""
    opened = {"ask": "open", "path": str(mutant.package), "options": {}, "inputs": [], "outputs": []}
    found = child.ask(Message(opened))
    if found != ANSWERED:
        return [found]
    return [child.ask(Message({"ask": "run", "want": [], "kept": False}, mutant.feeds))]


def main() -> int:
    asked = arguments(__doc__, "packages")
    child = Asked(READING, ALLOWED)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        originals = asked.packages or [written(Path(scratch, "net.mlpackage"))]
        places = [Path(scratch, f"mutant{number}.mlpackage") for number in range(len(originals))]
        made = [mutants(o, place, asked.seed) for o, place in zip(originals, places, strict=True)]

        def kept(mutant: Mutant, number: str) -> None:
            shutil.copytree(mutant.package, asked.keep / f"{asked.seed}-{number}.mlpackage")

        code = fuzz(
            in_turn(made), lambda mutant, _: tried(child, mutant), kept if asked.keep else None,
            lambda text: "it cannot be read:" in text or "crashes" in text, asked.minutes,
        )  # fmt: skip
    child.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
