"""deploy inspect --sensitivity: the table in words, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.cli.sensitivity import save_picture
from deploy.spec.document import parse
from deploy.spec.sensitivity import BlockSensitivity, Effect, Sensitivity

Deploy = Callable[..., tuple[int, str, str]]


@pytest.fixture
def samples(here: Path, images: dict[str, np.ndarray]) -> Path:
    np.savez(here / "calib.npz", allow_pickle=False, **images)
    return here / "calib.npz"


def test_the_table_in_words(deploy: Deploy, network: Path, samples: Path) -> None:
    code, out, err = deploy("inspect", network, "--sensitivity", "--data", samples, "--samples", "6")
    assert code == 0, err
    for word in ("KL divergence", "rank by one backward pass", "int8", "w8a16", "2:4", "prune", "Conv", "#1"):
        assert word in out, word
    assert "one block" in err and "score" in err
    rows = [line for line in out.splitlines() if "#" in line and "Conv" in line]
    assert len(rows) == 2


def test_the_table_as_json_and_a_picture(deploy: Deploy, network: Path, samples: Path, here: Path) -> None:
    arguments = ("inspect", network, "--sensitivity", "--data", samples, "--samples", "6", "--json")
    code, out, err = deploy(*arguments, "--picture", here / "s.png")
    assert (code, err) == (0, "")
    found = parse(Sensitivity, out, origin="stdout")
    assert found.samples == 6 and len(found.blocks) == 3
    assert (here / "s.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    quick = json.loads(deploy(*arguments, "--quick", "--target", "x86-avx2")[1])
    assert quick["rules"] == "ort"
    assert all(not effect["measured"] for block in quick["blocks"] for effect in block["effects"].values())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--sensitivity",), 2, "--data samples.npz"),
        (("--sensitivity", "--data", "none.npz"), 4, "no such file"),
        (("--sensitivity", "--data", "{data}", "--picture", "s.txt"), 2, ".png"),
        (("--sensitivity", "--data", "{data}", "--picture", "no/s.png"), 2, "no folder"),
        (("--sensitivity", "--data", "{data}", "--target", "toaster"), 2, "toaster"),
        (("--quick",), 2, "--quick belongs to --sensitivity"),
        (("--samples", "3"), 2, "--samples belongs to --sensitivity"),
    ],
)
def test_bad_input(
    deploy: Deploy, network: Path, samples: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    ended, out, err = deploy("inspect", network, *(word.format(data=samples) for word in words))
    assert (ended, out) == (code, "")
    assert said in err and "hint: " in err


def test_nan_in_the_data_is_told(
    deploy: Deploy, network: Path, here: Path, images: dict[str, np.ndarray]
) -> None:
    broken = images["x"].copy()
    broken[3] = np.nan
    np.savez(here / "nan.npz", allow_pickle=False, x=broken)
    code, out, err = deploy("inspect", network, "--sensitivity", "--data", here / "nan.npz")
    assert (code, out) == (4, "") and "hint: " in err


def test_odd_names_and_ruin_are_drawn(tmp_path: Path) -> None:
    effects = {"int8": Effect(kl=1e-3, sqnr_db=30.0, measured=True)}
    ruined = {"int8": Effect(ruined=True, measured=True)}
    table = Sensitivity(
        graph_sha256="", data_sha256="", samples=1, seed=0, rules="plain", measure="classes",
        treatments=("int8", "prune"),
        blocks=(
            BlockSensitivity(id="$x$_{" * 9, kind="Conv", effects=effects),
            BlockSensitivity(id="b", kind="Conv", effects=ruined),
        ),
    )  # fmt: skip
    for name in ("a.svg", "b.svg"):
        save_picture(table, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
