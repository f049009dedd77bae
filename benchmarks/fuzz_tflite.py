"""Damaged .tflite files, against the promise that none of them harms the process that asks about it.

    python benchmarks/fuzz_tflite.py --minutes 10 --seed 0 [--keep DIR] [file.tflite ...]

Without files a small network is lowered, in float and in INT8, and mutated. Each mutant is described and, as
the artifact of a bundle, opened and run. Allowed are an answer and a `DeployError`; a child that is reused
answers for most of them, since starting one takes longer than reading a file, and some that ended a
child again in a fresh one, through the public functions. Ends with exit code 1 where anything else came.
"""

from __future__ import annotations

import shutil
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
from fuzzing import ANSWERED, Asked, Change, Outcome, Tally, arguments, changed, flip, fuzz, kind_of

from backends.tflite import TFLite
from backends.tflite.child import READING
from deploy.adapter.child import Allowance
from deploy.adapter.message import Message
from deploy.adapter.profiles import load_profile
from deploy.adapter.protocol import Arrays
from deploy.errors import DeployError
from deploy.execute.compare import random_feeds
from deploy.graph.qdq import insert, quantize_array
from deploy.graph.shapes import infer
from deploy.progress import SILENT
from deploy.spec.artifact import Artifact
from deploy.spec.plan import Plan, QuantParams, TensorPlan

ALLOWED = Allowance(memory=2**30, cpu_s=8, clock_s=10)
WORDS = (0, 1, 4, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC)
NETWORK = """<ir_version: 10, opset_import: ["" : 21]> g (float[n,3,8,8] x) => (float[n,4] y)
  <float[8,3,3,3] w = {0}, float[8,1,3,3] v = {0}, float[4,8] u = {0}> {
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)
    r = Relu(a)
    d = Conv<pads=[1,1,1,1], group=8>(r, v)
    s = Add(r, d)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    g = Gemm<transB=1>(f, u)
    y = Softmax(g)
}"""


def network() -> ir.Model:
    model = ir.from_onnx_text(NETWORK)
    generator = np.random.default_rng(0)
    for name, shape in {"w": (8, 3, 3, 3), "v": (8, 1, 3, 3), "u": (4, 8)}.items():
        array = generator.normal(0, 0.3, shape).astype(np.float32)
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    for number, node in enumerate(model.graph):
        node.name = f"{node.op_type}{number}"
    return infer(model)


def quantized() -> ir.Model:
    model = network()
    tensors = {
        name: TensorPlan(type="int8", scale=(0.03,), zero_point=(-3,), origin="calibration")
        for name in "xrdspfg"
    }
    codes = {}
    for name in "wvu":
        array = model.graph.initializers[name].const_value
        assert array is not None
        scale = np.abs(array.numpy()).reshape(array.shape[0], -1).max(axis=1) / 127
        params = QuantParams(
            type="int8",
            scale=tuple(map(float, scale.astype(np.float32))),
            zero_point=(0,) * len(scale),
            axis=0,
        )
        codes[name] = quantize_array(array.numpy(), params)
        tensors[name] = TensorPlan(**params.model_dump(), origin="weight")
    return insert(model, tensors, codes)


def lowered(model: ir.Model, folder: Path) -> Artifact:
    folder.mkdir()
    runtime = load_profile("android").runtime_named("tflite")
    plan = Plan(graph_sha256="", target="", runtime="tflite")
    return TFLite().lower(model, plan, runtime, folder, SILENT)


def overwrite(data: bytearray, rng: np.random.Generator) -> None:
    """Bytes, most of them where the tables are: near the ends of a small file, or anywhere."""
    for _ in range(int(rng.integers(1, 5))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))


