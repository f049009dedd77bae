"""PyTorch models captured in a child process: what comes out, and what a hostile file may not do."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.cache import Cache
from deploy.errors import DeployError, ModelError, ToolchainError, UsageError
from deploy.frontend.onnx_file import read
from deploy.progress import SILENT
from deploy.stages import capture
from deploy.stages.capture import Opened, open_source

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, image, state):
        y = torch.relu(self.norm(self.conv(image))).mean((2, 3)) + state
        return {"logits": self.head(y), "features": y}


@pytest.fixture(scope="module")
def pt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with two inputs, two outputs and a free batch."""
    torch.manual_seed(0)
    model = Net().eval()
    model.norm.running_mean.normal_()
    example = (torch.randn(2, 3, 8, 8), torch.randn(2, 8))
    free = torch.export.Dim("n", min=1, max=64)
    program = torch.export.export(model, example, dynamic_shapes=({0: free}, {0: free}))
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def opened(source: Path | str, cache: Cache, root: Path | None = None, **shapes: tuple[int, ...]) -> Opened:
    return open_source(source, root=root, shapes=shapes, seed=0, cache=cache, progress=SILENT)


@pytest.fixture(scope="module")
def captured(pt2: Path, cache: Cache) -> Opened:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pt2.parent)
        (pt2.parent / "json.py").write_text("raise SystemExit('imported from the working folder')")
        return opened(pt2.name, cache)


def test_a_program_becomes_onnx_with_its_batch_norm(captured: Opened) -> None:
    graph = captured.source.model.graph
    assert [node.op_type for node in graph].count("BatchNormalization") == 1
    assert [f"{v.name}: {v.shape}" for v in graph.inputs] == ["image: [batch,3,8,8]", "state: [batch,8]"]
    assert [f"{v.name}: {v.shape}" for v in graph.outputs] == ["logits: [batch,4]", "features: [batch,8]"]


def test_what_it_was_is_kept(captured: Opened, pt2: Path) -> None:
    import hashlib

    source = captured.source
    assert source.given_sha256 == hashlib.sha256(pt2.read_bytes()).hexdigest() != source.sha256
    assert source.name == "net" and source.made_by["torch"] == torch.__version__
    assert "from PyTorch's outputs" in captured.outcome and not captured.cached


def test_it_computes_what_the_program_computes(captured: Opened, pt2: Path) -> None:
    import onnxruntime as ort

    feeds = {
        "image": np.random.default_rng(1).standard_normal((5, 3, 8, 8)).astype(np.float32),
        "state": np.random.default_rng(2).standard_normal((5, 8)).astype(np.float32),
    }
    got = ort.InferenceSession(str(captured.source.path)).run(None, feeds)
    want = torch.export.load(pt2).module()(*(torch.from_numpy(a) for a in feeds.values()))
    for array, name in zip(got, ("logits", "features"), strict=True):
        np.testing.assert_allclose(array, want[name].detach(), rtol=1e-4, atol=1e-5)


def test_nothing_tells_where_it_was_made(captured: Opened) -> None:
    assert captured.source.path is not None
    proto = onnx.load(captured.source.path)
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    data = captured.source.path.read_bytes()
    assert b"/" + b"torch" not in data and b".py" not in data and str(Path.home()).encode() not in data


def test_the_same_file_is_not_captured_again(captured: Opened, pt2: Path, cache: Cache) -> None:
    assert opened(pt2, cache).cached


# -------------------------------------------------------------------------------------------- hostile files


