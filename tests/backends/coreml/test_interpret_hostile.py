"""Packages that are made to harm: each refused by one error, in little time and memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools")
from coreml_packages import saved

from backends.coreml import child
from backends.coreml.child import ForeignRunner
from backends.coreml.package import open_package
from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import sdk
from backends.coreml.wire import Damaged, Wire
from deploy.errors import BackendError, DeployError

FUZZER = Path(__file__).parents[3] / "benchmarks" / "fuzz_coreml.py"
FEEDS = {"x": np.random.default_rng(0).normal(0, 1, (1, 4, 5, 5)).astype(np.float32)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    w = np.random.default_rng(0).normal(0, 1, (4, 4, 3, 3)).astype(np.float32)

    def build(mb, x):
        y = mb.conv(x=x, weight=w, pad_type="same")
        _, total = mb.while_loop(
            _cond=lambda i, y: mb.less(x=i, y=3), _body=lambda i, y: (mb.add(x=i, y=1), mb.add(x=y, y=x)),
            loop_vars=(0, y),
        )  # fmt: skip
        return mb.tile(x=total, reps=[1, 1, 2, 2])

    return saved(build, {"x": (1, 4, 5, 5)}, tmp_path_factory.mktemp("built") / "net.mlpackage")


@pytest.fixture
def package(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "net.mlpackage"))


def specification(package: Path) -> Path:
    return next(package.rglob("*.mlmodel"))


def weights(package: Path) -> Path:
    return next(package.rglob("weight.bin"))


def rewrite(package: Path, change: Callable[[object], object]) -> None:
    """Change the specification's message."""
    file = specification(package)
    message = sdk().proto.Model_pb2.Model.FromString(file.read_bytes())
    change(message)
    file.write_bytes(message.SerializeToString())


def block_of(message):
    return next(iter(message.mlProgram.functions["main"].block_specializations.values()))


def constant(message, end: str):
    return next(
        o for o in block_of(message).operations if o.type == "const" and o.outputs[0].name.endswith(end)
    )


def manifest(package: Path, path: object) -> None:
    file = package / "Manifest.json"
    said = json.loads(file.read_text())
    said["itemInfoEntries"][said["rootModelIdentifier"]]["path"] = path
    file.write_text(json.dumps(said))


def elsewhere(package: Path) -> None:
    outside = package.parent / "outside.mlmodel"
    shutil.copy(specification(package), outside)
    manifest(package, "../../outside.mlmodel")


def linked(package: Path) -> None:
    outside = package.parent / "outside.bin"
    shutil.move(weights(package), outside)
    (package / "Data/com.apple.CoreML/weights/weight.bin").symlink_to(outside)


def folder_linked(package: Path) -> None:
    outside = package.parent / "outside"
    shutil.move(package / "Data/com.apple.CoreML/weights", outside)
    (package / "Data/com.apple.CoreML/weights").symlink_to(outside)


def pipe(package: Path) -> None:
    weights(package).unlink()
    os.mkfifo(package / "Data/com.apple.CoreML/weights/weight.bin")


def blob(package: Path, at: int, form: str, value: int) -> None:
    """Overwrite a field of what describes the first blob."""
    content = bytearray(weights(package).read_bytes())
    struct.pack_into(form, content, 64 + at, value)
    weights(package).write_bytes(content)


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def far(message) -> None:
    constant(message, "weight_0").attributes["val"].blobFileValue.offset = 2**40


def outside(message) -> None:
    constant(message, "weight_0").attributes[
        "val"
    ].blobFileValue.fileName = "@model_path/../../../../etc/passwd"


def absolute(message) -> None:
    constant(message, "weight_0").attributes["val"].blobFileValue.fileName = "/etc/passwd"


def huge(message) -> None:
    for dimension in constant(message, "weight_0").attributes["val"].type.tensorType.dimensions:
        dimension.constant.size = 2**62


def unknown(message) -> None:
    block_of(message).operations[-1].type = "custom_layer"


def backwards(message) -> None:
    """Every operation reads what comes behind it: a cycle."""
    operations = block_of(message).operations
    for operation in operations:
        if operation.type == "conv":
            operation.inputs["x"].arguments[0].name = operations[-1].outputs[0].name


def gone(message) -> None:
    block_of(message).outputs[0] = "nowhere"


def deep(message) -> None:
    block = block_of(message)
    for _ in range(40):
        operation = block.operations.add()
        operation.type = "cond"
        block = operation.blocks.add()