def word(data: bytearray, rng: np.random.Generator) -> None:
    """Lengths, offsets, indices and enumerators stand at multiples of four."""
    for _ in range(int(rng.integers(1, 4))):
        at = 4 * int(rng.integers(len(data) // 4))
        new = int(rng.choice(WORDS)) if rng.random() < 0.7 else int(rng.integers(len(data)))
        data[at : at + 4] = struct.pack("<I", new)


def nudge(data: bytearray, rng: np.random.Generator) -> None:
    """Numbers that are off by a little."""
    at = 4 * int(rng.integers(len(data) // 4))
    (old,) = struct.unpack_from("<I", data, at)
    data[at : at + 4] = struct.pack("<I", (old + int(rng.choice([-8, -4, -1, 1, 4, 8]))) % 2**32)


def point(data: bytearray, rng: np.random.Generator) -> None:
    """An offset that leads to another place of the file: shared tables, cycles."""
    at = 4 * int(rng.integers(len(data) // 4))
    data[at : at + 4] = struct.pack("<I", (4 * int(rng.integers(len(data) // 4)) - at) % 2**32)


def truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(8, len(data))) :]


def splice(data: bytearray, rng: np.random.Generator) -> None:
    size = 4 * int(rng.integers(1, 64))
    source, target = (4 * int(rng.integers(max(1, (len(data) - size) // 4))) for _ in range(2))
    data[target : target + size] = data[source : source + size]


def erase(data: bytearray, rng: np.random.Generator) -> None:
    size, at = 4 * int(rng.integers(1, 32)), 4 * int(rng.integers(len(data) // 4))
    data[at : at + size] = bytes(len(data[at : at + size]))


CHANGES: tuple[Change, ...] = (
    flip, overwrite, word, word, nudge, nudge, point, truncate, splice, erase,
)  # fmt: skip


def mutants(contents: list[bytes], originals: list[Artifact], folder: Path, seed: int) -> Iterator[Artifact]:
    """The same file over and over, with other damage."""
    rng = np.random.default_rng(seed)
    while True:
        which = int(rng.integers(len(contents)))
        here = {"folder": folder, "foreign": True}
        artifact = originals[which % len(originals)].model_copy(update=here)
        artifact.main.write_bytes(changed(contents[which], CHANGES, rng, least=16))
        yield artifact


def tried(child: Asked, artifact: Artifact, feeds: Arrays, tally: Tally) -> list[Outcome]:
    """Described, opened and run; some that ended the child again in a fresh one."""
    path, size = str(artifact.main), artifact.main.stat().st_size
    opened = {
        "ask": "open",
        "artifact": artifact.model_dump(mode="json"),
        "folder": str(artifact.folder),
        "options": {},
    }
    found = [child.ask(Message({"ask": "contents", "path": path, "size": size}))]
    found.append(child.ask(Message(opened)))
    if found[-1] == ANSWERED:
        found.append(child.ask(Message({"ask": "run", "want": []}, feeds)))
    if any(end for _, end in found) and tally.ended % 10 == 0:
        found.append((f"in public: {in_public(artifact, feeds)}", False))
    return found


def in_public(artifact: Artifact, feeds: Arrays) -> str:
    """The same through the functions that commands use."""
    backend = TFLite()
    try:
        backend.contents(artifact.main)
        with backend.open(artifact, backend.options_type()) as runner:
            runner.run(feeds)
    except DeployError as e:
        return kind_of(e)
    return "an answer"


def main() -> int:
    asked = arguments(__doc__, "files")
    child = Asked(READING, ALLOWED)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        originals = [
            lowered(make(), Path(scratch, name)) for name, make in (("f", network), ("q", quantized))
        ]
        feeds = random_feeds(originals[0].inputs, 0)
        contents = [path.read_bytes() for path in asked.files or [a.main for a in originals]]
        folder = Path(scratch, "mutant")
        folder.mkdir()

        def kept(artifact: Artifact, number: str) -> None:
            asked.keep.mkdir(exist_ok=True)
            shutil.copy(artifact.main, asked.keep / f"{asked.seed}-{number}.tflite")

        code = fuzz(
            mutants(contents, originals, folder, asked.seed),
            lambda artifact, tally: tried(child, artifact, feeds, tally),
            kept if asked.keep else None, lambda _: False, asked.minutes,
        )  # fmt: skip
    child.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
