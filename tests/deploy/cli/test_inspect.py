"""deploy inspect: figures of a model, contents of a bundle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

Deploy = Callable[..., tuple[int, str, str]]


def test_a_model_in_words(deploy: Deploy, digits: Path) -> None:
    code, out, err = deploy("inspect", digits / "digits.onnx")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "input x: float32[n, 1, 16, 16]" in lines
    assert "output logits: float32[n, 10]" in lines
    assert "parameters 308 k" in lines


def test_a_model_as_json_agrees_with_onnx(deploy: Deploy, digits: Path) -> None:
    path = digits / "digits.onnx"
    found = json.loads(deploy("inspect", path, "--json")[1])
    graph = onnx.load(path).graph
    assert found["operations"] == dict(Counter(node.op_type for node in graph.node))
    assert found["bytes"] == path.stat().st_size
    assert found["opset"] == 17
    assert {hazard["severity"] for hazard in found["hazards"]} <= {"note", "warning"}


def test_sizes_may_be_fixed(deploy: Deploy, digits: Path) -> None:
    found = json.loads(deploy("inspect", digits / "digits.onnx", "--shape", "x=4,1,16,16", "--json")[1])
    assert found["inputs"][0]["shape"] == [4, 1, 16, 16]
    assert deploy("inspect", digits / "digits.onnx", "--shape", "z=1")[0] == 2


def test_a_bundle_in_words(deploy: Deploy, real_bundle: Path) -> None:
    code, out, err = deploy("inspect", real_bundle)
    assert (code, err) == (0, "")
    for word in (
        "x86-cpu",
        "artifact/model.onnx",
        "plan.json",
        "digest",
        "verified",
        "precision",
        "onnxruntime",
    ):
        assert word in out


def test_a_bundle_as_json_is_what_lies_on_disk(deploy: Deploy, real_bundle: Path) -> None:
    found = json.loads(deploy("inspect", real_bundle, "--json")[1])
    assert found["manifest"] == json.loads((real_bundle / "manifest.json").read_text())
    assert found["measurements"] == json.loads((real_bundle / "measurements.json").read_text())


@pytest.mark.parametrize(("name", "code"), [("nothing.onnx", 3), ("folder", 2)])
def test_neither_model_nor_bundle(deploy: Deploy, here: Path, name: str, code: int) -> None:
    (here / "folder").mkdir()
    ended, out, err = deploy("inspect", name)
    assert (ended, out) == (code, "")
    assert name in err and "hint: " in err


def test_samples_show_more_of_the_hazards(deploy: Deploy, digits: Path, tmp_path: Path) -> None:
    cache = ("--cache", tmp_path / "cache")
    words = (*cache, "--data", digits / "calib.npz", "--target", "x86-avx2")
    code, out, err = deploy("inspect", digits / "digits.onnx", *words)
    assert (code, err) == (0, "")
    assert "over 8 samples, by the rules of x86-avx2" in out
    found = json.loads(deploy("inspect", digits / "digits.onnx", *words, "--json")[1])
    assert found["samples"] == "8 samples"
    assert not any(hazard["severity"] == "warning" for hazard in found["hazards"])


def test_without_data_a_target_looks_at_random_inputs(deploy: Deploy, digits: Path, tmp_path: Path) -> None:
    words = ("--target", "jetson", "--cache", tmp_path / "cache", "--json")
    found = json.loads(deploy("inspect", digits / "digits.onnx", *words)[1])
    assert found["samples"] == "2 random inputs"
    assert json.loads(deploy("inspect", digits / "digits.onnx", "--json")[1])["samples"] is None


def test_data_that_do_not_fit_are_refused(deploy: Deploy, digits: Path, tmp_path: Path) -> None:
    code, _, err = deploy(
        "inspect", digits / "digits.onnx", "--data", tmp_path / "none.npz", "--cache", tmp_path
    )
    assert code != 0 and "no such file" in err
