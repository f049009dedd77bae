"""coremltools' own tests of operations, computed by our interpreter instead of Core ML.

    python benchmarks/coreml_vendor.py [--every N] [--torch] [--precision fp32] [pytest arguments]

coremltools carries its tests. Each builds a program, has Core ML compute it (on macOS) and compares with
numbers written down, NumPy or PyTorch: so their expectations have been checked against Core ML by those who
made it, and they check our interpreter where there is no Core ML. Here ``predict`` is ours; every Nth runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

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
        compute = os.environ.get("COREML_COMPUTE", "float16")
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
    found = runner.run(feeds, state=None if state is None else state.states)
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
    """Every Nth case, and none whose result is chance."""
    every = int(os.environ.get("COREML_EVERY", "1"))
    precision = os.environ.get("COREML_PRECISION", "")
    kept = [item for item in items if not any(word in item.nodeid for word in _SKIPPED)]
    if precision:
        kept = [item for item in kept if precision in item.nodeid or "precision" not in item.nodeid]
    seed = int(os.environ.get("COREML_SEED", "0"))
    items[:] = kept[seed % every :: every]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="which of every N cases")
    parser.add_argument("--torch", action="store_true", help="the torch converter's tests instead")
    parser.add_argument("--precision", default="", help="fp16 or fp32 alone")
    known, rest = parser.parse_known_args()
    here = Path(__file__).resolve()
    os.environ |= {
        "PYMIL_TEST_TARGETS": "mlprogram", "INCLUDE_MIL_FP32_UNIT_TESTS": "1", "COREML_EVERY": str(known.every),
        "COREML_PRECISION": known.precision, "COREML_SEED": str(known.seed),
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
