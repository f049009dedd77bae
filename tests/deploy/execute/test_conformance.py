"""The executor against the node cases of ONNX: each one of a listed operation passes or is known not to."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from deploy.execute.ops import TABLE

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

OPERATIONS = 195
PASSING = 1_800
"""What there is at least, with the onnx package of today."""


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"execute_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


conformance = load(HERE / "conformance.py")
KNOWN: dict[str, str] = load(HERE / "known.py").KNOWN


@pytest.fixture(scope="module")
def failed() -> dict[str, str]:
    """The cases of listed operations that do not pass, with what was said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, where it compares numbers that are none
        return {name: said for listed in conformance.report().values() for name, said in listed}


def listed() -> list[str]:
    return [case.name for case in conformance.cases() if case.ops <= TABLE.keys()]


def test_every_case_of_a_listed_operation_passes_or_is_known(failed: dict[str, str]) -> None:
    assert {name: said for name, said in failed.items() if name not in KNOWN} == {}


def test_none_passes_that_is_known_not_to(failed: dict[str, str]) -> None:
    assert sorted(KNOWN.keys() - failed.keys() & set(listed())) == []


def test_what_is_known_are_cases_of_listed_operations_with_reasons() -> None:
    assert sorted(KNOWN.keys() - set(listed())) == []
    assert all(KNOWN.values())
    assert list(KNOWN) == sorted(KNOWN)


def test_no_fewer_operations_and_cases_than_before(failed: dict[str, str]) -> None:
    assert len(TABLE) >= OPERATIONS
    assert len(listed()) - len(failed) >= PASSING


def test_page_of_the_coverage_is_fresh(failed: dict[str, str]) -> None:
    coverage = load(ROOT / "docs" / "coverage.py")
    page = (ROOT / "docs" / "pages" / "reference" / coverage.TORCH_PAGE).read_text(encoding="utf-8")
    assert page == coverage.torch_page(conformance, KNOWN, failed), "run `make docs` and commit"
