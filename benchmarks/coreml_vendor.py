"""coremltools' own tests of operations, computed by our interpreter instead of Core ML.

    python benchmarks/coreml_vendor.py [--each N] [--torch] [--compute float32] [pytest arguments]

coremltools carries its tests. Each builds a program, has Core ML compute it (on macOS) and compares with
numbers written down, NumPy or PyTorch: so their expectations have been checked against Core ML by those who
made it, and they check our interpreter where there is no Core ML. Here ``predict`` is ours, and N cases
of each test run.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import BackendError

OPERATIONS = "coremltools.converters.mil.mil.ops.tests"
TORCH = "coremltools.converters.mil.frontend.torch.test.test_torch_ops"
_SKIPPED = ("random", "classify", "custom", "Rand", "rand", "Multinomial", "Bernoulli")
"""What has no one result."""


class _State:
    """What ``make_state`` gives."""

    def __init__(self, states: dict[str, np.ndarray]) -> None:
        self.states = states

    def read_state(self, name: str) -> np.ndarray:
        return self.states[name]

    def write_state(self, name: str, value: np.ndarray) -> None:
        self.states[name] = np.asarray(value)


def _runner(model):
    from backends.coreml.runner import CoreMLOptions, CoreMLRunner

    if getattr(model, "_ours", None) is None:
        compute = os.environ["COREML_COMPUTE"]
        model._ours = CoreMLRunner(Path(model.package_path), CoreMLOptions(compute=compute))
    return model._ours


def _predict(model, data, state=None):
    """As coremltools' ``MLModel.predict``: arrays of other types are converted, states are kept."""
    runner = _runner(model)
    feeds = {}
    for spec in runner.inputs:
        value = data.get(spec.name)
        if value is None:
            continue
        if hasattr(value, "detach"):
            value = value.detach().numpy()
        array = np.asarray(value)
        if spec.layout == "NHWC":
            array = array[None] if array.ndim == 3 else array[None, ..., None]
        elif array.ndim == 0 and spec.shape:
            array = array.reshape(1)
        feeds[spec.name] = array.astype(spec.dtype)
    try:
        found = runner.run(feeds, state=None if state is None else state.states)
    except BackendError as e:
        raise RuntimeError(f"Error computing NN outputs: {e.message}") from e
    for name, array in found.items():
        if array.dtype == np.float16:  # as on macOS
            found[name] = array.astype(np.float32)
    return found


def pytest_configure() -> None:
    """Put ourselves in Core ML's place."""
    from coremltools import _deps
    from coremltools.converters.mil import testing_utils
    from coremltools.models import MLModel, utils

    utils._macos_version = lambda: (15, 5)
    testing_utils._IS_MACOS = _deps._IS_MACOS = True
    testing_utils.coremltoolsutils._is_macos = lambda: False
    MLModel.predict = _predict
    MLModel.make_state = lambda model: _State(_runner(model).fresh_state())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """So many cases of each test, by chance, and none whose result is chance."""
    each, rng = int(os.environ["COREML_EACH"]), np.random.default_rng(int(os.environ["COREML_SEED"]))
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not any(word in item.nodeid for word in _SKIPPED):
            tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    items[:] = [
        cases[index]
        for cases in tests.values()
        for index in sorted(rng.permutation(len(cases))[: each or len(cases)])
    ]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line for every failure at once, since a run may be cut short."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        said = " ".join((crash.message if crash else str(report.longrepr)).split())
        print(f"\nFAILED {report.nodeid.rpartition('/')[2]}: {said[:600]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=0, help="cases of each test; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--torch", action="store_true", help="the torch converter's tests instead")
    parser.add_argument("--compute", default="float32", help="float16: rounded after every operation")
    known, rest = parser.parse_known_args()
    here = Path(__file__).resolve()
    os.environ |= {
        "PYMIL_TEST_TARGETS": "mlprogram", "INCLUDE_MIL_FP32_UNIT_TESTS": "1",
        "COREML_EACH": str(known.each), "COREML_SEED": str(known.seed), "COREML_COMPUTE": known.compute,
        "PYTHONPATH": f"{here.parents[1]}{os.pathsep}{here.parent}",
    }  # fmt: skip
    sys.path[:0] = [str(here.parents[1]), str(here.parent)]
    with tempfile.TemporaryDirectory() as work:
        os.chdir(work)
        (Path(work) / "pytest.ini").write_text("[pytest]\n")
        chosen = [TORCH] if known.torch else [OPERATIONS]
        chosen = [] if any("::" in r or r.startswith("coremltools") for r in rest) else chosen
        return pytest.main(
            [
                "-p",
                "coreml_vendor",
                "--pyargs",
                "-q",
                "-p",
                "no:cacheprovider",
                "-W",
                "ignore",
                *rest,
                *chosen,
            ]
        )


if __name__ == "__main__":
    raise SystemExit(main())
