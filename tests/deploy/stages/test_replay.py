"""What a lock may be asked for together with, and what contradicts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.bundle.read import Bundle, load_lock
from deploy.errors import UsageError
from deploy.pipeline import build, dry_run
from deploy.spec.manifest import Lock
from deploy.stages.request import Request

Build = Callable[..., Bundle]


@pytest.fixture
def make(network: Path, images: dict[str, np.ndarray], tmp_path: Path) -> Build:
    def run(**settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "runtime": None, "data": images, "measure": False,
            "out": tmp_path / "dist", "cache": tmp_path / "cache",
        }  # fmt: skip
        return build(network, **{**given, **settings})  # type: ignore[arg-type]

    return run


@pytest.fixture
def lock(built: Bundle) -> Path:
    """Of a build whose precision was left open."""
    return built.folder / "deploy.lock"


@pytest.mark.parametrize("precision", ["float", "int8", "mixed"])
def test_another_precision_than_the_locks_is_refused_before_anything_is_done(
    make: Build, lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr("deploy.pipeline.steps.open_data", lambda *_: pytest.fail("too late"))
    with pytest.raises(UsageError, match=f"made with precision auto, and {precision} is asked for") as caught:
        make(lock=lock, precision=precision)
    assert "leave --precision out" in caught.value.hint
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_a_replay_has_the_precision_that_was_asked_for_then(
    make: Build, tmp_path: Path, precision: str
) -> None:
    first = make(precision=precision)
    assert load_lock(first).precision == precision
    for again in ("auto", precision):
        replayed = make(
            precision=again, lock=first.folder / "deploy.lock", out=tmp_path / again, cache=tmp_path / again
        )
        assert replayed.digest == first.digest


def test_a_lock_made_with_data_needs_data(make: Build, lock: Path) -> None:
    with pytest.raises(UsageError, match="made with calibration data, and there are none now"):
        make(lock=lock, data=None)


def test_a_preview_refuses_what_a_build_refuses(
    network: Path, images: dict[str, np.ndarray], lock: Path, tmp_path: Path
) -> None:
    request = Request(
        source=network, target="x86-avx2", data=images, precision="int8", lock=lock, cache=tmp_path / "cache"
    )
    with pytest.raises(UsageError, match="made with precision auto"):
        dry_run(request)


def test_a_lock_of_an_earlier_version_left_the_precision_open(lock: Path) -> None:
    said = json.loads(lock.read_text())
    del said["precision"]
    assert Lock.model_validate(said).precision == "auto"


def test_a_lock_for_a_runtime_that_the_device_does_not_have_is_told(make: Build, lock: Path) -> None:
    with pytest.raises(UsageError, match=r"it chose ort, which jetson does not have \(tensorrt\)") as caught:
        make(lock=lock, target="jetson")
    assert "for this target" in caught.value.hint
