"""A malformed deploy.toml is told by its line and key before anything runs.

What can be wrong with models, data, targets and folders is in ../test_bad_input.py, both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Deploy = Callable[..., tuple[int, str, str]]

GOOD = """schema = 1

[model]
path = "model.onnx"

[data]
calibration = "calib.npz"

[input.x]
layout = "NCHW"
normalisation = { scale = 0.5, mean = [0.1], std = [0.2] }

[budget]
max_drop = 0.01

[quantize]
observer = "mse"

[build]
targets = ["x86-cpu"]
threads = 1
"""


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


CASES = {
    # what is wrong: the text, and the words of the message
    "no TOML": (changed("[budget]", "[budget"), "not valid TOML", "line 13"),
    "a key twice": (changed("threads = 1", "threads = 1\nthreads = 2"), "not valid TOML", "line 22"),
    "a quote is missing": (changed('"model.onnx"', '"model.onnx'), "not valid TOML", "line 4"),
    "a misspelt key": (changed("max_drop", "max_dorp"), "deploy.toml:14", "unknown key 'budget.max_dorp'"),
    "a misspelt section": (changed("[quantize]", "[quantise]"), "deploy.toml:16", "unknown key 'quantise'"),
    "text for a number": (changed("0.01", '"little"'), "deploy.toml:14", "budget.max_drop"),
    "a negative budget": (changed("0.01", "-0.01"), "deploy.toml:14", "budget.max_drop"),
    "not a number": (changed("0.01", "nan"), "deploy.toml:14", "budget.max_drop"),
    "a limit of nothing": (changed("max_drop = 0.01", "max_latency_ms = 0"), ":14", "budget.max_latency_ms"),
    "a limit below nothing": (changed("max_drop = 0.01", "max_latency_ms = -2.5"), ":14", "max_latency_ms"),
    "a limit that is no number": (
        changed("max_drop = 0.01", "max_latency_ms = nan"),
        ":14",
        "max_latency_ms",
    ),
    "a size of nothing": (changed("max_drop = 0.01", "max_size_bytes = 0"), ":14", "budget.max_size_bytes"),
    "half a byte": (changed("max_drop = 0.01", "max_size_bytes = 0.5"), ":14", "budget.max_size_bytes"),
    "an objective nobody knows": (
        changed("threads = 1", 'objective = "speed"'),
        ":21",
        "'build.objective'",
        "'latency', 'size'",
    ),
    "a word nobody knows": (changed('"mse"', '"mean"'), "deploy.toml:17", "quantize.observer"),
    "no threads": (changed("threads = 1", "threads = 0"), "deploy.toml:21", "build.threads"),
    "a layout nobody knows": (changed('"NCHW"', '"CNHW"'), "deploy.toml:10", "input.x.layout"),
    "division by zero": (changed("[0.2]", "[0.0]"), "deploy.toml:11", "std must not contain 0"),
    "a number for a list": (changed('["x86-cpu"]', "7"), "deploy.toml:20", "build.targets"),
    "no model": (changed('[model]\npath = "model.onnx"\n', ""), "deploy.toml", "'model'"),
    "a later schema": (changed("schema = 1", "schema = 2"), "deploy.toml:1", "'schema'"),
    "an unknown step": (GOOD + '[[recipe]]\nstep = "melt"\n', "deploy.toml:22", "melt"),
    "a step without a name": (GOOD + "[[recipe]]\nepochs = 3\n", "deploy.toml:22", "say which step it is"),
    "a step's misspelt key": (GOOD + '[[recipe]]\nstep = "finetune"\nepoch = 3\n', "deploy.toml:24", "epoch"),
    "a recipe nobody knows": (
        changed("threads = 1", 'recipe = "tiny"'),
        ":21",
        "'build.recipe'",
        "'smallest'",
    ),
    "two recipes": (
        changed("threads = 1", 'recipe = "fast"') + '[[recipe]]\nstep = "finetune"\n',
        "deploy.toml",
        "says another step by step",
    ),
    "empty": ("", "deploy.toml", "'model'"),
}


@pytest.mark.parametrize("what", CASES)
def test_a_malformed_file_is_told_by_line_and_key(deploy: Deploy, here: Path, what: str) -> None:
    text, *words = CASES[what]
    (here / "deploy.toml").write_text(text)
    code, out, err = deploy("build")
    assert code == 2
    for word in words:
        assert "".join(word.split()) in "".join(err.split())
    assert "hint:" in err
    assert "Traceback" not in err
    assert out == ""
    assert sorted(p.name for p in here.iterdir()) == ["deploy.toml"]


def test_messages_are_ours_not_the_parsers(deploy: Deploy, here: Path) -> None:
    _, _, err = deploy("build", "model.onnx", "--target", "x86-cpu", "--precision", "int4")
    assert "Value error" not in err and "'int4' is not one of 'auto'" in err


@pytest.mark.parametrize("what", ["not UTF-8", "a folder"])
def test_a_file_that_cannot_be_read(deploy: Deploy, here: Path, what: str) -> None:
    if what == "a folder":
        (here / "deploy.toml").mkdir()
    else:
        (here / "deploy.toml").write_bytes(b"\xff\xfe\x00")
    code, _, err = deploy("build")
    assert code == 2
    assert "deploy.toml" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ("build", "model.onnx"),
        ("build", "model.onnx", "--target", "x86-cpu", "--shape", "x=a,b"),
        ("build", "model.onnx", "--target", "x86-cpu", "--shape", "x"),
        ("build", "model.onnx", "--target", "x86-cpu", "--max-drop", "-1"),
        ("build", "model.onnx", "--target", "x86-cpu", "--precision", "int4"),
        ("build", "model.onnx", "--target", "x86-cpu", "--threads", "0"),
        ("build", "model.onnx", "--target", "x86-cpu", "--seed", "-1"),
        ("build", "model.onnx", "--target", "x86-cpu", "--samples", "0"),
        ("build", "model.onnx", "--target", "x86-cpu", "--observer", "max"),
        ("build", "model.onnx", "--target", "x86-cpu", "--what"),
        ("built",),
        ("verify",),
        ("verify", "nowhere"),
        ("run", "nowhere", "input.npz"),
        ("targets", "nowhere"),
    ],
    ids=" ".join,
)
def test_a_misused_command_is_a_usage_error(deploy: Deploy, here: Path, words: tuple[str, ...]) -> None:
    code, out, err = deploy(*words)
    assert code == 2
    assert err.count("error:") == 1
    assert "hint:" in err
    assert out == ""
    assert list(here.iterdir()) == []
