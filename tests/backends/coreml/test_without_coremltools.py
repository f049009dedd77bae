"""Where coremltools is missing: what is said, and that packages are evaluated all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools")
from coreml_packages import saved

from backends.coreml import CoreML
from backends.coreml import sdk as module

RUN = """
import sys
sys.modules["coremltools"] = None
import numpy as np
from pathlib import Path
from backends.coreml.contents import read_contents
from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import sdk
from deploy.errors import ToolchainError

try:
    sdk()
    raise SystemExit("coremltools is here")
except ToolchainError:
    path = Path(sys.argv[1])
    with CoreMLRunner(path, CoreMLOptions()) as runner:
        (found,) = runner.run({"x": np.arange(3, dtype=np.float32)}).values()
    print(found.tolist(), read_contents(path).operators[0].op)
"""


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def none(name: str) -> object:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(module, "import_module", none)
    module.sdk.cache_clear()
    yield
    monkeypatch.undo()
    module.sdk.cache_clear()


def test_it_is_said_what_to_do(gone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    found = CoreML().available()
    assert not found.usable and "pip install 'deploy-compiler[coreml]'" in found.missing
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    found = CoreML().available()
    assert not found.usable and "there is none for this machine" in found.missing
    assert "macOS and for Linux on x86-64" in found.missing and "pip" not in found.missing


def test_packages_are_evaluated_without_it(tmp_path: Path) -> None:
    path = saved(lambda mb, x: mb.square(x=x), {"x": (3,)}, tmp_path / "p.mlpackage")
    said = subprocess.run([sys.executable, "-c", RUN, path], capture_output=True, text=True, check=False)
    assert said.stdout.strip() == f"{np.square([0.0, 1, 2]).tolist()} square", said.stderr
