"""Peak memory of models whose size is known, in children that end with their parent."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import BackendError
from deploy.measure import memory
from deploy.measure.memory import peak_memory
from deploy.spec.artifact import Artifact, Options

MB = 1_000_000


def artifact(path: Path, name: str = "x") -> Artifact:
    del name  # the specs are not looked at
    return Artifact(backend="ort", files=(path.name,), inputs=(), outputs=(), folder=path.parent)


@pytest.fixture
def matmul(tmp_path: Path, save: Callable[..., Path]) -> Callable[[int], Artifact]:
    """A model of one matrix with so many columns of 1,000 numbers."""

    def make(columns: int) -> Artifact:
        text = f"g (float[1, 1000] file) => (float[1, {columns}] y) {{ y = MatMul (file, w) }}"
        weights = np.ones((1000, columns), np.float32)
        return artifact(save(tmp_path / f"model{columns}.onnx", text, {"w": weights}))

    return make


def test_a_larger_model_takes_as_much_more_as_it_is_larger(
    matmul: Callable[[int], Artifact], tmp_path: Path
) -> None:
    """The input is called ``file``, as the first argument of numpy.savez is."""
    feeds = {"file": np.ones((1, 1000), np.float32)}
    small, large = matmul(10), matmul(10_000)
    options = Options()
    found = peak_memory({"a": (small, options), "b": (large, options)}, feeds, tmp_path / "scratch")
    assert found["a"] < 15 * MB
    assert 40 * MB <= found["b"] - found["a"] <= 200 * MB  # the weights, and copies while loading


def test_what_lies_in_the_working_folder_is_not_imported(
    matmul: Callable[[int], Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "deploy").mkdir(parents=True)
    (tmp_path / "work" / "deploy" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    (tmp_path / "work" / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path / "work")
    feeds = {"file": np.ones((1, 1000), np.float32)}
    assert peak_memory({"a": (matmul(10), Options())}, feeds, tmp_path / "scratch")["a"] >= 0


def test_a_failing_child_says_why(matmul: Callable[[int], Artifact], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"in a child process: .*input 'file' is missing") as caught:
        peak_memory(
            {"a": (matmul(10), Options())}, {"x": np.ones((1, 1000), np.float32)}, tmp_path / "scratch"
        )
    assert "--no-measure" in caught.value.hint


SLEEPER = f"#!{sys.executable}\nimport os, pathlib, sys, time\n" + (
    "pathlib.Path(sys.argv[-2], 'pid').write_text(str(os.getpid()))\ntime.sleep(600)\n"
)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("why", ["too slow", "interrupted"])
def test_no_child_outlives_its_parent(
    matmul: Callable[[int], Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    sleeper = tmp_path / "python"
    sleeper.write_text(SLEEPER)
    sleeper.chmod(0o755)
    monkeypatch.setattr(memory.sys, "executable", str(sleeper))
    scratch = tmp_path / "scratch"
    expected: type[BaseException] = BackendError

    def started() -> list[int]:
        files = [scratch / name / "pid" for name in "ab"]
        return [int(f.read_text()) for f in files if f.exists() and f.read_text()]

    if why == "interrupted":
        expected = KeyboardInterrupt

        def interrupt(child: object) -> int:
            while len(started()) < 2:
                pass
            raise KeyboardInterrupt

        monkeypatch.setattr(memory, "_finish", interrupt)
    else:
        monkeypatch.setattr(memory, "_TIMEOUT_S", 0.5)
    feeds = {"file": np.ones((1, 1000), np.float32)}
    model = matmul(10)
    with pytest.raises(expected):
        peak_memory({"a": (model, Options()), "b": (model, Options())}, feeds, scratch)
    assert not any(alive(pid) for pid in started())
