"""A network as a torch.export program and as an ONNX file: the same bundle, and no PyTorch in the process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle.read import load_bundle

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

BUILDS = """
import json, sys, deploy
folder = sys.argv[1]
data = {"data": folder + "/calib.npz", "eval": folder + "/eval.npz"}
for source in ("net.onnx", "net.pt2"):
    deploy.build(f"{folder}/{source}", target="x86-avx2", measure=False, out=f"{folder}/{source}-dist",
                 cache=folder + "/cache", **data)
print(json.dumps(sorted(sys.modules)))
"""


def stripes(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images with stripes across, down or along the diagonal."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, number)
    rows, columns = np.mgrid[0:12, 0:12]
    along = np.stack([rows, columns, rows + columns])[labels]
    phase = generator.uniform(0, 6, (number, 1, 1))
    images = np.sin(along + phase) + 0.9 * generator.standard_normal((number, 12, 12))
    return images[:, None].astype(np.float32), labels


def trained() -> "torch.nn.Module":
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 12, 3, padding=1, bias=False), torch.nn.BatchNorm2d(12), torch.nn.ReLU(),
        torch.nn.Conv2d(12, 16, 3, 2, padding=1, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 3),
    )  # fmt: skip
    images, labels = (torch.from_numpy(a) for a in stripes(256, 0))
    optimiser = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(25):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stripes")
    model, example = trained(), torch.zeros(2, 1, 12, 12)
    free = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=free), folder / "net.pt2")
    torch.onnx.export(model, (example,), folder / "net.onnx", dynamic_shapes=free, input_names=["input"],
                      external_data=False, verbose=False)  # fmt: skip
    for name, seed in (("calib", 1), ("eval", 2)):
        images, labels = stripes(256, seed)
        np.savez(folder / f"{name}.npz", input=images, y=labels)
    return folder


@pytest.fixture(scope="module")
def modules(folder: Path) -> set[str]:
    """Both built in a process that has not imported anything yet; what it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", BUILDS, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_a_build_from_a_program_imports_no_pytorch(modules: set[str]) -> None:
    assert "onnxruntime" in modules
    assert not {name for name in modules if name.partition(".")[0] in ("torch", "onnxscript")}


def test_both_sources_give_the_same_metric_and_verdict(modules: set[str], folder: Path) -> None:
    onnx, pt2 = (load_bundle(folder / f"net.{kind}-dist" / "x86-avx2").manifest for kind in ("onnx", "pt2"))
    assert onnx.evaluation is not None and pt2.evaluation is not None
    assert pt2.evaluation.baseline == onnx.evaluation.baseline > 0.8
    assert pt2.evaluation.artifact == onnx.evaluation.artifact
    assert pt2.verdict.status == onnx.verdict.status
    assert pt2.precision == onnx.precision and pt2.precision["int8"] > 0


def test_the_manifest_says_what_the_source_was(modules: set[str], folder: Path) -> None:
    import hashlib

    source = load_bundle(folder / "net.pt2-dist" / "x86-avx2").manifest.source
    assert source.sha256 == hashlib.sha256((folder / "net.pt2").read_bytes()).hexdigest()
    assert source.name == "net" and source.made_by["torch"] == torch.__version__


def test_no_path_of_this_machine_is_in_the_bundle(modules: set[str], folder: Path) -> None:
    bundle = folder / "net.pt2-dist" / "x86-avx2"
    files = [p for p in bundle.rglob("*") if p.is_file() and p.name != "build.log"]
    assert files and not [p for p in files if str(folder).encode() in p.read_bytes()]
