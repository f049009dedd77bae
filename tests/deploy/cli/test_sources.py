"""Models that are no ONNX files, where commands take a model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

Deploy = Callable[..., tuple[int, str, str]]

NETS = """
import torch
print("printed while imported")

def net():
    print("printed while called")
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), (torch.zeros(1, 3),)
"""


@pytest.fixture
def project(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module and a deploy.toml that names it; the working folder is one below."""
    (here / "nets.py").write_text(NETS)
    (here / "deploy.toml").write_text(
        'schema = 1\n[model]\npath = "nets:net"\n[build]\ntargets = ["x86-cpu"]\n'
    )
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    return here


def test_a_function_is_a_model_wherever_one_is_taken(
    deploy: Deploy, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = deploy("build", "--no-measure", "--json")
    assert code == 0, err
    assert json.loads(out)["target"] == "x86-cpu"
    manifest = json.loads((project / "dist" / "x86-cpu" / "manifest.json").read_text())
    assert manifest["source"]["name"] == "nets:net" and "torch" in manifest["source"]["made_by"]

    monkeypatch.chdir(project)
    code, out, err = deploy("inspect", "nets:net", "--json")
    assert code == 0, err
    assert json.loads(out)["sha256"] == manifest["source"]["sha256"]

    code, out, err = deploy("init", "nets:net", "--force")
    assert code == 0, err
    assert 'path = "nets:net"' in (project / "deploy.toml").read_text()


def test_a_misspelt_module_is_told(deploy: Deploy, project: Path) -> None:
    code, out, err = deploy("build", "netz:net", "--target", "x86-cpu")
    assert code == 2 and out == ""
    assert "no module 'netz' found" in err and "hint:" in err


@pytest.mark.parametrize("name", ["model.pt", "model.pt2"])
def test_a_checkpoint_is_refused_with_the_ways_out(deploy: Deploy, here: Path, name: str) -> None:
    import torch

    torch.save({"w": torch.zeros(2)}, here / name)
    code, _, err = deploy("build", name, "--target", "x86-cpu")
    assert code == 3
    assert "checkpoint" in err and "torch.export.save" in err and "package.module:function" in err


def test_torchscript_is_refused_with_the_ways_out(deploy: Deploy, here: Path) -> None:
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(here / "model.pt")
    code, _, err = deploy("build", "model.pt", "--target", "x86-cpu")
    assert code == 3
    assert "TorchScript" in err and "torch.export.save" in err


def test_a_damaged_program_is_one_error(deploy: Deploy, here: Path) -> None:
    (here / "model.pt2").write_bytes(b"PK\x03\x04 and nothing else")
    code, _, err = deploy("inspect", "model.pt2")
    assert code == 3 and "damaged .pt2 file" in err
