"""deploy init: the file it writes is valid, says what was found, and builds the same as it reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.cli.project import Flags, read_project, requests
from deploy.spec.project import Project

Deploy = Callable[..., tuple[int, str, str]]
MODEL = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[n, 3, h, 8] image, float[n, 5] "odd name") => (float[n, 3, h, 8] out)
<float[1] w = {2.0}>
{ a = Mul(image, w)  b = ReduceSum("odd name")  out = Add(a, b) }
"""


@pytest.fixture
def two_inputs(here: Path) -> Path:
    text = MODEL.replace('"odd name"', "odd")
    model = onnx.parser.parse_model(text)
    for value in model.graph.input:
        value.name = value.name.replace("odd", 'odd "name"')
    for node in model.graph.node:
        node.input[:] = [name.replace("odd", 'odd "name"') for name in node.input]
    onnx.save(model, here / "two.onnx")
    return here / "two.onnx"


def test_the_example_gets_a_file_that_says_what_was_given(deploy: Deploy, here: Path, digits: Path) -> None:
    model, calib, test = (os.path.relpath(digits / n, here) for n in ("digits.onnx", "calib.npz", "eval.npz"))
    code, out, err = deploy("init", model, "--data", calib, "--eval", test, "-t", "jetson", "-t", "x86-cpu")
    assert (code, err) == (0, "")
    assert "next: deploy build" in out
    project = read_project(here / "deploy.toml")
    assert project.model.path == model
    assert (project.data.calibration, project.data.eval) == (calib, test)
    assert project.build.targets == ("jetson", "x86-cpu")
    assert project.input["x"].layout == "NCHW" and project.input["x"].normalisation.identity
    assert "256 samples, labelled" in (here / "deploy.toml").read_text()


def test_a_name_that_is_not_utf8_is_told(deploy: Deploy, here: Path, digits: Path) -> None:
    model = here / os.fsdecode(b"mod\xff.onnx")
    model.write_bytes((digits / "digits.onnx").read_bytes())
    code, out, err = deploy("init", model)
    assert (code, out) == (3, "")
    assert "UTF-8" in err and "rename" in err
    (here / "good.onnx").write_bytes(model.read_bytes())
    assert deploy("init", "good.onnx", "--data", os.fsdecode(b"\xff"))[0] == 4
    assert deploy("build", "good.onnx", "-t", "x86-cpu", "--out", os.fsdecode(b"\xff"))[0] == 2
    model.unlink()
    (here / "good.onnx").unlink()
    assert not (here / "deploy.toml").exists()


def test_beyond_what_was_given_it_says_the_defaults(deploy: Deploy, here: Path, digits: Path) -> None:
    """So a build from the file is the build that the same flags would give."""
    deploy("init", digits / "digits.onnx", "--data", digits / "calib.npz", "-t", "x86-cpu")
    (written,) = requests(Flags(), here)
    flags = Flags(model=digits / "digits.onnx", targets=("x86-cpu",), data=str(digits / "calib.npz"))
    (plain,) = requests(flags, here)
    for field in ("source_path", "target", "data", "eval", "budget", "precision", "observer", "samples"):
        assert getattr(written, field) == getattr(plain, field), field
    for field in ("shapes", "metric", "labels", "exclude", "seed", "threads", "out", "recipe"):
        assert getattr(written, field) == getattr(plain, field), field


def test_what_stands_in_comments_is_valid_too(deploy: Deploy, here: Path, two_inputs: Path) -> None:
    deploy("init", two_inputs)
    path = here / "deploy.toml"
    settings = ("shapes", "calibration", "validation", "eval", "labels", "normalisation")
    lines = [
        line.removeprefix("# ") if line.removeprefix("# ").startswith(settings) else line
        for line in path.read_text().splitlines()
    ]
    assert sum(line.startswith(settings) for line in lines) == len(settings) + 1
    path.write_text("\n".join(lines))
    project = read_project(path)
    assert project.model.shapes == {"image": (1, 3, 1, 8), 'odd "name"': (1, 5)}
    assert project.data.labels == "y" and set(project.input) == {"image", 'odd "name"'}


def test_bytes_for_a_float_input_are_taken_for_pixels(deploy: Deploy, here: Path, digits: Path) -> None:
    np.savez(here / "pixels.npz", x=np.zeros((4, 1, 16, 16), np.uint8))
    code, _, err = deploy("init", digits / "digits.onnx", "--data", "pixels.npz")
    assert code == 0 and "guess" in err
    assert read_project(here / "deploy.toml").input["x"].normalisation.scale == 1 / 255


def test_data_that_do_not_fit_are_refused_now(deploy: Deploy, here: Path, digits: Path) -> None:
    np.savez(here / "wrong.npz", x=np.zeros((4, 3, 16, 16), np.float32))
    code, _, err = deploy("init", digits / "digits.onnx", "--data", "wrong.npz")
    assert code == 4 and "expected [samples, 1, 16, 16]" in err
    assert not (here / "deploy.toml").exists()


def test_a_file_that_is_there_stays_unless_forced(deploy: Deploy, here: Path, digits: Path) -> None:
    (here / "deploy.toml").write_text("mine")
    code, _, err = deploy("init", digits / "digits.onnx")
    assert code == 2 and "--force" in err
    assert (here / "deploy.toml").read_text() == "mine"
    assert deploy("init", digits / "digits.onnx", "--force")[0] == 0
    assert isinstance(read_project(here / "deploy.toml"), Project)


def test_an_unknown_target_and_a_missing_model(deploy: Deploy, here: Path, digits: Path) -> None:
    assert deploy("init", digits / "digits.onnx", "-t", "jetsan")[0] == 2
    assert deploy("init", "none.onnx")[0] == 3
    assert not (here / "deploy.toml").exists()
