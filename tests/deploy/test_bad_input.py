"""Whatever is wrong with what is handed in: one clear message, a hint, its exit code, and nothing written.

Every case goes through the Python interface and through the command line.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest

import deploy
from deploy.cli import main
from deploy.errors import DeployError

LINE_LIMIT = 400


class Trap:
    """Makes a folder if it is ever unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(Path(tempfile.gettempdir()) / "unpickled"),)


@dataclass
class Given:
    """What is handed in, in a folder of its own; good at first."""

    folder: Path
    model: Path
    target: str = "x86-avx2"
    options: dict[str, Path] = field(default_factory=dict)
    out: Path = Path()

    def rewrite(self, change: Callable[[onnx.ModelProto], None]) -> None:
        proto = onnx.load(self.model)
        change(proto)
        onnx.save(proto, self.model)

    def data(self, name: str = "data", **arrays: np.ndarray) -> None:
        path = self.folder / f"{name}.npz"
        np.savez(path, **arrays)
        self.options[name] = path


Spoil = Callable[[Given], None]
X = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)


def bytes_of(data: bytes) -> Spoil:
    return lambda given: Path.write_bytes(given.model, data) and None


def no_model(given: Given) -> None:
    given.model.unlink()


def truncated(given: Given) -> None:
    given.model.write_bytes(given.model.read_bytes()[:-700])


def without_external_data(given: Given) -> None:
    external(given, "weights.bin")
    (given.folder / "weights.bin").unlink()