def other_shape(message) -> None:
    block_of(message).operations[-1].outputs[0].type.tensorType.dimensions[0].constant.size = 3


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), "Manifest.json' is missing"),
    "a manifest that is none": (lambda p: (p / "Manifest.json").write_text("[" * 99_999), "does not say"),
    "a path that is a number": (lambda p: manifest(p, 7), "does not say where"),
    "a path outside": (elsewhere, "outside its folder"),
    "an absolute path": (lambda p: manifest(p, "/etc/passwd"), "outside its folder"),
    "weights behind a link": (linked, "is a link"),
    "a folder behind a link": (folder_linked, "is a link"),
    "weights that are a pipe": (pipe, "no plain file"),
    "no weights": (lambda p: weights(p).unlink(), "is missing"),
    "an empty specification": (lambda p: cut(specification(p), 0), "no program"),
    "half a specification": (lambda p: cut(specification(p), 900), "reaches beyond|cannot be read"),
    "weights without a head": (lambda p: cut(weights(p), 10), "less than its head"),
    "half the weights": (lambda p: cut(weights(p), 200), "reaches beyond its end"),
    "a blob of another type": (lambda p: blob(p, 4, "<I", 3), "is of uint8, not float32"),
    "a blob of no type": (lambda p: blob(p, 4, "<I", 99), "is of 99"),
    "a blob that is not described": (lambda p: blob(p, 0, "<I", 1), "nothing describes"),
    "a blob longer than its file": (lambda p: blob(p, 8, "<Q", 2**62), "reaches beyond its end"),
    "a blob that begins behind the end": (lambda p: blob(p, 16, "<Q", 2**63), "reaches beyond its end"),
    "a shorter blob": (lambda p: blob(p, 8, "<Q", 4), "has 1 numbers, not 144"),
    "an offset behind the end": (lambda p: rewrite(p, far), "a blob at byte"),
    "weights outside": (lambda p: rewrite(p, outside), "outside its folder"),
    "weights anywhere": (lambda p: rewrite(p, absolute), "not below @model_path"),
    "a constant of 2^248 numbers": (lambda p: rewrite(p, huge), "has 144 numbers"),
    "an operation that nobody knows": (lambda p: rewrite(p, unknown), "custom_layer"),
    "a cycle": (lambda p: rewrite(p, backwards), "which nothing before it makes"),
    "a result that nothing makes": (lambda p: rewrite(p, gone), "nothing makes the result 'nowhere'"),
    "blocks in blocks": (lambda p: rewrite(p, deep), "blocks in more than 32 blocks"),
    "a shape that is not so": (lambda p: rewrite(p, other_shape), r"makes \[1, 4, 10, 10\], the file says"),
}  # fmt: skip


@pytest.mark.parametrize("what", HARM)
def test_what_is_wrong_is_said(what: str, package: Path) -> None:
    harm, said = HARM[what]
    harm(package)
    began = time.monotonic()
    with pytest.raises(BackendError, match=said) as e, CoreMLRunner(package, CoreMLOptions()) as runner:
        runner.run(FEEDS)
    assert e.value.hint and "net.mlpackage" in e.value.message
    assert time.monotonic() - began < 5


def test_what_is_no_package_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.mlmodel").write_bytes(b"")
    for name in ("a.mlmodel", "none.mlpackage"):
        with pytest.raises(BackendError, match="no such package"):
            open_package(tmp_path / name)
    with pytest.raises(BackendError, match="no such package"):
        ForeignRunner(tmp_path / "none.mlpackage", CoreMLOptions())


def test_a_message_of_very_many_fields_is_refused() -> None:
    wire = Wire(b"\x08\x00" * 100_000, most=10_000)
    with pytest.raises(Damaged, match="more fields"):
        wire.whole().integer(1)


def test_a_child_computes_what_we_would(package: Path) -> None:
    with CoreMLRunner(package, CoreMLOptions()) as here, ForeignRunner(package, CoreMLOptions()) as apart:
        got, want = apart.run(FEEDS, ["conv_0"]), here.run(FEEDS, ["conv_0"])
        assert (
            apart.inputs == here.inputs and apart.executed_by == here.executed_by == "reference interpreter"
        )
        assert set(got) == set(want) and all(np.array_equal(got[name], want[name]) for name in want)


def endless(message) -> None:
    """The loop's bound is a number that is never reached."""
    loop = next(o for o in block_of(message).operations if o.type == "while_loop")
    for block in loop.blocks:
        for operation in block.operations:
            if operation.type == "const":
                operation.attributes["val"].immediateValue.tensor.ints.values[0] = 2**31 - 1
                if block is loop.blocks[1]:
                    operation.attributes["val"].immediateValue.tensor.ints.values[0] = 0


def bomb(message) -> None:
    """A result of 64 GiB; each of its sizes is said to be unknown."""
    tensor = constant(message, "reps_0").attributes["val"]
    tensor.immediateValue.tensor.ints.values[:] = [1, 1, 12000, 12000]
    for dimension in block_of(message).operations[-1].outputs[0].type.tensorType.dimensions:
        dimension.unknown.variadic = False


def test_a_loop_without_end_is_ended(package: Path) -> None:
    rewrite(package, endless)
    began = time.monotonic()
    said = "keeps the interpreter busy for more than 1 s"
    options = CoreMLOptions()
    brief = replace(child.READING, running_s=1.0)
    with ForeignRunner(package, options, reading=brief) as runner, pytest.raises(BackendError, match=said):
        runner.run(FEEDS)
    assert time.monotonic() - began < 60


def test_a_result_larger_than_memory_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(package, bomb)
    with (
        CoreMLRunner(package, CoreMLOptions()) as runner,
        pytest.raises(BackendError, match="more than 8 GiB"),
    ):
        runner.run(FEEDS)
    monkeypatch.setattr(child, "READING", replace(child.READING, memory=2**28))
    monkeypatch.setattr("backends.coreml.interpret.call.LARGEST", 2**60)
    with ForeignRunner(package, CoreMLOptions()) as runner, pytest.raises(DeployError):
        runner.run(FEEDS)


def fuzz(seconds: float, seed: int) -> str:
    words = [sys.executable, str(FUZZER), "--minutes", str(seconds / 60), "--seed", str(seed)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_damaged_packages() -> None:
    assert "0 broke the promise" in fuzz(20, seed=1)