class Marker:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def planted(pt2: Path, path: Path, changed: Mapping[str, bytes]) -> Path:
    """A copy with members added or replaced."""
    with zipfile.ZipFile(pt2) as old, zipfile.ZipFile(path, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        members = {name: old.read(name) for name in old.namelist()}
        members |= {f"{root}/{name}": data for name, data in changed.items()}
        for name, data in members.items():
            new.writestr(name, data)
    return path


def member(pt2: Path, name: str) -> dict:
    with zipfile.ZipFile(pt2) as archive:
        return json.loads(archive.read(next(n for n in archive.namelist() if n.endswith(name))))


def saved(thing: object) -> bytes:
    data = io.BytesIO()
    torch.save(thing, data)
    return data.getvalue()


def samples(pt2: Path, marker: Path) -> dict[str, bytes]:
    return {"data/sample_inputs/model.pt": saved(Marker(marker))}


def weight(pt2: Path, marker: Path) -> dict[str, bytes]:
    config = member(pt2, "model_weights_config.json")
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    return {
        "data/weights/model_weights_config.json": json.dumps(config).encode(),
        f"data/weights/{first['path_name']}": saved(Marker(marker)),
    }


def constant(name: str) -> Callable[[Path, Path], dict[str, bytes]]:
    def plant(pt2: Path, marker: Path) -> dict[str, bytes]:
        config = member(pt2, "model_constants_config.json")
        payload = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
        config["config"]["planted"] = payload
        thing = Marker(marker)
        return {
            "data/constants/model_constants_config.json": json.dumps(config).encode(),
            f"data/constants/{name}": saved(thing) if name[0] == "t" else pickle.dumps(thing),
        }

    return plant


def expression(pt2: Path, marker: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(pt2) as archive:
        text = archive.read(next(n for n in archive.namelist() if n.endswith("model.json"))).decode()
    start = text.index('"expr_str": "') + len('"expr_str": "')
    code = f"__import__('builtins').open({str(marker)!r}, 'w')"
    return {"models/model.json": (text[:start] + code + text[text.index('"', start) :]).encode()}


def legacy(pt2: Path, marker: Path) -> dict[str, bytes]:
    return {"data/weights/model.pt": saved(Marker(marker))}


PLANTS = {
    "sample inputs": samples,
    "a weight": weight,
    "a constant": constant("tensor_0"),
    "an opaque object": constant("opaque_obj_0"),
    "an expression": expression,
    "weights in the legacy format": legacy,
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_planted_code_never_runs(
    pt2: Path, tmp_path: Path, plant: Callable[[Path, Path], dict[str, bytes]]
) -> None:
    marker = tmp_path / "executed"
    path = planted(pt2, tmp_path / "net.pt2", plant(pt2, marker))
    with pytest.raises(ModelError) as caught:
        opened(path, Cache(tmp_path / "cache"))
    assert not marker.exists()
    assert str(path) in caught.value.message and caught.value.hint
    with contextlib.suppress(Exception):  # whatever it makes of what the code returned
        torch.export.load(path)  # PyTorch itself runs it, or the test would prove nothing
    assert marker.exists()


def test_a_copy_without_a_plant_is_read_and_gives_the_same_bytes(
    pt2: Path, tmp_path: Path, captured: Opened
) -> None:
    again = opened(planted(pt2, tmp_path / "net.pt2", {"extra/notes": b"mine"}), Cache(tmp_path / "cache"))
    assert captured.source.path is not None and again.source.path is not None
    assert again.source.path.read_bytes() == captured.source.path.read_bytes()


# ------------------------------------------------------------------------------------------------ functions

NETS = """
import os, sys
import torch
import neighbour

print("on stdout, while imported")

def net():
    import late
    print("on stdout, while called")
    torch.manual_seed(int(open("seed.txt").read()) if os.path.exists("seed.txt") else 0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), (torch.zeros(1, 3),)

def dies():
    print("the last words", file=sys.stderr)
    os._exit(3)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "nets.py").write_text(NETS)
    (folder / "neighbour.py").write_text("")
    (folder / "late.py").write_text("")
    return folder


def test_a_function_is_called_every_time_and_captured_once(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    cache = Cache(tmp_path / "cache")
    first = opened("nets:net", cache, project)
    again = opened("python:nets:net", cache, project)
    (project / "seed.txt").write_text("7")  # other weights, from wherever
    with capture._Child("nets:net", None, project, {}, 0, SILENT) as child:
        assert child.program() != first.source.given_sha256
    assert (first.cached, again.cached) == (False, True)
    assert first.source.sha256 == again.source.sha256
    assert first.source.given_sha256 == again.source.given_sha256
    assert first.source.name == "nets:net"
    assert [str(v.shape) for v in first.source.model.graph.inputs] == ["[batch,3]"]
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("reference", "error", "said"),
    [
        ("nets:dies", ModelError, "ended early (exit status 3): the last words"),
        ("netz:net", UsageError, "no module 'netz'"),
    ],
)
def test_a_child_that_fails_is_one_error(
    project: Path, tmp_path: Path, reference: str, error: type[DeployError], said: str
) -> None:
    with pytest.raises(error) as caught:
        opened(reference, Cache(tmp_path / "cache"), project)
    assert said in caught.value.message


@pytest.mark.skipif(sys.platform != "linux", reason="other systems leave children alone")
def test_the_child_of_a_killed_build_ends_too(project: Path, tmp_path: Path) -> None:
    (project / "slow.py").write_text(
        "import os, pathlib, time\n"
        "def net():\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()) + chr(10))\n"
        "    time.sleep(100)\n"
    )
    code = (
        "import sys; from pathlib import Path; from deploy.progress import SILENT\n"
        "from deploy.stages.capture import _Child\n"
        "with _Child('slow:net', None, Path(sys.argv[1]), {}, 0, SILENT) as child: child.program()"
    )
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen([sys.executable, "-c", code, str(project)], env=environment) as build:
        wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().endswith("\n"))
        child = int((tmp_path / "pid").read_text())
        assert runs(child)
        build.kill()
    wait_until(lambda: not runs(child))
    assert [p.name.startswith("deploy-torch-") for p in (tmp_path / "tmp").glob("deploy-*")] == [True]


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("nothing happened in 30 seconds")


def test_a_wrong_export_is_refused(pt2: Path, captured: Opened, tmp_path: Path) -> None:
    """The comparison itself: a file that computes something else than PyTorch did."""
    assert captured.source.path is not None
    (tmp_path / capture.ONNX).write_bytes(captured.source.path.read_bytes())
    feeds = {"input/image": np.ones((2, 3, 8, 8), np.float32), "input/state": np.ones((2, 8), np.float32)}
    wrong = {"output/0": np.ones((2, 4), np.float32), "output/1": np.ones((2, 8), np.float32)}
    np.savez(tmp_path / capture.TRIALS.format(0), **feeds, **wrong)
    with pytest.raises(ModelError, match="output 'logits' differs by"):
        capture._compare("net", tmp_path)


def test_missing_pytorch_is_a_missing_extra(pt2: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise capture.PackageNotFoundError(name)

    monkeypatch.setattr(capture, "version", missing)
    with pytest.raises(ToolchainError) as caught:
        opened(pt2, cache)
    assert "deploy-compiler[torch]" in caught.value.hint


def test_a_module_that_imports_missing_pytorch_is_no_misspelt_one(
    project: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package's metadata are there, so that only the child finds out."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text('raise ModuleNotFoundError("none", name="torch")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="PyTorch is not installed") as caught:
        opened("nets:net", cache, project)
    assert "deploy-compiler[torch]" in caught.value.hint
    with pytest.raises(UsageError, match="no module 'netz'"):
        opened("netz:net", cache, project)


def test_onnx_files_are_read_as_ever(network: Path, cache: Cache) -> None:
    found = opened(network, cache)
    assert found.source.sha256 == read(network).sha256 and not found.source.made_by