def external(given: Given, location: str) -> None:
    """Move the first weights to a file beside the model, which then calls that file ``location``."""

    def change(proto: onnx.ModelProto) -> None:
        tensor = proto.graph.initializer[0]
        tensor.raw_data = onnx.numpy_helper.to_array(tensor).tobytes()
        (given.folder / "weights.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    proto = onnx.load(given.model)
    change(proto)
    given.model.write_bytes(proto.SerializeToString())


def external_data_outside(given: Given) -> None:
    external(given, "../secret.bin")


def external_data_through_a_link(given: Given) -> None:
    external(given, "weights.bin")
    (given.folder / "weights.bin").rename(given.folder.parent / "secret.bin")
    (given.folder / "weights.bin").symlink_to(given.folder.parent / "secret.bin")


def unknown_operation(given: Given) -> None:
    def change(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            if node.op_type == "Relu":
                node.op_type = "Reluu"

    given.rewrite(change)


def unknown_domain(given: Given) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.opset_import.add(domain="com.example", version=1)
        proto.graph.node[1].domain = "com.example"

    given.rewrite(change)


def weights_with(value: float) -> Spoil:
    def change(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.name == "w2")
        array = onnx.numpy_helper.to_array(tensor).copy()
        array.flat[5] = value
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w2"))

    return lambda given: given.rewrite(change)


def a_checkpoint(given: Given) -> None:
    with zipfile.ZipFile(given.model, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trap()))


def far_too_large(given: Given) -> None:
    with given.model.open("r+b") as file:
        file.truncate(40 * 2**30)


def arrays(name: str = "data", **given_arrays: np.ndarray) -> Spoil:
    return lambda given: given.data(name, **given_arrays)


def with_value(value: float) -> np.ndarray:
    spoilt = X.copy()
    spoilt[7, 1, 2, 3] = value
    return spoilt


def bad_eval_data(given: Given) -> None:
    given.data(x=X)
    given.data("eval", x=with_value(np.nan))


def no_data(given: Given) -> None:
    given.options["data"] = given.folder / "nothing.npz"


def data_bytes(data: bytes) -> Spoil:
    def write(given: Given) -> None:
        given.options["data"] = given.folder / "data.npz"
        given.options["data"].write_bytes(data)

    return write


def no_images(given: Given) -> None:
    given.options["data"] = given.folder / "images"
    given.options["data"].mkdir()


def wrong_target(given: Given) -> None:
    given.target = "jetsen"


def out_is_a_file(given: Given) -> None:
    given.out.write_text("mine")


def bundle_is_a_file(given: Given) -> None:
    given.out.mkdir()
    (given.out / given.target).write_text("mine")


def somebody_elses_folder(given: Given) -> None:
    (given.out / given.target).mkdir(parents=True)
    (given.out / given.target / "thesis.tex").write_text("mine")


LABELS = np.arange(12) % 4
MODEL, DATA, UNSUPPORTED, USAGE = 3, 4, 5, 2

CASES: Mapping[str, tuple[Spoil, int, str, str]] = {
    # what is wrong: how it is made, exit code, words of the message, words of the hint
    "no such model": (no_model, MODEL, "model.onnx: no such file", "path"),
    "a truncated model": (truncated, MODEL, "model.onnx", "export"),
    "a text": (bytes_of(b"hello, this is text\n" * 9), MODEL, "model.onnx: this is text", "binary"),
    "a web page": (bytes_of(b"<!DOCTYPE html><html>404</html>"), MODEL, "this is text", "download failed"),
    "an empty file": (bytes_of(b""), MODEL, "model.onnx: the file is empty", "again"),
    "binary rubbish": (bytes_of(bytes(range(128, 256)) * 8), MODEL, "model.onnx", "export"),
    "external data that are missing": (without_external_data, MODEL, "weights.bin", "copy it into"),
    "external data outside": (external_data_outside, MODEL, "../secret.bin", ""),
    "external data through a link": (external_data_through_a_link, MODEL, "weights.bin", ""),
    "an unknown operation": (unknown_operation, UNSUPPORTED, "Reluu", "export"),
    "an unknown domain": (unknown_domain, UNSUPPORTED, "com.example", "export"),
    "NaN in a weight": (weights_with(np.nan), MODEL, "w2", ""),
    "infinity in a weight": (weights_with(-np.inf), MODEL, "w2", ""),
    "a pickle": (lambda g: bytes_of(pickle.dumps(Trap()))(g), MODEL, "a pickle", "torch.export.save"),
    "a checkpoint": (a_checkpoint, MODEL, "PyTorch checkpoint", "torch.export.save"),
    "a model far beyond": (far_too_large, MODEL, "40.0 GiB of weights is beyond the scope", "edge device"),
    "no such data": (no_data, DATA, "nothing.npz", ""),
    "data of a wrong name": (arrays(image=X), DATA, "image", "x"),
    "data of a wrong shape": (arrays(x=X[:, :2]), DATA, "[12, 2, 8, 8]", ""),
    "data channels last": (arrays(x=X.transpose(0, 2, 3, 1)), DATA, "[12, 8, 8, 3]", "transpose(0, 3, 1, 2)"),
    "data without samples' axis": (arrays(x=X[0]), DATA, "[3, 8, 8]", "array[np.newaxis]"),
    "data of a wrong type": (arrays(x=(X > 0)), DATA, "bool", "astype"),
    "pixels without normalisation": (arrays(x=(X > 0).astype(np.uint8)), DATA, "uint8", "normalisation"),
    "data with NaN": (arrays(x=with_value(np.nan)), DATA, "NaN in sample 7", "remove"),
    "data with infinity": (arrays(x=with_value(np.inf)), DATA, "infinity in sample 7", "remove"),
    "eval data with NaN": (bad_eval_data, DATA, "eval.npz: array 'x' holds NaN", "remove"),
    "data with pickled objects": (arrays(x=np.array([Trap(), None])), DATA, "pickle", ""),
    "empty data": (arrays(x=X[:0]), DATA, "empty", "at least one"),
    "an archive without arrays": (data_bytes(b"PK\x05\x06" + bytes(18)), DATA, "data.npz", ""),
    "data that are text": (data_bytes(b"a,b,c\n1,2,3\n"), DATA, "data.npz", ""),
    "half an archive": (data_bytes(b"PK\x03\x04" + bytes(40)), DATA, "data.npz", ""),
    "a folder without images": (no_images, DATA, "images", ""),
    "a label too large": (arrays(x=X, y=LABELS + 1), DATA, "label 4 in sample 3", "from 0"),
    "a label below zero": (arrays(x=X, y=LABELS - 1), DATA, "label -1 in sample 0", "from 0"),
    "labels of another length": (arrays(x=X, y=LABELS[:5]), DATA, "5", ""),
    "an unknown target": (wrong_target, USAGE, "unknown target 'jetsen'", "did you mean jetson"),
    "an out folder that is a file": (out_is_a_file, USAGE, "dist: cannot be written: File exists", "--out"),
    "a bundle that is a file": (bundle_is_a_file, USAGE, "exists and is not a folder", "--out"),
    "somebody else's folder": (somebody_elses_folder, USAGE, "no build of ours made", "--out"),
}  # fmt: skip


@pytest.fixture
def given(tmp_path: Path, network: Path, monkeypatch: pytest.MonkeyPatch) -> Given:
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(folder)
    (tmp_path / "secret.bin").write_bytes(b"not yours" * 200)
    (folder / "model.onnx").write_bytes(network.read_bytes())
    return Given(folder, folder / "model.onnx", out=folder / "dist")


def everything(folder: Path) -> dict[str, int]:
    return {
        p.relative_to(folder).as_posix(): p.lstat().st_mtime_ns for p in folder.rglob("*") if not p.is_dir()
    } | {p.relative_to(folder).as_posix(): 0 for p in folder.rglob("*") if p.is_dir()}


def by_python(given: Given) -> tuple[int, str, str]:
    with pytest.raises(DeployError) as caught:
        deploy.build(
            given.model,
            target=given.target,
            out=given.out,
            cache=given.folder.parent / "cache",
            measure=False,
            data=given.options.get("data"),
            eval=given.options.get("eval"),
        )
    return caught.value.exit_code, caught.value.message, caught.value.hint


@pytest.mark.parametrize("what", CASES)
def test_python(given: Given, what: str) -> None:
    spoil, code, message, hint = CASES[what]
    spoil(given)
    before = everything(given.folder)
    got = by_python(given)
    assert got[0] == code
    assert message in got[1]
    assert hint in got[2]
    assert got[2]
    assert len(got[1]) < LINE_LIMIT
    assert_nothing_written(given, before)


@pytest.mark.parametrize("what", CASES)
def test_command_line(given: Given, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, code, message, hint = CASES[what]
    spoil(given)
    before = everything(given.folder)
    words = ["build", str(given.model), "--target", given.target, "--out", str(given.out), "--no-measure"]
    words += ["--cache", str(given.folder.parent / "cache")]
    for name, path in given.options.items():
        words += [f"--{name}", str(path)]
    assert main(words) == code
    captured = capsys.readouterr()
    said = unwrapped(captured.err)
    assert unwrapped(message) in said
    assert unwrapped(hint) in said
    assert "Traceback" not in captured.err
    assert captured.err.count("error:") == 1
    assert captured.out == ""
    assert_nothing_written(given, before)


def unwrapped(text: str) -> str:
    """Without the line breaks that a narrow terminal brings."""
    return "".join(text.split())


def assert_nothing_written(given: Given, before: Mapping[str, int]) -> None:
    assert everything(given.folder) == before
    assert list((given.folder.parent / "tmp").iterdir()) == []
    cache = given.folder.parent / "cache"
    assert not [p for p in cache.rglob("*") if p.name.startswith(".new-")]


def test_the_good_input_that_the_cases_spoil_builds(given: Given) -> None:
    given.data(x=X, y=LABELS)
    words = ["build", str(given.model), "--target", given.target, "--out", str(given.out), "--no-measure"]
    words += ["--cache", str(given.folder.parent / "cache"), "--data", str(given.options["data"])]
    assert main([*words, "--max-drop", "1", "--quiet"]) == 0
    assert (given.out / given.target / "manifest.json").is_file()


def test_an_older_bundle_survives_a_failing_build(given: Given) -> None:
    cache = given.folder.parent / "cache"
    first = deploy.build(given.model, target=given.target, out=given.out, cache=cache, measure=False)
    before = everything(given.out)
    arrays(x=with_value(np.nan))(given)
    by_python(given)
    assert everything(given.out) == before
    assert deploy.open_bundle(first.folder).run({"x": X})["y"].shape == (12, 4)


@pytest.fixture
def small_disk(tmp_path: Path, size: int) -> Iterator[Path]:
    """A disk of so many pages of 4 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={4 * size}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small file system here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7])  # full at one file or another
@pytest.mark.parametrize("full", ["out", "cache"])
def test_a_full_disk(given: Given, small_disk: Path, full: str) -> None:
    places = {"out": given.out, "cache": given.folder.parent / "cache", full: small_disk / "here"}
    with pytest.raises(DeployError, match="no space left") as caught:
        deploy.build(given.model, target=given.target, measure=False, **places)
    assert str(small_disk / "here") in caught.value.message
    assert caught.value.exit_code == USAGE
    assert f"--{full}" in caught.value.hint
    left = [p.relative_to(small_disk).as_posix() for p in small_disk.rglob("*") if not p.is_dir()]
    assert not left or (full == "cache" and not any("/.new-" in name for name in left))
    assert not given.out.exists()


def test_an_out_folder_that_may_not_be_written(given: Given) -> None:
    """Root may write everywhere but where the kernel itself says no."""
    place = Path("/sys/deploy-test")
    if os.geteuid() != 0:
        place = given.folder / "closed"
        place.mkdir(mode=0o500)
    elif not place.parent.is_dir():
        pytest.skip("no folder here that root may not write to")
    given.out = place
    code, message, hint = by_python(given)
    assert (code, hint) == (USAGE, "choose another place with --out")
    assert "cannot be written" in message
