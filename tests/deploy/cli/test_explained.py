"""Why each block is what it is: behind a build, in a report alone, in JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.bundle.read import Bundle
from deploy.pipeline import Progress
from deploy.progress import SILENT
from deploy.spec.explanation import Explained, Explanation
from deploy.stages.request import Request

Deploy = Callable[..., tuple[int, str, str]]
FOUND = Explained(
    basis="measured here",
    blocks=(
        Explanation(id="conv1", precision="int8", float_ms=0.2, integer_ms=0.1, reason="twice float"),
        Explanation(id="sm\x1b", precision="float", reason="no integer kernel"),
    ),
)


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch, make_bundle: Callable[..., Bundle]) -> None:
    def run(request: Request, progress: Progress = SILENT) -> Bundle:
        bundle = make_bundle(request.target)
        measurements = bundle.measurements.model_copy(update={"explained": FOUND})
        return Bundle(bundle.folder, bundle.manifest, measurements, bundle.digest)

    monkeypatch.setattr("deploy.pipeline.run", run)


def test_a_build_says_why_where_it_is_asked(deploy: Deploy, explained: None) -> None:
    code, out, _ = deploy("build", "m.onnx", "-t", "x86-cpu", "--explain")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("conv1"))
    assert line.split() == ["conv1", "int8", "0.2000", "0.1000", "twice", "float"]
    assert "by the costs of kernels, measured here" in out and "sm\\x1b" in out
    assert "twice float" not in deploy("build", "m.onnx", "-t", "x86-cpu")[1]


def test_json_has_it_as_it_lies_in_the_bundle(deploy: Deploy, explained: None) -> None:
    found = json.loads(deploy("build", "m.onnx", "-t", "x86-cpu", "--explain", "--json")[1])
    assert Explained.model_validate(found["explanation"]) == FOUND
    assert "explanation" not in json.loads(deploy("build", "m.onnx", "-t", "x86-cpu", "--json")[1])


def test_a_report_of_it_alone(deploy: Deploy, real_bundle: Path) -> None:
    code, out, err = deploy("report", real_bundle, "--explain")
    assert (code, err) == (0, "")
    assert "noise" in out and "how to run it" not in out
    assert out in deploy("report", real_bundle)[1]


def test_another_form_with_it_is_refused(deploy: Deploy, real_bundle: Path) -> None:
    code, _, err = deploy("report", real_bundle, "--explain", "--format", "html")
    assert code == 2 and "--explain is shown in the terminal" in err


def test_a_bundle_from_before_says_that_nothing_is_known(
    deploy: Deploy, here: Path, real_bundle: Path
) -> None:
    copy = Path(shutil.copytree(real_bundle, here / "copy"))
    measurements = json.loads((copy / "measurements.json").read_text())
    del measurements["explained"]
    (copy / "measurements.json").write_text(json.dumps(measurements))
    code, out, _ = deploy("report", copy, "--explain")
    assert code == 0 and "build the bundle again" in out
